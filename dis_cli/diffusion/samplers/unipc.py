"""UniPC of second order: the step of DPM-Solver++, corrected by the evaluation at its end, which costs no other."""

import math
from collections.abc import Sequence

from torch import Tensor

from dis_cli.diffusion.samplers.course import Course, Evaluation, step_to_next
from dis_cli.diffusion.samplers.dpm_solver import extrapolated


def unipc(course: Course, seen: Sequence[Evaluation]) -> Tensor:
    """A step of UniPC-2 with B(h) = e^h - 1, from images that are corrected first.

    Zhao et al. 2023 (arXiv 2302.04867), algorithms 5 and 6: the predictor of order 2 of noise-free estimates is that of
    DPM-Solver++(2M).
    """
    if len(seen) > 1:
        seen[-1].x = _corrected(course, seen)
    return step_to_next(course, seen[-1], extrapolated(course, seen))


def _corrected(course: Course, seen: Sequence[Evaluation]) -> Tensor:
    """The images at the last evaluation, by a polynomial through it and up to two before it: UniC-2.

    With phi_1(z) = (e^z - 1) / z and phi_{n+1}(z) = (phi_n(z) - 1 / n!) / z, the weights solve sum_k rho_k r_k^(n-1) =
    n! phi_{n+1}(-h) / phi_1(-h) for n = 1 and 2, r_k being where an estimate stands in lambda: 0 at the step's
    beginning, 1 at its end.
    """
    now, begin = seen[-1], seen[-2]
    h = course.log_ratio(now.level) - course.log_ratio(begin.level)
    if len(seen) == 2:
        towards = 0.5 * (now.x_0 - begin.x_0)
    else:
        r = (course.log_ratio(seen[-3].level) - course.log_ratio(begin.level)) / h
        phi_1 = math.expm1(-h) / -h
        phi_2 = (phi_1 - 1.0) / -h
        phi_3 = (phi_2 - 0.5) / -h
        first, second = phi_2 / phi_1, 2.0 * phi_3 / phi_1
        rho = (first - second) / (1.0 - r)
        towards = rho / r * (seen[-3].x_0 - begin.x_0) + (first - rho) * (now.x_0 - begin.x_0)
    return step_to_next(course, begin, begin.x_0 + towards)
