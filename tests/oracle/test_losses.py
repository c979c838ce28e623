"""Training losses and the reverse step's Gaussian against the published code's, coefficients unrounded."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dis_cli.diffusion.objective import Variance, posterior, q_sample, reverse_step, training_losses
from dis_cli.diffusion.schedule import make_schedule

ORACLE = load_file(Path(__file__).parent / "data" / "training_losses_f64.safetensors")
SCHEDULE = make_schedule("linear", 1000)
PRECISIONS = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"]
)


def recorded(name: str, dtype: torch.dtype) -> Tensor:
    return ORACLE[name].to(dtype)


def assert_close(got: Tensor, name: str, tolerance: float) -> None:
    expected = ORACLE[name]
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


@PRECISIONS
@pytest.mark.parametrize(
    ("tag", "variance"), [("mse", "learned_range"), ("fixed_large", "fixed_large"), ("fixed_small", "fixed_small")]
)
def test_losses_and_their_gradient(tag: str, variance: Variance, dtype: torch.dtype, tolerance: float) -> None:
    channels = 8 if variance == "learned_range" else 4
    model_output = recorded("model_out", dtype)[:, :channels].clone().requires_grad_()

    losses = training_losses(
        SCHEDULE,
        model_output,
        recorded("x_start", dtype),
        recorded("x_t", dtype),
        recorded("noise", dtype),
        ORACLE["t"],
        prediction="epsilon",
        variance=variance,
    )
    losses["loss"].mean().backward()

    terms = {"loss", "mse", "vb"} if variance == "learned_range" else {"loss", "mse"}
    assert losses.keys() == terms
    for term in terms:
        assert losses[term].dtype == dtype
        # Each image by itself: the terms differ by orders of magnitude between noise levels.
        torch.testing.assert_close(losses[term].double(), ORACLE[f"{tag}.{term}"], rtol=tolerance, atol=0)
    assert model_output.grad is not None
    assert_close(model_output.grad, f"{tag}.grad_model_out_of_mean_loss", tolerance)


@PRECISIONS
def test_noisy_images(dtype: torch.dtype, tolerance: float) -> None:
    x_t = q_sample(SCHEDULE, recorded("x_start", dtype), ORACLE["t"], recorded("noise", dtype))

    assert x_t.dtype == dtype
    assert_close(x_t, "x_t", tolerance)


@PRECISIONS
def test_the_reverse_step(dtype: torch.dtype, tolerance: float) -> None:
    step = reverse_step(
        SCHEDULE,
        recorded("model_out", dtype),
        recorded("x_t", dtype),
        ORACLE["t"],
        prediction="epsilon",
        variance="learned_range",
    )

    assert_close(step.mean, "p.mean", tolerance)
    assert_close(step.log_variance, "p.log_variance", tolerance)
    assert_close(step.log_variance.exp(), "p.variance", tolerance)
    assert_close(step.pred_x_0, "p.pred_xstart", tolerance)


@PRECISIONS
def test_the_posterior(dtype: torch.dtype, tolerance: float) -> None:
    mean, log_variance = posterior(SCHEDULE, recorded("x_start", dtype), recorded("x_t", dtype), ORACLE["t"])

    assert_close(mean, "q_post_mean", tolerance)
    assert_close(log_variance.expand_as(mean), "q_post_logvar", tolerance)
