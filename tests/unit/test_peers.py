"""DiT and U-ViT against their published figures, and against small ones built of torch's layers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dis_cli.models.dis.flops import count
from dis_cli.models.dis.sizes import SIZES, Shape, Size
from dis_cli.models.transformers.cost import DIT, UVIT, cheaper_from, count_dit, count_uvit

LATENTS_256 = Shape(32, 2, 4, 8, 1, 1000)


def attend(qkv: Tensor, heads: int) -> Tensor:
    batch, length, width = qkv.shape
    q, k, v = qkv.view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1)).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(batch, length, width // 3)


class Block(nn.Module):
    """A transformer's layer; with the modulation of DiT (``modulated``) or the norms and the skip of U-ViT."""

    def __init__(self, width: int, *, modulated: bool, skip: bool = False) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=not modulated) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=modulated)
        self.proj = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(width, 6 * width) if modulated else None
        self.skip = nn.Linear(2 * width, width) if skip else None

    def forward(self, x: Tensor, condition: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
        if self.skip is not None:
            x = self.skip(torch.cat([x, skip], -1))
        factors = self.modulation(condition)[:, None].chunk(6, -1) if self.modulation is not None else [1] * 6
        x = x + factors[0] * self.proj(attend(self.qkv(factors[1] * self.norms[0](x) + factors[2]), 2))
        return x + factors[3] * self.mlp(factors[4] * self.norms[1](x) + factors[5])


class TinyDiT(nn.Module):
    def __init__(self, size: Size, grid: Shape) -> None:
        super().__init__()
        width = size.embed_dim
        self.patches = nn.Conv2d(grid.in_channels, width, grid.patch_size, grid.patch_size)
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = nn.Embedding(grid.num_classes + 1, width) if grid.num_classes else None
        self.blocks = nn.ModuleList(Block(width, modulated=True) for _ in range(size.depth))
        self.modulation = nn.Linear(width, 2 * width)
        self.final = nn.Linear(width, grid.output_values)

    def forward(self, x: Tensor) -> Tensor:
        condition = self.time(torch.randn(len(x), 256))
        if self.labels is not None:
            condition = condition + self.labels(torch.zeros(len(x), dtype=torch.long))
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens, condition)
        shift, scale = self.modulation(condition)[:, None].chunk(2, -1)
        return self.final(tokens * scale + shift)


class TinyUViT(nn.Module):
    def __init__(self, size: Size, grid: Shape) -> None:
        super().__init__()
        self.grid, width, half = grid, size.embed_dim, size.depth // 2
        self.patches = nn.Conv2d(grid.in_channels, width, grid.patch_size, grid.patch_size)
        self.labels = nn.Embedding(grid.num_classes + 1, width) if grid.num_classes else None
        self.positions = nn.Parameter(torch.zeros(1, grid.num_patches + grid.num_extras, width))
        self.blocks = nn.ModuleList(Block(width, modulated=False, skip=number > half) for number in range(size.depth))
        self.norm = nn.LayerNorm(width)
        self.final = nn.Linear(width, grid.patch_values)
        self.last = nn.Conv2d(3, 3, 3, padding=1) if grid.in_channels == 3 else None

    def forward(self, x: Tensor) -> Tensor:
        extras = torch.zeros(len(x), self.grid.num_extras, self.positions.shape[-1])
        tokens = torch.cat([extras, self.patches(x).flatten(2).transpose(1, 2)], 1) + self.positions
        half, skips = len(self.blocks) // 2, []
        for number, block in enumerate(self.blocks):
            tokens = block(tokens, skip=skips.pop() if number > half else None)
            if number < half:
                skips.append(tokens)
        patches = self.final(self.norm(tokens))[:, self.grid.num_extras :]
        return patches if self.last is None else self.last(patches.reshape(x.shape))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Size, Shape]:
    patch, side = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    grid = Shape(side * patch, patch, draw(st.sampled_from([3, 4])), 8, 1, draw(st.sampled_from([0, 7])))
    return Size(draw(st.sampled_from([4, 12, 20])), draw(st.sampled_from([1, 3, 5]))), grid


@settings(max_examples=15, deadline=None)
@given(cases())
@pytest.mark.parametrize(("build", "counted"), [(TinyDiT, count_dit), (TinyUViT, count_uvit)], ids=["DiT", "U-ViT"])
def test_counts_equal_those_of_built_layers(build, counted, case: tuple[Size, Shape]) -> None:
    size, grid = case
    model, cost = build(size, grid), counted(size, grid)
    assert sum(parameter.numel() for parameter in model.parameters()) == cost.parameters
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.randn(1, grid.in_channels, grid.image_size, grid.image_size))
    assert counter.get_total_flops() == 2 * cost.macs


def test_dit_xl_has_its_published_figures() -> None:
    cost = count_dit(DIT["xl"], LATENTS_256)
    assert f"{cost.parameters / 1e6:.0f} M, {cost.macs / 1e9:.1f} GMAC" == "675 M, 118.6 GMAC"
    assert f"{count_dit(DIT['xl'], Shape(64, 2, 4, 8, 1, 1000)).macs / 1e9:.0f}" == "525"


@pytest.mark.parametrize(("name", "millions"), [("m", 131), ("l", 287), ("h", 501)])
def test_uvit_has_its_published_parameters(name: str, millions: int) -> None:
    assert round(count_uvit(UVIT[name], LATENTS_256).parameters / 1e6) == millions


def test_uvit_s_has_its_published_parameters() -> None:
    assert round(count_uvit(UVIT["s"], Shape(32, 2, 3, 8, 1)).parameters / 1e6) == 44


def test_attention_is_what_grows_with_the_square() -> None:
    costs = [count_dit(DIT["b"], LATENTS_256, patches) for patches in (1000, 2000)]
    assert costs[1].attention_macs == 4 * costs[0].attention_macs
    fixed = [cost.macs - cost.attention_macs for cost in costs]
    grown = fixed[1] - fixed[0]
    assert fixed[0] < 1.01 * grown


@pytest.mark.parametrize(("name", "sizes", "counted"), [("xl", DIT, count_dit), ("l", UVIT, count_uvit)])
def test_dis_is_cheaper_from_there_on_and_not_before(name: str, sizes, counted) -> None:
    shape = Shape(32, 2, 4, SIZES[name].embed_dim, SIZES[name].depth, 1000)

    def ours(patches: int) -> int:
        return count(shape, patches).macs

    def theirs(patches: int) -> int:
        return counted(sizes[name], shape, patches).macs

    first = cheaper_from(ours, theirs)
    assert first is not None
    assert ours(first - 1) >= theirs(first - 1)
    assert all(ours(patches) < theirs(patches) for patches in range(first, 4 * first, 97))


def test_never_and_always_cheaper() -> None:
    assert cheaper_from(lambda patches: patches + 1, lambda patches: patches) is None
    assert cheaper_from(lambda patches: patches, lambda patches: patches + 1) == 1
