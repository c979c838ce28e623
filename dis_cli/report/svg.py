"""Curves as inline SVG that a strict Content-Security-Policy lets through and that follows the page's colours.

matplotlib draws; its style attributes, which such a policy ignores, become attributes of presentation, and its colours
classes that the page's style sheet gives a light and a dark value. Names of runs are not in the figure but in the page
around it: matplotlib would read their signs as mathematics.
"""

import io
import logging
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

_SVG: Final = "http://www.w3.org/2000/svg"
_XLINK: Final = "{http://www.w3.org/1999/xlink}href"
_WIDTH, _HEIGHT, _DPI = 640, 300, 72
# Colours that stand for classes until the figure is written.
NUM_COLORS: Final = 8
_LINE_COLORS = tuple(f"#00000{place + 1}" for place in range(NUM_COLORS))
_INK, _PALE = "#0000f0", "#0000f1"
_CLASSES = {color: f"s{place}" for place, color in enumerate(_LINE_COLORS)} | {_INK: "ink", _PALE: "pale"}


@dataclass(frozen=True)
class Line:
    """One line, points of which are not drawn where they are not finite.

    Args:
        x: (n,) float64.
        y: (n,) float64.
        color: Place among the page's colours, counted round.
        marks: Whether each point is marked.
        dash: Whether it is dashed.
        interval: Half of the error bars, (n,); None draws none.
    """

    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    color: int = 0
    marks: bool = False
    dash: bool = False
    interval: npt.NDArray[np.float64] | None = None


def curves_svg(
    lines: Sequence[Line],
    *,
    cache: Path,
    key: str,
    x_label: str,
    y_label: str,
    log: bool = False,
    levels: Sequence[float] = (),
) -> Markup:
    """A figure as an ``<svg>`` element, of numbers and of this program's words; equal figures are equal texts.

    Args:
        cache: The folder where matplotlib keeps its list of fonts.
        key: A word of small letters, digits and dashes of this figure alone: its ids begin with it.
        log: Whether both axes are logarithmic; numbers that are not positive are then left out.
        levels: Heights of dotted lines to compare with.
    """
    # matplotlib reads this when it is imported, and logs that it lists the fonts for the first time.
    os.environ.setdefault("MPLCONFIGDIR", str(cache))
    logging.getLogger("matplotlib").addHandler(logging.NullHandler())
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": key, "text.parse_math": False}):
        figure = Figure(figsize=(_WIDTH / _DPI, _HEIGHT / _DPI), dpi=_DPI)
        FigureCanvasSVG(figure)
        axes: Any = figure.add_axes((0.12, 0.17, 0.86, 0.78))
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
        axes.grid(color=_PALE, linewidth=1)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_INK)
        axes.tick_params(colors=_INK, which="both", labelsize=11)
        if log:
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.tick_params(which="minor", labelsize=0, labelcolor="none")
            axes.minorticks_off()
        _draw(axes, lines, log)
        for level in levels:
            axes.axhline(level, color=_INK, linestyle=":", linewidth=1.5)
        axes.xaxis.set_major_formatter(_number)
        axes.yaxis.set_major_formatter(_number)
        axes.set_xlabel(x_label, color=_INK, fontsize=12)
        axes.set_ylabel(y_label, color=_INK, fontsize=12)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Markup(_for_page(buffer.getvalue(), key))


def _draw(axes: Any, lines: Sequence[Line], log: bool) -> None:
    for line in lines:
        x, y = line.x, line.y
        seen = np.isfinite(x) & np.isfinite(y) & ((x > 0) & (y > 0) if log else True)
        style: dict[str, Any] = {"color": _LINE_COLORS[line.color % NUM_COLORS], "linewidth": 2}
        if line.dash:
            style["linestyle"] = "--"
        if line.marks or int(seen.sum()) == 1:
            style |= {"marker": "o", "markersize": 5}
        axes.plot(x[seen], y[seen], **style)
        if line.interval is not None:
            whole = seen & np.isfinite(line.interval)
            axes.errorbar(
                x[whole], y[whole], line.interval[whole], fmt="none", ecolor=style["color"], capsize=3, linewidth=1.5
            )


def _number(value: float, _position: int | None) -> str:
    if value == 0:
        return "0"
    size = abs(value)
    if 1e-3 <= size < 1e5:
        return f"{value:,.6g}"
    return f"{value:.3g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def _for_page(text: str, key: str) -> str:
    """What matplotlib wrote, without its header, metadata and styles; ids of its own."""
    ET.register_namespace("", _SVG)
    root = ET.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        _plain(element, key)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    # The page names the figure; to a screen reader its parts are noise.
    root.set("aria-hidden", "true")
    root.set("focusable", "false")
    written = ET.tostring(root, encoding="unicode", short_empty_elements=True)
    return re.sub(r"\n\s*", "", written)


def _plain(element: ET.Element, key: str) -> None:
    style = element.attrib.pop("style", "")
    classes: list[str] = []
    for part in style.split(";"):
        name, _, value = (word.strip() for word in part.partition(":"))
        if name in ("fill", "stroke") and value in _CLASSES:
            classes.append(f"{name}-{_CLASSES[value]}")
        elif name == "font":
            # "11px 'DejaVu Sans', ...": the family is the page's.
            element.set("font-size", value.split()[0])
        elif name and not name.startswith(("font-family", "font-stretch", "font-style", "font-variant")):
            element.set(name, value)
    painted = [name for name in ("fill", "stroke") if element.get(name) in _CLASSES]
    classes += [f"{name}-{_CLASSES[element.attrib.pop(name)]}" for name in painted]
    if classes:
        element.set("class", " ".join(classes))
    if "id" in element.attrib:
        if element.tag == f"{{{_SVG}}}g":
            del element.attrib["id"]
        else:
            element.set("id", f"{key}-{element.attrib['id']}")
    if _XLINK in element.attrib:
        element.set("href", f"#{key}-{element.attrib.pop(_XLINK)[1:]}")
    if "clip-path" in element.attrib:
        element.set("clip-path", element.attrib["clip-path"].replace("url(#", f"url(#{key}-"))
