"""The error of epsilon against its definition, whatever a model predicts of whatever process."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dis_cli.diffusion.denoising import LOG_SNRS, epsilon_errors, nearest_levels, summarize
from dis_cli.diffusion.flow import make_flow
from dis_cli.diffusion.objective import prediction_target
from dis_cli.diffusion.schedule import make_schedule

LINEAR, COSINE, FLOW = make_schedule("linear", 1000), make_schedule("cosine", 400), make_flow(1000)
CASES = [(LINEAR, "epsilon"), (LINEAR, "v"), (COSINE, "v"), (COSINE, "x_0"), (FLOW, "velocity")]


# Epsilon of an output, from x_t and the factors of signal and noise.
def epsilon_of(prediction: str, out: Tensor, x_t: Tensor, a: float, s: float) -> Tensor:
    match prediction:
        case "epsilon":
            return out
        case "v":
            return a * out + s * x_t
        case "x_0":
            return (x_t - a * out) / s
        case _:
            return x_t + a * out


class Waves(nn.Module):
    """A function of all that a model is told."""

    def __init__(self, learned: bool = False) -> None:
        super().__init__()
        self.learned = learned
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        self.seen.append(t)
        classes = 0 if labels is None else labels[:, None, None, None]
        out = torch.sin(3 * x + t[:, None, None, None] / 100 + classes)
        return torch.cat([out, out * 7], dim=1) if self.learned else out


def images() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, 3, 2, 4, 4, generator=generator, dtype=torch.float64)
    return x_0.tanh(), noise, torch.tensor([0, 2, 1])


def log_snrs(process: Any) -> np.ndarray:
    # The last level of a flow has no signal.
    return 2 * np.log(process.signal_factor[:-1] / process.noise_factor[:-1])


@pytest.mark.parametrize(("process", "prediction"), CASES)
@pytest.mark.parametrize("labelled", [False, True])
def test_errors_are_those_of_the_definition(process: Any, prediction: str, labelled: bool) -> None:
    x_0, noise, labels = images()
    model, given = Waves(learned=labelled and prediction == "epsilon"), labels if labelled else None
    variance = "learned_range" if model.learned else "fixed_small"
    got = epsilon_errors(process, model, x_0, noise, given, prediction=prediction, variance=variance)
    assert got.shape == (3, 16)
    there = log_snrs(process)
    for image in range(3):
        for place, wanted in enumerate(LOG_SNRS):
            index = int(np.argmin(np.abs(there - wanted)))
            a, s = process.signal_factor[index], process.noise_factor[index]
            x_t = a * x_0[image] + s * noise[image]
            one = None if given is None else given[image : image + 1]
            out = model(x_t[None], torch.tensor([index]), one)[0, :2]
            error = (epsilon_of(prediction, out, x_t, a, s) - noise[image]).square().mean()
            assert got[image, place] == pytest.approx(float(error), rel=1e-9)


@pytest.mark.parametrize(("process", "prediction"), CASES)
def test_a_perfect_model_has_no_error(process: Any, prediction: str) -> None:
    x_0, noise, _ = images()

    class Perfect(nn.Module):
        def forward(self, _x: Tensor, t: Tensor, _labels: Tensor | None) -> Tensor:
            count = len(t) // len(x_0)
            clean, noises = x_0.repeat_interleave(count, 0), noise.repeat_interleave(count, 0)
            return prediction_target(process, clean, t, noises, prediction=prediction)

    errors = epsilon_errors(process, Perfect(), x_0, noise, None, prediction=prediction, variance="fixed_small")
    assert errors.max() < 1e-20


@pytest.mark.parametrize("process", [LINEAR, COSINE, FLOW])
def test_levels_are_common_to_all_processes(process: Any) -> None:
    levels = nearest_levels(process)
    assert list(LOG_SNRS) == [-7.5 + place for place in range(16)]
    assert levels.log_snrs == pytest.approx(LOG_SNRS, abs=0.2)
    assert log_snrs(process)[levels.indices] == pytest.approx(levels.log_snrs)


def test_a_model_is_told_the_timesteps_of_the_whole_process() -> None:
    x_0, noise, _ = images()
    model, short = Waves(), LINEAR.restrict(list(range(5, 1000, 7)))
    epsilon_errors(short, model, x_0, noise, None, prediction="epsilon", variance="fixed_small")
    expected = short.timestep_map[nearest_levels(short).indices]
    assert model.seen[0].tolist() == expected.tolist() * 3


def test_float32_is_as_good_as_float64() -> None:
    x_0, noise, _ = images()
    for process, prediction in CASES:
        wanted, got = (
            epsilon_errors(
                process, Waves(), x_0.to(dtype), noise.to(dtype), None, prediction=prediction, variance="fixed_small"
            )
            for dtype in (torch.float64, torch.float32)
        )
        assert got == pytest.approx(wanted, rel=1e-3)


def test_means_and_their_standard_errors() -> None:
    errors = np.random.default_rng(0).random((7, 16))
    found = summarize(errors)
    by_image = errors.mean(axis=1)
    assert found.mean == pytest.approx(errors.mean(), rel=1e-12)
    assert found.std_error == pytest.approx(by_image.std(ddof=1) / 7**0.5, rel=1e-12)
    for quarter in range(4):
        part = errors[:, 4 * quarter : 4 * quarter + 4].mean(axis=1)
        assert found.quarters[quarter] == pytest.approx(part.mean(), rel=1e-12)
        assert found.quarter_std_errors[quarter] == pytest.approx(part.std(ddof=1) / 7**0.5, rel=1e-12)
    assert np.isnan(summarize(errors[:1]).std_error)
