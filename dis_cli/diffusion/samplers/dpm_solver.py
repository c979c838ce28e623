"""DPM-Solver++ of second order, multistep, as a differential equation without noise and with it.

Lu et al. 2022 (arXiv 2211.01095). The linear part of the equation is solved exactly, and x_0 is taken to go on along a
line in lambda = log(signal / noise) through its last two estimates.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from dis_cli.diffusion.samplers.course import Course, Evaluation, step_to_next


def dpm_solver(course: Course, seen: Sequence[Evaluation]) -> Tensor:
    """A step of DPM-Solver++(2M): algorithm 2, x' = noise' / noise x - signal' (e^-h - 1) D."""
    return step_to_next(course, seen[-1], extrapolated(course, seen))


def dpm_solver_sde(course: Course, seen: Sequence[Evaluation]) -> Tensor:
    """A step of SDE-DPM-Solver++(2M).

    x' = noise' / noise e^-h x + signal' (1 - e^-2h) D + noise' sqrt(1 - e^-2h) z: the equation of the section on
    stochastic sampling. The last step, for which h is infinite, leaves no noise.
    """
    now, level = seen[-1], seen[-1].level
    if level + 1 == course.num_levels:
        return step_to_next(course, now, now.x_0)
    h = course.log_ratio(level + 1) - course.log_ratio(level)
    spread = course.noise[level + 1] * math.sqrt(-math.expm1(-2.0 * h))
    return step_to_next(course, now, extrapolated(course, seen), spread) + spread * now.draw()


def extrapolated(course: Course, seen: Sequence[Evaluation]) -> Tensor:
    """The D of algorithm 2: x_0 half a step of lambda ahead, (1 + 1 / 2r) x_0 - 1 / 2r x_0 of the evaluation before.

    r is the last step of lambda as a share of this one. The first step has no evaluation before it, and the last one
    no end in lambda: both are of first order.
    """
    level = seen[-1].level
    if level == 0 or level + 1 == course.num_levels:
        return seen[-1].x_0
    before, now, after = (course.log_ratio(index) for index in (level - 1, level, level + 1))
    weight = (after - now) / (now - before) / 2.0
    return (1.0 + weight) * seen[-1].x_0 - weight * seen[-2].x_0
