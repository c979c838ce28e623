"""Data whose best possible model is known: independent Gaussian values."""

import torch
from torch import Tensor

from dis_cli.diffusion.flow import ForwardProcess
from dis_cli.diffusion.objective import Prediction
from dis_cli.diffusion.samplers.loop import Denoiser

MEAN, STD = 0.3, 0.5


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def levels(process: ForwardProcess, t: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of x_0 and of the noise in x_t."""
    tables = (process.signal_factor, process.noise_factor)
    signal, noise = (torch.from_numpy(table)[t][:, None, None, None] for table in tables)
    return signal, noise


def gaussian_denoiser(process: ForwardProcess, prediction: Prediction, *, learned: bool = False) -> Denoiser:
    """The best possible model for data of independent N(MEAN, STD**2) values, in closed form."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        signal, noise = (level.to(x.dtype) for level in levels(process, t))
        x_0 = MEAN + signal * STD**2 / (signal**2 * STD**2 + noise**2) * (x - signal * MEAN)
        epsilon = (x - signal * x_0) / noise
        v = signal * epsilon - noise * x_0
        output = {"epsilon": epsilon, "v": v, "x_0": x_0, "velocity": epsilon - x_0}[prediction]
        return torch.cat([output, torch.sin(9 * x)], dim=1) if learned else output

    return denoise


def gaussian_flow(process: ForwardProcess, x_T: Tensor, t: int) -> Tensor:
    """Where the probability flow from x_T at t ends, for the same data: it keeps the number of standard deviations."""
    signal, noise = levels(process, torch.tensor([t]))
    return MEAN + STD * (x_T - signal * MEAN) / (signal**2 * STD**2 + noise**2).sqrt()
