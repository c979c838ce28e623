"""A summary of the runs below a folder. Reads only, holds no lock, and imports no torch."""

import contextlib
import json
import math
import mmap
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from dis_cli.errors import UsageError
from dis_cli.metrics.table import EPSILON_ERROR, OF_MODEL, judges, scores_in_results
from dis_cli.metrics.table import Score as Named
from dis_cli.runs.folder import RunDir, read_facts
from dis_cli.text_files import read_text

# Every line but those of steps, of which there can be a million. JSON escapes quotes, so no text can hold this.
_RARE_LINE = re.compile(rb'\{"event": "(?!step"|progress")[^\n]*')
_STEP_LINE = b'{"event": "step"'

# What a run folder holds that cannot hold runs.
_NOT_SEARCHED = frozenset({"checkpoints", "samples", "evaluations", "latents", "tensorboard", "wandb"})

Status = Literal["running", "finished", "stopped", "failed", "imported", "killed"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One measured number of a run, and what it can be compared by; None for what was not recorded.

    Args:
        metric: Its name in results.
        step: The optimizer step whose weights it is of.
        is_foreign: Whether that knows digits only, and the run's data are others: the number says little.
    """

    metric: str
    value: float
    step: int | None
    num_samples: int | None = None
    reference: str | None = None
    split: str | None = None
    features: str | None = None
    is_foreign: bool = False


@dataclass(frozen=True)
class _Found:
    """A score, what must be equal for another to be compared with it, and when it was written down."""

    score: Score
    alike: str
    written: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The facts about a run; None where one is unknown.

    Args:
        loss: That of the last step; None also when it was not finite.
        best: The best score, of the kind that ``train.best_metric`` chooses when there is one. Only scores of equal
            extractor, reference, split and number of images are compared: those of most images, and of several such
            kinds those of the one that was measured last.
        held_out: The last error of epsilon on held-out images while training (``train.validate_every``).
        status: "running", "finished" (the last step was taken), "stopped" (by a signal or by ``train.max_minutes``),
            "failed" (an error), "imported" (from a file, not trained), or "killed" (none of these: it ended without a
            word).
        detail: Message to the user when it stopped or failed; the process that runs it.
        updated: When it last wrote something down.
        parameters: How many the model has.
        settings: As they are recorded, by section.
    """

    path: Path
    preset: str | None
    step: int | None
    steps: int | None
    loss: float | None
    best: Score | None
    held_out: Score | None
    status: Status
    detail: str | None
    updated: datetime
    parameters: int | None
    settings: Mapping[str, Any]
    problems: tuple[str, ...]


def find_runs(root: Path) -> list[RunSummary]:
    """The runs in ``root`` and below, the one that was active last first.

    Links to folders are not followed, and hidden folders not searched.

    Raises:
        UsageError: There is no such folder, or it cannot be read.
    """
    try:
        with os.scandir(root):
            pass
    except OSError as error:
        reason = "no such folder" if isinstance(error, FileNotFoundError) else error.strerror
        raise UsageError(
            f"Cannot list the runs in `{root}`: {reason}", "Give the folder that holds them: `dis runs DIR`"
        ) from error
    return sorted(map(summarize_run, _run_folders(root)), key=lambda run: run.updated, reverse=True)


def summarize_run(folder: Path) -> RunSummary:
    """The summary of a run folder; damaged files in it are passed over and named in ``problems``."""
    run, problems = RunDir(folder), list[str]()
    facts = read_facts(run)
    config = _read_config(run, facts, problems)
    train: dict[str, Any] = config["train"] if isinstance(config.get("train"), dict) else {}
    last, others = _read_events(run.events_path, problems)
    announced = [record.get("total") for record in others if record.get("event") == "started"]
    steps = next((steps for steps in (train.get("steps"), *announced[-1:]) if isinstance(steps, int)), None)
    step = last.get("step")
    data: dict[str, Any] = config["data"] if isinstance(config.get("data"), dict) else {}
    foreign = data.get("source", "digits") not in ("digits", "latents")
    known = scores_in_results()
    names = list(known)
    while_training = [*_scores_of_training(others, names)]
    found = [*while_training, *_scores_of_evaluations(run.evaluations, names, problems)]
    status, detail = _status(run, step, steps, others, facts)
    name, parameters = config.get("name"), facts.get("parameters")
    return RunSummary(
        path=folder,
        preset=name if isinstance(name, str) else None,
        step=step,
        steps=steps,
        loss=_finite(last.get("loss")),
        held_out=_last_held_out(while_training),
        best=_best(found, known, str(train.get("best_metric")), foreign=foreign),
        status=status,
        detail=detail,
        updated=_last_change(run),
        parameters=parameters if isinstance(parameters, int) else None,
        settings=config,
        problems=tuple(problems),
    )


def _run_folders(root: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(root):
        is_run = "config.toml" in files and "checkpoints" in names
        if is_run:
            yield Path(folder)
        names[:] = sorted(name for name in names if not name.startswith(".") and not (is_run and name in _NOT_SEARCHED))


def _read_config(run: RunDir, facts: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    # Not through the schema: a run of another version is shown as well. People edit the other file, for a start that
    # is still to come.
    if isinstance(config := facts.get("config"), dict):
        return config
    try:
        return tomllib.loads(read_text(run.config_path))
    except (OSError, ValueError, RecursionError) as error:
        problems.append(_unreadable(run.config_path, error))
        return {}


def _read_events(path: Path, problems: list[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The last step that can be read, {} when there is none, and all records that are not of steps."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return {}, []
            # The file may grow meanwhile; when it is to shrink, it is replaced.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                others = [record for match in _RARE_LINE.finditer(content) if (record := _record(match.group()))]
                return _last_step(content), others
    except FileNotFoundError:
        return {}, []
    except (OSError, ValueError) as error:
        problems.append(_unreadable(path, error))
        return {}, []


def _last_step(content: mmap.mmap) -> dict[str, Any]:
    end = len(content)
    while (start := content.rfind(_STEP_LINE, 0, end)) >= 0:
        stop = content.find(b"\n", start)
        record = _record(content[start : stop if stop >= 0 else len(content)])
        if isinstance(record.get("step"), int):
            return record
        # Written in part.
        end = start
    return {}


def _record(line: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        record = json.loads(line)
        if isinstance(record, dict):
            return record
    return {}


def _scores_of_training(records: list[dict[str, Any]], names: list[str]) -> Iterator[_Found]:
    for place, record in enumerate(records):
        if record.get("event") == "metric":
            conditions = record.get("conditions")
            values = {str(record.get("name")): record.get("value"), "step": record.get("step")}
            # When is not recorded: before whatever is in a file.
            yield from _scores((conditions if isinstance(conditions, dict) else {}) | values, (0, place), names)


def _scores_of_evaluations(folder: Path, names: list[str], problems: list[str]) -> Iterator[_Found]:
    try:
        files = sorted(entry for entry in folder.iterdir() if entry.suffix == ".json")
    except FileNotFoundError:
        return
    except OSError as error:
        problems.append(_unreadable(folder, error))
        return
    for place, file in enumerate(files):
        try:
            record, written = _record(file.read_bytes()), file.stat().st_mtime_ns
        except OSError as error:
            problems.append(_unreadable(file, error))
            continue
        if not record:
            problems.append(f"`{file}` holds no result")
        yield from _scores(record, (written, place), names)


def _scores(record: dict[str, Any], written: tuple[int, int], names: list[str]) -> Iterator[_Found]:
    told = record.get("reference")
    reference: dict[str, Any] = told if isinstance(told, dict) else {}
    # The content, where it was looked at: of data their fingerprint, which scores while training have too.
    content = record.get("data_sha256") if reference.get("kind") == "data" else record.get("reference_sha256")
    content = content or reference.get("sha256")
    extractor = record.get("features_sha256") or record.get("features")
    num_samples, step = record.get("num_samples"), record.get("step")
    for name in names:
        value = _finite(record[name]) if name in record else None
        if value is not None:
            score = Score(
                metric=name,
                value=value,
                step=step if isinstance(step, int) else None,
                num_samples=num_samples if isinstance(num_samples, int) else None,
                reference=_text(reference.get("name")),
                split=_text(reference.get("split")),
                features=_text(record.get("features")),
            )
            kind = [name, extractor, reference.get("name"), reference.get("n"), score.split, content, num_samples]
            yield _Found(score, json.dumps(kind), written)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _finite(value: object) -> float | None:
    with contextlib.suppress(OverflowError):
        if isinstance(value, (int, float)) and math.isfinite(value):
            return float(value)
    return None


def _last_held_out(found: list[_Found]) -> Score | None:
    scores = [each.score for each in found if each.score.metric == EPSILON_ERROR]
    return scores[-1] if scores else None


def _best(found: list[_Found], known: Mapping[str, Named], wanted: str, *, foreign: bool) -> Score | None:
    """The best of the scores of one name and of equal conditions: those cannot be compared with others."""
    order = (*judges(wanted), *judges("distance"), "class_accuracy", *known)
    # Losses are no scores of images, unless they are what the run is judged by.
    losses = {OF_MODEL, EPSILON_ERROR} - {*judges(wanted)}
    order = [name for name in dict.fromkeys(order) if name in known and name not in losses]
    # What digits alone can be judged by comes last for other data, and says so.
    of_digits = [name for name in order if foreign and (name.endswith("_digits") or name == "class_accuracy")]
    for name in (*(name for name in order if name not in of_digits), *of_digits):
        named = [each for each in found if each.score.metric == name]
        if named:
            shown = max(named, key=lambda each: (each.score.num_samples or 0, each.written)).alike
            alike = [each.score for each in named if each.alike == shown]
            best = min(alike, key=lambda score: -score.value if known[name].higher_is_better else score.value)
            return replace(best, is_foreign=name in of_digits)
    return None


def _status(
    run: RunDir, step: int | None, steps: int | None, records: list[dict[str, Any]], facts: dict[str, Any]
) -> tuple[Status, str | None]:
    holder = run.holder()
    if holder is not None:
        return "running", str(holder)
    if step is not None and steps is not None and step >= steps:
        return "finished", None
    # Of the last start only: what an earlier one ended with is past.
    for record in reversed(records):
        match record:
            case {"event": "started"}:
                break
            case {"event": "stopped", "reason": reason}:
                return "failed" if reason == "error" else "stopped", str(record.get("message"))
            case _:
                pass
    if step is None and "imported" in facts:
        return "imported", None
    return "killed", None


def _last_change(run: RunDir) -> datetime:
    for path in (run.events_path, run.config_path, run.path):
        with contextlib.suppress(OSError):
            return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return datetime.fromtimestamp(0, UTC)


def _unreadable(path: Path, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else next(iter(str(error).splitlines()), "")
    return f"`{path}` cannot be read: {reason}"
