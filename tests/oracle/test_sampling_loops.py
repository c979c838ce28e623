"""Samplers against the published sampling loops, step by step, with the recorded noise.

Samplers without a published counterpart are compared with diffusers' schedulers in their own configuration.
"""

from pathlib import Path

import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from safetensors.torch import load_file
from torch import Tensor

from dis_cli.diffusion.objective import Prediction
from dis_cli.diffusion.samplers import SamplerName, make_sampler, sample_loop
from dis_cli.diffusion.schedule import ScheduleName, make_schedule, space_timesteps

ORACLE = load_file(Path(__file__).parent / "data" / "sampling_loops_f64.safetensors")
LINEAR = make_schedule("linear", 1000)


def model(x: Tensor, t: Tensor) -> Tensor:
    """The stand-in that the loops were recorded with: epsilon and variance channels."""
    time = t.to(x.dtype)[:, None, None, None]
    epsilon = 0.8 * x * torch.cos(time / 1000) + 0.1 * torch.sin(5 * x)
    return torch.cat([epsilon, torch.sin(3 * x + time / 200)], dim=1)


def inject_noise(monkeypatch: pytest.MonkeyPatch, noise: Tensor) -> None:
    draws = iter(noise)

    def next_draw(*args: object, **kwargs: object) -> Tensor:
        return next(draws)

    for scheduler in ("ddpm", "ddim"):
        monkeypatch.setattr(f"diffusers.schedulers.scheduling_{scheduler}.randn_tensor", next_draw)


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
    name: SamplerName, steps: int, recorded: str, monkeypatch: pytest.MonkeyPatch
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
    name: SamplerName,
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
