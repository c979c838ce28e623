"""Lines on two logarithmic axes, or over values that stand side by side; drawn with pillow."""

import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

Point = tuple[float, float]

# Colours that stay apart for colour-blind eyes (Okabe and Ito), without its yellow.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

# Drawn at three times the size and scaled down, which smooths the lines.
_SCALE = 3
_WIDTH, _HEIGHT = 1000, 640
# The legend stands to the right, where no line can cross it.
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 156, 56, 64
# Lengths of the pieces of a broken line, and of the gaps between them.
_DASHES = (0.0, 7.0, 2.5)
_INK, _PALE, _FAINT = "#222222", "#d8d8d8", "#f0f0f0"


@dataclass(frozen=True)
class Series:
    """One line.

    Args:
        name: In the legend.
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
        name: In the legend.
        points: The place of a value, and the number there; places rising.
        color: Index into ``COLORS``, counted round.
    """

    name: str
    points: tuple[tuple[int, float], ...]
    color: int = 0


@dataclass(frozen=True)
class _Axes:
    x_range: Point
    y_range: Point

    def place(self, point: Point) -> Point:
        """Where a point is on the drawing, in its own large pixels."""
        x = _share(point[0], self.x_range)
        y = _share(point[1], self.y_range)
        return (
            _SCALE * (_LEFT + x * (_WIDTH - _LEFT - _RIGHT)),
            _SCALE * (_HEIGHT - _BOTTOM - y * (_HEIGHT - _TOP - _BOTTOM)),
        )


def log_log_png(series: Sequence[Series], *, title: str, x_label: str, y_label: str) -> bytes:
    """A PNG file of lines on logarithmic axes, with a legend.

    Args:
        series: At least one.
        title: Above.
        x_label: Below the horizontal axis, with its unit.
        y_label: Beside the vertical axis, with its unit.
    """
    points = [point for one in series for point in (*one.line, *one.marks)]
    axes = _Axes(_range([x for x, _ in points], base=2), _range([y for _, y in points], base=10))
    image = Image.new("RGB", (_SCALE * _WIDTH, _SCALE * _HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    _draw_grid(draw, axes)
    for one in series:
        _draw_line(draw, axes, one)
    _draw_legend(draw, series)
    return _finished(image, draw, title=title, x_label=x_label, y_label=y_label)


def curves_png(
    curves: Sequence[Curve],
    *,
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
        ticks: The values, from left to right.
        title: Above.
        x_label: Below the horizontal axis.
        y_label: Beside the vertical axis, which is linear.
        best: The point that is marked with a ring.
        level: A name and a number at which a dotted line is drawn, to compare with.
    """
    numbers = [y for one in curves for _, y in one.points] + ([] if level is None else [level[1]])
    steps = _round_steps(min(numbers), max(numbers))
    bounds = steps[0], steps[-1]

    def place(point: Point) -> Point:
        x = (point[0] + 0.5) / len(ticks)
        y = (point[1] - bounds[0]) / (bounds[1] - bounds[0])
        return (
            _SCALE * (_LEFT + x * (_WIDTH - _LEFT - _RIGHT)),
            _SCALE * (_HEIGHT - _BOTTOM - y * (_HEIGHT - _TOP - _BOTTOM)),
        )

    image = Image.new("RGB", (_SCALE * _WIDTH, _SCALE * _HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    left, right = place((-0.5, 0))[0], place((len(ticks) - 0.5, 0))[0]
    bottom, top = place((0, bounds[0]))[1], place((0, bounds[1]))[1]
    for step in steps:
        y = place((0, step))[1]
        draw.line([(left, y), (right, y)], fill=_PALE, width=_SCALE)
        _text(draw, (_LEFT - 8, y / _SCALE), f"{step:.6g}", size=13, anchor="rm")
    for index, tick in enumerate(ticks):
        _text(draw, (place((index, 0))[0] / _SCALE, _HEIGHT - _BOTTOM + 14), tick, size=13, anchor="mm")
    draw.line([(left, top), (left, bottom), (right, bottom)], fill=_INK, width=_SCALE)
    legend = [Series(one.name, (), one.points, color=one.color) for one in curves]
    if level is not None:
        y = place((0, level[1]))[1]
        _stroke(draw, [(left, y), (right, y)], COLORS[-1], 2)
        legend.append(Series(level[0], (), color=len(COLORS) - 1, dash=2))
    for one in curves:
        places = [place(point) for point in one.points]
        color = COLORS[one.color % len(COLORS)]
        _stroke(draw, places, color, 0)
        for point in places:
            _draw_mark(draw, point, color, hollow=False)
    ring = 10 * _SCALE
    x, y = place(best)
    draw.ellipse((x - ring, y - ring, x + ring, y + ring), outline=_INK, width=2 * _SCALE)
    _draw_legend(draw, [one for one in legend if one.name])
    return _finished(image, draw, title=title, x_label=x_label, y_label=y_label)


def _round_steps(low: float, high: float) -> list[float]:
    """Round numbers at equal distances around two others, which are not at the ends."""
    spread = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(spread / 4))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= spread / 6)
    first, last = math.floor(low / step - 0.1), math.ceil(high / step + 0.1)
    # No score is negative but by chance: an axis that could begin at zero does.
    first = max(first, 0) if low >= 0 else first
    return [number * step for number in range(first, last + 1)]


def _finished(image: Image.Image, draw: ImageDraw.ImageDraw, *, title: str, x_label: str, y_label: str) -> bytes:
    _text(draw, (_LEFT, 26), title, size=19, anchor="lm")
    _text(draw, ((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 20), x_label, anchor="mm")
    _draw_sideways(image, y_label)
    buffer = io.BytesIO()
    image.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _share(value: float, bounds: Point) -> float:
    low, high = map(math.log, bounds)
    return (math.log(value) - low) / (high - low)


def _range(values: Sequence[float], *, base: int) -> Point:
    """The powers of ``base`` around all values."""
    # A value that is next to nothing beyond a power does not ask for the next one.
    low = math.floor(math.log(min(values), base) + 1e-3)
    high = math.ceil(math.log(max(values), base) - 1e-3)
    return float(base) ** low, float(base) ** max(high, low + 1)


def _draw_grid(draw: ImageDraw.ImageDraw, axes: _Axes) -> None:
    (left, bottom), (right, top) = (
        axes.place((axes.x_range[0], axes.y_range[0])),
        axes.place((axes.x_range[1], axes.y_range[1])),
    )
    for y in _powers(axes.y_range, 10):
        for step in range(2, 10):
            if y * step < axes.y_range[1]:
                _, minor = axes.place((axes.x_range[0], y * step))
                draw.line([(left, minor), (right, minor)], fill=_FAINT, width=_SCALE)
    for x in _powers(axes.x_range, 2):
        place, _ = axes.place((x, axes.y_range[0]))
        draw.line([(place, bottom), (place, top)], fill=_PALE, width=_SCALE)
        _text(draw, (place / _SCALE, _HEIGHT - _BOTTOM + 14), f"{x:,.0f}", size=13, anchor="mm")
    for y in _powers(axes.y_range, 10):
        _, place = axes.place((axes.x_range[0], y))
        draw.line([(left, place), (right, place)], fill=_PALE, width=_SCALE)
        _text(draw, (_LEFT - 8, place / _SCALE), f"{y:,.15g}", size=13, anchor="rm")
    draw.line([(left, top), (left, bottom), (right, bottom)], fill=_INK, width=_SCALE)


def _powers(bounds: Point, base: int) -> list[float]:
    low, high = (round(math.log(bound, base)) for bound in bounds)
    return [float(base) ** power for power in range(low, high + 1)]


def _draw_line(draw: ImageDraw.ImageDraw, axes: _Axes, one: Series) -> None:
    color = COLORS[one.color % len(COLORS)]
    _stroke(draw, [axes.place(point) for point in one.line], color, one.dash)
    for point in one.marks:
        _draw_mark(draw, axes.place(point), color, hollow=one.dash > 0)


def _stroke(draw: ImageDraw.ImageDraw, places: Sequence[Point], color: str, dash: int) -> None:
    if dash == 0:
        draw.line(places, fill=color, width=round(2.6 * _SCALE), joint="curve")
        return
    for start, end in _dashes(places, _DASHES[dash] * _SCALE):
        draw.line([start, end], fill=color, width=2 * _SCALE)


def _dashes(places: Sequence[Point], length: float) -> list[tuple[Point, Point]]:
    """Pieces of a line, of equal length, every other one left out."""
    drawn, done = True, 0.0
    pieces: list[tuple[Point, Point]] = []
    for start, end in itertools.pairwise(places):
        total = math.dist(start, end)
        place = 0.0
        while place < total:
            step = min(length - done, total - place)
            if drawn:
                pieces.append((_between(start, end, place / total), _between(start, end, (place + step) / total)))
            place, done = place + step, done + step
            if done >= length:
                drawn, done = not drawn, 0.0
    return pieces


def _between(start: Point, end: Point, share: float) -> Point:
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


def _draw_mark(draw: ImageDraw.ImageDraw, place: Point, color: str, *, hollow: bool) -> None:
    radius = 4.5 * _SCALE
    box = (place[0] - radius, place[1] - radius, place[0] + radius, place[1] + radius)
    draw.ellipse(
        box, fill="white" if hollow else color, outline=color if hollow else "white", width=round(1.5 * _SCALE)
    )


def _draw_legend(draw: ImageDraw.ImageDraw, series: Sequence[Series]) -> None:
    left, spacing = _WIDTH - _RIGHT + 18, 24
    for row, one in enumerate(series):
        middle = _TOP + spacing * (row + 0.5)
        color = COLORS[one.color % len(COLORS)]
        start, end = (_SCALE * left, _SCALE * middle), (_SCALE * (left + 32), _SCALE * middle)
        _stroke(draw, [start, end], color, one.dash)
        if one.marks:
            _draw_mark(draw, _between(start, end, 0.5), color, hollow=one.dash > 0)
        _text(draw, (left + 42, middle), one.name, size=14, anchor="lm")


def _draw_sideways(image: Image.Image, text: str) -> None:
    font = _font(15)
    strip = Image.new("RGB", (math.ceil(font.getlength(text)), 22 * _SCALE), "white")
    ImageDraw.Draw(strip).text((0, 11 * _SCALE), text, fill=_INK, font=font, anchor="lm")
    strip = strip.rotate(90, expand=True)
    middle = _SCALE * (_TOP + _HEIGHT - _BOTTOM) // 2
    image.paste(strip, (4 * _SCALE, middle - strip.height // 2))


def _text(draw: ImageDraw.ImageDraw, place: Point, text: str, *, size: int = 15, anchor: str) -> None:
    draw.text((_SCALE * place[0], _SCALE * place[1]), text, fill=_INK, font=_font(size), anchor=anchor)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size * _SCALE)
