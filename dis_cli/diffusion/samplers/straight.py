"""Euler's and Heun's methods along straight lines from noise to image, whatever the process.

x = signal x_0 + noise epsilon, divided by signal + noise, is (1 - sigma) x_0 + sigma epsilon with sigma = noise /
(signal + noise): a rectified flow (Liu et al. 2022, arXiv 2209.03003), whose slope is epsilon - x_0. A flow is one
already. Nothing exceeds 1 there, while the noise-to-signal ratio, in which such steps are usually written, begins at
2e4 for a cosine schedule: too steep for Heun's average of two slopes.
"""

from collections.abc import Sequence

from torch import Tensor

from dis_cli.diffusion.samplers.course import Course, Evaluation, step_to_next


def euler(course: Course, seen: Sequence[Evaluation]) -> Tensor:
    """A step along the slope, which on these lines is DDIM's without noise (Song et al. 2021, equation 13)."""
    return step_to_next(course, seen[-1], seen[-1].x_0)


def heun(course: Course, seen: Sequence[Evaluation]) -> Tensor:
    """Half of a step: Euler's to the next level, then the same from its beginning with the mean of both ends' slopes.

    Karras et al. 2022 (arXiv 2206.00364), algorithm 1 without churn, where sigma is the coordinate above. The step to
    clean images ends with its first half.
    """
    now = seen[-1]
    if len(seen) == 1 or seen[-2].level == now.level:
        return euler(course, seen)
    begin = seen[-2]
    scale, sigma = _line(course, now.level)
    begin_scale, begin_sigma = _line(course, begin.level)
    slopes = _slope(course, begin) + _slope(course, now)
    return scale / begin_scale * begin.x + 0.5 * scale * (sigma - begin_sigma) * slopes


def _line(course: Course, level: int) -> tuple[float, float]:
    """Divisor that puts images on a line, and how far along it they are."""
    scale = course.signal[level] + course.noise[level]
    return scale, course.noise[level] / scale


def _slope(course: Course, at: Evaluation) -> Tensor:
    """Noise minus image: epsilon - x_0."""
    scale, _ = _line(course, at.level)
    noise = course.noise[at.level]
    return 1.0 / noise * at.x - scale / noise * at.x_0
