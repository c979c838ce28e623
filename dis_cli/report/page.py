"""The page: one HTML file that holds all it shows, runs only its own script, and asks nothing of any network."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dis_cli.metrics.table import scores_in_results
from dis_cli.pictures.grid import preview_classes, preview_labels
from dis_cli.report.charts import AXES, Legend, figures
from dis_cli.report.compare import differing, fit_to_log, names_of
from dis_cli.report.embed import MOST_PREVIEWS, Embedded, embed, spread
from dis_cli.report.record import RunRecord, preset_settings, shell
from dis_cli.report.scores import ScoreRow, last_score, rows_of
from dis_cli.report.svg import Line, curves_svg

# More runs than this are compared by curves, settings and scores, without their pictures.
_MOST_PICTURED: Final = 12
_MOST_PLOTS: Final = 12


@dataclass(frozen=True)
class Made:
    """A picture that was made for the page, and its command."""

    title: str
    png: bytes
    alt: str
    command: str
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """A run's picture in a frame; what there is to say when there is none, or when it cannot be made again."""

    name: str
    picture: Embedded | None
    alt: str
    command: str
    result: str
    gone: str


@dataclass(frozen=True)
class Frame:
    """All pictures of one step."""

    step: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Relation:
    """A score of several runs against what they cost."""

    title: str
    told: str
    svg: Markup
    legend: tuple[Legend, ...]


@dataclass(frozen=True)
class Report:
    """All that a page is made of.

    Args:
        facts: What is told of each run, by name.
        made: Pictures that were made for it.
        private: Whether there are pictures of the training images among these.
        command: What makes the page.
        full: Whether pictures are embedded as they are.
        cache: The folder where matplotlib keeps its list of fonts.
    """

    runs: Sequence[RunRecord]
    facts: Sequence[Mapping[str, str]]
    command: str
    cache: Path
    full: bool = False
    made: Sequence[Made] = field(default_factory=list[Made])
    private: bool = False
    remarks: Sequence[str] = ()

    @cached_property
    def num_pictures(self) -> int:
        """How many pictures share the page's size."""
        if len(self.runs) > _MOST_PICTURED:
            return max(len(self.made), 1)
        previews = min(sum(len(run.previews) for run in self.runs), MOST_PREVIEWS)
        return previews + len(self.made) + sum(min(len(run.plots), _MOST_PLOTS) for run in self.runs)

    def embedded(self, png: bytes) -> Embedded | None:
        """A picture as the page holds it; None for what is none."""
        return embed(png, full=self.full, pictures=self.num_pictures)

    def embedded_file(self, path: Path) -> Embedded | None:
        """The same of a file; None where it cannot be read."""
        try:
            return self.embedded(path.read_bytes())
        except OSError:
            return None


def render(report: Report) -> str:
    """The text of the page; equal runs make equal pages."""
    runs = report.runs
    differences = differing([run.settings for run in runs]) if len(runs) > 1 else {}
    names = names_of([run.name for run in runs], differences) if len(runs) > 1 else [runs[0].name]
    frames, left_out = _frames(report, names)
    text = {name: files("dis_cli.report").joinpath("templates", name).read_text("utf-8") for name in _OWN}
    environment = Environment(
        loader=PackageLoader("dis_cli.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = [(made, report.embedded(made.png)) for made in report.made]
    context: dict[str, Any] = {
        "title": names[0] if len(runs) == 1 else f"{len(runs)} runs",
        "runs": list(zip(runs, names, report.facts, strict=True)),
        "several": len(runs) > 1,
        "report": report,
        "policy": f"default-src 'none'; img-src data:; style-src {_hash(text['style.css'])}; "
        f"script-src {_hash(text['script.js'])}; base-uri 'none'; form-action 'none'",
        "style": Markup(text["style.css"]),
        "script": Markup(text["script.js"]),
        "frames": frames,
        "left_out": left_out,
        "figures": figures(runs, names, report.cache),
        "axes": AXES,
        "relations": _relations(report, names),
        "differences": differences,
        "changed": _changed(runs[0]) if len(runs) == 1 else [],
        "scores": [(name, row) for run, name in zip(runs, names, strict=True) for row in _shown(run, len(runs))],
        "plots": [
            (name, plot, picture)
            for run, name in zip(runs, names, strict=True)
            for plot in run.plots[:_MOST_PLOTS]
            if len(runs) <= _MOST_PICTURED and (picture := report.embedded_file(plot.path)) is not None
        ],
        "made": [(made, picture) for made, picture in pictures if picture is not None],
    }
    return environment.get_template("page.html").render(context)


_OWN: Final = ("style.css", "script.js")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _frames(report: Report, names: Sequence[str]) -> tuple[list[Frame], int]:
    """The frames of the slider, and how many steps have none."""
    runs = report.runs
    steps = sorted({preview.step for run in runs for preview in run.previews})
    if not steps or len(runs) > _MOST_PICTURED:
        return [], len(steps)
    chosen = steps if report.full else spread(steps, MOST_PREVIEWS // len(runs))
    at = [{preview.step: preview.path for preview in run.previews} for run in runs]
    frames = [
        Frame(
            step,
            tuple(
                _cell(run, name, step, paths.get(step), report)
                for run, name, paths in zip(runs, names, at, strict=True)
            ),
        )
        for step in chosen
    ]
    return frames, len(steps) - len(chosen)


def _cell(run: RunRecord, name: str, step: int, path: Path | None, report: Report) -> Cell:
    picture = None if path is None else report.embedded_file(path)
    if path is None or picture is None:
        return Cell(name, None, "", "", "", "There is no picture of this step.")
    count, classes = _preview_of(run)
    out = f"preview-{step:08d}"
    words = ["dis", "sample", *run.at_step(step), *classes, "-n", str(count), "--out", out]
    there = step in run.kept
    gone = "" if there else f"The checkpoint of step {step} is gone; train.keep_every keeps those that it divides."
    return Cell(
        name,
        picture,
        f"Images of seeds 0 to {count - 1} at step {step}",
        shell(words) if there else "",
        f"{out}/grid.png",
        gone,
    )


def _preview_of(run: RunRecord) -> tuple[int, list[str]]:
    """How many images a preview has, and the words that ask for their classes."""
    count = _whole(run, "train.preview_images", 64)
    if not (num_classes := _whole(run, "model.num_classes", 0)):
        return count, []
    shown = preview_classes(count, num_classes)
    text = "all" if len(shown) == num_classes else ",".join(map(str, shown))
    return len(preview_labels(count, num_classes)), ["--class", text]


def _whole(run: RunRecord, key: str, unknown: int) -> int:
    text = run.settings.get(key, "")
    return int(text) if text.isdecimal() and len(text) < 10 else unknown


def _shown(run: RunRecord, num_runs: int) -> list[ScoreRow]:
    """The scores of a run; beside others only those of its last step that was scored."""
    rows = rows_of(run)
    last = {row.name: max(other.step or 0 for other in rows if other.name == row.name) for row in rows}
    return rows if num_runs == 1 else [row for row in rows if (row.step or 0) == last[row.name]]


def _changed(run: RunRecord) -> list[tuple[str, str, str]]:
    """Every setting with its value, and the preset's where that is another."""
    preset = preset_settings(run)
    return [
        (key, value, preset[key] if key in preset and preset[key] != value else "")
        for key, value in run.settings.items()
    ]


def _relations(report: Report, names: Sequence[str]) -> list[Relation]:
    """Last scores against multiply-adds, with a fitted line where there are three costs."""
    found: list[Relation] = []
    for name, score in scores_in_results().items():
        points = [
            (place, run.macs, value)
            for place, run in enumerate(report.runs)
            if run.macs is not None and (value := last_score(run, name)) is not None
        ]
        if len({macs for _, macs, _ in points}) < 2:
            continue
        x = np.array([macs for _, macs, _ in points], dtype=np.float64)
        y = np.array([value for *_, value in points], dtype=np.float64)
        lines = [Line(x[at : at + 1], y[at : at + 1], place, marks=True) for at, (place, *_) in enumerate(points)]
        told = "Two costs only: no line is fitted."
        if (fit := fit_to_log(x, y)) is not None:
            along = np.geomspace(x.min(), x.max(), 40)
            lines.append(Line(along, fit.slope * np.log10(along) + fit.at_one, len(names), dash=True))
            told = f"Dashed: {fit.slope:+.4g} for ten times the MACs. Spearman's rank correlation {fit.spearman:+.3f}."
        svg = curves_svg(
            lines, cache=report.cache, key=f"macs-{name.replace('_', '-')}", x_label="MACs an image", y_label=name
        )
        legend = tuple(Legend(names[place], place) for place, *_ in points)
        found.append(Relation(f"{score.label[0].upper()}{score.label[1:]} against cost", told, svg, legend))
    return found
