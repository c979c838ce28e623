"""Learning rates against their formulas, written out."""

import math
from typing import Any

import pytest

from dis_cli.training.lr import Schedule, WarmupStart, learning_rate


def rates(steps: int, **settings: Any) -> list[float]:
    defaults = {"peak": 2.0, "total_steps": 40, "schedule": "constant"}
    return [learning_rate(step, **(defaults | settings)) for step in range(steps)]


def test_inverse_sqrt_is_the_published_curve_from_zero() -> None:
    # Vaswani et al. 2017, equation 3, whose peak 1 / sqrt(d w) is the setting here.
    got = rates(100, schedule="inverse_sqrt", warmup_steps=8, warmup_start="zero")

    scale = 2.0 * math.sqrt(8)
    expected = [0.0, *(scale * min(step**-0.5, step * 8**-1.5) for step in range(1, 100))]
    assert got == pytest.approx(expected, rel=1e-12)
    assert got[0] == 0.0


def test_inverse_sqrt_without_a_warm_up() -> None:
    assert rates(5, schedule="inverse_sqrt", warmup_steps=0) == pytest.approx(
        [2.0, 2.0, 2.0 / math.sqrt(2), 2.0 / math.sqrt(3), 1.0], rel=1e-12
    )


def test_inverse_sqrt_stops_at_the_lowest_share_and_knows_no_end() -> None:
    settings = {"schedule": "inverse_sqrt", "warmup_steps": 4}
    bounded = rates(200, **settings, min_ratio=0.25)
    # sqrt(4 / step) reaches a quarter at step 64.
    assert bounded[63] == pytest.approx(2.0 * math.sqrt(4 / 63), rel=1e-12)
    assert bounded[64:] == [0.5] * 136
    # The rise is not bounded.
    assert rates(1, **settings, min_ratio=0.9) == [0.5]
    assert rates(200, **settings, total_steps=9, decay_fraction=0.1) == rates(200, **settings)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "inverse_sqrt"])
def test_where_the_warm_up_starts(schedule: Schedule) -> None:
    def curve(start: WarmupStart) -> list[float]:
        return rates(40, schedule=schedule, warmup_steps=4, warmup_start=start)

    above, zero = curve("above_zero"), curve("zero")

    assert above[:4] == [0.5, 1.0, 1.5, 2.0]
    assert zero[:4] == [0.0, 0.5, 1.0, 1.5]
    assert zero[4] == 2.0
    assert above[4:] == zero[4:]
    assert rates(40, schedule=schedule, warmup_steps=4) == above


def test_a_start_at_zero_without_a_warm_up_is_none() -> None:
    assert rates(3, warmup_steps=0, warmup_start="zero") == [2.0, 2.0, 2.0]
