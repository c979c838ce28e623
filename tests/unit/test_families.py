"""DiT, U-ViT and U-Net: counts, published figures, published layouts, bits, and what no such model can be."""

import random
from dataclasses import asdict
from typing import Any

import pytest
import torch
from support.families import OTHERS, SMALL, small
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dis_cli.models.cost import ModelShape
from dis_cli.models.dis.sizes import Shape as DisShape
from dis_cli.models.dit.backbone import fixed_positions
from dis_cli.models.families import FAMILIES
from dis_cli.models.match import FIGURES, nearest
from dis_cli.models.meta import count


def shape_of(family: str, size: str, **grid: Any) -> ModelShape:
    row = FAMILIES[family]
    return row.shape(**grid, **asdict(row.sizes[size]))


@pytest.mark.parametrize(
    ("family", "size", "grid", "parameters"),
    [
        ("dit", "s", (32, 2, 4, 1000, True), 32_963_360),
        ("dit", "b", (32, 2, 4, 1000, True), 130_512_416),
        ("dit", "l", (32, 2, 4, 1000, True), 458_102_816),
        ("dit", "xl", (32, 2, 4, 1000, True), 675_129_632),
        ("uvit", "s", (32, 2, 3, 0, False), 44_255_328),
        ("uvit", "m", (64, 4, 3, 1000, False), 130_941_060),
        ("uvit", "l", (32, 2, 4, 1000, False), 286_763_024),
        ("uvit", "h", (32, 2, 4, 1000, False), 500_832_016),
    ],
)
def test_named_sizes_have_their_published_parameters(family: str, size: str, grid: tuple, parameters: int) -> None:
    names = ("image_size", "patch_size", "in_channels", "num_classes", "learn_sigma")
    shape = shape_of(family, size, **dict(zip(names, grid, strict=True)))
    assert FAMILIES[family].cost(shape).parameters == parameters


def test_dit_xl_has_its_published_operations() -> None:
    sizes = {"patch_size": 2, "in_channels": 4, "num_classes": 1000}
    macs = [FAMILIES["dit"].cost(shape_of("dit", "xl", image_size=side, **sizes)).macs for side in (32, 64)]
    assert [f"{number / 1e9:.1f}" for number in macs] == ["118.6", "524.5"]


def test_named_unets_are_near_what_they_are_called_after() -> None:
    pixels = shape_of("unet", "ddpm++", image_size=32, in_channels=3, learn_sigma=False)
    assert 0.9 < FAMILIES["unet"].cost(pixels).parameters / 61.8e6 < 1.1
    adm = shape_of("unet", "adm", image_size=64, in_channels=3, num_classes=1000)
    assert 0.88 < FAMILIES["unet"].cost(adm).parameters / 296e6 < 1.12
    dis = FAMILIES["dis"]
    digits = {"image_size": 8, "in_channels": 1, "num_classes": 10, "learn_sigma": False}
    pairs = [
        (shape_of("unet", "xs", **digits), DisShape(patch_size=2, d_state=8, **digits, **asdict(dis.sizes["xs"]))),
        *(
            (shape_of("unet", "s", **grid), DisShape(patch_size=2, **grid, **asdict(dis.sizes["s"])))
            for grid in (
                {"image_size": 32, "in_channels": 3},
                {"image_size": 8, "in_channels": 4, "num_classes": 10, "learn_sigma": False},
            )
        ),
    ]
    for unet, ours in pairs:
        assert FAMILIES["unet"].cost(unet).parameters == pytest.approx(dis.cost(ours).parameters, rel=0.02)


def random_shape(family: str, draw: random.Random) -> ModelShape:
    grid = {
        "in_channels": draw.choice([1, 3, 4]),
        "num_classes": draw.choice([0, 7]),
        "learn_sigma": draw.choice([True, False]),
    }
    if family == "unet":
        levels = draw.randint(1, 3)
        return FAMILIES[family].shape(
            image_size=4 << draw.randint(levels - 1, 3),
            channels=draw.choice([8, 12]),
            multipliers=(1, *(draw.randint(1, 3) for _ in range(levels - 1))),
            num_blocks=draw.randint(1, 2),
            attention_levels=tuple(sorted(draw.sample(range(levels), draw.randint(0, levels)))),
            head_channels=draw.choice([None, 4]),
            norm_groups=4,
            **grid,
        )
    patch, own = draw.randint(1, 3), {}
    if family == "uvit":
        own = {"final_conv": draw.choice([True, False, None]), "time_mlp": draw.choice([True, False])}
    return FAMILIES[family].shape(
        image_size=patch * draw.randint(1, 5),
        patch_size=patch,
        embed_dim=draw.choice([8, 24, 40]),
        depth=draw.choice([1, 3, 5]),
        num_heads=draw.choice([1, 2, 4]),
        **grid,
        **own,
    )


def operations(model: nn.Module, x: Tensor, t: Tensor, labels: Tensor | None, *, backward: bool) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = model(x, t, labels)
        if backward:
            output.square().sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", OTHERS)
def test_counts_equal_those_of_the_network(family: str, seed: int) -> None:
    shape = random_shape(family, random.Random(seed))
    row = FAMILIES[family]
    cost, model = row.cost(shape), row.build(**asdict(shape)).train()
    assert sum(parameter.numel() for parameter in model.parameters()) == cost.parameters
    assert model.num_tokens == cost.tokens == shape.num_tokens
    x = torch.randn(1, shape.in_channels, shape.image_size, shape.image_size)
    labels = torch.tensor([3]) if shape.num_classes else None
    inputs = (x, torch.tensor([500]), labels)
    assert operations(model, *inputs, backward=False) == 2 * cost.macs
    assert operations(model, *inputs, backward=True) == 2 * cost.training_macs
    model.gradient_checkpointing = True
    assert operations(model, *inputs, backward=True) == 2 * (cost.training_macs + cost.recomputed_macs)
    on_meta = count(row.build, shape)
    assert (on_meta.parameters, on_meta.macs) == (cost.parameters, cost.macs)


@pytest.mark.parametrize("family", OTHERS)
def test_gradients_are_the_same_bits_with_gradient_checkpointing(family: str) -> None:
    model = small(family).train()
    x, t, labels = torch.randn(3, 1, 8, 8), torch.tensor([1, 500, 999]), torch.tensor([0, 5, 10])
    gradients = []
    for again in (False, True):
        model.gradient_checkpointing = again
        model.zero_grad()
        model(x, t, labels, label_drop_uniform=torch.tensor([0.0, 0.5, 0.9])).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == sum(parameter.requires_grad for parameter in model.parameters())
    assert all(one.equal(other) for one, other in zip(*gradients, strict=True))
    # A dropped label is the null class.
    dropped = model(x, t, labels, label_drop_uniform=torch.zeros(3))
    assert dropped.equal(model(x, t, torch.full((3,), 10), label_drop_uniform=torch.ones(3)))


@pytest.mark.parametrize("family", OTHERS)
def test_an_image_has_the_same_bits_in_any_batch_and_place(family: str) -> None:
    for changes in ({}, {"in_channels": 3, "num_classes": 0}):
        model = small(family, **changes).eval()
        x, t = torch.randn(24, model.in_channels, 8, 8), torch.randint(0, 1000, (24,))
        labels = torch.randint(0, 11, (24,)) if model.num_classes else None

        def predict(indices: Tensor, x: Tensor = x, t: Tensor = t, model=model, labels=labels) -> Tensor:
            with torch.inference_mode():
                return model(x[indices], t[indices], None if labels is None else labels[indices])

        whole = predict(torch.arange(24))
        for size in (1, 3, 8):
            parts = torch.cat([predict(part) for part in torch.arange(24).split(size)])
            assert parts.equal(whole), size
        shuffled = torch.randperm(24)
        assert predict(shuffled).equal(whole[shuffled])


def published_dit(depth: int, width: int, *, patch: int, tokens: int, channels: int, classes: int) -> dict[str, tuple]:
    """Name and shape of all weights in a published file, its own table of positions among them."""
    shapes: dict[str, tuple] = {"pos_embed": (1, tokens, width)}

    def linear(name: str, outputs: int, *inputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, *inputs), (outputs,)

    linear("x_embedder.proj", width, channels, patch, patch)
    linear("t_embedder.mlp.0", width, 256)
    linear("t_embedder.mlp.2", width, width)
    shapes["y_embedder.embedding_table.weight"] = (classes + 1, width)
    for index in range(depth):
        block = f"blocks.{index}"
        linear(f"{block}.attn.qkv", 3 * width, width)
        linear(f"{block}.attn.proj", width, width)
        linear(f"{block}.mlp.fc1", 4 * width, width)
        linear(f"{block}.mlp.fc2", width, 4 * width)
        linear(f"{block}.adaLN_modulation.1", 6 * width, width)
    linear("final_layer.linear", patch**2 * 2 * channels, width)
    linear("final_layer.adaLN_modulation.1", 2 * width, width)
    return shapes


def published_uvit(depth: int, width: int, *, patch: int, tokens: int, channels: int, classes: int, conv: bool):
    shapes: dict[str, tuple] = {"pos_embed": (1, tokens + 2, width), "label_emb.weight": (classes + 1, width)}

    def linear(name: str, outputs: int, *inputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, *inputs), (outputs,)

    linear("patch_embed.proj", width, channels, patch, patch)
    half = depth // 2
    groups = [f"in_blocks.{i}" for i in range(half)], ["mid_block"], [f"out_blocks.{i}" for i in range(half)]
    for block in (name for group in groups for name in group):
        linear(f"{block}.norm1", width)
        shapes[f"{block}.attn.qkv.weight"] = (3 * width, width)
        linear(f"{block}.attn.proj", width, width)
        linear(f"{block}.norm2", width)
        linear(f"{block}.mlp.fc1", 4 * width, width)
        linear(f"{block}.mlp.fc2", width, 4 * width)
        if block.startswith("out"):
            linear(f"{block}.skip_linear", width, 2 * width)
    linear("norm", width)
    linear("decoder_pred", patch**2 * channels, width)
    if conv:
        linear("final_layer", channels, channels, 3, 3)
    return shapes


@pytest.mark.parametrize(
    ("family", "shapes", "expected"),
    [
        (
            "dit",
            published_dit(3, 384, patch=2, tokens=16, channels=4, classes=5),
            {"image_size": 8, "patch_size": 2, "in_channels": 4, "embed_dim": 384, "depth": 3, "num_classes": 5},
        ),
        (
            "uvit",
            published_uvit(3, 512, patch=4, tokens=16, channels=4, classes=7, conv=False),
            {"image_size": 16, "patch_size": 4, "embed_dim": 512, "depth": 3, "num_classes": 7, "final_conv": False},
        ),
        (
            "uvit",
            published_uvit(5, 512, patch=2, tokens=9, channels=3, classes=7, conv=True),
            {"image_size": 6, "in_channels": 3, "depth": 5, "learn_sigma": False, "final_conv": True},
        ),
    ],
)
def test_published_layouts_are_recognised_and_load_by_name(family: str, shapes, expected: dict[str, Any]) -> None:
    row = FAMILIES[family]
    found = row.settings_of(shapes)
    assert {name: found[name] for name in expected} == expected
    model = row.build(**found)
    model.load_state_dict({name: torch.randn(shape) for name, shape in shapes.items()}, strict=True)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == shapes
    # Its heads are those of the named width.
    assert row.shape(**found).num_heads == {"dit": 6, "uvit": 8}[family]
    with pytest.raises(ValueError, match="1 missing: "):
        row.settings_of(dict(list(shapes.items())[:-1]))


def test_fixed_positions_are_the_published_ones() -> None:
    # Place 5 of a grid of side 4 is row 1, column 1; place 6 is row 1, column 2.
    table = fixed_positions(4, 8)
    for place, (row, column) in {5: (1, 1), 6: (1, 2), 8: (2, 0)}.items():
        waves = [torch.tensor([value, value / 100]) for value in (column, row)]
        expected = torch.cat([torch.cat([wave.sin(), wave.cos()]) for wave in waves])
        torch.testing.assert_close(table[place], expected)


def test_a_unet_takes_the_state_of_diffusers_and_computes_the_same() -> None:
    from diffusers.models.unets.unet_2d import UNet2DModel

    theirs = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=None,
        norm_num_groups=4,
        num_class_embeds=11,
    )
    ours = small("unet")
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, t, labels = torch.randn(8, 1, 8, 8), torch.randint(0, 1000, (8,)), torch.randint(0, 11, (8,))
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x, t, labels), theirs.eval()(x, t, labels).sample, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("by", FIGURES)
def test_the_nearest_of_a_family_is_near(family: str, by: str) -> None:
    row, dis = FAMILIES[family], FAMILIES["dis"]
    digits = {"image_size": 8, "in_channels": 1, "num_classes": 10, "learn_sigma": False}
    cifar = {"image_size": 32, "in_channels": 3, "num_classes": 0, "learn_sigma": True}
    for grid, size in ((digits, "xs"), (cifar, "s")):
        target = FIGURES[by](dis.cost(DisShape(patch_size=2, **grid, **asdict(dis.sizes[size]))))
        patched = grid | {"patch_size": 2 if row.has_patches else 1}
        found = nearest(row, patched, by, target)
        assert FIGURES[by](row.cost(row.shape(**patched, **found))) == pytest.approx(target, rel=0.05)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("dit", {"num_heads": 3}, "num_heads 3 does not divide embed_dim 16"),
        ("dit", {"num_heads": None}, "embed_dim 16 is the width of no named size"),
        ("dit", {"embed_dim": 18, "num_heads": 2}, "multiple of 4 (sine and cosine of row and column), got 18"),
        ("dit", {"patch_size": 3}, "patch_size 3 does not divide image_size 8"),
        ("uvit", {"num_heads": 5}, "num_heads 5 does not divide embed_dim 16"),
        ("uvit", {"depth": 4}, "depth must be odd (half in, one middle, half out), got 4"),
        ("unet", {"norm_groups": 3}, "norm_groups 3 does not divide the 8 channels of level 0"),
        ("unet", {"head_channels": 5}, "head_channels 5 does not divide the 16 channels of level 1"),
        ("unet", {"multipliers": (1, 2, 2)}, "at least 16, got image_size 8"),
        ("unet", {"multipliers": (2, 2)}, "multipliers must begin with 1, the first level's, got 2, 2"),
        ("unet", {"attention_levels": (2,)}, "below the number of levels, which is 2, got 2"),
        ("unet", {"patch_size": 2}, "patch_size must be 1 (a U-Net has no patches), got 2"),
    ],
)
def test_impossible_settings_are_refused_with_both_values(family: str, changes: dict[str, Any], message: str) -> None:
    grid = {"image_size": 8, "in_channels": 1, "num_classes": 10}
    for make in (FAMILIES[family].build, FAMILIES[family].shape):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
            make(**grid, **(SMALL[family] | changes))
        assert message in str(caught.value)
