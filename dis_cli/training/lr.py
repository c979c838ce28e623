"""The learning rate as a function of the step alone."""

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]


def lr_factor(
    position: float,
    *,
    warmup_steps: float,
    total_steps: float,
    schedule: Schedule,
    min_ratio: float = 0.0,
    decay_fraction: float = 1.0,
) -> float:
    """Share of the peak learning rate at a point in time.

    Args:
        position: Time, in steps since the start; need not be whole.
        warmup_steps: Length of the linear rise from 0.
        total_steps: Length of the run.
        schedule: "constant" after the rise, or lowered along a line or half a cosine to ``min_ratio``.
        min_ratio: Share that is left at ``total_steps``.
        decay_fraction: Last share of the run over which it is lowered; 1 starts where the rise ends.
    """
    if position < warmup_steps:
        return position / warmup_steps
    if schedule == "constant":
        return 1.0
    start = max(warmup_steps, total_steps * (1 - decay_fraction))
    progress = min(1.0, max(0.0, (position - start) / max(total_steps - start, 1e-12)))
    fall = 1 - progress if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return min_ratio + (1 - min_ratio) * fall


def learning_rate(
    step: int,
    *,
    peak: float,
    warmup_steps: int,
    total_steps: int,
    schedule: Schedule,
    min_ratio: float = 0.0,
    decay_fraction: float = 1.0,
) -> float:
    """The learning rate of a step, counted from 0.

    Differs from the reference: its first step has a learning rate of exactly 0 and so changes nothing but Adam's
    moments; here the rise ends one step earlier and starts above 0.
    """
    position = step + 1 if step < warmup_steps else step
    return peak * lr_factor(
        position,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
        schedule=schedule,
        min_ratio=min_ratio,
        decay_fraction=decay_fraction,
    )
