"""Ancestral sampling: each step draws from the model's reverse Gaussian."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dis_cli.diffusion.objective import reverse_gaussian
from dis_cli.diffusion.samplers.course import Course, Evaluation
from dis_cli.diffusion.schedule import Schedule


def ancestral(course: Course, seen: Sequence[Evaluation]) -> Tensor:
    """A draw from p(x_{t-1} | x_t); the mean of the last step, without noise.

    Ho et al. 2020 (arXiv 2006.11239), equation 7 and algorithm 2; the variance that is learned: Nichol and Dhariwal
    2021 (arXiv 2102.09672), equation 15.
    """
    now = seen[-1]
    assert isinstance(course.process, Schedule)
    index = course.num_levels - 1 - now.level
    t = torch.full((len(now.x),), index, device=now.x.device)
    mean, log_variance = reverse_gaussian(course.process, now.x_0, now.x, t, now.share, variance=course.variance)
    return mean + (0.5 * log_variance).exp() * now.draw() if index else mean
