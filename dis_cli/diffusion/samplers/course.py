"""The way from noise to images: its noise levels as exact tables, what the model said on it, and the step all share.

At every level x = signal x_0 + noise epsilon. The tables are float64; images keep the type that they begin with, and
factors are rounded to it once, when they meet the images.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor

from dis_cli.diffusion.flow import ForwardProcess
from dis_cli.diffusion.objective import Variance


@dataclass(frozen=True, eq=False)
class Course:
    """The levels of a restricted process, the noisiest first, and clean images after the last.

    Args:
        process: The forward process restricted to the timesteps to visit.
        variance: The variance of a reverse step, for the ancestral sampler.
        eta: Share of the ancestral noise that DDIM draws, 0 to 1.

    Attributes:
        signal: Factor of x_0 at each level; 1 at the end.
        noise: Factor of the noise at each level; 0 at the end.
    """

    process: ForwardProcess
    variance: Variance = "fixed_small"
    eta: float = 0.0
    signal: tuple[float, ...] = field(init=False)
    noise: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "signal", (*self.process.signal_factor[::-1].tolist(), 1.0))
        object.__setattr__(self, "noise", (*self.process.noise_factor[::-1].tolist(), 0.0))

    @property
    def num_levels(self) -> int:
        """Number of levels with noise; the index of the clean images."""
        return len(self.signal) - 1

    def log_ratio(self, level: int) -> float:
        """Half of the logarithmic signal-to-noise ratio, lambda = log(signal / noise)."""
        return math.log(self.signal[level] / self.noise[level])


@dataclass
class Evaluation:
    """An evaluation of the model.

    Attributes:
        level: Index of its noise level, 0 being the noisiest.
        x: The images that it was given; a sampler that corrects them puts the corrected ones here.
        x_0: The clean images that its output stands for.
        share: Its variance channels; None where the variance is fixed.
        draw: Gives standard normal noise for these images, other one at every call.
    """

    level: int
    x: Float[Tensor, "b c h w"]
    x_0: Float[Tensor, "b c h w"]
    share: Float[Tensor, "b c h w"] | None
    draw: Callable[[], Tensor]


# The images of the next evaluation, or the result, of the evaluations until now (the last three are kept).
Step: TypeAlias = Callable[[Course, Sequence[Evaluation]], Tensor]


def step_to_next(course: Course, now: Evaluation, x_0: Tensor, spread: float = 0.0) -> Tensor:
    """Images at the next level, as long as x_0 stays what it is estimated to be.

    Song et al. 2021 (arXiv 2010.02502), equations 7 and 12: signal' x_0 + sqrt(noise'^2 - spread^2) epsilon, with
    epsilon = (x - signal x_0) / noise.

    Args:
        x_0: The estimate.
        spread: Standard deviation of the fresh noise that the caller will add.
    """
    level = now.level
    # Of a step so long that next to nothing of the noise is kept, rounding leaves less than nothing.
    kept = math.sqrt(max(0.0, course.noise[level + 1] ** 2 - spread**2)) / course.noise[level]
    return kept * now.x + (course.signal[level + 1] - kept * course.signal[level]) * x_0
