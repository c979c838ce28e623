"""diffusers' schedulers, with this project's own tables in place of theirs.

Each gets the tables of a process restricted to the timesteps to visit, in float64, and walks through all of its
indices: its own spacing rules, one of which breaks DDIM silently, its float32 tables and its options for other noise
levels (Karras and the like) never apply.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import torch

from dis_cli.diffusion.flow import ForwardProcess, RectifiedFlow
from dis_cli.diffusion.objective import Prediction, Variance
from dis_cli.diffusion.schedule import Schedule

SamplerName: TypeAlias = Literal["ancestral", "ddim", "dpm++", "dpm++sde", "unipc", "heun", "euler"]

# These integrate along straight lines from noise to image, whatever the process (``line_scales``).
STRAIGHT: Final = ("heun", "euler")

_DIFFUSERS_PREDICTION: Final[dict[str, Literal["epsilon", "v_prediction", "sample"]]] = {
    "epsilon": "epsilon",
    "v": "v_prediction",
    "x_0": "sample",
}


def visit_order(name: SamplerName, num_levels: int) -> list[int]:
    """The index of every model evaluation, in their order.

    Args:
        name: "heun" evaluates twice a step, at its beginning and its end, and once in the last one.
        num_levels: Number of noise levels T of the process.
    """
    down = list(range(num_levels))[::-1]
    return [*down[:1], *(index for index in down[1:] for _ in range(2))] if name == "heun" else down


def line_scales(process: ForwardProcess) -> list[float]:
    """What images of each noise level are divided by to lie on a straight line between image and noise.

    x_t = signal x_0 + noise epsilon, divided by signal + noise, is (1 - sigma) x_0 + sigma epsilon with sigma = noise /
    (signal + noise): a rectified flow. There Euler's step is DDIM's, and nothing exceeds 1, while the noise to signal
    ratio, in which such steps are usually written, begins at 2e4 for a cosine schedule: too steep for Heun's average
    of two slopes, and for float32.
    """
    if isinstance(process, RectifiedFlow):
        return [1.0] * process.num_timesteps
    return (process.signal_factor + process.noise_factor).tolist()


def line_sigmas(process: ForwardProcess) -> list[float]:
    """Share of the way to the noise, at each noise level, of images divided by ``line_scales``."""
    return (process.noise_factor / np.array(line_scales(process))).tolist()


def make_scheduler(
    process: ForwardProcess, *, name: SamplerName, prediction: Prediction, variance: Variance, clip: bool
) -> Any:
    """The scheduler of a sampler, before its first step.

    "ancestral" and "ddim" take the model's output; "dpm++", "dpm++sde" and "unipc" x_0; "heun" and "euler" the
    direction from x_0 to the noise, at images divided by ``line_scales``. All are told the index as their timestep,
    the last two as a float.

    Args:
        process: The forward process restricted to the timesteps to visit.
        variance: What it says about the variance of a step; for "ancestral".
        clip: Whether "ancestral" and "ddim" clip their estimates of x_0 to [-1, 1].
    """
    if name in STRAIGHT:
        return _along_lines(line_sigmas(process), visit_order(name, process.num_timesteps), name)
    assert isinstance(process, Schedule)
    tables: dict[str, Any] = {"num_train_timesteps": process.num_timesteps, "trained_betas": process.betas.tolist()}
    # Importing diffusers is slow: only who samples pays for it.
    match name:
        case "ancestral":
            from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

            scheduler: Any = DDPMScheduler(
                **tables, prediction_type=_DIFFUSERS_PREDICTION[prediction], variance_type=variance, clip_sample=clip
            )
        case "ddim":
            from diffusers.schedulers.scheduling_ddim import DDIMScheduler

            scheduler = DDIMScheduler(**tables, prediction_type=_DIFFUSERS_PREDICTION[prediction], clip_sample=clip)
        # The others get x_0 itself: their own conversion cannot clip, and takes a learned variance for three channels.
        case "unipc":
            from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

            scheduler = UniPCMultistepScheduler(**tables, prediction_type="sample")
        case _:
            from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

            algorithm = "sde-dpmsolver++" if name == "dpm++sde" else "dpmsolver++"
            scheduler = DPMSolverMultistepScheduler(**tables, prediction_type="sample", algorithm_type=algorithm)
    if name in ("ancestral", "ddim"):
        scheduler.betas = torch.from_numpy(process.betas)
        scheduler.alphas = 1.0 - scheduler.betas
        scheduler.alphas_cumprod = torch.from_numpy(process.alphas_cumprod)
        scheduler.set_timesteps(process.num_timesteps)
    else:
        # Not by set_timesteps, which works out float32 sigmas and warns under NumPy 2. All indices, downwards, are
        # their initial timesteps. Their sigmas are noise to signal before each step, and 0 after the last.
        scheduler.num_inference_steps = process.num_timesteps
        scheduler.sigmas = torch.from_numpy(np.append(process.sqrt_recipm1_alphas_cumprod[::-1], 0.0))
    return scheduler


def _along_lines(sigmas: Sequence[float], order: Sequence[int], name: str) -> Any:
    if name == "heun":
        from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler

        scheduler: Any = FlowMatchHeunDiscreteScheduler(num_train_timesteps=len(sigmas))
        # Begins without the first of a step's two slopes.
        scheduler.set_timesteps(len(sigmas))
    else:
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

        scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=len(sigmas))
    # Its timesteps are the indices, and its sigmas those before each evaluation, and 0 after the last.
    scheduler.timesteps = torch.tensor(order, dtype=torch.float64)
    scheduler.sigmas = torch.tensor([*(sigmas[index] for index in order), 0.0], dtype=torch.float64)
    return scheduler
