"""Classifier-free guidance (Ho and Salimans 2022)."""

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dis_cli.diffusion.schedule import check_choice

GuidedChannels: TypeAlias = Literal["all", "first3"]
LabelledModel: TypeAlias = Callable[
    [Float[Tensor, "b c h w"], Int64[Tensor, " b"], Int64[Tensor, " b"] | None], Float[Tensor, "b o h w"]
]


def guided_output(
    model: LabelledModel,
    x: Float[Tensor, "b c h w"],
    t: Int64[Tensor, " b"],
    labels: Int64[Tensor, " b"] | None,
    *,
    null_class: int,
    cfg_scale: float,
    num_channels: int,
    cfg_channels: GuidedChannels = "all",
) -> Float[Tensor, "b o h w"]:
    """The model's output pushed away from the unconditional one: uncond + cfg_scale (cond - uncond).

    Channels that are not guided, the variance among them, are those of the conditional output. One call of twice the
    batch, conditional half first; a single plain call where there is nothing to guide.

    Differs from the reference: all predicted channels are guided, not the first three of them ("first3" restores
    that); every image keeps its own noise, so that n images need n inputs and an odd n is possible.

    Args:
        model: Maps (x, t, labels) to its output, the predicted channels first.
        x: Noisy images.
        t: Timestep of each image.
        labels: Class of each image, or None for an unconditional model.
        null_class: The label that means none.
        cfg_scale: Strength of the guidance: 1 is none, 0 is the unconditional output.
        num_channels: Predicted channels, without those of the variance.
        cfg_channels: "all" or "first3".

    Raises:
        ValueError: Unknown ``cfg_channels``, or fewer output than predicted channels.
    """
    check_choice("cfg_channels", cfg_channels, GuidedChannels)
    if labels is None or cfg_scale == 1.0:
        return model(x, t, labels)
    both = model(torch.cat([x, x]), torch.cat([t, t]), torch.cat([labels, torch.full_like(labels, null_class)]))
    if both.shape[1] < num_channels:
        raise ValueError(f"the model must predict {num_channels} channels, got an output of {both.shape[1]}")
    guided = min(num_channels, 3) if cfg_channels == "first3" else num_channels
    conditional, unconditional = both.chunk(2)
    cond, uncond = conditional[:, :guided], unconditional[:, :guided]
    return torch.cat([uncond + cfg_scale * (cond - uncond), conditional[:, guided:]], dim=1)
