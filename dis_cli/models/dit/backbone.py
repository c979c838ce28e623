"""DiT: noisy patches as tokens, through attention blocks that time and class modulate.

Source: "Scalable Diffusion Models with Transformers" (arXiv 2212.09748), its adaLN-Zero blocks, under the published
parameter names. Unlike there, an unconditional model has no table of classes.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from dis_cli.models.backbone import Backbone
from dis_cli.models.cost import require_patches
from dis_cli.models.dit.cost import SINUSOIDS
from dis_cli.models.dit.sizes import SIZES, require_width
from dis_cli.models.embed import FinalLayer, LabelEmbed, PatchEmbed, RowWise, timestep_embedding, unpatchify
from dis_cli.models.transformers.layers import Attention, Mlp
from dis_cli.models.transformers.shape import heads_of

_NORM_EPS = 1e-6


class TimeEmbed(nn.Module):
    """Sinusoids of the timestep through two linear layers."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.mlp = RowWise(nn.Linear(SINUSOIDS, embed_dim), nn.SiLU(), nn.Linear(embed_dim, embed_dim))

    def forward(self, t: Shaped[Tensor, " b"]) -> Float[Tensor, "b d"]:
        return self.mlp(timestep_embedding(t, SINUSOIDS))


class Block(nn.Module):
    """Attention and MLP, each behind a norm whose shift, scale and gate come from the condition."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, elementwise_affine=False, eps=_NORM_EPS)
        self.attn = Attention(embed_dim, num_heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(embed_dim, elementwise_affine=False, eps=_NORM_EPS)
        self.mlp = Mlp(embed_dim, approximate="tanh")
        self.adaLN_modulation = RowWise(nn.SiLU(), nn.Linear(embed_dim, 6 * embed_dim))

    def forward(self, tokens: Float[Tensor, "b l d"], condition: Float[Tensor, "b d"]) -> Float[Tensor, "b l d"]:
        """One block; where all gates are 0, as at the start, its output is its input."""
        modulation = self.adaLN_modulation(condition)[:, None]
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = modulation.chunk(6, dim=-1)
        attended = self.attn(torch.addcmul(shift_attn, self.norm1(tokens), 1 + scale_attn))
        tokens = torch.addcmul(tokens, gate_attn, attended)
        return torch.addcmul(tokens, gate_mlp, self.mlp(torch.addcmul(shift_mlp, self.norm2(tokens), 1 + scale_mlp)))


class DiT(Backbone):
    """The DiT noise predictor.

    Its table of positions is a parameter that is not trained, as published: files in the published layout hold it.

    Args:
        patch_size: Side of a patch; divides ``image_size``.
        embed_dim: Width of a token, a multiple of 4.
        depth: Number of blocks.
        num_heads: Attention heads of a block; None takes those of the named size of this width.
        engine: Not used: it has no scan.

    Raises:
        ValueError: ``patch_size`` does not divide ``image_size``, ``num_heads`` does not divide ``embed_dim`` or is
            not known, or ``embed_dim`` is no multiple of 4.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        in_channels: int,
        embed_dim: int,
        depth: int,
        num_heads: int | None = None,
        num_classes: int = 0,
        learn_sigma: bool = True,
        label_drop: float = 0.1,
        *,
        engine: str = "auto",  # noqa: ARG002 - all networks take it
    ) -> None:
        super().__init__(image_size, in_channels, num_classes, learn_sigma=learn_sigma, label_drop=label_drop)
        require_patches(image_size, patch_size)
        require_width(embed_dim)
        heads = heads_of(embed_dim, num_heads, SIZES)
        self.patch_size = patch_size
        self.x_embedder = PatchEmbed(patch_size, in_channels, embed_dim)
        self.t_embedder = TimeEmbed(embed_dim)
        self.y_embedder = LabelEmbed(num_classes, embed_dim) if num_classes else None
        side = image_size // patch_size
        self.pos_embed = nn.Parameter(torch.empty(1, side * side, embed_dim), requires_grad=False)
        # By its published name, which is also that of a method of every backbone: as an attribute it is the method.
        self._modules["blocks"] = nn.ModuleList(Block(embed_dim, heads) for _ in range(depth))
        self.final_layer = FinalLayer(embed_dim, patch_size, self.out_channels, modulated=True)
        if not self.pos_embed.is_meta:
            self._initialize()

    @property
    def num_tokens(self) -> int:
        """Length of the sequence: the patches."""
        return self.pos_embed.shape[1]

    def blocks(self) -> Iterator[Block]:
        """All blocks in the order in which they run."""
        stack = self._modules["blocks"]
        assert isinstance(stack, nn.ModuleList)
        for block in stack:
            assert isinstance(block, Block)
            yield block

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        t: Shaped[Tensor, " b"],
        labels: Int[Tensor, " b"] | None = None,
        *,
        label_drop_uniform: Float[Tensor, " b"] | None = None,
        drop_path_uniform: Float[Tensor, "drops b"] | None = None,  # noqa: ARG002 - it drops none
    ) -> Float[Tensor, "b out h w"]:
        """See `Backbone.forward`."""
        self.require_fitting(x, labels)
        condition = self.t_embedder(t)
        if self.y_embedder is not None and labels is not None:
            condition = condition + self.y_embedder(self.drop_labels(labels, label_drop_uniform))
        tokens = self.x_embedder(x) + self.pos_embed
        for block in self.blocks():
            tokens = self.run(block, tokens, condition)
        return unpatchify(self.final_layer(tokens, condition), self.patch_size, self.out_channels)

    def _initialize(self) -> None:
        """As published: all modulations and the output begin at zero, so that every block begins as the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        zeros: list[Tensor] = []
        if self.x_embedder.proj.bias is not None:
            zeros.append(self.x_embedder.proj.bias)
        for module in self.t_embedder.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        if self.y_embedder is not None:
            nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        modulations = [block.adaLN_modulation for block in self.blocks()]
        for modulation in (*modulations, self.final_layer.adaLN_modulation):
            assert modulation is not None
            zeros += modulation.parameters()
        zeros += self.final_layer.linear.parameters()
        for parameter in zeros:
            nn.init.zeros_(parameter)
        with torch.no_grad():
            side, width = self.image_size // self.patch_size, self.pos_embed.shape[2]
            self.pos_embed.copy_(fixed_positions(side, width)[None])


def fixed_positions(side: int, width: int) -> Float[Tensor, "l {width}"]:
    """Sines and cosines of column and row, a quarter of the width each, of a square grid's places row by row.

    Frequency i of ``width // 4`` is ``10000^(-4 i / width)``; the column comes first, as published. Made in float64 and
    rounded once.
    """
    quarter = width // 4
    frequencies = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64, device="cpu") / quarter)
    angles = torch.arange(side, dtype=torch.float64, device="cpu")[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns, rows = waves.repeat(side, 1), waves.repeat_interleave(side, dim=0)
    return torch.cat([columns, rows], dim=1).float()
