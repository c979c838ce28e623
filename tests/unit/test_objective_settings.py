"""What the diffusion and training settings turn into, and which of them exclude each other."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from dis_cli.config.schema import RunConfig
from dis_cli.diffusion.batch import TrainingBatch
from dis_cli.diffusion.flow import RectifiedFlow
from dis_cli.diffusion.schedule import Schedule
from dis_cli.workflows.build import build_guidance, build_objective, build_sampler, build_schedule
from dis_cli.workflows.train.build import build_learning_rate

FLOW = {"schedule": "rectified_flow", "prediction": "velocity", "variance": "fixed_small"}
JIT = FLOW | {"prediction": "x_0"}
UNIFORM = FLOW | {"timesteps": "uniform"}


def make(diffusion: dict[str, object], *, sampler: str = "ancestral", **train: object) -> RunConfig:
    return RunConfig.model_validate(
        {"diffusion": diffusion, "sample": {"sampler": sampler, "steps": 4}, "train": {"precision": "fp32"} | train}
    )


@pytest.mark.parametrize(
    ("diffusion", "sampler", "message"),
    [
        (
            {"prediction": "velocity"},
            "ancestral",
            "prediction 'velocity' needs schedule 'rectified_flow', got schedule 'linear'; with both goes a fixed "
            "diffusion.variance",
        ),
        (FLOW | {"prediction": "v"}, "euler", "needs prediction 'velocity' or 'x_0', got prediction 'v'"),
        (FLOW | {"variance": "learned_range"}, "euler", "prediction 'velocity' needs a fixed variance"),
        ({"prediction": "x_0"}, "ancestral", "prediction 'x_0' needs a fixed variance: set diffusion.variance to"),
        (FLOW | {"loss_weight": "min_snr"}, "euler", "'min_snr' is not defined for schedule 'rectified_flow'"),
        (FLOW, "dpm++", "'dpm.*' cannot sample diffusion.schedule 'rectified_flow': .* 'auto' or one of 'heun', 'eul"),
        (JIT, "dpm++", "'dpm.*' cannot sample diffusion.schedule 'rectified_flow'"),
        (JIT | {"loss_weight": "min_snr"}, "euler", "'min_snr' is not defined for schedule 'rectified_flow'"),
        ({"shift": 3}, "ddim", "shift '3.0' is for diffusion.schedule 'rectified_flow', got 'linear': .* to 1.0"),
        ({"timesteps": "uniform"}, "ddim", "timesteps 'uniform' is for diffusion.schedule 'rectified_flow', got 'lin"),
        (FLOW | {"timestep_mean": 1}, "euler", "mean '1.0' is for diffusion.timesteps 'logit_normal', got 'discrete'"),
        (UNIFORM | {"timestep_std": 2}, "euler", "std '2.0' is for diffusion.timesteps 'logit_normal', got 'uniform'"),
        (FLOW | {"shift": 0}, "euler", "shift\\n  Input should be greater than 0"),
        (JIT | {"velocity_clamp": 0}, "euler", "velocity_clamp\\n  Input should be greater than 0"),
        ({"timestep_offset": -1}, "ddim", "timestep_offset\\n  Input should be greater than or equal to 0"),
        ({"schedule": "scaled_linear", "num_timesteps": 12}, "ddim", "scaled_linear .* num_timesteps above 12, got 12"),
    ],
)
def test_settings_that_exclude_each_other(diffusion: dict[str, object], sampler: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make(diffusion, sampler=sampler)


def test_processes_and_samplers() -> None:
    flow, schedule = make(FLOW, sampler="euler"), make({"prediction": "x_0", "variance": "fixed_small"})
    assert isinstance(build_schedule(flow), RectifiedFlow)
    assert build_schedule(flow).num_timesteps == 1000
    assert isinstance(build_schedule(schedule), Schedule)
    assert build_sampler(flow).timesteps == [999, 749, 499, 249]
    assert build_sampler(schedule).prediction == "x_0"
    # A published file of U-ViT's latent models.
    uvit = make({"schedule": "scaled_linear", "timestep_offset": 1}, sampler="dpm++")
    assert build_sampler(uvit).timesteps == [1000, 750, 501, 251]
    assert build_guidance(uvit).scale_at(1000) == 1.0
    shifted = make(JIT | {"shift": 3, "timestep_offset": 1}, sampler="euler")
    assert build_sampler(shifted).timesteps == pytest.approx([1000, 900, 750, 500])


class Constant(torch.nn.Module):
    """Predicts 0.5 everywhere, and keeps what it was given."""

    def forward(self, x: Tensor, t: Tensor, *_: object, **__: object) -> Tensor:
        self.seen = (x, t)
        return torch.full_like(x, 0.5)


@pytest.mark.parametrize(("loss_weight", "gamma"), [("uniform", 5.0), ("min_snr", 5.0), ("min_snr", 0.1)])
def test_the_loss_is_that_of_the_settings(loss_weight: str, gamma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, 3, 3, 4, 4, generator=generator)
    t = torch.tensor([10, 300, 900])
    zeros = torch.zeros(3)
    batch = TrainingBatch(x_0, t, t, noise, zeros, zeros[None])
    settings = {"prediction": "x_0", "variance": "fixed_small", "loss_weight": loss_weight, "min_snr_gamma": gamma}

    loss = build_objective(make(settings)).loss(Constant(), batch)

    expected = 0.0
    for row, step in enumerate(t.tolist()):
        signal = math.prod(1 - (1e-4 + (0.02 - 1e-4) * index / 999) for index in range(step + 1))
        weight = 1.0 if loss_weight == "uniform" else min(signal / (1 - signal), gamma)
        expected += weight * (0.5 - x_0[row].double()).square().mean().item() / 3
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_flow_is_trained_on_straight_lines() -> None:
    generator = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, 2, 3, 4, 4, generator=generator)
    t = torch.tensor([249, 999])
    zeros = torch.zeros(2)
    model = Constant()

    loss = build_objective(make(FLOW, sampler="euler")).loss(model, TrainingBatch(x_0, t, t, noise, zeros, zeros[None]))

    x_t, told = model.seen
    assert torch.equal(told, t)
    torch.testing.assert_close(x_t[0], 0.75 * x_0[0] + 0.25 * noise[0])
    assert torch.equal(x_t[1], noise[1])
    assert loss.item() == pytest.approx((0.5 - (noise - x_0)).square().mean().item(), rel=1e-6)


def test_the_learning_rate_is_that_of_the_settings() -> None:
    config = make(
        {}, lr=1e-2, warmup_steps=4, warmup_start="zero", lr_schedule="inverse_sqrt", min_lr_ratio=0.25, steps=10
    )
    expected = [0.0, 0.0025, 0.005, 0.0075, 0.01, 0.01 * math.sqrt(4 / 5)]
    assert [build_learning_rate(config, step) for step in range(6)] == pytest.approx(expected, rel=1e-12)
    assert build_learning_rate(config, 1000) == pytest.approx(0.0025)
    assert build_learning_rate(make({}, lr=1e-2, warmup_steps=4), 0) == 0.0025
