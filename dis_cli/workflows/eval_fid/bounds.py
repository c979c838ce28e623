"""Bounds on scores, above which a command's verdict is negative."""

import math
from collections.abc import Mapping, Sequence

from dis_cli.errors import UsageError
from dis_cli.metrics.extractors.base import Extractor, score_names
from dis_cli.metrics.table import full_name


def parse_bounds(texts: Sequence[str], metrics: Sequence[str], extractor: Extractor) -> dict[str, float]:
    """Bounds by the names that results have.

    Args:
        texts: Such as "fid=5"; a number alone is the bound of the first metric.
        metrics: Names of the metrics; both these and those of the results are understood.

    Raises:
        UsageError: A bound is no number from 0, or of something that is not measured.
    """
    return read_bounds(texts, metrics, score_names(extractor))


def read_bounds(texts: Sequence[str], metrics: Sequence[str], told: Mapping[str, str]) -> dict[str, float]:
    """The same for metrics whose names in results are known.

    Args:
        texts: As in `parse_bounds`.
        metrics: As in `parse_bounds`.
        told: Metric -> its name in results, where that is another.
    """
    bounds: dict[str, float] = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        name = full_name(name) if equals else metrics[0]
        metric = next((metric for metric in metrics if name in (metric, told.get(metric, metric))), None)
        if metric is None:
            raise UsageError(
                f"--fail-above: got `{text}`, but the metrics are {', '.join(metrics)}",
                "Add it to `--metrics`",
            )
        try:
            bound = float(number)
        except ValueError:
            bound = math.nan
        if not bound >= 0:
            raise UsageError(f"--fail-above: got `{text}`, allowed: NAME=X or X, a number from 0", "Try fid=5")
        bounds[told.get(metric, metric)] = bound
    return bounds


def check_bounds(result: Mapping[str, object], bounds: Mapping[str, float]) -> str | None:
    """A sentence for each score that is above its bound, None when there is none."""
    failures: list[str] = []
    for name, bound in bounds.items():
        value = result.get(name)
        if isinstance(value, float) and not value <= bound:
            failures.append(f"{name} is {value:.4g}, above --fail-above {bound:g}")
    return "; ".join(failures) or None
