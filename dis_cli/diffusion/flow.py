"""Rectified flow: straight lines from an image to noise, in place of a schedule of betas.

Sources: Liu et al. 2022 (rectified flow); Esser et al. 2024 (its discrete levels).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from jaxtyping import Float64, Int64

from dis_cli.diffusion.schedule import Schedule, check_indices


@dataclass(frozen=True, eq=False)
class RectifiedFlow:
    """The levels of a flow x_t = (1 - sigma) x_0 + sigma noise, index 0 being the least noisy one.

    Args:
        timestep_map: The timestep the model is told at each index; 0 to T - 1 unless the flow was restricted.
        num_original_timesteps: Number of levels T before restriction.
    """

    timestep_map: Int64[np.ndarray, " T"]
    num_original_timesteps: int

    @property
    def num_timesteps(self) -> int:
        """Number of levels of this flow."""
        return len(self.timestep_map)

    @cached_property
    def sigmas(self) -> Float64[np.ndarray, " T"]:
        """Share of the way to the noise at each index: (t + 1) / T."""
        return (self.timestep_map + 1) / self.num_original_timesteps

    @cached_property
    def signal_factor(self) -> Float64[np.ndarray, " T"]:
        """Factor of x_0 in x_t."""
        return 1.0 - self.sigmas

    @property
    def noise_factor(self) -> Float64[np.ndarray, " T"]:
        """Factor of the noise in x_t."""
        return self.sigmas

    def restrict(self, indices: list[int]) -> "RectifiedFlow":
        """The flow that visits only some of the levels.

        Args:
            indices: At least one index, strictly ascending.

        Raises:
            ValueError: Indices that are missing, out of order or out of range.
        """
        check_indices(indices, self.num_timesteps)
        return RectifiedFlow(self.timestep_map[indices], self.num_original_timesteps)


ForwardProcess: TypeAlias = Schedule | RectifiedFlow


def make_flow(num_timesteps: int) -> RectifiedFlow:
    """The flow at full length.

    Args:
        num_timesteps: Number of levels T, at least 1.

    Raises:
        ValueError: No levels.
    """
    if num_timesteps < 1:
        raise ValueError(f"a rectified flow needs at least 1 timestep, got {num_timesteps}")
    return RectifiedFlow(np.arange(num_timesteps, dtype=np.int64), num_timesteps)
