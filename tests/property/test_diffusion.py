"""Laws of the diffusion room that hold without a recording: closed forms, convergence, independence of images."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dis_cli.diffusion.objective import (
    Prediction,
    Variance,
    predict_x_0,
    prediction_target,
    q_sample,
    reverse_step,
    training_losses,
)
from dis_cli.diffusion.samplers import SamplerName, make_sampler, sample_loop
from dis_cli.diffusion.schedule import (
    Schedule,
    ScheduleName,
    check_choice,
    linear_betas,
    make_schedule,
    respace,
    space_timesteps,
)

LINEAR = make_schedule("linear", 1000)
COSINE = make_schedule("cosine", 1000)
MEAN, STD = 0.3, 0.5
SAMPLERS = pytest.mark.parametrize("name", ["ancestral", "ddim", "dpm++"])
OBJECTIVES = pytest.mark.parametrize(
    ("schedule", "prediction"),
    [(LINEAR, "epsilon"), (COSINE, "v"), (LINEAR, "x_0")],
    ids=["linear-epsilon", "cosine-v", "linear-x_0"],
)
VARIANCES = pytest.mark.parametrize("variance", ["learned_range", "fixed_small", "fixed_large"])


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def levels(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of x_0 and of the noise in x_t."""
    signal = torch.from_numpy(schedule.alphas_cumprod)[t][:, None, None, None]
    return signal.sqrt(), (1 - signal).sqrt()


def gaussian_denoiser(
    schedule: Schedule, prediction: Prediction, *, learned: bool = False
) -> Callable[[Tensor, Tensor], Tensor]:
    """The best possible model for data of independent N(MEAN, STD**2) values, in closed form."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        signal, noise = (level.to(x.dtype) for level in levels(schedule, t))
        x_0 = MEAN + signal * STD**2 / (signal**2 * STD**2 + noise**2) * (x - signal * MEAN)
        epsilon = (x - signal * x_0) / noise
        output = {"epsilon": epsilon, "v": signal * epsilon - noise * x_0, "x_0": x_0}[prediction]
        return torch.cat([output, torch.sin(9 * x)], dim=1) if learned else output

    return denoise


def gaussian_flow(schedule: Schedule, x_T: Tensor, t: int) -> Tensor:
    """Where the probability flow from x_T at t ends, for the same data: it keeps the number of standard deviations."""
    signal, noise = levels(schedule, torch.tensor([t]))
    return MEAN + STD * (x_T - signal * MEAN) / (signal**2 * STD**2 + noise**2).sqrt()


@given(num_timesteps=st.integers(2, 300), data=st.data())
def test_equal_strides_keep_the_count_and_both_ends(num_timesteps: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(2, num_timesteps))

    kept = space_timesteps(num_timesteps, str(count))

    strides = np.diff(kept)
    assert (len(kept), kept[0], kept[-1]) == (count, 0, num_timesteps - 1)
    assert strides.min() >= 1
    assert strides.max() - strides.min() <= 1


@given(num_timesteps=st.integers(1, 300), stride=st.integers(1, 300))
def test_ddim_takes_the_smallest_integer_stride(num_timesteps: int, stride: int) -> None:
    count = len(range(0, num_timesteps, stride))
    smallest = next(s for s in itertools.count(1) if len(range(0, num_timesteps, s)) == count)

    assert space_timesteps(num_timesteps, f"ddim{count}") == list(range(0, num_timesteps, smallest))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ddim300", "exactly 300 of 1000 timesteps with an integer stride; .* 250 and 334"),
        ("1001", "keep 1001 timesteps of a section of 1000"),
        ("10,600", "keep 600 timesteps of a section of 500"),
        ("0", "positive integers, got '0'"),
        ("10,", "positive integers, got '10,'"),
        ("ddim", "positive integers, got 'ddim'"),
        ("fast", "positive integers, got 'fast'"),
    ],
)
def test_impossible_respacings_name_what_was_asked(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        respace(LINEAR, spec)


def test_too_short_a_linear_schedule_is_refused() -> None:
    assert linear_betas(21).max() < 1
    with pytest.raises(ValueError, match="at least 21 timesteps, got 20"):
        make_schedule("linear", 20)


def test_an_unknown_choice_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="schedule must be one of 'linear', 'cosine', got 'sigmoid'"):
        check_choice("schedule", "sigmoid", ScheduleName)


def test_cosine_signal_is_a_squared_cosine() -> None:
    angle = (np.arange(1, 1000) / 1000 + 0.008) / 1.008 * np.pi / 2
    expected = np.cos(angle) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2

    np.testing.assert_allclose(COSINE.alphas_cumprod[:-1], expected, rtol=1e-9)


@given(seed=st.integers(0, 2**31 - 1), data=st.data())
def test_targets_are_rotations_of_image_and_noise(seed: int, data: st.DataObject) -> None:
    t = torch.tensor(data.draw(st.lists(st.integers(0, 999), min_size=3, max_size=3)))
    x_0, noise = normal(2, 3, 1, 2, 2, seed=seed)
    signal, level = levels(LINEAR, t)

    x_t = q_sample(LINEAR, x_0, t, noise)
    v = prediction_target(LINEAR, x_0, t, noise, prediction="v")

    assert torch.equal(prediction_target(LINEAR, x_0, t, noise, prediction="epsilon"), noise)
    torch.testing.assert_close(v, signal * noise - level * x_0)
    torch.testing.assert_close(level * x_t + signal * v, noise)
    torch.testing.assert_close(x_t**2 + v**2, x_0**2 + noise**2)
    torch.testing.assert_close(predict_x_0(LINEAR, v, x_t, t, prediction="v"), x_0)
    torch.testing.assert_close(predict_x_0(LINEAR, noise, x_t, t, prediction="epsilon"), x_0, atol=1e-9, rtol=1e-9)


def test_v_loss_is_the_plain_mean_squared_error() -> None:
    t = torch.tensor([0, 400, 999])
    x_0, noise, output = normal(3, 3, 2, 4, 4)
    signal, level = levels(COSINE, t)

    losses = training_losses(
        COSINE, output, x_0, q_sample(COSINE, x_0, t, noise), noise, t, prediction="v", variance="fixed_small"
    )

    expected = (output - (signal * noise - level * x_0)).square().flatten(1).mean(1)
    assert losses.keys() == {"loss", "mse"}
    torch.testing.assert_close(losses["loss"], expected)


def test_the_learned_variance_ranges_between_the_fixed_ones() -> None:
    t = torch.tensor([0, 1, 500, 999])
    x_t, output = normal(2, 4, 2, 3, 3)

    def log_variance(variance: Variance, *channels: Tensor) -> Tensor:
        model_output = torch.cat([output, *channels], dim=1)
        return reverse_step(LINEAR, model_output, x_t, t, prediction="epsilon", variance=variance).log_variance

    posterior = LINEAR.posterior_variance[[1, 1, 500, 999]]
    small = torch.from_numpy(np.log(posterior))[:, None, None, None].expand_as(x_t)
    beta = torch.from_numpy(np.log(LINEAR.betas[[0, 1, 500, 999]]))[:, None, None, None].expand_as(x_t)
    torch.testing.assert_close(log_variance("fixed_small"), small)
    torch.testing.assert_close(log_variance("learned_range", -torch.ones_like(output)), small)
    torch.testing.assert_close(log_variance("learned_range", torch.ones_like(output)), beta)
    torch.testing.assert_close(log_variance("fixed_large")[1:], beta[1:])
    torch.testing.assert_close(log_variance("fixed_large")[:1], small[:1])


@OBJECTIVES
@pytest.mark.parametrize(
    ("name", "few", "many", "order", "bound"), [("ddim", 50, 500, 1, 6e-3), ("dpm++", 10, 160, 2, 1e-3)]
)
def test_deterministic_samplers_converge_to_the_exact_flow(
    schedule: Schedule, prediction: Prediction, name: SamplerName, few: int, many: int, order: int, bound: float
) -> None:
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 3, 3)

    def error(steps: int) -> float:
        sampler = make_sampler(schedule, name=name, steps=steps, prediction=prediction, variance="fixed_small")
        *_, x_0 = sample_loop(gaussian_denoiser(schedule, prediction), x_T, sampler, generators(0))
        return (x_0 - gaussian_flow(schedule, x_T, sampler.timesteps[0])).abs().max().item()

    assert error(many) < bound
    assert error(few) / error(2 * few) > 0.9 * 2**order


@OBJECTIVES
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ancestral_samples_have_the_data_s_mean_and_spread(
    schedule: Schedule, prediction: Prediction, variance: Variance
) -> None:
    sampler = make_sampler(schedule, name="ancestral", steps=250, prediction=prediction, variance=variance)

    *_, x_0 = sample_loop(gaussian_denoiser(schedule, prediction), normal(1, 1, 128, 128), sampler, generators(1))

    assert x_0.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert x_0.std().item() == pytest.approx(STD, rel=0.03)


@VARIANCES
@pytest.mark.parametrize("prediction", ["epsilon", "v", "x_0"])
def test_an_ancestral_step_draws_from_the_reverse_gaussian(variance: Variance, prediction: Prediction) -> None:
    sampler = make_sampler(LINEAR, name="ancestral", steps=10, prediction=prediction, variance=variance)
    x, model_output = normal(1, 2, 4, 4), normal(1, 4 if variance == "learned_range" else 2, 4, 4, seed=1)

    x_prev = sampler.step(model_output, 999, x, generators(5))

    step = reverse_step(sampler.process, model_output, x, torch.tensor([9]), prediction=prediction, variance=variance)
    expected = step.mean + (0.5 * step.log_variance).exp() * normal(1, 2, 4, 4, seed=5)
    torch.testing.assert_close(x_prev, expected, rtol=1e-9, atol=1e-9)


@SAMPLERS
@VARIANCES
@pytest.mark.parametrize("prediction", ["epsilon", "v", "x_0"])
def test_an_image_does_not_depend_on_its_batch(name: SamplerName, variance: Variance, prediction: Prediction) -> None:
    sampler = make_sampler(
        COSINE, name=name, steps=8, prediction=prediction, variance=variance, eta=0.5 if name == "ddim" else 0.0
    )
    denoise = gaussian_denoiser(COSINE, prediction, learned=variance == "learned_range")
    x_T = normal(3, 2, 3, 3, dtype=torch.float32)

    together = list(sample_loop(denoise, x_T, sampler, generators(7, 8, 9)))
    alone = list(sample_loop(denoise, x_T[1:2], sampler, generators(8)))

    assert len(together) == 8
    for batch, image in zip(together, alone, strict=True):
        assert batch.dtype == torch.float32
        assert torch.equal(batch[1:2], image)


@pytest.mark.parametrize("name", ["ancestral", "ddim"])
def test_noise_comes_from_the_generators(name: SamplerName) -> None:
    sampler = make_sampler(
        LINEAR, name=name, steps=10, prediction="epsilon", variance="fixed_small", eta=1.0 if name == "ddim" else 0.0
    )
    x_T = normal(1, 1, 4, 4).expand(2, -1, -1, -1)

    *_, x_0 = sample_loop(gaussian_denoiser(LINEAR, "epsilon"), x_T, sampler, generators(1, 2))

    assert not torch.allclose(x_0[0], x_0[1], atol=1e-2)


@SAMPLERS
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_a_point_is_found_by_the_exact_estimate_of_x_0(name: SamplerName, steps: int) -> None:
    x_T, point = normal(2, 1, 4, 4), normal(1, 1, 4, 4, seed=1)
    sampler = make_sampler(COSINE, name=name, steps=steps, prediction="x_0", variance="fixed_small")

    *_, x_0 = sample_loop(lambda x, _: point.expand_as(x), x_T, sampler, generators(0, 1))

    torch.testing.assert_close(x_0, point.expand_as(x_0), rtol=0, atol=1e-9)


@SAMPLERS
@pytest.mark.parametrize("variance", ["learned_range", "fixed_large"])
@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_a_single_step_gives_the_estimate_at_the_noisiest_timestep(
    name: SamplerName, variance: Variance, schedule: Schedule
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


@SAMPLERS
@pytest.mark.parametrize(
    "schedule", [make_schedule("linear", 40), make_schedule("cosine", 12)], ids=["linear", "cosine"]
)
def test_all_timesteps_can_be_visited(name: SamplerName, schedule: Schedule) -> None:
    steps = schedule.num_timesteps
    sampler = make_sampler(schedule, name=name, steps=steps, prediction="v", variance="fixed_small")

    *_, x_0 = sample_loop(gaussian_denoiser(schedule, "v"), normal(1, 1, 4, 4), sampler, generators(0))

    assert sampler.timesteps == list(range(steps))[::-1]
    assert x_0.isfinite().all()


@given(num_timesteps=st.integers(21, 120), data=st.data())
def test_dpm_visits_distinct_timesteps_down_from_the_noisiest(num_timesteps: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, num_timesteps))

    sampler = make_sampler(
        make_schedule("linear", num_timesteps), name="dpm++", steps=steps, prediction="v", variance="fixed_small"
    )

    assert len(sampler.timesteps) == steps
    assert sampler.timesteps[0] == num_timesteps - 1
    assert all(later < earlier for earlier, later in itertools.pairwise(sampler.timesteps))


@SAMPLERS
def test_clipping_keeps_the_estimates_in_range(name: SamplerName) -> None:
    sampler = make_sampler(LINEAR, name=name, steps=5, prediction="epsilon", variance="fixed_small", clip=True)

    for x in sample_loop(lambda x, _: 0.5 * x, 3 * normal(1, 1, 4, 4), sampler, generators(0)):
        assert x.isfinite().all()
        assert sampler.pred_x_0 is not None
        assert sampler.pred_x_0.abs().max() <= 1


@SAMPLERS
@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(name: SamplerName, steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps must be 1 to 1000, got {steps}"):
        make_sampler(LINEAR, name=name, steps=steps, prediction="epsilon", variance="fixed_small")


@pytest.mark.parametrize(("name", "eta"), [("ddim", -0.1), ("ddim", 1.1), ("ancestral", 0.5), ("dpm++", 0.5)])
def test_eta_is_for_ddim_and_within_0_and_1(name: SamplerName, eta: float) -> None:
    with pytest.raises(ValueError, match=f"eta must be .* got {eta}"):
        make_sampler(LINEAR, name=name, steps=10, prediction="epsilon", variance="fixed_small", eta=eta)


def test_a_step_out_of_order_or_of_the_wrong_shape_is_refused() -> None:
    sampler = make_sampler(LINEAR, name="ddim", steps=4, prediction="epsilon", variance="learned_range")
    x = normal(2, 1, 4, 4)

    with pytest.raises(ValueError, match="step 1 of 4 cannot be at timestep 500"):
        sampler.step(normal(2, 2, 4, 4), 500, x, generators(0, 1))
    with pytest.raises(ValueError, match="got 1 for 2 images"):
        sampler.step(normal(2, 2, 4, 4), 750, x, generators(0))
    with pytest.raises(ValueError, match="has 2 channels"):
        sampler.step(normal(2, 1, 4, 4), 750, x, generators(0, 1))
