"""Laws of sampling a rectified flow: closed forms, convergence, levels, and independence of images."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dis_cli.diffusion.flow import make_flow
from dis_cli.diffusion.objective import Prediction, Variance
from dis_cli.diffusion.samplers.loop import Denoiser, Sampler, make_sampler, sample_loop
from dis_cli.diffusion.schedule import make_schedule

FLOW = make_flow(1000)
MEAN, STD = 0.3, 0.5


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def euler(steps: int, *, num_timesteps: int = 1000, clip: bool = False) -> Sampler:
    flow = make_flow(num_timesteps)
    return make_sampler(flow, name="euler", steps=steps, prediction="velocity", variance="fixed_small", clip=clip)


def heun(steps: int) -> Sampler:
    return make_sampler(FLOW, name="heun", steps=steps, prediction="velocity", variance="fixed_small")


def samples(denoise: Denoiser, x_T: Tensor, sampler: Sampler) -> Tensor:
    *_, x_0 = sample_loop(denoise, x_T, sampler, [torch.Generator() for _ in x_T])
    return x_0


def gaussian_velocity(x: Tensor, t: Tensor) -> Tensor:
    """The expected noise - x_0 given x_t, for data of independent N(MEAN, STD**2) values."""
    sigma = ((t + 1) / 1000).to(x.dtype)[:, None, None, None]
    variance = (1 - sigma) ** 2 * STD**2 + sigma**2
    x_0 = MEAN + (1 - sigma) * STD**2 / variance * (x - (1 - sigma) * MEAN)
    noise = sigma / variance * (x - (1 - sigma) * MEAN)
    return noise - x_0


def test_samples_have_the_data_s_mean_and_spread() -> None:
    x_0 = samples(gaussian_velocity, normal(1, 1, 128, 128), euler(100))

    assert x_0.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert x_0.std().item() == pytest.approx(STD, rel=0.02)


def test_euler_converges_to_the_exact_flow_at_first_order() -> None:
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 3, 3)

    def error(steps: int) -> float:
        # The flow keeps the number of standard deviations, and begins with a standard normal.
        return (samples(gaussian_velocity, x_T, euler(steps)) - (MEAN + STD * x_T)).abs().max().item()

    assert error(1000) < 2e-3
    assert 1.8 < error(50) / error(100) < 2.2


def test_heun_converges_to_the_exact_flow_at_second_order() -> None:
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 3, 3)

    def error(num_steps: int) -> float:
        x_0 = samples(gaussian_velocity, x_T, heun(2 * num_steps - 1))
        return (x_0 - (MEAN + STD * x_T)).abs().max().item()

    assert error(100) < 2e-4
    assert 3.6 < error(10) / error(20) < 4.4
    assert 3.6 < error(20) / error(40) < 4.4


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("prediction", ["velocity", "x_0"])
@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2)])
def test_every_prediction_and_shift_converges(name: str, order: int, prediction: Prediction, shift: float) -> None:
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 3, 3)
    flow = make_flow(1280, shift=shift)

    def denoise(x: Tensor, told: Tensor) -> Tensor:
        # The model is told the level itself.
        sigma = ((told.double() + 1) / 1280)[:, None, None, None]
        variance = (1 - sigma) ** 2 * STD**2 + sigma**2
        away = (x - (1 - sigma) * MEAN) / variance
        x_0 = MEAN + (1 - sigma) * STD**2 * away
        return sigma * away - x_0 if prediction == "velocity" else x_0

    def error(num_steps: int) -> float:
        steps = 2 * num_steps - 1 if name == "heun" else num_steps
        sampler = make_sampler(flow, name=name, steps=steps, prediction=prediction, variance="fixed_small")
        return (samples(denoise, x_T, sampler) - (MEAN + STD * x_T)).abs().max().item()

    assert math.log2(error(40) / error(80)) == pytest.approx(order, abs=0.15)


def test_a_heun_step_averages_the_velocities_at_both_ends() -> None:
    x, sampler = normal(1, 1, 4, 4), heun(5)
    assert sampler.timesteps == [999, 666, 666, 332, 332]
    expected = []
    for sigma, following in ((1.0, 0.667), (0.667, 0.333)):
        first = gaussian_velocity(x, torch.tensor([round(1000 * sigma) - 1]))
        guess = x + (following - sigma) * first
        second = gaussian_velocity(guess, torch.tensor([round(1000 * following) - 1]))
        x = x + (following - sigma) * (first + second) / 2
        expected += [guess, x]
    expected.append(x - 0.333 * gaussian_velocity(x, torch.tensor([332])))

    got = list(sample_loop(gaussian_velocity, normal(1, 1, 4, 4), sampler, [torch.Generator()]))

    for ours, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_a_point_is_reached_along_a_straight_line(steps: int) -> None:
    x_T, point = normal(2, 1, 4, 4), normal(1, 1, 4, 4, seed=1)
    sampler = euler(steps)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return (x - point) / ((t + 1).double() / 1000)[:, None, None, None]

    for x, t in zip(
        sample_loop(velocity, x_T, sampler, [torch.Generator()] * 2), [*sampler.timesteps[1:], -1], strict=True
    ):
        share = (t + 1) / 1000
        torch.testing.assert_close(x, point + share * (x_T - point), rtol=0, atol=1e-12)


def test_a_step_is_that_of_euler() -> None:
    sampler = euler(4, num_timesteps=10)
    assert sampler.timesteps == [9, 7, 4, 1]
    x = normal(1, 1, 3, 3, dtype=torch.float32)
    for t, stride in zip(sampler.timesteps, [0.2, 0.3, 0.3, 0.2], strict=True):
        velocity = normal(1, 1, 3, 3, seed=t, dtype=torch.float32)
        expected = x.double() - stride * velocity.double()
        x_0 = x.double() - (t + 1) / 10 * velocity.double()
        x = sampler.step(velocity, t, x, [torch.Generator()])
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.double(), expected, rtol=0, atol=1e-6)
        assert sampler.pred_x_0 is not None
        torch.testing.assert_close(sampler.pred_x_0.double(), x_0, rtol=0, atol=1e-6)
    # The last step leaves no noise.
    torch.testing.assert_close(x, sampler.pred_x_0, rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 20, 100])
def test_equal_steps_are_those_of_diffusers(steps: int) -> None:
    theirs = FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
    expected = normal(2, 1, 4, 4, dtype=torch.float32)
    sampler = euler(steps)
    told = [round(float(t)) - 1 for t in theirs.timesteps]
    for index, t in zip(told, theirs.timesteps, strict=True):
        expected = theirs.step(gaussian_velocity(expected, torch.tensor([index] * 2)), t, expected).prev_sample

    x_0 = samples(gaussian_velocity, normal(2, 1, 4, 4, dtype=torch.float32), sampler)

    assert sampler.timesteps == told
    torch.testing.assert_close(x_0, expected, rtol=0, atol=1e-5)


@given(num_timesteps=st.integers(1, 1500), data=st.data())
def test_levels_are_distinct_and_nearest_to_equal_steps(num_timesteps: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, num_timesteps))

    timesteps = euler(steps, num_timesteps=num_timesteps).timesteps

    assert (len(timesteps), timesteps[0]) == (steps, num_timesteps - 1)
    assert all(later < earlier for earlier, later in itertools.pairwise([*timesteps, -1]))
    for index, t in enumerate(timesteps):
        assert abs((t + 1) / num_timesteps - (1 - index / steps)) <= 0.5 / num_timesteps + 1e-12


@pytest.mark.parametrize("make", [euler, heun])
def test_an_image_does_not_depend_on_its_batch(make: Callable[[int], Sampler]) -> None:
    x_T = normal(5, 2, 3, 3, dtype=torch.float32)

    together, alone = samples(gaussian_velocity, x_T, make(9)), samples(gaussian_velocity, x_T[1:2], make(9))

    assert together.dtype == torch.float32
    assert torch.equal(together[1:2], alone)


def test_clipping_keeps_the_estimates_in_range_and_leads_to_them() -> None:
    sampler = euler(5, clip=True)
    x = 3 * normal(1, 1, 4, 4)
    for t, later in zip(sampler.timesteps, [*sampler.timesteps[1:], -1], strict=True):
        velocity, sigma, sigma_next = -0.5 * x, (t + 1) / 1000, (later + 1) / 1000
        x_0 = (x - sigma * velocity).clamp(-1, 1)
        expected = x_0 + sigma_next / sigma * (x - x_0)
        x = sampler.step(velocity, t, x, [torch.Generator()])
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-12)
        assert sampler.pred_x_0 is not None
        torch.testing.assert_close(sampler.pred_x_0, x_0, rtol=0, atol=1e-12)
    assert x.abs().max() <= 1 + 1e-12


@pytest.mark.parametrize(
    ("flow", "name", "prediction", "variance", "message"),
    [
        (True, "ddim", "velocity", "fixed_small", "a rectified flow is sampled by 'heun' or 'euler', got 'ddim'"),
        (True, "dpm++", "velocity", "fixed_small", "a rectified flow is sampled by 'heun' or 'euler', got 'dpm"),
        (True, "euler", "v", "fixed_small", "a rectified flow predicts 'velocity' or 'x_0', got 'v'"),
        (
            False,
            "ddim",
            "velocity",
            "fixed_small",
            "prediction 'velocity' needs a rectified flow, got 'velocity' with a schedule",
        ),
        (True, "euler", "velocity", "learned_range", "no variance to learn"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    flow: bool, name: str, prediction: Prediction, variance: Variance, message: str
) -> None:
    process = FLOW if flow else make_schedule("linear", 1000)
    with pytest.raises(ValueError, match=message):
        make_sampler(process, name=name, steps=4, prediction=prediction, variance=variance)


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps must be 1 to 1000, got {steps}"):
        euler(steps)
