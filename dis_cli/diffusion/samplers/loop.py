"""Reverse processes: one loop, in which each sampler is a step function (``dis_cli.diffusion.samplers.table``)."""

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dis_cli.diffusion.flow import ForwardProcess, RectifiedFlow
from dis_cli.diffusion.objective import Prediction, Variance, check_objective, predict_x_0, split_output
from dis_cli.diffusion.samplers.course import Course, Evaluation, Step
from dis_cli.diffusion.samplers.table import SAMPLERS, fitting
from dis_cli.diffusion.schedule import space_timesteps
from dis_cli.dotted import load

Denoiser: TypeAlias = Callable[[Float[Tensor, "b c h w"], Shaped[Tensor, " b"]], Float[Tensor, "b o h w"]]

# Evaluations that a step function sees.
_KEPT = 3


class Sampler:
    """One reverse process, made by ``make_sampler`` and driven by ``sample_loop``.

    Args:
        process: The forward process restricted to the timesteps to visit.
        name: One of SAMPLERS.
        prediction: "epsilon", "v" or "x_0"; "velocity" or "x_0" for a rectified flow.
        variance: What the model says about the variance of a step; only the ancestral sampler uses it.
        eta: Share of the ancestral noise that DDIM draws, 0 to 1.
        clip: Whether every estimate of x_0 is clipped to [-1, 1].

    Attributes:
        timesteps: What the model is told in each evaluation, within 0 to T - 1 of the full process or as its offset and
            shift have it: descending, but that where a step takes two evaluations all but the first are told twice.
        pred_x_0: The estimate of x_0 in the last evaluation, or None before the first.
    """

    def __init__(
        self,
        process: ForwardProcess,
        *,
        name: str,
        prediction: Prediction,
        variance: Variance,
        eta: float,
        clip: bool,
    ) -> None:
        row = SAMPLERS[name]
        self.process = process
        self.name = name
        self.prediction: Prediction = prediction
        self.variance: Variance = variance
        self.eta = eta
        self.clip = clip
        self._step: Step = load(row.step)
        self._course = Course(process, variance=variance, eta=eta)
        levels = range(process.num_timesteps)
        # Of a step's two evaluations the second is at its end.
        self._levels = [*levels[:1], *(level for level in levels[1:] for _ in range(2 if row.two_a_step else 1))]
        self.timesteps: list[int] | list[float] = process.timestep_map[::-1][self._levels].tolist()
        self.pred_x_0: Tensor | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the steps taken, to begin with other images."""
        self.pred_x_0 = None
        self._num_taken = 0
        self._seen: list[Evaluation] = []

    def step(
        self,
        model_output: Float[Tensor, "b o h w"],
        t: float,
        x: Float[Tensor, "b c h w"],
        generators: list[torch.Generator],
    ) -> Float[Tensor, "b c h w"]:
        """The images after the next model evaluation.

        Args:
            model_output: The model's output at (x, t).
            t: The timestep that the model was told.
            x: The images that it was given.
            generators: One for each image, on the CPU or on the images' device, so that an image's noise depends on
                its own generator only.

        Raises:
            ValueError: Another timestep than the next one, or a wrong number of generators or channels.
        """
        if self.timesteps[self._num_taken : self._num_taken + 1] != [t]:
            raise ValueError(f"step {self._num_taken + 1} of {len(self.timesteps)} cannot be at timestep {t}")
        if len(generators) != len(x):
            raise ValueError(f"one generator per image is needed, got {len(generators)} for {len(x)} images")
        level = self._levels[self._num_taken]
        output, share = split_output(model_output, x.shape[1], variance=self.variance)
        index = torch.full((len(x),), self.process.num_timesteps - 1 - level, device=x.device)
        x_0 = predict_x_0(self.process, output, x, index, prediction=self.prediction)
        self.pred_x_0 = x_0.clamp(-1.0, 1.0) if self.clip else x_0
        now = Evaluation(level, x, self.pred_x_0, share, lambda: draw_noise(x, generators))
        self._seen = [*self._seen[1 - _KEPT :], now]
        self._num_taken += 1
        return self._step(self._course, self._seen)


def make_sampler(
    process: ForwardProcess,
    *,
    name: str,
    steps: int,
    prediction: Prediction,
    variance: Variance,
    eta: float = 0.0,
    clip: bool = False,
) -> Sampler:
    """The named reverse process.

    A schedule's timesteps are spaced as the sampler's row says, from T - 1 where a single step is asked for: the image
    is noise there (the reference starts at 0). On a rectified flow they are N equal steps of sigma from 1 to 0, each to
    the nearest of T levels, before its shift. Where a step takes two evaluations and the last one, N of them are
    (N + 1) / 2 steps.

    Args:
        process: The forward process that the model was trained on, or a restriction of it.
        name: One of SAMPLERS; of a rectified flow, one that samples flows.
        steps: Model evaluations per image, 1 to T; what a sampler cannot take its row says.
        prediction: "epsilon", "v" or "x_0"; "velocity" or "x_0" for a rectified flow.
        variance: "learned_range" (the output has twice the channels), "fixed_small" or "fixed_large".
        eta: Where the sampler takes it, the share of the ancestral noise, 0 (none) to 1.
        clip: Whether every estimate of x_0 is clipped to [-1, 1]; the published sampling does not.

    Raises:
        ValueError: An unknown choice, one that does not belong to the process, or a number out of its range.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(map(repr, SAMPLERS))}, got {name!r}")
    check_objective(process, prediction=prediction, variance=variance)
    if name not in (possible := fitting(is_flow=isinstance(process, RectifiedFlow))):
        raise ValueError(f"a rectified flow is sampled by {' or '.join(map(repr, possible))}, got {name!r}")
    if not 0.0 <= eta <= (1.0 if SAMPLERS[name].takes_eta else 0.0):
        able = " or ".join(repr(other) for other, row in SAMPLERS.items() if row.takes_eta)
        raise ValueError(f"eta must be 0 to 1 for {able} and 0 otherwise, got {eta} for {name!r}")
    visited = _visited(process, name, steps)
    return Sampler(process.restrict(visited), name=name, prediction=prediction, variance=variance, eta=eta, clip=clip)


@torch.no_grad()
def sample_loop(
    denoise: Denoiser,
    x_T: Float[Tensor, "b c h w"],
    sampler: Sampler,
    generators: list[torch.Generator],
) -> Iterator[Float[Tensor, "b c h w"]]:
    """Run the reverse process, yielding the images after each step; the last ones are the samples.

    Args:
        denoise: Maps (x, t) to the model's output.
        x_T: Standard normal noise.
        sampler: The process; it is reset first.
        generators: One for each image, on the CPU or on the images' device.
    """
    sampler.reset()
    x = x_T
    for t in sampler.timesteps:
        told = torch.full((len(x),), t, device=x.device)
        x = sampler.step(denoise(x, told), t, x, generators)
        yield x


def draw_noise(x: Float[Tensor, "b c h w"], generators: list[torch.Generator]) -> Float[Tensor, "b c h w"]:
    """Standard normal noise for some images, each drawn from its own generator, on whose device it is drawn."""
    shape, dtype = x.shape[1:], x.dtype
    drawn = [torch.randn(shape, generator=own, device=own.device, dtype=dtype) for own in generators]
    return torch.stack(drawn).to(x.device)


def _visited(process: ForwardProcess, name: str, steps: int) -> list[int]:
    num_timesteps, row = process.num_timesteps, SAMPLERS[name]
    if not 1 <= steps <= num_timesteps:
        raise ValueError(f"steps must be 1 to {num_timesteps}, got {steps}")
    if row.two_a_step:
        if steps % 2 == 0:
            raise ValueError(f"steps of {name!r} must be odd (two a step, one in the last), got {steps}")
        steps = (steps + 1) // 2
    if steps == 1:
        return [num_timesteps - 1]
    if isinstance(process, RectifiedFlow):
        # Index t stands at sigma (t + 1) / T.
        return (np.linspace(0, num_timesteps, steps + 1).round().astype(np.int64)[1:] - 1).tolist()
    match row.spacing:
        case "published":
            return space_timesteps(num_timesteps, str(steps))
        case "integer_stride":
            return space_timesteps(num_timesteps, f"ddim{steps}")
        case "from_noise" if steps == num_timesteps:
            return list(range(num_timesteps))
        case "from_noise":
            # diffusers' own choice, half-way cases included.
            return np.linspace(0, num_timesteps - 1, steps + 1).round().astype(np.int64)[1:].tolist()
