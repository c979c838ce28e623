"""Rectified flow: straight lines from an image to noise, in place of a schedule of betas.

Sources: Liu et al. 2022 (rectified flow); Esser et al. 2024 (its discrete levels, and their shift).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from jaxtyping import Float64, Int64, Shaped
from torch import Tensor

from dis_cli.diffusion.schedule import Schedule, check_indices


@dataclass(frozen=True, eq=False)
class RectifiedFlow:
    """The levels of a flow x_t = (1 - sigma) x_0 + sigma noise, index 0 being the least noisy one.

    Args:
        levels: Which of the T levels there are; all unless the flow was restricted.
        num_original_timesteps: Number of levels T before restriction.
        shift: s in sigma = s u / (1 + (s - 1) u), where u = (t + 1) / T; above 1 it moves levels towards the noise
            (Esser et al. 2024, equation 23).
        timestep_offset: Added to what the model is told.
    """

    levels: Int64[np.ndarray, " T"]
    num_original_timesteps: int
    shift: float = 1.0
    timestep_offset: int = 0

    @property
    def num_timesteps(self) -> int:
        """Number of levels of this flow."""
        return len(self.levels)

    @cached_property
    def sigmas(self) -> Float64[np.ndarray, " T"]:
        """Share of the way to the noise at each index."""
        return shifted((self.levels + 1) / self.num_original_timesteps, self.shift)

    @cached_property
    def timestep_map(self) -> Shaped[np.ndarray, " T"]:
        """The timestep that the model is told at each index: T sigma - 1, which is t without a shift."""
        told = self.levels if self.shift == 1.0 else self.num_original_timesteps * self.sigmas - 1.0
        return told + self.timestep_offset

    @cached_property
    def signal_factor(self) -> Float64[np.ndarray, " T"]:
        """Factor of x_0 in x_t."""
        return 1.0 - self.sigmas

    @property
    def noise_factor(self) -> Float64[np.ndarray, " T"]:
        """Factor of the noise in x_t."""
        return self.sigmas

    def sigma_at(self, t: Float64[Tensor, " b"]) -> Float64[Tensor, " b"]:
        """Share of the way to the noise at indices between those of the tables, above -1 and up to T - 1."""
        return shifted((t + 1.0) / self.num_original_timesteps, self.shift)

    def restrict(self, indices: list[int]) -> "RectifiedFlow":
        """The flow that visits only some of the levels.

        Args:
            indices: At least one index, strictly ascending.

        Raises:
            ValueError: Indices that are missing, out of order or out of range.
        """
        check_indices(indices, self.num_timesteps)
        return RectifiedFlow(self.levels[indices], self.num_original_timesteps, self.shift, self.timestep_offset)


ForwardProcess: TypeAlias = Schedule | RectifiedFlow

_Numbers = TypeVar("_Numbers", np.ndarray, Tensor)

# The index of each image's noise level, 0 to T - 1; of a flow also one between two of them.
Timesteps: TypeAlias = Int64[Tensor, " b"] | Float64[Tensor, " b"]


def make_flow(num_timesteps: int, *, shift: float = 1.0, timestep_offset: int = 0) -> RectifiedFlow:
    """The flow at full length.

    Args:
        num_timesteps: Number of levels T, at least 1.
        shift: Above 0; see `RectifiedFlow`.
        timestep_offset: Added to what the model is told.

    Raises:
        ValueError: No levels, or no such shift.
    """
    if num_timesteps < 1:
        raise ValueError(f"a rectified flow needs at least 1 timestep, got {num_timesteps}")
    if shift <= 0:
        raise ValueError(f"shift must be above 0, got {shift}")
    return RectifiedFlow(np.arange(num_timesteps, dtype=np.int64), num_timesteps, shift, timestep_offset)


def told_timesteps(process: ForwardProcess, t: Timesteps) -> Shaped[Tensor, " b"]:
    """The timesteps that a model is told at indices of a full process."""
    if not t.is_floating_point():
        return torch.from_numpy(process.timestep_map).to(t.device)[t]
    if isinstance(process, Schedule):
        raise ValueError("timesteps between two others are for a rectified flow, got a schedule of betas")
    return process.num_original_timesteps * process.sigma_at(t) - 1.0 + process.timestep_offset


def shifted(share: _Numbers, shift: float) -> _Numbers:
    """Shares u of the noise as s u / (1 + (s - 1) u); u itself for s = 1, to the bit."""
    return share if shift == 1.0 else shift * share / (1.0 + (shift - 1.0) * share)
