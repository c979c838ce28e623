"""The learning rate as a function of the step alone."""

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine", "inverse_sqrt"]
WarmupStart = Literal["above_zero", "zero"]


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
        schedule: After the rise "constant"; lowered along a line ("linear") or half a cosine to ``min_ratio``; or
            "inverse_sqrt", sqrt(w / position) with w = max(1, warmup_steps), whatever the length of the run (Vaswani
            et al. 2017, equation 3, scaled to a peak of 1; in this form Karras et al. 2024).
        min_ratio: Share that is left at ``total_steps``; for "inverse_sqrt" the lowest share.
        decay_fraction: Last share of the run over which a line or cosine falls; 1 starts where the rise ends.
    """
    if position < warmup_steps:
        return position / warmup_steps
    if schedule == "constant":
        return 1.0
    if schedule == "inverse_sqrt":
        flat = max(1.0, warmup_steps)
        return max(min_ratio, math.sqrt(flat / max(position, flat)))
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
    warmup_start: WarmupStart = "above_zero",
) -> float:
    """The learning rate of a step, counted from 0.

    With ``warmup_start`` "zero" it is the published curve, whose first step has a learning rate of exactly 0 and so
    changes nothing but Adam's moments. Differs from the reference: with "above_zero", the rise ends one step earlier
    and starts above 0. After the rise both are the same. The other arguments are those of ``lr_factor``.
    """
    position = step + 1 if step < warmup_steps and warmup_start == "above_zero" else step
    return peak * lr_factor(
        position,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
        schedule=schedule,
        min_ratio=min_ratio,
        decay_fraction=decay_fraction,
    )
