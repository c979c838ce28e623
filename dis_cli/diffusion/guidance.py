"""Classifier-free guidance (Ho and Salimans 2022): its strength at each step, and the guided channels.

Sources: Kynkäänniemi et al. 2024 (an interval of noise levels); Chang et al. 2023 (a scale that grows along a line);
Gao et al. 2023 (the power-cosine scale).
"""

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from dis_cli.diffusion.samplers.loop import Denoiser
from dis_cli.diffusion.schedule import check_choice

GuidedChannels: TypeAlias = Literal["all", "first3"]
GuidanceSchedule: TypeAlias = Literal["constant", "linear", "power-cosine"]
LabelledModel: TypeAlias = Callable[
    [Float[Tensor, "b c h w"], Shaped[Tensor, " b"], Int64[Tensor, " b"] | None], Float[Tensor, "b o h w"]
]


@dataclass(frozen=True)
class Guidance:
    """The guidance of a model at each timestep t; tau = t / (T - 1) is its share of the diffusion time, 1 being noise.

    Args:
        num_timesteps: Number of timesteps T that the model knows.
        timestep_offset: The first of them; tau is counted from it.
        cfg_scale: Strength w of the guidance: 1 is none, 0 is the unconditional output.
        cfg_channels: "all" predicted channels, or the "first3".
        cfg_interval: The lowest and the highest tau that are guided, 0 to 1; elsewhere the scale is 1.
        cfg_schedule: The scale at tau: "constant" w; "linear" 1 + (w - 1)(1 - tau), so that it grows from 1 to w;
            "power-cosine" 1 + (w - 1)(1 - cos(pi (1 - tau)^s)) / 2, which grows late (Gao et al. 2023).
        cfg_power: The power s of "power-cosine", above 0; 4 in its authors' code.

    Raises:
        ValueError: Unknown choice, or a number out of its range.
    """

    num_timesteps: int
    cfg_scale: float = 1.0
    cfg_channels: GuidedChannels = "all"
    cfg_interval: tuple[float, float] = (0.0, 1.0)
    cfg_schedule: GuidanceSchedule = "constant"
    cfg_power: float = 4.0
    timestep_offset: int = 0

    def __post_init__(self) -> None:
        check_choice("cfg_channels", self.cfg_channels, GuidedChannels)
        check_choice("cfg_schedule", self.cfg_schedule, GuidanceSchedule)
        low, high = self.cfg_interval
        if not 0 <= low < high <= 1:
            raise ValueError(f"cfg_interval must be two ascending shares within 0 to 1, got {low} and {high}")
        if self.cfg_power <= 0:
            raise ValueError(f"cfg_power must be above 0, got {self.cfg_power}")

    @property
    def is_constant(self) -> bool:
        """True where the scale is the same at every timestep."""
        return self.cfg_schedule == "constant" and self.cfg_interval == (0.0, 1.0)

    def scale_at(self, t: float) -> float:
        """The scale at a timestep, exactly 1 where there is no guidance.

        Args:
            t: The timestep that the model is told, 0 to T - 1 and the offset; it need not be whole.
        """
        # A flow's least noisy levels lie below its first whole timestep.
        tau = max(0.0, (t - self.timestep_offset) / max(1, self.num_timesteps - 1))
        low, high = self.cfg_interval
        if not low <= tau <= high:
            return 1.0
        match self.cfg_schedule:
            case "constant":
                return self.cfg_scale
            case "linear":
                share = 1 - tau
            case "power-cosine":
                share = (1 - math.cos(math.pi * (1 - tau) ** self.cfg_power)) / 2
        return 1 + (self.cfg_scale - 1) * share

    def count_guided(self, timesteps: Iterable[float]) -> int:
        """Of the model evaluations at these timesteps, those that need the model's unconditional output as well."""
        return sum(self.scale_at(t) != 1.0 for t in timesteps)


def guide(
    model: LabelledModel,
    labels: Int64[Tensor, " b"] | None,
    guidance: Guidance,
    *,
    null_class: int,
    num_channels: int,
) -> Denoiser:
    """The model as ``sample_loop`` calls it: every image of a batch at the same timestep, and guided there.

    Args:
        model: Maps (x, t, labels) to its output, the predicted channels first.
        labels: Class of each image, or None for an unconditional model.
        null_class: The label that means none.
        num_channels: Predicted channels, without those of the variance.
    """
    guided = functools.partial(
        guided_output,
        model,
        labels=labels,
        null_class=null_class,
        num_channels=num_channels,
        cfg_channels=guidance.cfg_channels,
    )

    def denoise(x: Float[Tensor, "b c h w"], t: Shaped[Tensor, " b"]) -> Float[Tensor, "b o h w"]:
        # Reading the timestep makes the CPU wait for a GPU: only where the scale depends on it.
        scale = guidance.cfg_scale if guidance.is_constant or labels is None else guidance.scale_at(t[0].item())
        return guided(x, t, cfg_scale=scale)

    return denoise


def guided_output(
    model: LabelledModel,
    x: Float[Tensor, "b c h w"],
    t: Shaped[Tensor, " b"],
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
