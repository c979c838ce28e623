"""Laws of the samplers that hold without a recording: closed forms, convergence, independence of images."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.gaussian import MEAN, STD, gaussian_denoiser, gaussian_flow, generators, levels, normal

from dis_cli.diffusion.objective import Prediction, Variance, reverse_step
from dis_cli.diffusion.samplers.loop import make_sampler, sample_loop
from dis_cli.diffusion.samplers.table import SAMPLERS
from dis_cli.diffusion.schedule import Schedule, make_schedule

LINEAR = make_schedule("linear", 1000)
COSINE = make_schedule("cosine", 1000)
EVERY_SAMPLER = pytest.mark.parametrize("name", [*SAMPLERS])
OBJECTIVES = pytest.mark.parametrize(
    ("schedule", "prediction"),
    [(LINEAR, "epsilon"), (COSINE, "v"), (LINEAR, "x_0")],
    ids=["linear-epsilon", "cosine-v", "linear-x_0"],
)
VARIANCES = pytest.mark.parametrize("variance", ["learned_range", "fixed_small", "fixed_large"])


@OBJECTIVES
@pytest.mark.parametrize(
    ("name", "few", "more", "many", "order", "bound"),
    [
        ("ddim", 50, 100, 500, 1, 6e-3),
        ("euler", 50, 100, 500, 1, 7e-3),
        ("dpm++", 10, 20, 160, 2, 1e-3),
        ("unipc", 10, 20, 160, 2, 2e-3),
        # Of second order in the noise's share, which equal strides of t make steepest where the steps end.
        ("heun", 21, 41, 161, 1.5, 6e-3),
    ],
)
def test_deterministic_samplers_converge_to_the_exact_flow(
    schedule: Schedule,
    prediction: Prediction,
    name: str,
    few: int,
    more: int,
    many: int,
    order: float,
    bound: float,
) -> None:
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 3, 3)

    def error(steps: int) -> float:
        sampler = make_sampler(schedule, name=name, steps=steps, prediction=prediction, variance="fixed_small")
        *_, x_0 = sample_loop(gaussian_denoiser(schedule, prediction), x_T, sampler, generators(0))
        return (x_0 - gaussian_flow(schedule, x_T, sampler.timesteps[0])).abs().max().item()

    assert error(few) < 0.2
    assert error(many) < bound
    assert error(few) / error(more) > 0.9 * 2**order


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x_0"])
@pytest.mark.parametrize(
    ("name", "order"),
    # UniPC's corrector adds one order to that of its predictor.
    [("ddim", 1), ("euler", 1), ("dpm++", 2), ("heun", 2), ("unipc", 3)],
)
def test_orders_of_convergence(name: str, order: int, prediction: Prediction) -> None:
    """On levels of equal steps of lambda, up to the last one with noise, the exact solution being known."""
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 3, 3)

    def error(num_steps: int) -> float:
        alphas_cumprod = 1 / (1 + np.exp(-2 * np.linspace(3, -3, 2 * num_steps + 1)))
        betas = 1 - alphas_cumprod / np.append(1, alphas_cumprod[:-1])
        full = Schedule(betas, np.arange(len(betas)), len(betas))
        # Every other level; DDIM takes no number that the stride does not divide.
        process = full.restrict(list(range(2, len(betas), 2))) if name == "ddim" else full
        steps = 2 * num_steps - 1 if name == "heun" else num_steps
        sampler = make_sampler(process, name=name, steps=steps, prediction=prediction, variance="fixed_small")
        assert sampler.timesteps[-1] == 2
        *xs, _ = sample_loop(gaussian_denoiser(full, prediction), x_T, sampler, generators(0))
        # The flow keeps the number of standard deviations.
        (signal, noise), (signal_T, noise_T) = (levels(full, torch.tensor([t])) for t in (2, 2 * num_steps))
        away = (x_T - signal_T * MEAN) / (signal_T**2 * STD**2 + noise_T**2).sqrt()
        return (xs[-1] - signal * MEAN - away * (signal**2 * STD**2 + noise**2).sqrt()).abs().max().item()

    assert math.log2(error(40) / error(80)) == pytest.approx(order, abs=0.1)


@OBJECTIVES
@pytest.mark.parametrize(
    ("name", "variance", "steps", "eta"),
    [
        ("ancestral", "fixed_small", 250, 0.0),
        ("ancestral", "fixed_large", 250, 0.0),
        ("ddim", "fixed_small", 250, 1.0),
        ("dpm++sde", "fixed_small", 120, 0.0),
    ],
)
def test_samplers_with_noise_have_the_data_s_mean_and_spread(
    schedule: Schedule, prediction: Prediction, name: str, variance: Variance, steps: int, eta: float
) -> None:
    sampler = make_sampler(schedule, name=name, steps=steps, prediction=prediction, variance=variance, eta=eta)

    *_, x_0 = sample_loop(gaussian_denoiser(schedule, prediction), normal(1, 1, 128, 128), sampler, generators(1))

    assert x_0.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert x_0.std().item() == pytest.approx(STD, rel=0.03)


@OBJECTIVES
def test_euler_s_steps_are_those_of_ddim(schedule: Schedule, prediction: Prediction) -> None:
    # Every stride of 1000 that ends at 999 begins elsewhere than DDIM's: only a whole schedule is visited by both.
    x_T, visited = normal(2, 1, 4, 4), schedule.restrict(list(range(0, 1000, 37)))
    ends = []
    for name in ("euler", "ddim"):
        sampler = make_sampler(visited, name=name, steps=28, prediction=prediction, variance="fixed_small")
        ends.append(list(sample_loop(gaussian_denoiser(schedule, prediction), x_T, sampler, generators(0, 1))))
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_heun_s_step_averages_the_slopes_at_both_ends() -> None:
    denoise = gaussian_denoiser(COSINE, "v")
    sampler = make_sampler(COSINE, name="heun", steps=3, prediction="v", variance="fixed_small")
    high, low, again = sampler.timesteps
    assert (high, low) == (999, again)
    x = normal(1, 1, 4, 4)

    def slope(x: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Tensor, float, float]:
        """Noise minus x_0, the latter, and the factors that bring x_t to (1 - sigma) x_0 + sigma noise."""
        signal, noise = COSINE.signal_factor[t], COSINE.noise_factor[t]
        v = denoise(x, torch.tensor([t]))
        x_0 = signal * x - noise * v
        return noise * x + signal * v - x_0, x_0, signal + noise, noise / (signal + noise)

    first, _, scale, sigma = slope(x, high)
    line, (*_, scale_low, sigma_low) = x / scale, slope(x, low)
    guess = scale_low * (line + (sigma_low - sigma) * first)
    middle = scale_low * (line + (sigma_low - sigma) * (first + slope(guess, low)[0]) / 2)
    # The last step goes to the image itself.
    expected = [guess, middle, slope(middle, low)[1]]

    got = list(sample_loop(denoise, x, sampler, generators(0)))

    for ours, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-10)


@VARIANCES
@pytest.mark.parametrize("prediction", ["epsilon", "v", "x_0"])
def test_an_ancestral_step_draws_from_the_reverse_gaussian(variance: Variance, prediction: Prediction) -> None:
    sampler = make_sampler(LINEAR, name="ancestral", steps=10, prediction=prediction, variance=variance)
    x, model_output = normal(1, 2, 4, 4), normal(1, 4 if variance == "learned_range" else 2, 4, 4, seed=1)

    x_prev = sampler.step(model_output, 999, x, generators(5))

    step = reverse_step(sampler.process, model_output, x, torch.tensor([9]), prediction=prediction, variance=variance)
    expected = step.mean + (0.5 * step.log_variance).exp() * normal(1, 2, 4, 4, seed=5)
    torch.testing.assert_close(x_prev, expected, rtol=1e-9, atol=1e-9)


@EVERY_SAMPLER
@VARIANCES
@pytest.mark.parametrize("prediction", ["epsilon", "v", "x_0"])
def test_an_image_does_not_depend_on_its_batch(name: str, variance: Variance, prediction: Prediction) -> None:
    sampler = make_sampler(
        COSINE, name=name, steps=9, prediction=prediction, variance=variance, eta=0.5 if name == "ddim" else 0.0
    )
    denoise = gaussian_denoiser(COSINE, prediction, learned=variance == "learned_range")
    x_T = normal(3, 2, 3, 3, dtype=torch.float32)

    together = list(sample_loop(denoise, x_T, sampler, generators(7, 8, 9)))
    alone = list(sample_loop(denoise, x_T[1:2], sampler, generators(8)))

    assert len(together) == 9
    for batch, image in zip(together, alone, strict=True):
        assert batch.dtype == torch.float32
        assert torch.equal(batch[1:2], image)


@pytest.mark.parametrize("name", ["ancestral", "ddim", "dpm++sde"])
def test_noise_comes_from_the_generators(name: str) -> None:
    sampler = make_sampler(
        LINEAR, name=name, steps=10, prediction="epsilon", variance="fixed_small", eta=1.0 if name == "ddim" else 0.0
    )
    x_T = normal(1, 1, 4, 4).expand(2, -1, -1, -1)

    *_, x_0 = sample_loop(gaussian_denoiser(LINEAR, "epsilon"), x_T, sampler, generators(1, 2))

    assert not torch.allclose(x_0[0], x_0[1], atol=1e-2)


@EVERY_SAMPLER
@pytest.mark.parametrize("steps", [1, 3, 11])
def test_a_point_is_found_by_the_exact_estimate_of_x_0(name: str, steps: int) -> None:
    x_T, point = normal(2, 1, 4, 4), normal(1, 1, 4, 4, seed=1)
    eta = 1.0 if name == "ddim" else 0.0
    sampler = make_sampler(COSINE, name=name, steps=steps, prediction="x_0", variance="fixed_small", eta=eta)

    *_, x_0 = sample_loop(lambda x, _: point.expand_as(x), x_T, sampler, generators(0, 1))

    torch.testing.assert_close(x_0, point.expand_as(x_0), rtol=0, atol=1e-9)


@EVERY_SAMPLER
@pytest.mark.parametrize("variance", ["learned_range", "fixed_large"])
@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_a_single_step_gives_the_estimate_at_the_noisiest_timestep(
    name: str, variance: Variance, schedule: Schedule
) -> None:
    x_T = normal(2, 1, 4, 4)
    sampler = make_sampler(schedule, name=name, steps=1, prediction="v", variance=variance)

    [x_0] = sample_loop(
        gaussian_denoiser(schedule, "v", learned=variance == "learned_range"), x_T, sampler, generators(0, 1)
    )

    signal, level = levels(schedule, torch.tensor([999]))
    expected = MEAN + signal * STD**2 / (signal**2 * STD**2 + level**2) * (x_T - signal * MEAN)
    assert sampler.timesteps == [999]
    torch.testing.assert_close(x_0, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["ancestral", "ddim", "dpm++", "dpm++sde", "unipc", "euler"])
@pytest.mark.parametrize(
    "schedule", [make_schedule("linear", 40), make_schedule("cosine", 12)], ids=["linear", "cosine"]
)
def test_all_timesteps_can_be_visited(name: str, schedule: Schedule) -> None:
    steps = schedule.num_timesteps
    sampler = make_sampler(schedule, name=name, steps=steps, prediction="v", variance="fixed_small")

    *_, x_0 = sample_loop(gaussian_denoiser(schedule, "v"), normal(1, 1, 4, 4), sampler, generators(0))

    assert sampler.timesteps == list(range(steps))[::-1]
    assert x_0.isfinite().all()


@given(num_timesteps=st.integers(21, 120), data=st.data())
def test_fast_samplers_visit_distinct_timesteps_down_from_the_noisiest(num_timesteps: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, num_timesteps))
    name = data.draw(st.sampled_from(["dpm++", "dpm++sde", "unipc", "euler"]))

    sampler = make_sampler(
        make_schedule("linear", num_timesteps), name=name, steps=steps, prediction="v", variance="fixed_small"
    )

    assert len(sampler.timesteps) == steps
    assert sampler.timesteps[0] == num_timesteps - 1
    assert all(later < earlier for earlier, later in itertools.pairwise(sampler.timesteps))


@EVERY_SAMPLER
def test_clipping_keeps_the_estimates_in_range(name: str) -> None:
    sampler = make_sampler(LINEAR, name=name, steps=5, prediction="epsilon", variance="fixed_small", clip=True)

    for x in sample_loop(lambda x, _: 0.5 * x, 3 * normal(1, 1, 4, 4), sampler, generators(0)):
        assert x.isfinite().all()
        assert sampler.pred_x_0 is not None
        assert sampler.pred_x_0.abs().max() <= 1


@EVERY_SAMPLER
@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(name: str, steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps must be 1 to 1000, got {steps}"):
        make_sampler(LINEAR, name=name, steps=steps, prediction="epsilon", variance="fixed_small")


@pytest.mark.parametrize(("name", "eta"), [("ddim", -0.1), ("ddim", 1.1), ("ancestral", 0.5), ("dpm++sde", 0.5)])
def test_eta_is_for_ddim_and_within_0_and_1(name: str, eta: float) -> None:
    with pytest.raises(ValueError, match=f"eta must be .* got {eta}"):
        make_sampler(LINEAR, name=name, steps=10, prediction="epsilon", variance="fixed_small", eta=eta)


@pytest.mark.parametrize(
    ("name", "steps", "message"),
    [("heun", 20, "steps of 'heun' must be odd .* got 20"), ("ddim", 300, "exactly 300 of 1000 .* 250 and 334")],
)
def test_numbers_of_steps_that_a_sampler_cannot_take_are_refused(name: str, steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_sampler(LINEAR, name=name, steps=steps, prediction="epsilon", variance="fixed_small")


@EVERY_SAMPLER
@VARIANCES
def test_the_variance_channels_move_the_ancestral_sampler_only(name: str, variance: Variance) -> None:
    x_T = normal(1, 2, 4, 4)

    def sampled(share: float) -> torch.Tensor:
        sampler = make_sampler(LINEAR, name=name, steps=9, prediction="epsilon", variance=variance)
        denoise = gaussian_denoiser(LINEAR, "epsilon")

        def with_variance(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            output = denoise(x, t)
            return torch.cat([output, torch.full_like(x, share)], dim=1) if variance == "learned_range" else output

        *_, x_0 = sample_loop(with_variance, x_T, sampler, generators(0))
        return x_0

    moved = name == "ancestral" and variance == "learned_range"
    assert torch.equal(sampled(-1.0), sampled(1.0)) != moved


def test_a_step_out_of_order_or_of_the_wrong_shape_is_refused() -> None:
    sampler = make_sampler(LINEAR, name="ddim", steps=4, prediction="epsilon", variance="learned_range")
    x = normal(2, 1, 4, 4)

    with pytest.raises(ValueError, match="step 1 of 4 cannot be at timestep 500"):
        sampler.step(normal(2, 2, 4, 4), 500, x, generators(0, 1))
    with pytest.raises(ValueError, match="got 1 for 2 images"):
        sampler.step(normal(2, 2, 4, 4), 750, x, generators(0))
    with pytest.raises(ValueError, match="has 2 channels"):
        sampler.step(normal(2, 1, 4, 4), 750, x, generators(0, 1))
