"""A metric beside those that there are: a function, and its row in the table. More of it is better."""

import pytest
from torch import Tensor

from dis_cli.config.settings import settings
from dis_cli.metrics.table import METRICS, Metric

ROW = Metric(
    label="TOY",
    other_label="toy distance",
    other_name="toy_distance",
    short_name="t",
    needs="features",
    fewest=3,
    higher_is_better=True,
    compute="support.toy_metric:toy",
    facts="support.toy_metric:facts",
    notes="support.toy_metric:notes",
)
ALONE = Metric(
    label="toy norm",
    other_label="toy norm",
    other_name="norm",
    needs="features",
    needs_reference=False,
    fewest=3,
    higher_is_better=False,
    compute="support.toy_metric:norm",
)


def toy(scored: Tensor, reference: Tensor) -> float:
    return float((scored.double().mean() - reference.double().mean()).abs())


def norm(scored: Tensor) -> float:
    return float(scored.double().norm())


def facts(num_scored: int, num_reference: int) -> dict[str, object]:
    return {"toy_images": [num_scored, num_reference]}


def notes(scored: Tensor, reference: Tensor) -> list[str]:
    return [f"toys of {len(scored)} and {len(reference)} images"]


def add_toy_metric(monkeypatch: pytest.MonkeyPatch, name: str = "toy", row: Metric = ROW) -> None:
    """Its row, for the time of a test."""
    monkeypatch.setitem(METRICS, name, row)
    # What is allowed was kept.
    settings.cache_clear()


def remove_toy_metric() -> None:
    settings.cache_clear()


if __name__ == "__main__":
    # A command of a process in whose table the row was from the beginning.
    import sys

    METRICS["toy"] = ROW
    from dis_cli.cli.app import run

    sys.exit(run(sys.argv[1:]))
