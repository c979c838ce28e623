"""The error of the noise that a model's output stands for, at signal-to-noise ratios common to all processes.

Losses of different predictions, schedules and weights cannot be compared; this can: every output is converted to an
estimate of epsilon first. Images are noised by the process itself, at the timesteps that it was trained on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor, nn

from dis_cli.diffusion.flow import ForwardProcess
from dis_cli.diffusion.objective import Prediction, Variance, predict_x_0, q_sample, split_output
from dis_cli.runtime.precision import linear_precision

# log(signal^2 / noise^2), from the noisiest to the cleanest: within what every usual process covers.
LOG_SNRS: Final = tuple(-7.5 + place for place in range(16))
QUARTERS: Final = 4


@dataclass(frozen=True)
class Levels:
    """Where a process comes nearest to ``LOG_SNRS``.

    Args:
        indices: Index of the noise level, of each.
        log_snrs: What it is there.
    """

    indices: Int64[np.ndarray, " levels"]
    log_snrs: Float64[np.ndarray, " levels"]


@dataclass(frozen=True)
class EpsilonError:
    """The mean squared error of epsilon over images, channels and pixels.

    Args:
        mean: Over all levels.
        std_error: Standard error of the mean over images; NaN of a single image.
        quarters: The same of each quarter of the levels, the noisiest first.
        quarter_std_errors: Their standard errors.
    """

    mean: float
    std_error: float
    quarters: tuple[float, ...]
    quarter_std_errors: tuple[float, ...]


def nearest_levels(process: ForwardProcess) -> Levels:
    """The process's own noise levels whose log signal-to-noise ratios are nearest to ``LOG_SNRS``."""
    with np.errstate(divide="ignore"):
        # Pure noise has no signal.
        there = 2 * (np.log(process.signal_factor) - np.log(process.noise_factor))
    indices = np.abs(there[None] - np.array(LOG_SNRS)[:, None]).argmin(axis=1)
    return Levels(indices, there[indices])


@torch.no_grad()
def epsilon_errors(
    process: ForwardProcess,
    model: nn.Module,
    x_0: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    labels: Int[Tensor, " b"] | None,
    *,
    prediction: Prediction,
    variance: Variance,
    precision: str = "fp32",
) -> Float64[np.ndarray, "b levels"]:
    """The mean squared error of epsilon of each image at each of its ``nearest_levels``, in float64.

    Args:
        model: Takes (x_t, t, labels), in evaluation mode.
        x_0: Clean images.
        noise: One for each image, at all levels.
        labels: None for a model without classes.
        precision: "fp32" or "bf16", for the linear layers.
    """
    indices = nearest_levels(process).indices
    count = len(indices)
    at = torch.from_numpy(np.tile(indices, len(x_0))).to(x_0.device)
    told = torch.from_numpy(np.tile(process.timestep_map[indices], len(x_0))).to(x_0.device)
    x_0, noise = x_0.repeat_interleave(count, 0), noise.repeat_interleave(count, 0)
    x_t = q_sample(process, x_0, at, noise)
    arguments: list[Any] = [x_t, told, None if labels is None else labels.repeat_interleave(count)]
    with linear_precision(precision, x_t.device.type):
        output, _ = split_output(model(*arguments), x_0.shape[1], variance=variance)
    # Of little noise, what an output says of it is a difference of nearly equal numbers.
    x_t, wanted = q_sample(process, x_0.double(), at, noise.double()), noise.double()
    found = predict_x_0(process, output.double(), x_t, at, prediction=prediction)
    signal, scale = (
        torch.from_numpy(factor).to(x_t.device)[at][:, None, None, None]
        for factor in (process.signal_factor, process.noise_factor)
    )
    errors = ((x_t - signal * found) / scale - wanted).square().mean(dim=(1, 2, 3))
    return errors.view(-1, count).cpu().numpy()


def summarize(errors: Float64[np.ndarray, "n levels"]) -> EpsilonError:
    """What ``epsilon_errors`` of all images come to."""
    parts = np.split(errors, QUARTERS, axis=1)
    means, spreads = zip(*(_mean(part.mean(axis=1)) for part in (errors, *parts)), strict=True)
    return EpsilonError(means[0], spreads[0], tuple(means[1:]), tuple(spreads[1:]))


def _mean(values: Float64[np.ndarray, " n"] | Sequence[float]) -> tuple[float, float]:
    """The mean, and its standard error."""
    count = len(values)
    spread = float(np.std(values, ddof=1)) / count**0.5 if count > 1 else float("nan")
    return float(np.mean(values)), spread
