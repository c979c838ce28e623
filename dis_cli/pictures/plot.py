"""Plots as PNG files: lines on two logarithmic axes, or over values that stand side by side.

Drawn by matplotlib on a figure of its own, without pyplot: no state is shared, and no window system is asked for.
"""

import io
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Point = tuple[float, float]

# Colours that stay apart for colour-blind eyes (Okabe and Ito), without its yellow.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

_WIDTH, _HEIGHT, _DPI = 1000, 640, 100
# The legend stands to the right, where no line can cross it.
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 156, 56, 64
_DASHES = ("-", "--", ":")
_INK, _PALE, _FAINT = "#222222", "#d8d8d8", "#f0f0f0"


@dataclass(frozen=True)
class Series:
    """One line.

    Args:
        line: Its points, positive, x rising.
        marks: Points that are marked on it.
        color: Index into ``COLORS``, counted round.
        dash: 0 is a whole line, 1 a dashed and 2 a dotted one.
    """

    name: str
    line: tuple[Point, ...]
    marks: tuple[Point, ...] = ()
    color: int = 0
    dash: int = 0


@dataclass(frozen=True)
class Curve:
    """One line over values that stand side by side.

    Args:
        points: The place of a value, and the number there; places rising.
        color: Index into ``COLORS``, counted round.
    """

    name: str
    points: tuple[tuple[int, float], ...]
    color: int = 0


def log_log_png(series: Sequence[Series], *, cache: Path, title: str, x_label: str, y_label: str) -> bytes:
    """A PNG file of lines on logarithmic axes, with a legend.

    Args:
        series: At least one.
        cache: The folder where matplotlib keeps its list of fonts.
        x_label: Below the horizontal axis, with its unit.
        y_label: Beside the vertical axis, with its unit.
    """

    def draw(axes: Any) -> None:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(_whole_number)
        axes.yaxis.set_major_formatter(_number)
        axes.grid(which="minor", axis="y", color=_FAINT)
        for one in series:
            color, style = COLORS[one.color % len(COLORS)], _DASHES[one.dash]
            axes.plot(*zip(*one.line, strict=True), color=color, linestyle=style, linewidth=2, label=one.name)
            if one.marks:
                face = "white" if one.dash else color
                axes.plot(*zip(*one.marks, strict=True), "o", color=color, markerfacecolor=face, markersize=6)

    return _png(draw, cache, title=title, x_label=x_label, y_label=y_label)


def curves_png(
    curves: Sequence[Curve],
    *,
    cache: Path,
    ticks: Sequence[str],
    title: str,
    x_label: str,
    y_label: str,
    best: Point,
    level: tuple[str, float] | None = None,
) -> bytes:
    """A PNG file of lines over values at equal distances, such as names or settings, with a legend.

    Args:
        curves: At least one.
        cache: The folder where matplotlib keeps its list of fonts.
        ticks: The values, from left to right.
        x_label: Below the horizontal axis.
        y_label: Beside the vertical axis, which is linear.
        best: The point that is marked with a ring.
        level: A name and a number at which a dotted line is drawn, to compare with.
    """

    def draw(axes: Any) -> None:
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set_xlim(-0.5, len(ticks) - 0.5)
        axes.grid(visible=False, axis="x")
        for one in curves:
            color = COLORS[one.color % len(COLORS)]
            axes.plot(*zip(*one.points, strict=True), "o-", color=color, linewidth=2, label=one.name or None)
        if level is not None:
            axes.axhline(level[1], color=COLORS[-1], linestyle=":", label=level[0])
        axes.plot(*best, "o", color=_INK, markerfacecolor="none", markersize=13, markeredgewidth=1.5, clip_on=False)
        # A score that can begin at zero does, and a single value gets some room.
        low, high = axes.get_ylim()
        numbers = [y for one in curves for _, y in one.points]
        axes.set_ylim(max(low, 0) if min(numbers) >= 0 and high > 0 else low, high)

    return _png(draw, cache, title=title, x_label=x_label, y_label=y_label)


def _png(draw: Callable[[Any], None], cache: Path, *, title: str, x_label: str, y_label: str) -> bytes:
    # matplotlib reads this when it is imported, and logs that it lists the fonts for the first time.
    os.environ.setdefault("MPLCONFIGDIR", str(cache))
    logging.getLogger("matplotlib").addHandler(logging.NullHandler())
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH / _DPI, _HEIGHT / _DPI), dpi=_DPI)
    FigureCanvasAgg(figure)
    place = (_LEFT / _WIDTH, _BOTTOM / _HEIGHT, 1 - (_LEFT + _RIGHT) / _WIDTH, 1 - (_TOP + _BOTTOM) / _HEIGHT)
    axes: Any = figure.add_axes(place)
    axes.set_axisbelow(True)
    axes.grid(color=_PALE)
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    axes.set_title(title, loc="left", fontsize=14, color=_INK, pad=14)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, borderaxespad=0)
    buffer = io.BytesIO()
    # Without matplotlib's version in the file: equal plots are equal bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _whole_number(value: float, _position: int | None) -> str:
    return f"{value:,.0f}"


def _number(value: float, _position: int | None) -> str:
    return f"{value:,.15g}"
