"""The scores of a run as rows of text, for pages and for model cards."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dis_cli.metrics.table import DIGIT_SCORES, scores_in_results
from dis_cli.report.record import RunRecord, number


@dataclass(frozen=True)
class ScoreRow:
    """One number of a result, with what it can be compared by.

    Args:
        name: Its name in results.
        beside: The numbers of real or simple images that give it meaning, such as "floor 4.02".
        interval: The bounds of its confidence interval; empty when none was measured.
    """

    name: str
    label: str
    value: float
    step: int | None
    beside: str
    interval: str
    images: str
    compared: str
    how: str
    features: str


def score_rows(results: Iterable[Mapping[str, Any]]) -> list[ScoreRow]:
    """Every score of some results, in their order; of a sweep its best point's."""
    rows: list[ScoreRow] = []
    for result in results:
        found = _best_point(result)
        for key, score in scores_in_results().items():
            value = found.get(key)
            if not isinstance(value, int | float) or isinstance(value, bool):
                continue
            others = DIGIT_SCORES[key].beside if key in DIGIT_SCORES else ()
            beside = [f"{other} {found[other]:.4g}" for other in others if isinstance(found.get(other), int | float)]
            step = result.get("step")
            rows.append(
                ScoreRow(
                    name=key,
                    label=score.label,
                    value=float(value),
                    step=step if isinstance(step, int) else None,
                    beside=", ".join(beside),
                    interval=_interval(found, key),
                    images=_told(result, "num_samples"),
                    compared=_compared(result),
                    how=_how(found | {"seed": result.get("seed")}),
                    features=_told(result, "features"),
                )
            )
    return rows


def rows_of(run: RunRecord) -> list[ScoreRow]:
    """The scores of a run; those that only its record of events has too."""
    rows = score_rows(run.results)
    known = {(row.name, row.step, row.value) for row in rows}
    told = [
        {**_mapping(record.get("conditions")), **_mapping(record.get("context"))}
        | {str(record.get("name")): record.get("value"), "step": record.get("step")}
        for record in run.metrics
    ]
    return [*(row for row in score_rows(told) if (row.name, row.step, row.value) not in known), *rows]


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def last_score(run: RunRecord, name: str) -> float | None:
    """The score of a run at its last step that has it; None where there is none."""
    told = [{"step": one.get("step"), name: one.get("value")} for one in run.metrics if one.get("name") == name]
    found = [
        (number(result.get("step")) or 0, value)
        for result in (*told, *run.results)
        if (value := number(result.get(name))) is not None
    ]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def last_values(run: RunRecord) -> dict[str, float | None]:
    """The last step, its loss, and every score that the run has, by name."""
    loss = run.steps["loss"]
    found = {
        "step": None if run.summary.step is None else float(run.summary.step),
        "loss": float(loss[-1]) if len(loss) else None,
    }
    scores = {name: last_score(run, name) for name in scores_in_results()}
    return found | {name: value for name, value in scores.items() if value is not None}


def _best_point(result: Mapping[str, Any]) -> dict[str, Any]:
    points, best = result.get("points"), result.get("best")
    if (
        isinstance(points, list)
        and isinstance(best, int)
        and 0 <= best < len(points)
        and isinstance(points[best], dict)
    ):
        return {**result, **points[best]}
    return dict(result)


def _interval(result: Mapping[str, Any], key: str) -> str:
    bounds = result.get(f"{key}_interval")
    if isinstance(bounds, Mapping):
        bounds = [bounds.get("low"), bounds.get("high")]
    if isinstance(bounds, list | tuple) and len(bounds) == 2 and all(isinstance(one, int | float) for one in bounds):
        return f"{bounds[0]:.4g} to {bounds[1]:.4g}"
    return ""


def _told(result: Mapping[str, Any], name: str) -> str:
    value = result.get(name)
    return "-" if value is None else str(value)


def _compared(result: Mapping[str, Any]) -> str:
    told = result.get("reference")
    reference: dict[str, Any] = told if isinstance(told, dict) else {}
    split = f", {reference['split']}" if reference.get("split") else ""
    count = f" ({reference['n']} images)" if reference.get("n") else ""
    # Where it lies on this machine is nobody's business.
    return f"{Path(str(reference['name'])).name}{split}{count}" if reference.get("name") else "-"


def _how(result: Mapping[str, Any]) -> str:
    sample = result.get("sample")
    how: dict[str, Any] = sample if isinstance(sample, dict) else {}
    if not how:
        return "-"
    return (
        f"{how.get('sampler')}, {how.get('steps')} steps, guidance {how.get('cfg_scale')}, "
        f"seeds from {result.get('seed')}"
    )
