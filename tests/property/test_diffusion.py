"""Laws of the diffusion room that hold without a recording: respacing, targets, losses, variances."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.gaussian import levels, normal

from dis_cli.diffusion.objective import (
    Variance,
    predict_x_0,
    prediction_target,
    q_sample,
    reverse_step,
    training_losses,
)
from dis_cli.diffusion.schedule import (
    ScheduleName,
    check_choice,
    linear_betas,
    make_schedule,
    space_timesteps,
)

LINEAR = make_schedule("linear", 1000)
COSINE = make_schedule("cosine", 1000)


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
        LINEAR.restrict(space_timesteps(LINEAR.num_timesteps, spec))


def test_too_short_a_linear_schedule_is_refused() -> None:
    assert linear_betas(21).max() < 1
    with pytest.raises(ValueError, match="at least 21 timesteps, got 20"):
        make_schedule("linear", 20)


def test_an_unknown_choice_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="schedule must be one of 'linear', 'scaled_linear', 'cosine', got 'sigmoid'"):
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

    def log_variance(variance: Variance, *channels: torch.Tensor) -> torch.Tensor:
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
