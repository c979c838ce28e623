"""U-Net: residual convolutions on grids of falling size and back, with self-attention on the smaller ones.

The layers, their parameter names and their initial weights are those of diffusers' ``UNet2DModel``; a state dict of one
fits the other. The architecture is DDPM's (arXiv 2006.11239); its sizes grew in arXiv 2011.13456 and 2105.05233.
"""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from dis_cli.models.backbone import Backbone
from dis_cli.models.embed import timestep_embedding
from dis_cli.models.fixed_batch import FIXED_BATCH, in_fixed_batches
from dis_cli.models.unet.sizes import require_fitting


class UNet(Backbone):
    """The U-Net noise predictor.

    Outside training it computes `FIXED_BATCH` images at a time, whatever the batch: the bits of an image are then the
    same in any batch, and the work of fewer images is that of so many.

    Args:
        channels: Of the first level.
        multipliers: Channels of each level, as multiples of ``channels``; a level has half the side of the one above.
        num_blocks: Residual blocks of a level on the way down; one more on the way up.
        attention_levels: Levels with self-attention, 0 being the full grid; the middle always has it.
        head_channels: Channels of an attention head; None is one head.
        norm_groups: Groups of the group norms.
        patch_size: Always 1.
        engine: Not used: it has no scan.

    Raises:
        ValueError: The levels do not fit the grid, or groups or heads the channels.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        channels: int,
        multipliers: tuple[int, ...],
        num_blocks: int,
        attention_levels: tuple[int, ...],
        head_channels: int | None = None,
        norm_groups: int = 32,
        num_classes: int = 0,
        learn_sigma: bool = True,
        label_drop: float = 0.1,
        *,
        patch_size: int = 1,
        engine: str = "auto",  # noqa: ARG002 - all networks take it
    ) -> None:
        super().__init__(image_size, in_channels, num_classes, learn_sigma=learn_sigma, label_drop=label_drop)
        require_fitting(
            image_size=image_size,
            patch_size=patch_size,
            channels=channels,
            multipliers=multipliers,
            attention_levels=attention_levels,
            head_channels=head_channels,
            norm_groups=norm_groups,
        )
        # It takes a second to import.
        from diffusers.models.unets.unet_2d import UNet2DModel

        attends = [level in attention_levels for level in range(len(multipliers))]
        network = UNet2DModel(
            sample_size=image_size,
            in_channels=in_channels,
            out_channels=self.out_channels,
            down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attends),
            up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)),
            block_out_channels=tuple(channels * factor for factor in multipliers),
            layers_per_block=num_blocks,
            attention_head_dim=head_channels,
            norm_num_groups=norm_groups,
            num_class_embeds=num_classes + 1 if num_classes else None,
        )
        self.channels = channels
        # Its layers one by one, so that blocks can be computed again and dealt out to ranks like those of all families.
        self.conv_in = network.conv_in
        self.time_embedding: nn.Module = network.time_embedding
        self.class_embedding = network.class_embedding
        self.down_blocks = network.down_blocks
        self.mid_block: nn.Module = _present(network.mid_block)
        self.up_blocks = network.up_blocks
        self.conv_norm_out: nn.Module = network.conv_norm_out
        self.conv_out = network.conv_out

    @property
    def num_tokens(self) -> int:
        """Pixels of the grid, which stand where other families have tokens."""
        return self.image_size**2

    @property
    def fixed_batch(self) -> int:
        """Images that it computes at a time outside training."""
        return FIXED_BATCH

    def blocks(self) -> Iterable[nn.Module]:
        """The levels on the way down, the middle, and the levels on the way up."""
        return (*self.down_blocks, self.mid_block, *self.up_blocks)

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
        inputs = [x, t]
        if labels is not None:
            inputs.append(self.drop_labels(labels, label_drop_uniform))
        return self._predict(*inputs) if self.training else in_fixed_batches(self._predict, *inputs)

    def _predict(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        condition = self.time_embedding(timestep_embedding(t, self.channels))
        if self.class_embedding is not None and labels is not None:
            condition = condition + self.class_embedding(labels)
        hidden = self.conv_in(x)
        skips: list[Tensor] = [hidden]
        for block in self.down_blocks:
            hidden, own = self.run(block, hidden, condition)
            skips += own
        hidden = self.run(self.mid_block, hidden, condition)
        for block in self.up_blocks:
            taken = len(_layers(block))
            skips, own = skips[:-taken], skips[-taken:]
            hidden = self.run(block, hidden, tuple(own), condition)
        return self.conv_out(torch.nn.functional.silu(self.conv_norm_out(hidden)))


def _present(block: Any) -> nn.Module:
    assert isinstance(block, nn.Module)
    return block


def _layers(block: nn.Module) -> nn.ModuleList:
    """The residual blocks of a level, each of which takes one skip on the way up."""
    layers = block.resnets
    assert isinstance(layers, nn.ModuleList)
    return layers
