"""Samplers against the published sampling loops, step by step, with the recorded noise.

All are compared with diffusers' schedulers too, which is an implementation of other people: in their own configuration,
and with this project's exact tables in place of their float32 ones, where they then agree to rounding.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from safetensors.torch import load_file
from torch import Tensor

from dis_cli.diffusion.objective import Prediction
from dis_cli.diffusion.samplers.loop import make_sampler, sample_loop
from dis_cli.diffusion.schedule import Schedule, ScheduleName, make_schedule, space_timesteps

ORACLE = load_file(Path(__file__).parent / "data" / "sampling_loops_f64.safetensors")
LINEAR = make_schedule("linear", 1000)


def model(x: Tensor, t: Tensor) -> Tensor:
    """The stand-in that the loops were recorded with: epsilon and variance channels."""
    time = t.to(x.dtype)[:, None, None, None]
    epsilon = 0.8 * x * torch.cos(time / 1000) + 0.1 * torch.sin(5 * x)
    return torch.cat([epsilon, torch.sin(3 * x + time / 200)], dim=1)


def inject_noise(monkeypatch: pytest.MonkeyPatch, noise: Tensor) -> None:
    draws = iter(noise)
    monkeypatch.setattr("dis_cli.diffusion.samplers.loop.draw_noise", lambda *_arguments: next(draws))


def assert_close(got: Tensor, name: str, step: int, tolerance: float) -> None:
    expected = ORACLE[name][step]
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=tolerance * expected.abs().max().item())


CASES = [
    ("10", "p_sample.clip0"),
    ("10", "p_sample.clip1"),
    ("10", "ddim_sample.clip0.eta0.0"),
    ("10", "ddim_sample.clip0.eta0.7"),
    ("10", "ddim_sample.clip1.eta0.0"),
    ("ddim50", "p_sample.clip0"),
    ("ddim50", "ddim_sample.clip0.eta0.0"),
    ("ddim50", "ddim_sample.clip0.eta0.7"),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"])
@pytest.mark.parametrize(("respacing", "method"), CASES)
def test_every_step(
    respacing: str, method: str, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject_noise(monkeypatch, ORACLE[f"{respacing}.noise_in_call_order"].to(dtype))
    schedule = LINEAR.restrict(space_timesteps(LINEAR.num_timesteps, respacing))
    sampler = make_sampler(
        schedule,
        name="ddim" if "ddim_sample" in method else "ancestral",
        steps=schedule.num_timesteps,
        prediction="epsilon",
        variance="learned_range",
        eta=0.7 if method.endswith("eta0.7") else 0.0,
        clip="clip1" in method,
    )
    told: list[int] = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        told.append(int(t[0]))
        return model(x, t)

    generators = [torch.Generator(), torch.Generator()]
    for step, x in enumerate(sample_loop(denoise, ORACLE[f"{respacing}.z"].to(dtype), sampler, generators)):
        assert x.dtype == dtype
        assert_close(x, f"{respacing}.{method}.samples", step, tolerance)
        assert sampler.pred_x_0 is not None
        assert_close(sampler.pred_x_0, f"{respacing}.{method}.pred_xstart", step, tolerance)

    assert told == ORACLE[f"{respacing}.model_t_seen"].tolist()


@pytest.mark.parametrize(
    ("name", "steps", "recorded"),
    [("ancestral", 10, "10.p_sample.clip0"), ("ddim", 50, "ddim50.ddim_sample.clip0.eta0.0")],
)
def test_a_number_of_steps_is_the_published_respacing(
    name: str, steps: int, recorded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    respacing = recorded.partition(".")[0]
    inject_noise(monkeypatch, ORACLE[f"{respacing}.noise_in_call_order"])
    sampler = make_sampler(LINEAR, name=name, steps=steps, prediction="epsilon", variance="learned_range")

    *_, x_0 = sample_loop(model, ORACLE[f"{respacing}.z"], sampler, [torch.Generator(), torch.Generator()])

    assert sampler.timesteps == ORACLE[f"{respacing}.model_t_seen"].tolist()
    assert_close(x_0, f"{recorded}.samples", -1, 1e-9)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("steps", [1, 6, 20])
@pytest.mark.parametrize(
    ("schedule", "their_schedule", "prediction", "their_prediction"),
    [
        ("linear", "linear", "epsilon", "epsilon"),
        ("cosine", "squaredcos_cap_v2", "v", "v_prediction"),
    ],
)
@pytest.mark.parametrize("name", ["dpm++", "dpm++sde", "unipc", "euler"])
def test_samplers_are_those_of_diffusers(
    name: str,
    schedule: ScheduleName,
    their_schedule: str,
    prediction: Prediction,
    their_prediction: str,
    steps: int,
) -> None:
    common = {"beta_schedule": their_schedule, "prediction_type": their_prediction}
    noise = {}
    match name:
        case "dpm++":
            theirs = DPMSolverMultistepScheduler(**common)
        case "dpm++sde":
            theirs = DPMSolverMultistepScheduler(**common, algorithm_type="sde-dpmsolver++")
            noise = {"generator": [torch.Generator().manual_seed(seed) for seed in (1, 2)]}
        case "unipc":
            theirs = UniPCMultistepScheduler(**common)
        case _:
            # Euler's method is DDIM's step, and DDIM's at these timesteps is DPM-Solver++ of first order.
            theirs = DPMSolverMultistepScheduler(**common, solver_order=1)
    theirs.set_timesteps(steps)
    expected = ORACLE["10.z"].float()
    for t in theirs.timesteps:
        output = model(expected, t.expand(2))
        expected = theirs.step(output[:, :3], t, expected, **noise).prev_sample

    sampler = make_sampler(
        make_schedule(schedule, 1000), name=name, steps=steps, prediction=prediction, variance="learned_range"
    )
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    *_, x_0 = sample_loop(model, ORACLE["10.z"].float(), sampler, generators)

    assert sampler.timesteps == theirs.timesteps.tolist()
    torch.testing.assert_close(x_0, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


THEIRS: dict[str, type[Any]] = {
    "ancestral": DDPMScheduler,
    "ddim": DDIMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "dpm++sde": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
}


def with_exact_tables(name: str, schedule: Schedule, settings: dict[str, Any]) -> Any:
    """A scheduler of diffusers that goes through all indices, with float64 tables in place of its float32 ones."""
    theirs = THEIRS[name](num_train_timesteps=schedule.num_timesteps, trained_betas=schedule.betas.tolist(), **settings)
    if name in ("ancestral", "ddim"):
        theirs.betas = torch.from_numpy(schedule.betas)
        theirs.alphas_cumprod = torch.from_numpy(schedule.alphas_cumprod)
        theirs.set_timesteps(schedule.num_timesteps)
    else:
        theirs.num_inference_steps = schedule.num_timesteps
        theirs.sigmas = torch.from_numpy(np.append(schedule.sqrt_recipm1_alphas_cumprod[::-1], 0.0))
    return theirs


@pytest.mark.parametrize("steps", [2, 5, 20])
@pytest.mark.parametrize(
    ("schedule", "prediction", "their_prediction"),
    [("linear", "epsilon", "epsilon"), ("cosine", "v", "v_prediction"), ("linear", "x_0", "sample")],
)
@pytest.mark.parametrize(
    ("name", "ours", "settings", "tolerance"),
    [
        ("ancestral", {"variance": "learned_range"}, {"clip_sample": False, "variance_type": "learned_range"}, 1e-12),
        ("ancestral", {"variance": "fixed_large"}, {"clip_sample": False, "variance_type": "fixed_large"}, 1e-12),
        ("ancestral", {"clip": True}, {"clip_sample": True, "variance_type": "fixed_small"}, 1e-12),
        ("ddim", {}, {"clip_sample": False}, 1e-12),
        ("ddim", {"eta": 0.7}, {"clip_sample": False}, 1e-12),
        ("unipc", {}, {}, 1e-12),
        # These round images before a step, and noise, to float32.
        ("dpm++", {}, {}, 3e-6),
        ("dpm++sde", {}, {"algorithm_type": "sde-dpmsolver++"}, 3e-6),
    ],
)
def test_steps_are_those_of_diffusers_with_exact_tables(
    name: str,
    ours: dict[str, Any],
    settings: dict[str, Any],
    tolerance: float,
    schedule: ScheduleName,
    prediction: Prediction,
    their_prediction: str,
    steps: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    z, noise = ORACLE["10.z"], torch.randn(20, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    process = make_schedule(schedule, 1000)
    ours = {"variance": "fixed_small"} | ours
    sampler = make_sampler(process, name=name, steps=steps, prediction=prediction, **ours)
    learned = ours["variance"] == "learned_range"
    theirs = with_exact_tables(name, sampler.process, settings | {"prediction_type": their_prediction})
    draws = iter(noise.double())
    for scheduler in ("ddpm", "ddim", "dpmsolver_multistep"):
        module = f"diffusers.schedulers.scheduling_{scheduler}"
        monkeypatch.setattr(f"{module}.randn_tensor", lambda *_shape, dtype, **_where: next(draws).to(dtype))
    expected = z
    eta = {"eta": ours["eta"]} if "eta" in ours else {}
    for index, t in zip(reversed(range(steps)), sampler.timesteps, strict=True):
        output = model(expected, torch.tensor([t, t]))
        expected = theirs.step(output if learned else output[:, :3], index, expected, **eta).prev_sample
    inject_noise(monkeypatch, noise.double())

    *_, x_0 = sample_loop(
        lambda x, t: model(x, t) if learned else model(x, t)[:, :3], z, sampler, [torch.Generator(), torch.Generator()]
    )

    torch.testing.assert_close(x_0, expected, rtol=0, atol=tolerance * expected.abs().max().item())
