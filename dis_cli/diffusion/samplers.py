"""Reverse processes: a thin adapter over diffusers' schedulers (``schedulers``).

Sources: Ho et al. 2020 (ancestral), Song et al. 2021 (DDIM, and Euler's method, which it is), Lu et al. 2022
(DPM-Solver++ and its form with noise), Zhao et al. 2023 (UniPC), Karras et al. 2022 (Heun's method), Liu et al. 2022
(a rectified flow). All keep float64, but that DPM-Solver++ rounds the images before a step to float32.
"""

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dis_cli.diffusion.flow import ForwardProcess, RectifiedFlow
from dis_cli.diffusion.objective import Prediction, Variance, check_objective, predict_x_0, split_output
from dis_cli.diffusion.schedule import check_choice, space_timesteps
from dis_cli.diffusion.schedulers import STRAIGHT, SamplerName, line_scales, line_sigmas, make_scheduler, visit_order

Denoiser: TypeAlias = Callable[[Float[Tensor, "b c h w"], Int64[Tensor, " b"]], Float[Tensor, "b o h w"]]


class Sampler:
    """One reverse process, made by ``make_sampler`` and driven by ``sample_loop``.

    Args:
        process: The forward process restricted to the timesteps to visit.
        name: "heun" and "euler" are for every process, the others for a schedule.
        prediction: "epsilon", "v" or "x_0"; "velocity" for a rectified flow.
        variance: What the model says about the variance of a step; only the ancestral sampler uses it.
        eta: Share of the ancestral noise that DDIM draws, 0 to 1.
        clip: Whether every estimate of x_0 is clipped to [-1, 1].

    Attributes:
        timesteps: What the model is told in each evaluation, within 0 to T - 1 of the full process: descending, but
            that "heun" tells all but the first twice.
        pred_x_0: The estimate of x_0 in the last evaluation, or None before the first.
    """

    def __init__(
        self,
        process: ForwardProcess,
        *,
        name: SamplerName,
        prediction: Prediction,
        variance: Variance,
        eta: float,
        clip: bool,
    ) -> None:
        self.process = process
        self.name: SamplerName = name
        self.prediction: Prediction = prediction
        self.variance: Variance = variance
        self.eta = eta
        self.clip = clip
        self._order = visit_order(name, process.num_timesteps)
        self._scales, self._sigmas = line_scales(process), line_sigmas(process)
        self.timesteps: list[int] = process.timestep_map[self._order].tolist()
        self.pred_x_0: Tensor | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the steps taken, to begin with other images."""
        self.pred_x_0 = None
        self._num_taken = 0
        self._step_began: Tensor | None = None
        self._scheduler = make_scheduler(
            self.process, name=self.name, prediction=self.prediction, variance=self.variance, clip=self.clip
        )

    def step(
        self,
        model_output: Float[Tensor, "b o h w"],
        t: int,
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
        index = self._order[self._num_taken]
        output, _ = split_output(model_output, x.shape[1], variance=self.variance)
        match self.name:
            case "ancestral":
                result = self._scheduler.step(model_output, index, x, generator=generators)
                x_prev, self.pred_x_0 = result.prev_sample, result.pred_original_sample
            case "ddim":
                # The published code derives the noise again from a clipped x_0.
                result = self._scheduler.step(
                    output, index, x, eta=self.eta, use_clipped_model_output=self.clip, generator=generators
                )
                x_prev, self.pred_x_0 = result.prev_sample, result.pred_original_sample
            case "dpm++" | "unipc":
                self.pred_x_0 = self._estimate(output, index, x)
                x_prev = self._scheduler.step(self.pred_x_0, index, x).prev_sample
            case "dpm++sde":
                self.pred_x_0 = self._estimate(output, index, x)
                x_prev = self._scheduler.step(self.pred_x_0, index, x, generator=generators).prev_sample
            case "heun" | "euler":
                self.pred_x_0 = self._estimate(output, index, x)
                x_prev = self._step_along_line(output, self.pred_x_0, index, x)
        self._num_taken += 1
        return x_prev

    def _step_along_line(self, output: Tensor, x_0: Tensor, index: int, x: Tensor) -> Tensor:
        on_line = x / self._scales[index]
        # A flow's model gives the direction itself; with a clipped x_0 it is another one.
        given = isinstance(self.process, RectifiedFlow) and not self.clip
        direction = output if given else (on_line - x_0) / self._sigmas[index]
        # Heun's second evaluation ends the step that the first began.
        if self.name == "euler" or self._num_taken % 2 == 0:
            self._step_began = on_line
        # They round images to float32 and add to them: with zeros, what they add comes back as it is. Their steps are
        # told by floating timesteps; whole ones are refused as indices.
        added = self._scheduler.step(direction, float(index), torch.zeros_like(x)).prev_sample
        x_prev = self._step_began + added
        following = self._order[self._num_taken + 1 : self._num_taken + 2]
        return x_prev * self._scales[following[0]] if following else x_prev

    def _estimate(self, output: Tensor, index: int, x: Tensor) -> Tensor:
        at = torch.full((len(x),), index, device=x.device)
        estimate = predict_x_0(self.process, output, x, at, prediction=self.prediction)
        return estimate.clamp(-1.0, 1.0) if self.clip else estimate


def make_sampler(
    process: ForwardProcess,
    *,
    name: SamplerName,
    steps: int,
    prediction: Prediction,
    variance: Variance,
    eta: float = 0.0,
    clip: bool = False,
) -> Sampler:
    """The named reverse process.

    On a schedule, "ancestral" visits the timesteps of the published respacing "N", "ddim" those of "ddimN", and the
    others N equal strides from T - 1 that stop short of 0. On a rectified flow it is N equal steps of sigma from 1 to
    0, to the nearest of T levels. "heun" evaluates the model twice a step and once in the last one: it takes (N + 1) /
    2 steps in place of N. Differs from the reference: a single step starts at T - 1, where the image is noise, and not
    at 0.

    Args:
        process: The forward process that the model was trained on, or a restriction of it.
        name: "ancestral", "ddim", "dpm++" or "unipc" (both of second order, multistep), "dpm++sde" (with noise),
            "heun" or "euler"; for a rectified flow one of the last two.
        steps: Model evaluations per image, 1 to T; "ddim" needs an integer stride, "heun" an odd number.
        prediction: "epsilon", "v" or "x_0"; "velocity" for a rectified flow.
        variance: "learned_range" (the output has twice the channels), "fixed_small" or "fixed_large".
        eta: For "ddim", the share of the ancestral noise, 0 (none) to 1.
        clip: Whether every estimate of x_0 is clipped to [-1, 1]; the published sampling does not.

    Raises:
        ValueError: An unknown choice, one that does not belong to the process, or a number out of its range.
    """
    check_choice("sampler", name, SamplerName)
    check_objective(process, prediction=prediction, variance=variance)
    if isinstance(process, RectifiedFlow) and name not in STRAIGHT:
        raise ValueError(f"a rectified flow is sampled by 'heun' or 'euler', got {name!r}")
    if not 0.0 <= eta <= (1.0 if name == "ddim" else 0.0):
        raise ValueError(f"eta must be 0 to 1 for 'ddim' and 0 otherwise, got {eta} for {name!r}")
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


def _visited(process: ForwardProcess, name: SamplerName, steps: int) -> list[int]:
    num_timesteps = process.num_timesteps
    if not 1 <= steps <= num_timesteps:
        raise ValueError(f"steps must be 1 to {num_timesteps}, got {steps}")
    if name == "heun":
        if steps % 2 == 0:
            raise ValueError(f"steps of 'heun' must be odd (two a step, one in the last), got {steps}")
        steps = (steps + 1) // 2
    if steps == 1:
        return [num_timesteps - 1]
    if name == "ancestral":
        return space_timesteps(num_timesteps, str(steps))
    if name == "ddim":
        return space_timesteps(num_timesteps, f"ddim{steps}")
    if isinstance(process, RectifiedFlow):
        # Index t stands at sigma (t + 1) / T.
        return (np.linspace(0, num_timesteps, steps + 1).round().astype(np.int64)[1:] - 1).tolist()
    if steps == num_timesteps:
        return list(range(num_timesteps))
    # diffusers' own choice, half-way cases included.
    return np.linspace(0, num_timesteps - 1, steps + 1).round().astype(np.int64)[1:].tolist()
