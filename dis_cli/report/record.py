"""One run as plain records, read from its folder: whatever is missing, damaged or unknown is named and passed over."""

import contextlib
import json
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeGuard

import numpy as np
import numpy.typing as npt

from dis_cli.checkpoints.store import checkpoints_of, steps_in
from dis_cli.config.presets import load_preset, preset_names
from dis_cli.config.schema import RunConfig
from dis_cli.config.settings import as_text
from dis_cli.errors import DisError, UsageError
from dis_cli.runs.folder import RunDir, read_events, read_facts
from dis_cli.runs.summary import RunSummary, summarize_run

_SCHEMA: Final = 1
_PREVIEW = re.compile(r"preview-(\d+)(?:_\d+)?\.png")
# A path from the root, but for its last part.
_PLACE = re.compile(r"(?<![\w.~…/:])/(?:[^\s/`'\",;:]+/)+")
# What the page says of the last warnings; a run can have one for every step.
MOST_NOTES: Final = 50

COLUMNS: Final = ("step", "loss", "lr", "grad_norm", "images_per_second", "seconds")


@dataclass(frozen=True)
class Preview:
    """A picture that was made while training.

    Args:
        step: The optimizer step whose averaged weights it is of.
    """

    step: int
    path: Path


@dataclass(frozen=True)
class Plot:
    """A plot that lies beside a result.

    Args:
        command: What made it; empty when unknown.
    """

    path: Path
    command: str


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """All that a run's folder says.

    Args:
        called: The path by which commands name it.
        settings: Every setting by its dotted name, as text.
        config: The settings, where this version understands them.
        facts: ``run.json``.
        macs: Multiply-adds of one forward for one image; None when unknown.
        steps: The columns of `COLUMNS`, (n,) float64 each, NaN for what is no number.
        metrics: The records of what was measured while training.
        results: The files of ``evaluations``.
        kept: Steps whose checkpoints are there.
        absent: What the page cannot show, in sentences.
        has_steps: Whether commands name one of several steps.
    """

    called: str
    name: str
    summary: RunSummary
    settings: Mapping[str, str]
    config: RunConfig | None
    facts: Mapping[str, Any]
    steps: Mapping[str, npt.NDArray[np.float64]]
    metrics: tuple[Mapping[str, Any], ...]
    results: tuple[Mapping[str, Any], ...]
    previews: tuple[Preview, ...]
    plots: tuple[Plot, ...]
    kept: frozenset[int]
    notes: tuple[str, ...]
    absent: tuple[str, ...] = ()
    macs: int | None = None
    parameters: int | None = None
    has_steps: bool = True

    @property
    def images_a_step(self) -> int | None:
        """The batch."""
        text = self.settings.get("train.batch_size", "")
        return int(text) if text.isdecimal() else None

    def images_at(self, steps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
        """How many images were trained on at each step, with those of the run that this one is a branch of."""
        if (batch := self.images_a_step) is None:
            return None
        match self.facts.get("lineage"):
            case {"kind": "branch", "step": int(step), "images": int(images)}:
                return images + (steps - step) * batch
            case _:
                return steps * batch

    def flops_at(self, steps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
        """Two a multiply-add, and three passes an image: forward, backward to the inputs and to the weights."""
        images = self.images_at(steps)
        return None if images is None or self.macs is None else 6.0 * self.macs * images

    def at_step(self, step: int) -> list[str]:
        """The words that name a checkpoint in a command."""
        return ["--ckpt", self.called, *(["--step", str(step)] if self.has_steps else [])]


def read_run(folder: Path, called: str | None = None) -> RunRecord:
    """Read a run.

    Args:
        folder: A run folder.
        called: The name of it in commands; None takes the path.

    Raises:
        UsageError: It is no run folder.
    """
    run = RunDir(folder)
    with contextlib.suppress(OSError):
        if not folder.exists():
            raise UsageError(f"There is no folder `{folder}`", "`dis runs DIR` lists the runs in a folder")
    if not (run.config_path.is_file() or run.run_json.is_file()):
        raise UsageError(f"`{folder}` is no run of `dis train`", "`dis runs DIR` lists the runs in a folder")
    summary = summarize_run(folder)
    absent = [without_places(problem) for problem in summary.problems]
    facts = read_facts(run)
    if not facts:
        absent.append("run.json is missing or cannot be read: machine, engine and versions are unknown.")
    schema = facts.get("schema", _SCHEMA)
    if schema != _SCHEMA:
        absent.append(f"The run is of another version of dis (schema {schema}): some of it may not be shown.")
    config = _config(summary.settings)
    if config is None:
        absent.append("The settings are not those of this version of dis: nothing that follows from them is shown.")
    try:
        events = read_events(run.events_path)
    except OSError:
        events = []
    steps = _columns(events)
    metrics = tuple(event for event in events if event.get("event") == "metric" and _is_number(event.get("step")))
    results = tuple(_results(run))
    previews = tuple(_previews(run))
    if not len(steps["step"]):
        imported = summary.status == "imported"
        absent.append("There are no curves: the run was imported, not trained." if imported else "No step was taken.")
    if not previews:
        absent.append("There are no previews: train.preview_every makes them.")
    if not metrics and not results:
        absent.append("There are no scores: train.evaluate_every or `dis eval-fid` measures them.")
    kept: list[int] = []
    with contextlib.suppress(OSError, DisError):
        kept = steps_in(checkpoints_of(folder))
    return RunRecord(
        called=str(folder) if called is None else called,
        name=folder.absolute().name,
        summary=summary,
        settings=flat(summary.settings),
        config=config,
        facts=facts,
        steps=steps,
        metrics=metrics,
        results=results,
        previews=previews,
        plots=tuple(_plots(run)),
        kept=frozenset(kept),
        notes=tuple(_notes(events)),
        absent=tuple(absent),
    )


def as_exported(record: RunRecord, name: str, step: int | None) -> RunRecord:
    """A run as it is told of beside an export of one of its steps, which is what commands then name."""
    return replace(record, called=name, name=name, has_steps=False, kept=frozenset(() if step is None else (step,)))


def flat(settings: Mapping[str, Any], prefix: str = "", *, whole_paths: bool = False) -> dict[str, str]:
    """Settings by their dotted names, as text.

    Args:
        whole_paths: Whether paths keep the folders that they lie in.
    """
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.", whole_paths=whole_paths)
        else:
            found[f"{prefix}{key}"] = as_text(value) if whole_paths else without_places(as_text(value))
    return found


def preset_settings(record: RunRecord) -> dict[str, str]:
    """The settings of the preset that a run is named after; empty when there is none."""
    name = record.settings.get("name", "")
    return flat(load_preset(name).model_dump(mode="json")) if name in preset_names() else {}


def without_places(text: str) -> str:
    """Text in which paths have lost the folders that they lie in: where those are is nobody's business."""
    return _PLACE.sub("…/", text)


def shell(words: list[str]) -> str:
    """A command as it is typed."""
    return shlex.join(words)


def number(value: object) -> float | None:
    """A finite number; None for anything else."""
    return float(value) if _is_number(value) and math.isfinite(value) else None


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _json_object(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(path.read_bytes())
        if isinstance(found, dict):
            return found
    return {}


def _config(raw: Mapping[str, Any]) -> RunConfig | None:
    with contextlib.suppress(ValueError, RecursionError, TypeError):
        return RunConfig.model_validate(raw).settled()
    return None


def _columns(events: list[dict[str, Any]]) -> dict[str, npt.NDArray[np.float64]]:
    rows = [event for event in events if event.get("event") == "step" and _is_number(event.get("step"))]
    table = [[number(row.get(name)) for name in COLUMNS] for row in rows]
    columns = np.array(table, dtype=np.float64).reshape(len(rows), len(COLUMNS))
    return {name: columns[:, place] for place, name in enumerate(COLUMNS)}


def _results(run: RunDir) -> list[dict[str, Any]]:
    with contextlib.suppress(OSError):
        found = [_json_object(path) for path in sorted(run.evaluations.glob("*.json"))]
        return [result for result in found if result]
    return []


def _previews(run: RunDir) -> list[Preview]:
    found: dict[int, Path] = {}
    with contextlib.suppress(OSError):
        for path in sorted(run.samples.glob("preview-*.png")):
            if (match := _PREVIEW.fullmatch(path.name)) and len(match[1]) < 16:
                # Of several at one step, the last is that of the run as it is.
                found[int(match[1])] = path
    return [Preview(step, found[step]) for step in sorted(found)]


def _plots(run: RunDir) -> list[Plot]:
    found: list[Plot] = []
    with contextlib.suppress(OSError):
        for path in sorted(run.evaluations.glob("*.png")):
            command = _json_object(path.with_suffix(".json")).get("command")
            found.append(Plot(path, command if isinstance(command, str) else ""))
    return found


def _notes(events: list[dict[str, Any]]) -> list[str]:
    """Warnings and stops, the last ones when there are many."""
    found: list[str] = []
    for event in events:
        match event:
            case {"event": "note", "level": "warning", "message": str(message)}:
                found.append(f"warning: {without_places(message)}")
            case {"event": "stopped", "step": step, "reason": reason, "message": str(message)}:
                found.append(f"stopped at step {step} ({reason}): {without_places(message)}")
            case _:
                pass
    more = len(found) - MOST_NOTES
    return ([f"{more} earlier ones are in events.jsonl"] if more > 0 else []) + found[-MOST_NOTES:]
