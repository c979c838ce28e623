"""U-ViT: time, class and noisy patches as tokens, through attention blocks with long skip connections.

Source: "All are Worth Words: A ViT Backbone for Diffusion Models" (arXiv 2209.12152), under the published parameter
names. A model of depth d has d // 2 in-blocks, one middle block and d // 2 out-blocks; the i-th out-block takes the
output of the i-th in-block from the end through ``skip_linear``. Unlike there, it can predict the variance too.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from dis_cli.models.backbone import Backbone
from dis_cli.models.cost import require_patches
from dis_cli.models.embed import PatchEmbed, RowWise, timestep_embedding, unpatchify
from dis_cli.models.fixed_batch import in_fixed_batches
from dis_cli.models.transformers.layers import Attention, Mlp
from dis_cli.models.transformers.shape import heads_of
from dis_cli.models.uvit.sizes import SIZES, has_final_conv, require_depth


class Block(nn.Module):
    """Attention and MLP behind norms, after the long skip where there is one."""

    def __init__(self, embed_dim: int, num_heads: int, *, skip: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim)
        self.attn = Attention(embed_dim, num_heads, qkv_bias=False)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.mlp = Mlp(embed_dim, approximate="none")
        self.skip_linear = nn.Linear(2 * embed_dim, embed_dim) if skip else None

    def forward(
        self, tokens: Float[Tensor, "b l d"], skip: Float[Tensor, "b l d"] | None = None
    ) -> Float[Tensor, "b l d"]:
        """One block; ``skip`` is the output of the matching in-block."""
        if self.skip_linear is not None and skip is not None:
            tokens = self.skip_linear(torch.cat([tokens, skip], dim=-1))
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class UViT(Backbone):
    """The U-ViT noise predictor.

    Args:
        patch_size: Side of a patch; divides ``image_size``.
        embed_dim: Width of a token.
        depth: Number of blocks, odd.
        num_heads: Attention heads of a block; None takes those of the named size of this width.
        final_conv: Whether a 3x3 convolution comes last; None: on pixels (1 or 3 channels), not on latents.
        time_mlp: Whether two linear layers follow the sinusoids of the time.
        engine: Not used: it has no scan.

    Raises:
        ValueError: ``patch_size`` does not divide ``image_size``, ``num_heads`` does not divide ``embed_dim`` or is
            not known, or ``depth`` is even.
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
        final_conv: bool | None = None,
        time_mlp: bool = False,
        engine: str = "auto",  # noqa: ARG002 - all networks take it
    ) -> None:
        super().__init__(image_size, in_channels, num_classes, learn_sigma=learn_sigma, label_drop=label_drop)
        require_patches(image_size, patch_size)
        require_depth(depth)
        heads = heads_of(embed_dim, num_heads, SIZES)
        self.patch_size, self.embed_dim = patch_size, embed_dim
        self.extras = 2 if num_classes else 1
        self.patch_embed = PatchEmbed(patch_size, in_channels, embed_dim)
        self.time_embed = (
            RowWise(nn.Linear(embed_dim, 4 * embed_dim), nn.SiLU(), nn.Linear(4 * embed_dim, embed_dim))
            if time_mlp
            else nn.Identity()
        )
        self.label_emb = nn.Embedding(num_classes + 1, embed_dim) if num_classes else None
        self.pos_embed = nn.Parameter(torch.empty(1, self.extras + (image_size // patch_size) ** 2, embed_dim))
        self.in_blocks = nn.ModuleList(Block(embed_dim, heads, skip=False) for _ in range(depth // 2))
        self.mid_block = Block(embed_dim, heads, skip=False)
        self.out_blocks = nn.ModuleList(Block(embed_dim, heads, skip=True) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(embed_dim)
        self.decoder_pred = nn.Linear(embed_dim, patch_size**2 * self.out_channels)
        self.final_layer = (
            nn.Conv2d(self.out_channels, self.out_channels, 3, padding=1)
            if has_final_conv(in_channels, final_conv)
            else nn.Identity()
        )
        if not self.pos_embed.is_meta:
            self._initialize()

    @property
    def num_tokens(self) -> int:
        """Length of the sequence: class and time, and the patches."""
        return self.pos_embed.shape[1]

    def blocks(self) -> Iterator[Block]:
        """All blocks in the order in which they run."""
        for block in (*self.in_blocks, self.mid_block, *self.out_blocks):
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
        time = self.time_embed(timestep_embedding(t, self.embed_dim))
        tokens = [time[:, None], self.patch_embed(x)]
        if self.label_emb is not None and labels is not None:
            tokens.insert(0, self.label_emb(self.drop_labels(labels, label_drop_uniform))[:, None])
        hidden = torch.cat(tokens, dim=1) + self.pos_embed
        skips: list[Tensor] = []
        for index, block in enumerate(self.blocks()):
            skip = skips.pop() if block.skip_linear is not None else None
            hidden = self.run(block, hidden, skip)
            if index < len(self.in_blocks):
                skips.append(hidden)
        # The extra tokens pass the last layer as published and are dropped after it: the same as dropping them before.
        patches = self.decoder_pred(self.norm(hidden[:, self.extras :]))
        grid = unpatchify(patches, self.patch_size, self.out_channels)
        is_fixed = isinstance(self.final_layer, nn.Conv2d) and not self.training
        return in_fixed_batches(self.final_layer, grid) if is_fixed else self.final_layer(grid)

    def _initialize(self) -> None:
        """As published: linear weights and positions N(0, 0.02) cut at 2, zero biases; the rest as torch has it."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
