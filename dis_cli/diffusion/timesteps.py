"""Draws of the noise level that an image is trained at, where they are not whole timesteps."""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from dis_cli.diffusion.schedule import check_choice

ContinuousName: TypeAlias = Literal["uniform", "logit_normal"]


@dataclass(frozen=True)
class ContinuousTimesteps:
    """Draws of t = T u - 1, u being the noise's share of a rectified flow before its shift, above 0 and up to 1.

    Args:
        name: "uniform" u; or "logit_normal", whose log(u / (1 - u)) is normal (Esser et al. 2024, equation 19).
        num_timesteps: Number of levels T.
        mean: Mean of that logarithm; above 0 it leans towards the noise.
        std: Its standard deviation, above 0.

    Raises:
        ValueError: Unknown name, or no such spread.
    """

    name: ContinuousName
    num_timesteps: int
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        check_choice("timesteps", self.name, ContinuousName)
        if self.std <= 0:
            raise ValueError(f"the spread of timesteps must be above 0, got {self.std}")

    def __call__(self, rng: np.random.Generator) -> float:
        """One draw."""
        match self.name:
            case "uniform":
                share = 1.0 - rng.random()
            case "logit_normal":
                # Symmetric, so that neither end overflows.
                share = 0.5 + 0.5 * math.tanh(0.5 * (self.mean + self.std * rng.standard_normal()))
        return self.num_timesteps * share - 1.0
