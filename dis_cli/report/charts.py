"""The curves of one run or several: what is drawn against what, each figure once for every choice of axes."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from dis_cli.metrics.table import EPSILON_ERROR, OF_MODEL, scores_in_results
from dis_cli.report.record import RunRecord, number
from dis_cli.report.svg import Line, curves_svg

# Enough for a curve of 640 pixels; of longer runs, means of equally many steps.
_MOST_POINTS: Final = 240

AXES: Final = {"steps": "steps", "images": "images seen", "flops": "training FLOPs"}


@dataclass(frozen=True)
class Legend:
    """One entry of a legend."""

    name: str
    color: int


@dataclass(frozen=True)
class Figure:
    """One figure, drawn for every choice of axes.

    Args:
        key: A word of its own, in ids.
        told: What is to be seen, for those who do not.
        drawn: The axis of x and "linear" or "log" -> the SVG.
        note: What else is to be known; empty for nothing.
    """

    key: str
    title: str
    told: str
    drawn: Mapping[tuple[str, str], Markup]
    legend: tuple[Legend, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class _Curve:
    """Points of a run at its steps."""

    run: int
    name: str
    steps: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]
    color: int
    marks: bool = False
    interval: npt.NDArray[np.float64] | None = None


_COLUMNS: Final = (
    ("loss", "Loss", "training loss"),
    ("lr", "Learning rate", "learning rate"),
    ("grad_norm", "Gradient norm", "gradient norm"),
    ("images_per_second", "Speed", "images / s"),
)


def figures(runs: Sequence[RunRecord], names: Sequence[str], cache: Path) -> list[Figure]:
    """Every figure that there are numbers for.

    Args:
        names: One a run, for the legends.
        cache: The folder where matplotlib keeps its list of fonts.
    """
    found: list[Figure] = []
    for column, title, label in _COLUMNS:
        curves = [
            _Curve(place, names[place], *_thinned(run.steps["step"], run.steps[column]), color=place)
            for place, run in enumerate(runs)
            if len(run.steps["step"])
        ]
        found += _figure(column, title, label, curves, runs, cache)
        if column == "loss":
            found += _held_out(runs, names, cache)
    return [*found, *_scores(runs, names, cache)]


def _held_out(runs: Sequence[RunRecord], names: Sequence[str], cache: Path) -> Iterator[Figure]:
    """The held-out losses; of a single run by quarter of the noise."""
    curves: list[_Curve] = []
    for place, run in enumerate(runs):
        records = _alike([record for record in run.metrics if record.get("name") == EPSILON_ERROR])
        if not records:
            continue
        steps = _numbers(records, lambda record: record.get("step"))
        quarters = [(f"quarter {quarter}", f"quarter_{quarter}") for quarter in range(1, 5)] if len(runs) == 1 else []
        curves.append(
            _Curve(
                place,
                "mean" if len(runs) == 1 else names[place],
                steps,
                _numbers(records, lambda record: record.get("value")),
                color=place,
                marks=True,
            )
        )
        for color, (told, name) in enumerate(quarters, start=1):
            values = _numbers(records, lambda record, name=name: _context(record).get(name))
            curves.append(_Curve(place, told, steps, values, color=color, marks=True))
    note = "Error of the noise on held-out images, in quarters of the log signal-to-noise ratio." if curves else ""
    yield from _figure("held-out", "Held-out loss", "error of epsilon", curves, runs, cache, note=note)
    losses = [
        _Curve(
            place,
            names[place],
            _numbers(records, lambda record: record.get("step")),
            _numbers(records, lambda record: record.get("value")),
            color=place,
            marks=True,
        )
        for place, run in enumerate(runs)
        if (records := _alike([record for record in run.metrics if record.get("name") == OF_MODEL]))
    ]
    yield from _figure("held-out-own", "Held-out loss of the objective", "loss", losses, runs, cache)


def _scores(runs: Sequence[RunRecord], names: Sequence[str], cache: Path) -> Iterator[Figure]:
    for name, score in scores_in_results().items():
        if name in (EPSILON_ERROR, OF_MODEL):
            continue
        curves: list[_Curve] = []
        levels: set[float] = set()
        beside: dict[str, float] = {}
        for place, run in enumerate(runs):
            records = _alike([record for record in run.metrics if record.get("name") == name])
            if not records:
                continue
            steps = _numbers(records, lambda record: record.get("step"))
            curves.append(
                _Curve(
                    place,
                    names[place],
                    steps,
                    _numbers(records, lambda record: record.get("value")),
                    color=place,
                    marks=True,
                    interval=_intervals(run, name, steps),
                )
            )
            context = _context(records[-1])
            for other in ("floor", f"{name}_real"):
                if (value := number(context.get(other))) is not None:
                    levels.add(value)
                    beside[other] = value
        better = "higher is better" if score.higher_is_better else "lower is better"
        told = "".join(f" Dotted: {other.replace('_', ' ')} {value:.4g}." for other, value in beside.items())
        note = f"{better[0].upper()}{better[1:]}.{told}"
        label = score.label[0].upper() + score.label[1:]
        key = f"score-{name.replace('_', '-')}"
        yield from _figure(key, label, name, curves, runs, cache, levels=sorted(levels), note=note)


def _figure(
    key: str,
    title: str,
    label: str,
    curves: Sequence[_Curve],
    runs: Sequence[RunRecord],
    cache: Path,
    *,
    levels: Sequence[float] = (),
    note: str = "",
) -> Iterator[Figure]:
    """The figure; none of curves without a number."""
    curves = [curve for curve in curves if np.isfinite(curve.values).any()]
    if not curves:
        return
    drawn: dict[tuple[str, str], Markup] = {}
    for axis, x_label in AXES.items():
        lines = [
            Line(places, curve.values, curve.color, curve.marks, interval=curve.interval)
            for curve in curves
            if (places := _places(runs[curve.run], axis, curve.steps)) is not None
        ]
        for scale in ("linear", "log") if lines else ():
            drawn[axis, scale] = curves_svg(
                lines,
                cache=cache,
                key=f"{key}-{axis}-{scale}",
                x_label=x_label,
                y_label=label,
                log=scale == "log",
                levels=levels,
            )
    several = len(curves) > 1
    legend = tuple(Legend(curve.name, curve.color) for curve in curves) if several else ()
    yield Figure(key, title, "; ".join(map(_told, curves[:8])), drawn, legend, note)


def _told(curve: _Curve) -> str:
    there = np.isfinite(curve.values)
    steps, values = curve.steps[there], curve.values[there]
    low = int(values.argmin())
    return (
        f"{curve.name}: {values[0]:.4g} at step {steps[0]:,.0f}, lowest {values[low]:.4g} at {steps[low]:,.0f}, "
        f"{values[-1]:.4g} at {steps[-1]:,.0f}"
    )


def _places(run: RunRecord, axis: str, steps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
    """Where steps of a run stand on an axis; None where that is unknown."""
    if axis == "steps":
        return steps
    return run.images_at(steps) if axis == "images" else run.flops_at(steps)


def _thinned(
    steps: npt.NDArray[np.float64], values: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Means of equally many neighbours, where there are more points than are to be seen."""
    width = -(-len(steps) // _MOST_POINTS)
    if width <= 1:
        return steps, values
    edges = range(0, len(steps), width)
    finite = np.isfinite(values)
    sums = np.add.reduceat(np.where(finite, values, 0), edges)
    counts = np.add.reduceat(finite.astype(np.float64), edges)
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return np.array([steps[edge : edge + width].mean() for edge in edges]), means


def _alike(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those whose conditions are those of the last: others cannot be compared with it."""
    conditions = [json.dumps(record.get("conditions"), sort_keys=True) for record in records]
    return [record for record, own in zip(records, conditions, strict=True) if own == conditions[-1]]


def _context(record: Mapping[str, Any]) -> Mapping[str, Any]:
    context = record.get("context")
    return context if isinstance(context, Mapping) else {}


def _numbers(
    records: Sequence[Mapping[str, Any]], read: Callable[[Mapping[str, Any]], object]
) -> npt.NDArray[np.float64]:
    return np.array([number(read(record)) for record in records], dtype=np.float64)


def _intervals(run: RunRecord, name: str, steps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
    """Half of the confidence interval at each step that has a result with one; None when none has."""
    halves = np.full(len(steps), np.nan)
    for result in run.results:
        told = result.get(f"{name}_interval")
        step = number(result.get("step"))
        if not isinstance(told, Mapping) or step is None:
            continue
        low, high = number(told.get("low")), number(told.get("high"))
        if low is not None and high is not None:
            halves[steps == step] = (high - low) / 2
    return halves if np.isfinite(halves).any() else None
