"""DDIM: steps that keep the marginals of the forward process, with any share of the ancestral noise."""

import math
from collections.abc import Sequence

from torch import Tensor

from dis_cli.diffusion.samplers.course import Course, Evaluation, step_to_next


def ddim(course: Course, seen: Sequence[Evaluation]) -> Tensor:
    """A step with ``course.eta`` of the ancestral noise.

    Song et al. 2021 (arXiv 2010.02502), equation 12, with the standard deviation of equation 16: eta noise' / noise
    sqrt(1 - (signal / signal')^2), which for eta 1 is that of q(x_{t-1} | x_t, x_0). The noise in x is derived from the
    estimate of x_0, clipped or not, as the published code does.
    """
    now = seen[-1]
    signal, noise = (table[now.level : now.level + 2] for table in (course.signal, course.noise))
    spread = course.eta * noise[1] / noise[0] * math.sqrt(1.0 - (signal[0] / signal[1]) ** 2)
    x = step_to_next(course, now, now.x_0, spread)
    return x + spread * now.draw() if spread else x
