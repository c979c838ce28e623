"""Noise schedules in float64, and their restriction to fewer timesteps.

A schedule fixes q(x_t | x_0) = N(sqrt(alphas_cumprod[t]) x_0, (1 - alphas_cumprod[t]) I); every other table follows
from ``betas``. Sources: Ho et al. 2020 (DDPM), Nichol and Dhariwal 2021 (cosine schedule, respacing).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Float64, Int64

ScheduleName: TypeAlias = Literal["linear", "scaled_linear", "cosine"]


@dataclass(frozen=True, eq=False)
class Schedule:
    """The tables of a forward process of T steps, index 0 being the least noisy one.

    Args:
        betas: Variance added by each step, above 0 and below 1.
        timestep_map: The timestep the model is told at each index; 0 to T - 1 unless the schedule was respaced, or has
            an offset.
        num_original_timesteps: Length of the schedule before respacing, in steps.
    """

    betas: Float64[np.ndarray, " T"]
    timestep_map: Int64[np.ndarray, " T"]
    num_original_timesteps: int

    def __post_init__(self) -> None:
        if not (np.all(self.betas > 0) and np.all(self.betas < 1)):
            raise ValueError(f"betas must be above 0 and below 1, got {self.betas.min():g} to {self.betas.max():g}")

    @property
    def num_timesteps(self) -> int:
        """Number of steps T of this schedule."""
        return len(self.betas)

    @cached_property
    def alphas_cumprod(self) -> Float64[np.ndarray, " T"]:
        """Share of the signal's variance left at each index: prod(1 - betas)."""
        return np.cumprod(1.0 - self.betas)

    @cached_property
    def alphas_cumprod_prev(self) -> Float64[np.ndarray, " T"]:
        """The same one index earlier; 1 at index 0."""
        return np.append(1.0, self.alphas_cumprod[:-1])

    @cached_property
    def sqrt_alphas_cumprod(self) -> Float64[np.ndarray, " T"]:
        """Factor of x_0 in x_t."""
        return np.sqrt(self.alphas_cumprod)

    @cached_property
    def sqrt_one_minus_alphas_cumprod(self) -> Float64[np.ndarray, " T"]:
        """Factor of the noise in x_t."""
        return np.sqrt(1.0 - self.alphas_cumprod)

    @property
    def signal_factor(self) -> Float64[np.ndarray, " T"]:
        """Factor of x_0 in x_t, under the name that every forward process has for it."""
        return self.sqrt_alphas_cumprod

    @property
    def noise_factor(self) -> Float64[np.ndarray, " T"]:
        """Factor of the noise in x_t, likewise."""
        return self.sqrt_one_minus_alphas_cumprod

    @cached_property
    def sqrt_recip_alphas_cumprod(self) -> Float64[np.ndarray, " T"]:
        """Factor of x_t when x_0 is recovered from x_t and the noise."""
        return np.sqrt(1.0 / self.alphas_cumprod)

    @cached_property
    def sqrt_recipm1_alphas_cumprod(self) -> Float64[np.ndarray, " T"]:
        """Factor of the noise when x_0 is recovered from x_t and the noise."""
        return np.sqrt(1.0 / self.alphas_cumprod - 1.0)

    @cached_property
    def posterior_variance(self) -> Float64[np.ndarray, " T"]:
        """Variance of q(x_{t-1} | x_t, x_0) (DDPM, equation 7); 0 at index 0."""
        return self.betas * (1.0 - self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance_clipped(self) -> Float64[np.ndarray, " T"]:
        """Its logarithm, with index 1's value at index 0, where the variance is 0.

        Differs from the reference: a schedule of one step, where there is no index 1 and the published table is
        empty, gets log(betas).
        """
        if self.num_timesteps == 1:
            return np.log(self.betas)
        return np.log(np.append(self.posterior_variance[1], self.posterior_variance[1:]))

    @cached_property
    def posterior_mean_coef1(self) -> Float64[np.ndarray, " T"]:
        """Factor of x_0 in the mean of q(x_{t-1} | x_t, x_0)."""
        return self.betas * np.sqrt(self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_coef2(self) -> Float64[np.ndarray, " T"]:
        """Factor of x_t in the mean of q(x_{t-1} | x_t, x_0)."""
        return (1.0 - self.alphas_cumprod_prev) * np.sqrt(1.0 - self.betas) / (1.0 - self.alphas_cumprod)

    def restrict(self, indices: list[int]) -> "Schedule":
        """The process that visits only some of the timesteps, with the marginals q(x_t | x_0) unchanged at those.

        Args:
            indices: At least one index, strictly ascending.

        Raises:
            ValueError: Indices that are missing, out of order or out of range.
        """
        check_indices(indices, self.num_timesteps)
        kept = self.alphas_cumprod[indices]
        betas = 1.0 - kept / np.append(1.0, kept[:-1])
        return Schedule(betas, self.timestep_map[indices], self.num_original_timesteps)


def linear_betas(num_timesteps: int) -> Float64[np.ndarray, " T"]:
    """Betas from 1e-4 to 0.02 in equal steps, scaled by 1000 / T so that the total noise is that of 1000 steps.

    Args:
        num_timesteps: Number of steps T, at least 21 (the last beta would reach 1 otherwise).

    Raises:
        ValueError: Fewer than 21 steps.
    """
    if num_timesteps < 21:
        raise ValueError(f"a linear schedule needs at least 21 timesteps, got {num_timesteps}")
    scale = 1000 / num_timesteps
    return np.linspace(scale * 1e-4, scale * 0.02, num_timesteps, dtype=np.float64)


def scaled_linear_betas(num_timesteps: int) -> Float64[np.ndarray, " T"]:
    """Betas whose square roots go from sqrt(0.00085) to sqrt(0.012) in equal steps, scaled by 1000 / T.

    Rombach et al. 2022 (latent diffusion), as their code has it; U-ViT's latent models were trained on it.

    Args:
        num_timesteps: Number of steps T, at least 13 (the last beta would reach 1 otherwise).

    Raises:
        ValueError: Fewer than 13 steps.
    """
    if num_timesteps < 13:
        raise ValueError(f"a scaled_linear schedule needs at least 13 timesteps, got {num_timesteps}")
    return 1000 / num_timesteps * np.linspace(0.00085**0.5, 0.012**0.5, num_timesteps, dtype=np.float64) ** 2


def cosine_betas(num_timesteps: int) -> Float64[np.ndarray, " T"]:
    """Betas whose alphas_cumprod is a squared cosine, at most 0.999 each (Nichol and Dhariwal 2021, equation 17).

    Args:
        num_timesteps: Number of steps T, at least 1.

    Raises:
        ValueError: No steps.
    """
    if num_timesteps < 1:
        raise ValueError(f"a cosine schedule needs at least 1 timestep, got {num_timesteps}")
    signal = [math.cos((step / num_timesteps + 0.008) / 1.008 * math.pi / 2) ** 2 for step in range(num_timesteps + 1)]
    return np.array([min(1 - later / earlier, 0.999) for earlier, later in pairwise(signal)])


_BETAS: Final = {"linear": linear_betas, "scaled_linear": scaled_linear_betas, "cosine": cosine_betas}


def make_schedule(name: ScheduleName, num_timesteps: int, *, timestep_offset: int = 0) -> Schedule:
    """The named schedule at full length.

    Args:
        name: "linear", "scaled_linear" or "cosine".
        num_timesteps: Number of steps T.
        timestep_offset: Added to what the model is told: 1 for one that was trained on 1 to T.

    Raises:
        ValueError: Unknown name, or too few steps.
    """
    check_choice("schedule", name, ScheduleName)
    betas = _BETAS[name](num_timesteps)
    return Schedule(betas, np.arange(num_timesteps, dtype=np.int64) + timestep_offset, num_timesteps)


def space_timesteps(num_timesteps: int, spec: str) -> list[int]:
    """The ascending indices that a respacing keeps.

    Args:
        num_timesteps: Number of steps T to choose from.
        spec: "" keeps all. "N" keeps N from 0 to T - 1 in equal strides, rounded. "N,M,..." does so within as many
            equal sections. "ddimN" keeps 0, s, 2s, ... for the smallest integer stride s that gives exactly N.

    Raises:
        ValueError: A count that is not a positive integer, is larger than its section, or has no integer stride.
    """
    if not spec:
        return list(range(num_timesteps))
    if spec.startswith("ddim"):
        return _integer_stride(num_timesteps, _count(spec.removeprefix("ddim"), spec))
    counts = [_count(text, spec) for text in spec.split(",")]
    size, extra = divmod(num_timesteps, len(counts))
    kept: list[int] = []
    first = 0
    for section, count in enumerate(counts):
        length = size + (section < extra)
        if count > length:
            raise ValueError(f"cannot keep {count} timesteps of a section of {length}, asked for {spec!r}")
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        # Summed, not multiplied: the published rounding of half-way cases depends on it.
        position = 0.0
        for _ in range(count):
            kept.append(first + round(position))
            position += stride
        first += length
    return kept


def check_indices(indices: list[int], num_timesteps: int) -> None:
    """Refuse indices that are no restriction of a process.

    Args:
        num_timesteps: Number of steps T of the process.

    Raises:
        ValueError: They are missing, out of order or out of range.
    """
    if not indices or indices[0] < 0 or indices[-1] >= num_timesteps or np.any(np.diff(indices) <= 0):
        raise ValueError(f"indices must ascend strictly within 0 to {num_timesteps - 1}, got {indices}")


def check_choice(what: str, got: str, choices: Any) -> None:
    """Refuse a name that is not among the choices.

    Raises:
        ValueError: It is not; the message lists them.
    """
    if got not in get_args(choices):
        raise ValueError(f"{what} must be one of {', '.join(map(repr, get_args(choices)))}, got {got!r}")


def _count(text: str, spec: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise ValueError(f"a respacing is '', 'N', 'N,M,...' or 'ddimN' with positive integers, got {spec!r}")
    return int(text)


def _integer_stride(num_timesteps: int, count: int) -> list[int]:
    # One timestep has the stride T, which the published search does not try.
    lengths = {stride: len(range(0, num_timesteps, stride)) for stride in range(num_timesteps, 0, -1)}
    strides = [stride for stride, length in lengths.items() if length == count]
    if not strides:
        near = sorted(set(lengths.values()), key=lambda length: abs(length - count))[:2]
        raise ValueError(
            f"cannot keep exactly {count} of {num_timesteps} timesteps with an integer stride; "
            f"the nearest possible counts are {' and '.join(str(length) for length in sorted(near))}"
        )
    return list(range(0, num_timesteps, min(strides)))
