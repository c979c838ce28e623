"""Reverse processes: a thin adapter over diffusers' schedulers.

Each scheduler gets the tables of the schedule restricted to the visited timesteps and walks through all of its
indices, so that its own spacing rules, one of which breaks DDIM silently, never apply. Its float32 tables are replaced
by float64 ones. Sources: Ho et al. 2020 (ancestral), Song et al. 2021 (DDIM), Lu et al. 2022 (DPM-Solver++), Liu et al.
2022 (Euler's method for a rectified flow).
"""

from collections.abc import Callable, Iterator
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dis_cli.diffusion.flow import ForwardProcess, RectifiedFlow
from dis_cli.diffusion.objective import Prediction, Variance, check_objective, predict_x_0, split_output
from dis_cli.diffusion.schedule import check_choice, space_timesteps

SamplerName: TypeAlias = Literal["ancestral", "ddim", "dpm++", "euler"]
Denoiser: TypeAlias = Callable[[Float[Tensor, "b c h w"], Int64[Tensor, " b"]], Float[Tensor, "b o h w"]]

_THEIR_NAME: Final[dict[str, Literal["epsilon", "v_prediction", "sample"]]] = {
    "epsilon": "epsilon",
    "v": "v_prediction",
    "x_0": "sample",
}


class Sampler:
    """One reverse process, made by ``make_sampler`` and driven by ``sample_loop``.

    Args:
        process: The forward process restricted to the timesteps to visit.
        name: "ancestral", "ddim" or "dpm++"; "euler" for a rectified flow.
        prediction: "epsilon", "v" or "x_0"; "velocity" for a rectified flow.
        variance: What the model says about the variance of a step; only the ancestral sampler uses it.
        eta: Share of the ancestral noise that DDIM draws, 0 to 1.
        clip: Whether every estimate of x_0 is clipped to [-1, 1].

    Attributes:
        timesteps: What the model is told before each step: descending, within 0 to T - 1 of the full process.
        pred_x_0: The estimate of x_0 in the last step taken, or None before the first.
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
        self.timesteps: list[int] = process.timestep_map[::-1].tolist()
        self.pred_x_0: Tensor | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the steps taken, to begin with other images."""
        self.pred_x_0 = None
        self._num_taken = 0
        self._scheduler = self._make_scheduler()

    def step(
        self,
        model_output: Float[Tensor, "b o h w"],
        t: int,
        x: Float[Tensor, "b c h w"],
        generators: list[torch.Generator],
    ) -> Float[Tensor, "b c h w"]:
        """The images after the next step.

        Args:
            model_output: The model's output at (x, t).
            t: The timestep that the model was told.
            x: The images before the step.
            generators: One for each image, on the CPU or on the images' device, so that an image's noise depends on
                its own generator only.

        Raises:
            ValueError: Another timestep than the next one, or a wrong number of generators or channels.
        """
        if self.timesteps[self._num_taken : self._num_taken + 1] != [t]:
            raise ValueError(f"step {self._num_taken + 1} of {len(self.timesteps)} cannot be at timestep {t}")
        if len(generators) != len(x):
            raise ValueError(f"one generator per image is needed, got {len(generators)} for {len(x)} images")
        index = self.process.num_timesteps - 1 - self._num_taken
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
            case "dpm++":
                self.pred_x_0 = self._estimate(output, index, x)
                x_prev = self._scheduler.step(self.pred_x_0, index, x).prev_sample
            case "euler":
                self.pred_x_0 = self._estimate(output, index, x)
                # Straight on from x through x_0: with a clipped x_0 not the direction that the model gave.
                direction = (x - self.pred_x_0) / self.process.noise_factor[index] if self.clip else output
                # Its steps are told by floating timesteps; whole ones are refused as indices.
                x_prev = self._scheduler.step(direction, float(index), x).prev_sample
        self._num_taken += 1
        return x_prev

    def _estimate(self, output: Tensor, index: int, x: Tensor) -> Tensor:
        at = torch.full((len(x),), index, device=x.device)
        estimate = predict_x_0(self.process, output, x, at, prediction=self.prediction)
        return estimate.clamp(-1.0, 1.0) if self.clip else estimate

    def _make_scheduler(self) -> Any:
        # Importing diffusers is slow: only who samples pays for it.
        process = self.process
        if isinstance(process, RectifiedFlow):
            from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

            scheduler: Any = FlowMatchEulerDiscreteScheduler(num_train_timesteps=process.num_timesteps)
            # Its timesteps are all indices, downwards, and its sigmas those before each step, and 0 after the last.
            scheduler.timesteps = torch.arange(process.num_timesteps, dtype=torch.float64).flip(0)
            scheduler.sigmas = torch.from_numpy(np.append(process.sigmas[::-1], 0.0))
            return scheduler
        tables: dict[str, Any] = {
            "num_train_timesteps": process.num_timesteps,
            "trained_betas": process.betas.tolist(),
        }
        kind = _THEIR_NAME[self.prediction]
        match self.name:
            case "ancestral":
                from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

                scheduler = DDPMScheduler(
                    **tables, prediction_type=kind, variance_type=self.variance, clip_sample=self.clip
                )
            case "ddim":
                from diffusers.schedulers.scheduling_ddim import DDIMScheduler

                scheduler = DDIMScheduler(**tables, prediction_type=kind, clip_sample=self.clip)
            case _:  # dpm++: a schedule has no other sampler
                from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

                # It gets x_0 itself: its own conversion cannot clip, and takes a learned variance for three channels.
                scheduler = DPMSolverMultistepScheduler(**tables, prediction_type="sample")
        scheduler.betas = torch.from_numpy(process.betas)
        scheduler.alphas = 1.0 - scheduler.betas
        scheduler.alphas_cumprod = torch.from_numpy(process.alphas_cumprod)
        if self.name == "dpm++":
            # Not by set_timesteps, which works out float32 sigmas and warns under NumPy 2. All indices, downwards, are
            # its initial timesteps. Its sigmas are noise to signal before each step, and 0 after the last.
            scheduler.num_inference_steps = process.num_timesteps
            scheduler.sigmas = torch.from_numpy(np.append(process.sqrt_recipm1_alphas_cumprod[::-1], 0.0))
        else:
            scheduler.set_timesteps(process.num_timesteps)
        return scheduler


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

    "ancestral" visits the timesteps of the published respacing "N", "ddim" those of "ddimN", and "dpm++" (second
    order, multistep) N equal strides from T - 1 that stop short of 0. "euler" takes N equal steps of sigma from 1 to 0,
    to the nearest of T levels. Differs from the reference: a single step starts at T - 1, where the image is noise, and
    not at 0.

    Args:
        process: The forward process that the model was trained on, or a restriction of it.
        name: "ancestral", "ddim" or "dpm++" for a schedule, "euler" for a rectified flow.
        steps: Model evaluations per image, 1 to T; "ddim" needs an integer stride.
        prediction: "epsilon", "v" or "x_0"; "velocity" for a rectified flow.
        variance: "learned_range" (the output has twice the channels), "fixed_small" or "fixed_large".
        eta: For "ddim", the share of the ancestral noise, 0 (none) to 1.
        clip: Whether every estimate of x_0 is clipped to [-1, 1]; the published sampling does not.

    Raises:
        ValueError: An unknown choice, one that does not belong to the process, or a number out of its range.
    """
    check_choice("sampler", name, SamplerName)
    check_objective(process, prediction=prediction, variance=variance)
    if (name == "euler") != isinstance(process, RectifiedFlow):
        raise ValueError(f"'euler' and a rectified flow need each other, got {name!r} for prediction {prediction!r}")
    if not 0.0 <= eta <= (1.0 if name == "ddim" else 0.0):
        raise ValueError(f"eta must be 0 to 1 for 'ddim' and 0 otherwise, got {eta} for {name!r}")
    visited = _visited(process.num_timesteps, name, steps)
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


def _visited(num_timesteps: int, name: SamplerName, steps: int) -> list[int]:
    if not 1 <= steps <= num_timesteps:
        raise ValueError(f"steps must be 1 to {num_timesteps}, got {steps}")
    if steps == 1:
        return [num_timesteps - 1]
    match name:
        case "ancestral":
            return space_timesteps(num_timesteps, str(steps))
        case "ddim":
            return space_timesteps(num_timesteps, f"ddim{steps}")
        case "dpm++":
            if steps == num_timesteps:
                return list(range(num_timesteps))
            # diffusers' own choice, half-way cases included.
            return np.linspace(0, num_timesteps - 1, steps + 1).round().astype(np.int64)[1:].tolist()
        case "euler":
            # Index t stands at sigma (t + 1) / T.
            return (np.linspace(0, num_timesteps, steps + 1).round().astype(np.int64)[1:] - 1).tolist()
