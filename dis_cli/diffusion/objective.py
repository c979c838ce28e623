"""Training targets, the loss on them, and the images that a model's output stands for.

Sources: Ho et al. 2020 (DDPM); Nichol and Dhariwal 2021 (learned variance); Salimans and Ho 2022 (v prediction); Liu et
al. 2022 (velocity of a rectified flow); Hang et al. 2023 (min-SNR weights).
Coefficients are computed in float64 and cast to the images' type.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dis_cli.diffusion.flow import ForwardProcess, RectifiedFlow, Timesteps
from dis_cli.diffusion.schedule import Schedule, check_choice

Prediction: TypeAlias = Literal["epsilon", "v", "x_0", "velocity"]
Variance: TypeAlias = Literal["learned_range", "fixed_small", "fixed_large"]
LossWeight: TypeAlias = Literal["uniform", "min_snr"]


@dataclass(frozen=True)
class ReverseStep:
    """The model's Gaussian p(x_{t-1} | x_t), and the x_0 it was computed from."""

    mean: Float[Tensor, "b c h w"]
    log_variance: Float[Tensor, "b c h w"]
    pred_x_0: Float[Tensor, "b c h w"]


def check_objective(process: ForwardProcess, *, prediction: Prediction, variance: Variance) -> None:
    """Refuse an objective that the forward process does not have.

    Args:
        prediction: "velocity" or "x_0" of a rectified flow; all but "velocity" of a schedule.
        variance: "learned_range" needs a schedule: a flow has no reverse Gaussian.

    Raises:
        ValueError: Unknown choice, or one that does not belong to the process.
    """
    _check_prediction(process, prediction)
    check_choice("variance", variance, Variance)
    if isinstance(process, RectifiedFlow) and variance == "learned_range":
        raise ValueError("a rectified flow has no variance to learn, got variance 'learned_range'")


def q_sample(
    process: ForwardProcess,
    x_0: Float[Tensor, "b c h w"],
    t: Timesteps,
    noise: Float[Tensor, "b c h w"],
) -> Float[Tensor, "b c h w"]:
    """Noisy images x_t = signal_factor x_0 + noise_factor noise.

    The factors of a schedule are sqrt(alphas_cumprod) and sqrt(1 - alphas_cumprod) (DDPM, equation 4), those of a
    rectified flow 1 - sigma and sigma.

    Args:
        x_0: Clean images, in [-1, 1], or latents of about unit variance.
        t: Index of each image's noise level, 0 to T - 1.
        noise: Standard normal.
    """
    signal, level = _factors(process, t, x_0)
    return signal * x_0 + level * noise


def prediction_target(
    process: ForwardProcess,
    x_0: Float[Tensor, "b c h w"],
    t: Timesteps,
    noise: Float[Tensor, "b c h w"],
    *,
    prediction: Prediction,
) -> Float[Tensor, "b c h w"]:
    """The output that the model should have.

    Args:
        x_0: Clean images.
        t: Index of each image's noise level, 0 to T - 1.
        noise: The noise in x_t.
        prediction: "epsilon", the noise; "v" = sqrt(alphas_cumprod) noise - sqrt(1 - alphas_cumprod) x_0; "x_0"; or
            "velocity" = noise - x_0, the derivative of x_t by sigma.

    Raises:
        ValueError: Unknown prediction, or one that does not belong to the process.
    """
    _check_prediction(process, prediction)
    match prediction:
        case "epsilon":
            return noise
        case "v":
            signal, level = _factors(process, t, x_0)
            return signal * noise - level * x_0
        case "x_0":
            return x_0
        case "velocity":
            return noise - x_0


def predict_x_0(
    process: ForwardProcess,
    output: Float[Tensor, "b c h w"],
    x_t: Float[Tensor, "b c h w"],
    t: Timesteps,
    *,
    prediction: Prediction,
) -> Float[Tensor, "b c h w"]:
    """The clean images that an output stands for: ``prediction_target`` solved for x_0.

    Args:
        output: The model's output without variance channels.
        x_t: Noisy images.
        t: Index of each image's noise level, 0 to T - 1.
        prediction: "epsilon", "v", "x_0" or "velocity".

    Raises:
        ValueError: Unknown prediction, or one that does not belong to the process.
    """
    _check_prediction(process, prediction)
    if prediction == "x_0":
        return output
    signal, level = _factors(process, t, x_t)
    if isinstance(process, RectifiedFlow):
        return x_t - level * output
    if prediction == "epsilon":
        factor = _at(process.sqrt_recip_alphas_cumprod, t, x_t)
        return factor * x_t - _at(process.sqrt_recipm1_alphas_cumprod, t, x_t) * output
    return signal * x_t - level * output


def split_output(
    model_output: Float[Tensor, "b o h w"], num_channels: int, *, variance: Variance
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"] | None]:
    """A model output as (prediction, variance channels), the latter None where the variance is fixed.

    Args:
        model_output: The model's output; the prediction's channels come first.
        num_channels: Channels of the images.
        variance: "learned_range" expects twice the images' channels, a fixed one as many.

    Raises:
        ValueError: Unknown variance, or another number of channels.
    """
    check_choice("variance", variance, Variance)
    expected = 2 * num_channels if variance == "learned_range" else num_channels
    if model_output.shape[1] != expected:
        raise ValueError(f"a model output with variance {variance!r} has {expected} channels, got {model_output.shape}")
    if variance == "learned_range":
        return model_output[:, :num_channels], model_output[:, num_channels:]
    return model_output, None


def posterior(
    schedule: Schedule,
    x_0: Float[Tensor, "b c h w"],
    x_t: Float[Tensor, "b c h w"],
    t: Timesteps,
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b 1 1 1"]]:
    """Mean and log variance of q(x_{t-1} | x_t, x_0) (DDPM, equation 7), the variance clipped at t = 0.

    Args:
        x_0: Clean images.
        x_t: Noisy images.
        t: Index of each image's noise level, 0 to T - 1.
    """
    mean = _at(schedule.posterior_mean_coef1, t, x_t) * x_0 + _at(schedule.posterior_mean_coef2, t, x_t) * x_t
    return mean, _at(schedule.posterior_log_variance_clipped, t, x_t)


def reverse_step(
    schedule: Schedule,
    model_output: Float[Tensor, "b o h w"],
    x_t: Float[Tensor, "b c h w"],
    t: Timesteps,
    *,
    prediction: Prediction,
    variance: Variance,
) -> ReverseStep:
    """The model's Gaussian p(x_{t-1} | x_t).

    Args:
        model_output: The model's output at (x_t, t).
        x_t: Noisy images.
        t: Index of each image's noise level, 0 to T - 1.
        prediction: "epsilon", "v" or "x_0".
        variance: "learned_range" takes the log variance between the posterior's (channels at -1) and log(beta)
            (channels at 1; Nichol and Dhariwal 2021, equation 15); "fixed_small" and "fixed_large" are the two ends.

    Raises:
        ValueError: Unknown choice, or a wrong number of channels.
    """
    output, share = split_output(model_output, x_t.shape[1], variance=variance)
    pred_x_0 = predict_x_0(schedule, output, x_t, t, prediction=prediction)
    mean, log_variance = reverse_gaussian(schedule, pred_x_0, x_t, t, share, variance=variance)
    return ReverseStep(mean, log_variance, pred_x_0)


def reverse_gaussian(
    schedule: Schedule,
    x_0: Float[Tensor, "b c h w"],
    x_t: Float[Tensor, "b c h w"],
    t: Timesteps,
    share: Float[Tensor, "b c h w"] | None,
    *,
    variance: Variance,
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
    """Mean and log variance of p(x_{t-1} | x_t), given the estimate of x_0 that ``reverse_step`` makes.

    Args:
        x_0: The estimate.
        x_t: Noisy images.
        t: Index of each image's noise level, 0 to T - 1.
        share: The variance channels of "learned_range".
        variance: As in ``reverse_step``.
    """
    mean, low = posterior(schedule, x_0, x_t, t)
    match variance:
        case "learned_range":
            assert share is not None
            share = (share + 1) / 2
            return mean, share * _at(np.log(schedule.betas), t, x_t) + (1 - share) * low
        case "fixed_small":
            return mean, low.expand_as(x_t)
        case "fixed_large":
            large = np.append(schedule.posterior_log_variance_clipped[:1], np.log(schedule.betas[1:]))
            return mean, _at(large, t, x_t).expand_as(x_t)


def min_snr_weights(process: ForwardProcess, *, prediction: Prediction, gamma: float) -> Float64[np.ndarray, " T"]:
    """Weight of the mean squared error at each index, the signal-to-noise ratio being capped (Hang et al. 2023).

    With snr = alphas_cumprod / (1 - alphas_cumprod), every prediction's error of x_0 gets the weight min(snr, gamma).
    A squared error of epsilon is one of x_0 times snr, and one of v is one of x_0 times snr + 1.

    Args:
        prediction: "epsilon", "v" or "x_0".
        gamma: The cap, above 0; 5 in the paper.

    Raises:
        ValueError: Unknown prediction, or a rectified flow, for which the weights are not defined.
    """
    _check_prediction(process, prediction)
    if isinstance(process, RectifiedFlow):
        raise ValueError("loss weight 'min_snr' is not defined for a rectified flow")
    snr = process.alphas_cumprod / (1.0 - process.alphas_cumprod)
    capped = np.minimum(snr, gamma)
    if prediction == "x_0":
        return capped
    return capped / (snr if prediction == "epsilon" else snr + 1.0)


def velocity_weights(process: RectifiedFlow, t: Timesteps, *, clamp: float) -> Float64[Tensor, " b"]:
    """Weight that makes a squared error of x_0 one of the velocity that x_0 stands for: 1 / max(sigma, clamp)^2.

    The velocity is (x_t - x_0) / max(sigma, clamp) for output and target alike (arXiv 2511.13720, whose t is 1 -
    sigma).

    Args:
        t: Index of each image's noise level, which may lie between two.
        clamp: Smallest sigma that is divided by, above 0.
    """
    _, sigma = _levels(process, t)
    return sigma.clamp(min=clamp) ** -2


def training_losses(
    process: ForwardProcess,
    model_output: Float[Tensor, "b o h w"],
    x_0: Float[Tensor, "b c h w"],
    x_t: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    t: Timesteps,
    *,
    prediction: Prediction,
    variance: Variance,
    loss_weight: LossWeight = "uniform",
    min_snr_gamma: float = 5.0,
    velocity_clamp: float = 0.05,
) -> dict[str, Float[Tensor, " b"]]:
    """The loss of each image: the mean squared error, plus the variational bound where the variance is learned.

    The bound (bits per dimension, not scaled) trains the variance channels only: the prediction is detached in it
    (Nichol and Dhariwal 2021, section 3.1).

    Args:
        model_output: The model's output at (x_t, t).
        x_0: Clean images; the bound's last term takes [-1, 1] as 256 levels.
        x_t: ``q_sample(process, x_0, t, noise)``.
        noise: The noise in x_t.
        t: Index of each image's noise level, 0 to T - 1.
        prediction: "epsilon", "v" or "x_0"; "velocity" or "x_0" for a rectified flow.
        variance: "learned_range", "fixed_small" or "fixed_large"; the fixed ones do not enter the loss.
        loss_weight: "min_snr" multiplies the squared error, and not the bound, by ``min_snr_weights``.
        min_snr_gamma: The cap of these.
        velocity_clamp: Smallest sigma of ``velocity_weights``, which a flow's error of x_0 is multiplied by.

    Returns:
        "loss", the sum to minimise; "mse", without a weight; and with a learned variance "vb".

    Raises:
        ValueError: Unknown choice, one that does not belong to the process, or a wrong number of channels.
    """
    check_objective(process, prediction=prediction, variance=variance)
    check_choice("loss_weight", loss_weight, LossWeight)
    output, share = split_output(model_output, x_0.shape[1], variance=variance)
    target = prediction_target(process, x_0, t, noise, prediction=prediction)
    mse = (target - output).square().mean(dim=(1, 2, 3))
    weighted = mse
    if loss_weight == "min_snr":
        weights = min_snr_weights(process, prediction=prediction, gamma=min_snr_gamma)
        weighted = _at(weights, t, mse).flatten() * mse
    if isinstance(process, RectifiedFlow) and prediction == "x_0":
        weighted = velocity_weights(process, t, clamp=velocity_clamp).to(mse.dtype) * mse
    if share is None:
        return {"loss": weighted, "mse": mse}
    assert isinstance(process, Schedule)
    frozen = torch.cat([output.detach(), share], dim=1)
    step = reverse_step(process, frozen, x_t, t, prediction=prediction, variance=variance)
    vb = _variational_bound(process, step, x_0, x_t, t)
    return {"loss": weighted + vb, "mse": mse, "vb": vb}


def _check_prediction(process: ForwardProcess, prediction: Prediction) -> None:
    check_choice("prediction", prediction, Prediction)
    is_flow = isinstance(process, RectifiedFlow)
    if is_flow and prediction not in ("velocity", "x_0"):
        raise ValueError(f"a rectified flow predicts 'velocity' or 'x_0', got {prediction!r}")
    if not is_flow and prediction == "velocity":
        raise ValueError(f"prediction 'velocity' needs a rectified flow, got {prediction!r} with a schedule of betas")


def _variational_bound(schedule: Schedule, step: ReverseStep, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """One term of the bound, in bits per dimension: a Kullback-Leibler divergence, or the decoder's at t = 0."""
    true_mean, true_log_variance = posterior(schedule, x_0, x_t, t)
    divergence = 0.5 * (
        step.log_variance
        - true_log_variance
        + (true_log_variance - step.log_variance).exp()
        + (true_mean - step.mean).square() * (-step.log_variance).exp()
        - 1.0
    )
    nats = torch.where(t[:, None, None, None] == 0, -_decoder_log_likelihood(x_0, step), divergence)
    return nats.mean(dim=(1, 2, 3)) / math.log(2.0)


def _decoder_log_likelihood(x_0: Tensor, step: ReverseStep) -> Tensor:
    """Log of the Gaussian's mass within 1/255 of x_0, the outermost levels being open-ended (DDPM, equation 13)."""
    centered = x_0 - step.mean
    inverse_std = (-0.5 * step.log_variance).exp()
    below_upper = _normal_cdf(inverse_std * (centered + 1 / 255))
    below_lower = _normal_cdf(inverse_std * (centered - 1 / 255))
    mass = torch.where(
        x_0 < -0.999,
        below_upper,
        torch.where(x_0 > 0.999, 1.0 - below_lower, below_upper - below_lower),
    )
    return mass.clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    # The published loss uses this approximation (Page 1977), off by up to 3e-4, and not the error function.
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x.pow(3))))


def _levels(process: ForwardProcess, t: Timesteps) -> tuple[Float64[Tensor, " b"], Float64[Tensor, " b"]]:
    """Factors of x_0 and of the noise at t."""
    if not t.is_floating_point():
        signal, level = (
            torch.from_numpy(table).to(t.device)[t] for table in (process.signal_factor, process.noise_factor)
        )
        return signal, level
    if isinstance(process, Schedule):
        raise ValueError("timesteps between two others are for a rectified flow, got a schedule of betas")
    sigma = process.sigma_at(t)
    return 1.0 - sigma, sigma


def _factors(
    process: ForwardProcess, t: Timesteps, like: Tensor
) -> tuple[Float[Tensor, "b 1 1 1"], Float[Tensor, "b 1 1 1"]]:
    """The same, shaped and typed to multiply images."""
    signal, level = (factor.to(like.dtype)[:, None, None, None] for factor in _levels(process, t))
    return signal, level


def _at(table: np.ndarray, t: Tensor, like: Tensor) -> Tensor:
    """The table's entries at t, shaped and typed to multiply images."""
    return torch.from_numpy(table).to(t.device)[t].to(like.dtype)[:, None, None, None]
