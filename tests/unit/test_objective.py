"""Every objective against its equation, written out in float64 from the betas, with its gradient."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dis_cli.diffusion.flow import make_flow, told_timesteps
from dis_cli.diffusion.objective import (
    LossWeight,
    Prediction,
    min_snr_weights,
    predict_x_0,
    prediction_target,
    q_sample,
    training_losses,
)
from dis_cli.diffusion.schedule import make_schedule

LINEAR = make_schedule("linear", 1000)
FLOW = make_flow(8)
T = [0, 3, 250, 999]
BETAS = np.linspace(1e-4, 0.02, 1000)
SCHEDULED = pytest.mark.parametrize("prediction", ["epsilon", "v", "x_0"])


def normal(channels: int, seed: int) -> Tensor:
    return torch.randn(len(T), channels, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def alpha_bar(t: int) -> float:
    return math.prod(1.0 - beta for beta in BETAS[: t + 1])


def min_snr(t: int, prediction: Prediction, gamma: float) -> float:
    snr = alpha_bar(t) / (1 - alpha_bar(t))
    return {"x_0": min(snr, gamma), "epsilon": min(snr, gamma) / snr, "v": min(snr, gamma) / (snr + 1)}[prediction]


def written_out(prediction: Prediction, t: int, x_0: Tensor, noise: Tensor) -> Tensor:
    signal, level = math.sqrt(alpha_bar(t)), math.sqrt(1 - alpha_bar(t))
    return {"epsilon": noise, "v": signal * noise - level * x_0, "x_0": x_0}[prediction]


@SCHEDULED
@pytest.mark.parametrize(("loss_weight", "gamma"), [("uniform", 5.0), ("min_snr", 5.0), ("min_snr", 0.5)])
def test_a_loss_and_its_gradient_are_those_of_the_equation(
    prediction: Prediction, loss_weight: LossWeight, gamma: float
) -> None:
    x_0, noise, output = normal(2, 0), normal(2, 1), normal(2, 2).requires_grad_()
    t = torch.tensor(T)

    losses = training_losses(
        LINEAR,
        output,
        x_0,
        q_sample(LINEAR, x_0, t, noise),
        noise,
        t,
        prediction=prediction,
        variance="fixed_small",
        loss_weight=loss_weight,
        min_snr_gamma=gamma,
    )
    losses["loss"].mean().backward()

    assert losses.keys() == {"loss", "mse"}
    assert output.grad is not None
    for row, step in enumerate(T):
        weight = 1.0 if loss_weight == "uniform" else min_snr(step, prediction, gamma)
        error = output[row].detach() - written_out(prediction, step, x_0[row], noise[row])
        mse = error.square().sum() / error.numel()
        torch.testing.assert_close(losses["mse"][row], mse, rtol=1e-11, atol=0)
        torch.testing.assert_close(losses["loss"][row], weight * mse, rtol=1e-9, atol=0)
        expected = weight * 2 * error / error.numel() / len(T)
        torch.testing.assert_close(output.grad[row], expected, rtol=1e-9, atol=1e-14)


def test_the_flow_s_loss_and_its_gradient_are_those_of_the_equation() -> None:
    x_0, noise, output = normal(2, 0), normal(2, 1), normal(2, 2).requires_grad_()
    t = torch.tensor([0, 1, 5, 7])
    share = torch.tensor([1 / 8, 2 / 8, 6 / 8, 1.0], dtype=torch.float64)[:, None, None, None]

    x_t = q_sample(FLOW, x_0, t, noise)
    losses = training_losses(FLOW, output, x_0, x_t, noise, t, prediction="velocity", variance="fixed_small")
    losses["loss"].mean().backward()

    torch.testing.assert_close(x_t, x_0 + share * (noise - x_0))
    # The noisiest level is the noise itself, from which sampling starts.
    assert torch.equal(x_t[3], noise[3])
    error = output.detach() - (noise - x_0)
    assert losses.keys() == {"loss", "mse"}
    torch.testing.assert_close(losses["loss"], error.square().flatten(1).sum(1) / 18, rtol=1e-12, atol=0)
    assert output.grad is not None
    torch.testing.assert_close(output.grad, 2 * error / 18 / 4, rtol=1e-12, atol=0)


@pytest.mark.parametrize("t", [[0, 1, 5, 7], [-0.9, 0.25, 3.5, 7.0]], ids=["whole", "between"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_x_0_is_trained_by_the_error_of_its_velocity(t: list[float], shift: float) -> None:
    x_0, noise, output = normal(2, 0), normal(2, 1), normal(2, 2).requires_grad_()
    flow, at = make_flow(8, shift=shift), torch.tensor(t, dtype=torch.int64 if t[0] == 0 else torch.float64)
    u = (torch.tensor(t, dtype=torch.float64)[:, None, None, None] + 1) / 8
    sigma = shift * u / (1 + (shift - 1) * u)

    x_t = q_sample(flow, x_0, at, noise)
    losses = training_losses(
        flow, output, x_0, x_t, noise, at, prediction="x_0", variance="fixed_small", velocity_clamp=0.2
    )
    losses["loss"].mean().backward()

    torch.testing.assert_close(x_t, (1 - sigma) * x_0 + sigma * noise, rtol=1e-12, atol=1e-12)
    divisor = torch.where(sigma > 0.2, sigma, 0.2)
    error = (x_t - output.detach()) / divisor - (x_t - x_0) / divisor
    torch.testing.assert_close(losses["loss"], error.square().flatten(1).mean(1), rtol=1e-9, atol=0)
    torch.testing.assert_close(losses["mse"], (output.detach() - x_0).square().flatten(1).mean(1), rtol=1e-12, atol=0)
    assert output.grad is not None
    torch.testing.assert_close(output.grad, -2 * error / divisor / 18 / 4, rtol=1e-9, atol=1e-14)
    # Above the clamp the target is the velocity noise - x_0 itself.
    torch.testing.assert_close(((x_t - x_0) / sigma)[3], (noise - x_0)[3], rtol=1e-9, atol=1e-9)
    assert torch.equal(predict_x_0(flow, output, x_t, at, prediction="x_0"), output)
    told = told_timesteps(flow, at)
    torch.testing.assert_close(told.double(), (8 * sigma - 1).flatten(), rtol=1e-12, atol=1e-12)
    velocity = prediction_target(flow, x_0, at, noise, prediction="velocity")
    torch.testing.assert_close(predict_x_0(flow, velocity, x_t, at, prediction="velocity"), x_0, rtol=1e-9, atol=1e-9)


def test_told_timesteps() -> None:
    t = torch.tensor([0, 3, 7])
    assert torch.equal(told_timesteps(FLOW, t), t)
    assert torch.equal(told_timesteps(make_schedule("cosine", 8), t), t)
    # Models that were trained on 1 to T.
    assert torch.equal(told_timesteps(make_schedule("cosine", 8, timestep_offset=1), t), t + 1)
    assert torch.equal(told_timesteps(make_flow(8, timestep_offset=1), t), t + 1)
    assert make_schedule("cosine", 8, timestep_offset=1).restrict([2, 7]).timestep_map.tolist() == [3, 8]
    with pytest.raises(ValueError, match="between two others are for a rectified flow"):
        told_timesteps(make_schedule("cosine", 8), t.double())


def test_a_shift_moves_levels_towards_the_noise() -> None:
    flow = make_flow(4, shift=3.0)
    assert flow.sigmas.tolist() == pytest.approx([0.5, 0.75, 0.9, 1.0])
    part = flow.restrict([0, 2])
    assert part.sigmas.tolist() == pytest.approx([0.5, 0.9])
    assert part.timestep_map.tolist() == pytest.approx([1.0, 2.6])
    with pytest.raises(ValueError, match="shift must be above 0, got 0"):
        make_flow(4, shift=0)


def test_the_velocity_is_the_derivative_of_the_path() -> None:
    x_0, noise = normal(1, 0), normal(1, 1)
    fine = make_flow(10_000)
    at, after = (torch.full((4,), index) for index in (4_000, 4_001))

    difference = q_sample(fine, x_0, after, noise) - q_sample(fine, x_0, at, noise)

    target = prediction_target(fine, x_0, at, noise, prediction="velocity")
    torch.testing.assert_close(10_000 * difference, target, rtol=1e-9, atol=1e-9)


@SCHEDULED
def test_a_target_stands_for_its_image(prediction: Prediction) -> None:
    x_0, noise, t = normal(2, 0), normal(2, 1), torch.tensor(T)

    target = prediction_target(LINEAR, x_0, t, noise, prediction=prediction)

    got = predict_x_0(LINEAR, target, q_sample(LINEAR, x_0, t, noise), t, prediction=prediction)
    torch.testing.assert_close(got, x_0, rtol=1e-9, atol=1e-9)


def test_a_velocity_stands_for_its_image() -> None:
    x_0, noise, t = normal(2, 0), normal(2, 1), torch.tensor([0, 1, 5, 7])

    target = prediction_target(FLOW, x_0, t, noise, prediction="velocity")

    got = predict_x_0(FLOW, target, q_sample(FLOW, x_0, t, noise), t, prediction="velocity")
    torch.testing.assert_close(got, x_0)


@SCHEDULED
def test_min_snr_caps_the_ratio_of_signal_to_noise(prediction: Prediction) -> None:
    weights = min_snr_weights(LINEAR, prediction=prediction, gamma=5.0)

    # Both sides of the cap are among these.
    assert [alpha_bar(t) / (1 - alpha_bar(t)) > 5 for t in (0, 100, 200, 500, 999)] == [True, True, False, False, False]
    for t in (0, 100, 200, 500, 999):
        assert weights[t] == pytest.approx(min_snr(t, prediction, 5.0), rel=1e-9)


@SCHEDULED
def test_min_snr_weighs_an_error_of_x_0_alike_whatever_is_predicted(prediction: Prediction) -> None:
    x_0, noise, t = normal(1, 0), normal(1, 1), torch.tensor([50, 200, 500, 900])
    x_t = q_sample(LINEAR, x_0, t, noise)
    output = prediction_target(LINEAR, x_0, t, noise, prediction=prediction) + 0.1 * normal(1, 2)

    weight = torch.from_numpy(min_snr_weights(LINEAR, prediction=prediction, gamma=5.0))[t]
    losses = training_losses(
        LINEAR,
        output,
        x_0,
        x_t,
        noise,
        t,
        prediction=prediction,
        variance="fixed_small",
        loss_weight="min_snr",
    )

    error = (predict_x_0(LINEAR, output, x_t, t, prediction=prediction) - x_0).square().mean(dim=(1, 2, 3))
    capped = torch.tensor([min_snr(int(step), "x_0", 5.0) for step in t], dtype=torch.float64)
    torch.testing.assert_close(losses["loss"], capped * error, rtol=1e-9, atol=0)
    torch.testing.assert_close(losses["loss"], weight * losses["mse"], rtol=1e-9, atol=0)


def test_min_snr_does_not_weigh_the_variational_bound() -> None:
    x_0, noise, t = normal(1, 0), normal(1, 1), torch.tensor(T)
    x_t = q_sample(LINEAR, x_0, t, noise)

    def losses(loss_weight: LossWeight) -> tuple[dict[str, Tensor], Tensor]:
        output = normal(2, 2).requires_grad_()
        found = training_losses(
            LINEAR,
            output,
            x_0,
            x_t,
            noise,
            t,
            prediction="epsilon",
            variance="learned_range",
            loss_weight=loss_weight,
        )
        found["loss"].sum().backward()
        assert output.grad is not None
        return found, output.grad

    uniform, uniform_gradient = losses("uniform")
    weighted, gradient = losses("min_snr")

    weight = torch.tensor([min_snr(step, "epsilon", 5.0) for step in T], dtype=torch.float64)
    assert weighted.keys() == {"loss", "mse", "vb"}
    assert torch.equal(weighted["vb"], uniform["vb"])
    assert torch.equal(weighted["mse"], uniform["mse"])
    torch.testing.assert_close(weighted["loss"], weight * uniform["mse"] + uniform["vb"], rtol=1e-9, atol=0)
    assert torch.equal(gradient[:, 1:], uniform_gradient[:, 1:])
    expected = weight[:, None, None, None] * uniform_gradient[:, :1]
    torch.testing.assert_close(gradient[:, :1], expected, rtol=1e-9, atol=0)


def test_a_uniform_loss_is_the_squared_error_itself() -> None:
    x_0, noise, output = normal(1, 0).float(), normal(1, 1).float(), normal(1, 2).float()
    t = torch.tensor(T)
    x_t = q_sample(LINEAR, x_0, t, noise)

    losses = training_losses(LINEAR, output, x_0, x_t, noise, t, prediction="epsilon", variance="fixed_small")

    assert losses["loss"] is losses["mse"]
    assert torch.equal(losses["loss"], (noise - output).square().mean(dim=(1, 2, 3)))


@pytest.mark.parametrize("gamma", [1e-3, 5.0])
def test_weights_keep_the_type_of_the_images(gamma: float) -> None:
    x_0, noise, output = normal(1, 0).float(), normal(1, 1).float(), normal(1, 2).float()
    t = torch.tensor(T)

    losses = training_losses(
        LINEAR,
        output,
        x_0,
        q_sample(LINEAR, x_0, t, noise),
        noise,
        t,
        prediction="x_0",
        variance="fixed_small",
        loss_weight="min_snr",
        min_snr_gamma=gamma,
    )

    assert losses["loss"].dtype == torch.float32
    assert losses["loss"].isfinite().all()


def test_velocity_and_flow_need_each_other() -> None:
    x_0, t = normal(1, 0), torch.tensor([0, 1, 5, 7])
    with pytest.raises(ValueError, match="'velocity' needs a rectified flow, got 'velocity' with a schedule"):
        prediction_target(LINEAR, x_0, t, x_0, prediction="velocity")
    with pytest.raises(ValueError, match="a rectified flow predicts 'velocity' or 'x_0', got 'v'"):
        predict_x_0(FLOW, x_0, x_0, t, prediction="v")
    with pytest.raises(ValueError, match="a rectified flow predicts 'velocity' or 'x_0', got 'epsilon'"):
        training_losses(FLOW, x_0, x_0, x_0, x_0, t, prediction="epsilon", variance="fixed_small")


def test_a_flow_has_no_variance_to_learn_and_no_signal_to_noise_weight() -> None:
    x_0, t = normal(1, 0), torch.tensor([0, 1, 5, 7])
    with pytest.raises(ValueError, match="no variance to learn, got variance 'learned_range'"):
        training_losses(FLOW, normal(2, 1), x_0, x_0, x_0, t, prediction="velocity", variance="learned_range")
    with pytest.raises(ValueError, match="'min_snr' is not defined for a rectified flow"):
        training_losses(
            FLOW, x_0, x_0, x_0, x_0, t, prediction="velocity", variance="fixed_small", loss_weight="min_snr"
        )


def test_levels_of_a_flow() -> None:
    assert FLOW.sigmas.tolist() == [0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0]
    part = FLOW.restrict([1, 5, 7]).restrict([0, 2])
    assert (part.num_timesteps, part.timestep_map.tolist(), part.sigmas.tolist()) == (2, [1, 7], [0.25, 1.0])
    with pytest.raises(ValueError, match="ascend strictly within 0 to 7, got \\[3, 8\\]"):
        FLOW.restrict([3, 8])
    with pytest.raises(ValueError, match="at least 1 timestep, got 0"):
        make_flow(0)
