"""DiS: time, class and noisy patches as tokens, through bidirectional Mamba blocks with long skip connections.

Source: "Scalable Diffusion Models with State Space Backbone" (arXiv 2402.05608) and its published code, whose parameter
names are kept. A model of depth d has d // 2 in-blocks, one middle block and d // 2 out-blocks; the i-th out-block
takes the output of the i-th in-block from the end through ``skip_linear``. What the paper compares with are settings:
``skip``, ``directions`` and ``conditioning``; and the order in which a scan meets the patches, ``scan_order``.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from dis_cli.models.backbone import Backbone
from dis_cli.models.cost import require_patches
from dis_cli.models.dis.mixer import Mixer
from dis_cli.models.dis.order import turn
from dis_cli.models.dis.sizes import CONDITIONINGS, DIRECTIONS, SCAN_ORDERS, SKIPS, columns
from dis_cli.models.embed import FinalLayer, LabelEmbed, PatchEmbed, RowWise, timestep_embedding, unpatchify
from dis_cli.scan import add_rms_norm

NORM_EPS = 1e-5


class AddNorm(nn.Module):
    """Adds to the residual stream and normalises it (RMS norm with a weight per channel)."""

    def __init__(self, embed_dim: int, engine: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(embed_dim))
        self.engine = engine

    def forward(
        self,
        hidden: Float[Tensor, "b l d"],
        residual: Float[Tensor, "b l d"] | None,
        keep: Float[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b l d"]]:
        """The norm, and the stream: ``residual`` plus ``hidden``, times ``keep`` where a path may be dropped."""
        if keep is not None:
            hidden = hidden * keep[:, None, None]
        return add_rms_norm(hidden, residual, self.weight, epsilon=NORM_EPS, engine=self.engine)


class Block(nn.Module):
    """Add the incoming hidden state to the residual stream, normalise, mix.

    Args:
        skip: Whether a long skip connection comes in through a linear layer; without it the skip is added.
        d_state: State size of the scan, per channel.
        d_conv: Taps of the causal convolution.
        expand: Inner width of the mixer, as a multiple of ``embed_dim``.
        engine: What computes the scan and the convolution (``dis_cli.scan.engines.choose``).
        both: Whether the mixer scans in both directions.
        modulated: Whether the mixer's input is shifted and scaled, and its output gated, by the condition
            ("adaLN-Zero", arXiv 2212.09748).
        extras: Tokens before the patches where the mixer takes the patches column by column; None leaves the order.
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        skip: bool,
        d_state: int,
        d_conv: int,
        expand: int,
        engine: str,
        both: bool = True,
        modulated: bool = False,
        extras: int | None = None,
    ) -> None:
        super().__init__()
        self.mixer = Mixer(embed_dim, d_state, d_conv, expand, engine, both=both)
        self.norm = AddNorm(embed_dim, engine)
        self.skip_linear = nn.Linear(2 * embed_dim, embed_dim) if skip else None
        self.adaLN_modulation = RowWise(nn.SiLU(), nn.Linear(embed_dim, 3 * embed_dim)) if modulated else None
        self.extras = extras

    def forward(
        self,
        hidden: Float[Tensor, "b l d"],
        residual: Float[Tensor, "b l d"] | None,
        skip: Float[Tensor, "b l d"] | None = None,
        keep: Float[Tensor, " b"] | None = None,
        condition: Float[Tensor, "b d"] | None = None,
    ) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b l d"]]:
        """One block.

        Args:
            hidden: Output of the previous block's mixer, or the tokens.
            residual: The residual stream; None at the first block, which starts it.
            skip: Output of the matching in-block's mixer.
            keep: Drop-path factor per sample (0, or 1 / keep probability); None drops nothing. It scales what the
                previous block and the skip contribute, never the residual stream.
            condition: What modulates the block, where it is modulated.

        Returns:
            The mixer's output and the residual stream.
        """
        if skip is not None:
            hidden = self._with_skip(hidden, skip)
        hidden, total = self.norm(hidden, residual, keep)
        gate: Tensor | None = None
        if self.adaLN_modulation is not None and condition is not None:
            shift, scale, gate = self.adaLN_modulation(condition)[:, None].chunk(3, dim=-1)
            hidden = torch.addcmul(shift, hidden, 1 + scale)
        # One name for all, so that each is freed when the next is there.
        if self.extras is not None:
            hidden = turn(hidden, self.extras)
        hidden = self.mixer(hidden)
        if self.extras is not None:
            hidden = turn(hidden, self.extras)
        return hidden if gate is None else gate * hidden, total

    def _with_skip(self, hidden: Tensor, skip: Tensor) -> Tensor:
        if self.skip_linear is not None:
            return self.skip_linear(torch.cat([hidden, skip], dim=-1))
        # Summed as the residual stream is.
        return hidden.to(self.norm.weight.dtype) + skip


class DiS(Backbone):
    """The DiS noise predictor.

    Args:
        image_size: Side of the square grid, in its own pixels (image pixels or latent pixels).
        patch_size: Side of a patch; divides ``image_size``.
        in_channels: Channels of the grid.
        depth: Number of blocks, odd. (The published code's ``depth`` is this minus one.)
        num_classes: Number of classes; 0 is unconditional: no label token, no modulation of the final layer.
        learn_sigma: Whether the output has a second half of channels for the variance.
        drop_path: Drop-path rate after the last block in training; the rates grow linearly, the first two are 0.
        label_drop: Probability that a training label becomes the null class.
        d_state: State size of the scan, per channel.
        d_conv: Taps of the causal convolution.
        expand: Inner width of a mixer, as a multiple of ``embed_dim``.
        init: "corrected", or "published" to start the backward scan's time step at softplus(0), as published.
        final_init: "published" (random), or "zero" to start from an all-zero output.
        engine: What computes the scan and the convolution (``dis_cli.scan.engines.choose``).
        skip: What an out-block does with its skip: "concat" as published, "add", or "none".
        directions: "both" as published, or "forward": no scan from the last token to the first.
        conditioning: "tokens" as published: time and class are tokens; or "adaln_zero": they modulate every block, from
            weights that start at zero.
        scan_order: "raster" as published: mixers take the patches row by row; "column": column by column;
            "alternate": in turn, the first block row by row.

    Raises:
        ValueError: ``depth`` is even, ``patch_size`` does not divide ``image_size``, or a name is unknown.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        in_channels: int,
        embed_dim: int,
        depth: int,
        num_classes: int = 0,
        learn_sigma: bool = True,
        drop_path: float = 0.0,
        label_drop: float = 0.1,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        init: str = "corrected",
        final_init: str = "published",
        engine: str = "auto",
        skip: str = "concat",
        directions: str = "both",
        conditioning: str = "tokens",
        scan_order: str = "raster",
    ) -> None:
        super().__init__(image_size, in_channels, num_classes, learn_sigma=learn_sigma, label_drop=label_drop)
        if depth < 1 or depth % 2 == 0:
            raise ValueError(f"depth must be odd and at least 1, got {depth}")
        require_patches(image_size, patch_size)
        for name, value, allowed in (
            ("init", init, ("corrected", "published")),
            ("final_init", final_init, ("published", "zero")),
            ("skip", skip, SKIPS),
            ("directions", directions, DIRECTIONS),
            ("conditioning", conditioning, CONDITIONINGS),
            ("scan_order", scan_order, SCAN_ORDERS),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, got {value!r}")
        modulated = conditioning == "adaln_zero"
        self.skips = skip != "none"
        self.patch_size = patch_size
        self.embed_dim = embed_dim
        self.extras = 0 if modulated else 2 if num_classes else 1
        # One turn to and fro, where all blocks scan in columns.
        self.turned = scan_order == "column"
        self.drop_path_rates = drop_path_rates(drop_path, depth)

        self.patch_embed = PatchEmbed(patch_size, in_channels, embed_dim)
        self.time_embed = RowWise(nn.Linear(embed_dim, 4 * embed_dim), nn.SiLU(), nn.Linear(4 * embed_dim, embed_dim))
        self.label_emb = LabelEmbed(num_classes, embed_dim) if num_classes else None
        self.pos_embed = nn.Parameter(torch.empty(1, self.extras + (image_size // patch_size) ** 2, embed_dim))

        in_columns = [False] * depth if self.turned else columns(scan_order, depth)

        def block(index: int) -> Block:
            return Block(
                embed_dim,
                skip=skip == "concat" and index > depth // 2,
                d_state=d_state,
                d_conv=d_conv,
                expand=expand,
                engine=engine,
                both=directions == "both",
                modulated=modulated,
                extras=self.extras if in_columns[index] else None,
            )

        half = depth // 2
        self.in_blocks = nn.ModuleList(block(index) for index in range(half))
        self.mid_block = block(half)
        self.out_blocks = nn.ModuleList(block(index) for index in range(half + 1, depth))
        self.norm_f = AddNorm(embed_dim, engine)
        self.final_layer = FinalLayer(embed_dim, patch_size, self.out_channels, modulated=num_classes > 0)
        # Without numbers there is nothing to initialise, and it takes most of the time.
        if not self.pos_embed.is_meta:
            self._initialize(init, final_init)

    @property
    def num_tokens(self) -> int:
        """Length of the sequence: class and time, and the patches."""
        return self.pos_embed.shape[1]

    @property
    def num_drop_path(self) -> int:
        """How many drop-path decisions a training forward takes per sample."""
        return sum(rate > 0 for rate in self.drop_path_rates)

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
        drop_path_uniform: Float[Tensor, "drops b"] | None = None,
    ) -> Float[Tensor, "b out h w"]:
        """See `Backbone.forward`."""
        self.require_fitting(x, labels)
        keeps = self._keep_factors(x, drop_path_uniform)
        time_token = self.time_embed(timestep_embedding(t, self.embed_dim).to(self.pos_embed.dtype))
        tokens = [time_token[:, None], self.patch_embed(x)]
        condition = None
        if self.label_emb is not None and labels is not None:
            label_token = self.label_emb(self.drop_labels(labels, label_drop_uniform))
            tokens.insert(0, label_token[:, None])
            condition = time_token + label_token
        hidden = (torch.cat(tokens, dim=1) if self.extras else tokens[-1]) + self.pos_embed
        if self.turned:
            hidden = turn(hidden, self.extras)
        # What modulates the blocks; with tokens nothing does.
        modulation = None if self.extras else time_token if condition is None else condition
        residual: Tensor | None = None
        skips: list[Tensor] = []
        for index, block in enumerate(self.blocks()):
            skip = skips.pop() if self.skips and index > len(self.in_blocks) else None
            hidden, residual = self.run(block, hidden, residual, skip, keeps[index], modulation)
            if self.skips and index < len(self.in_blocks):
                skips.append(hidden)
        hidden, _ = self.norm_f(hidden, residual, keeps[-1])
        if self.turned:
            hidden = turn(hidden, self.extras)
        # The extra tokens pass the final layer as published and are dropped after it: the same as dropping them before.
        patches = self.final_layer(hidden[:, self.extras :], condition)
        return unpatchify(patches, self.patch_size, self.out_channels)

    def _keep_factors(self, x: Tensor, uniform: Tensor | None) -> list[Tensor | None]:
        """Per drop-path place, 0 or 1 / (1 - rate) for each sample; None where nothing is dropped."""
        keeps: list[Tensor | None] = [None] * len(self.drop_path_rates)
        if not self.training or not self.num_drop_path:
            return keeps
        if uniform is None:
            uniform = torch.rand(self.num_drop_path, len(x), device=x.device)
        elif tuple(uniform.shape) != (self.num_drop_path, len(x)):
            raise ValueError(
                f"drop_path_uniform must have shape {(self.num_drop_path, len(x))}, got {tuple(uniform.shape)}"
            )
        rows = iter(uniform)
        for place, rate in enumerate(self.drop_path_rates):
            if rate > 0:
                keeps[place] = (next(rows) >= rate).to(self.pos_embed.dtype) / (1 - rate)
        return keeps

    def _initialize(self, init: str, final_init: str) -> None:
        """As published, except for the backward time step (see ``Mixer.reset_parameters``).

        Kaiming-uniform linear weights, zero biases, class table N(0, 0.02), positions 0, and ``out_proj`` divided by
        sqrt(depth - 1): the published code counts one block fewer than it builds. A modulation starts at zero.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
                if module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.pos_embed)
        if self.label_emb is not None:
            nn.init.normal_(self.label_emb.embedding_table.weight, std=0.02)
        blocks = list(self.blocks())
        for block in blocks:
            block.mixer.reset_parameters(init=init)
            with torch.no_grad():
                block.mixer.out_proj.weight.div_(math.sqrt(max(1, len(blocks) - 1)))
            if block.adaLN_modulation is not None:
                nn.init.zeros_(block.adaLN_modulation[1].weight)  # pyright: ignore[reportArgumentType]
        if final_init == "zero":
            nn.init.zeros_(self.final_layer.linear.weight)


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """The rate at each block's entry and, last, before the final norm, as published.

    ``[0, 0, rate / (depth - 2), ..., rate, rate]``: one place more than blocks; the first two never drop. The ramp is
    rounded to float32 where it is made, as published.
    """
    return [0.0, *torch.linspace(0, rate, depth - 1, device="cpu").tolist(), rate]
