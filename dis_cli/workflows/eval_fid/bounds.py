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
        metrics: What is measured; both these names and those of the results are understood.

    Raises:
        UsageError: A bound is no number from 0, or of something that is not measured.
    """
    told = score_names(extractor)
    bounds: dict[str, float] = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        name = full_name(name) if equals else metrics[0]
        metric = next((metric for metric in metrics if name in (metric, told[metric])), None)
        if metric is None:
            raise UsageError(
                f"--fail-above: got `{text}`, and what is measured is {', '.join(metrics)}",
                "Ask for it with `--metrics` too",
            )
        try:
            bound = float(number)
        except ValueError:
            bound = math.nan
        if not bound >= 0:
            raise UsageError(f"--fail-above: got `{text}`, allowed: NAME=X or X, a number from 0", "Try fid=5")
        bounds[told[metric]] = bound
    return bounds


def check_bounds(result: Mapping[str, object], bounds: Mapping[str, float]) -> str | None:
    """A sentence for each score that is above its bound, None when there is none."""
    failures: list[str] = []
    for name, bound in bounds.items():
        value = result.get(name)
        if isinstance(value, float) and not value <= bound:
            failures.append(f"{name} is {value:.4g}, above --fail-above {bound:g}")
    return "; ".join(failures) or None
