"""What the run folders below a folder say about their runs. Reads only, holds no lock, and imports no torch."""

import contextlib
import json
import math
import mmap
import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from dis_cli.errors import UsageError
from dis_cli.runtime.run_dir import RunDir

# Scores by which checkpoints are compared, and whether the lower one is the better.
LOWER_IS_BETTER = {
    "fid": True,
    "frechet_digits": True,
    "frechet_inception": True,
    "frechet_clip": True,
    "frechet_dinov2": True,
    "class_accuracy": False,
}
DISTANCES = tuple(name for name, lower in LOWER_IS_BETTER.items() if lower)

# Every line but those of steps, of which there can be a million. JSON escapes quotes, so no text can hold this.
_RARE_LINE = re.compile(rb'\{"event": "(?!step"|progress")[^\n]*')
_STEP_LINE = b'{"event": "step"'

# What a run folder holds that cannot hold runs.
_NOT_SEARCHED = frozenset({"checkpoints", "samples", "evaluations", "latents", "tensorboard", "wandb"})

Status = Literal["running", "finished", "stopped", "failed", "imported", "killed"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One measured number of a run.

    Args:
        metric: A key of `LOWER_IS_BETTER`.
        value: The number.
        step: The optimizer step whose weights it is of; None when it was not recorded.
    """

    metric: str
    value: float
    step: int | None


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What is known of a run; None for what is not.

    Args:
        path: Its folder.
        preset: The name in its settings.
        step: The last step taken.
        steps: The steps to take in all.
        loss: That of the last step; None also when it was not finite.
        best: The best score, of the kind that ``train.best_metric`` chooses when there is one.
        status: "running", "finished" (the last step was taken), "stopped" (by a signal or by ``train.max_minutes``),
            "failed" (an error), "imported" (from a file, not trained), or "killed" (none of these: it ended without a
            word).
        detail: What the user was told when it stopped or failed; the process that runs it.
        updated: When it last wrote something down.
        problems: What could not be read.
    """

    path: Path
    preset: str | None
    step: int | None
    steps: int | None
    loss: float | None
    best: Score | None
    status: Status
    detail: str | None
    updated: datetime
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
    """What a run folder says about its run; whatever is damaged in it is passed over and named in ``problems``."""
    run, problems = RunDir(folder), list[str]()
    config = _read_config(run, problems)
    train: dict[str, Any] = config["train"] if isinstance(config.get("train"), dict) else {}
    last, others = _read_events(run.events_path, problems)
    announced = [record.get("total") for record in others if record.get("event") == "started"]
    steps = next((steps for steps in (train.get("steps"), *announced[-1:]) if isinstance(steps, int)), None)
    step = last.get("step")
    scores = [*_scores_of_training(others), *_scores_of_evaluations(run.evaluations, problems)]
    status, detail = _status(run, step, steps, others)
    name = config.get("name")
    return RunSummary(
        path=folder,
        preset=name if isinstance(name, str) else None,
        step=step,
        steps=steps,
        loss=_finite(last.get("loss")),
        best=_best(scores, str(train.get("best_metric"))),
        status=status,
        detail=detail,
        updated=_last_change(run),
        problems=tuple(problems),
    )


def _run_folders(root: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(root):
        is_run = "config.toml" in files and "checkpoints" in names
        if is_run:
            yield Path(folder)
        names[:] = sorted(name for name in names if not name.startswith(".") and not (is_run and name in _NOT_SEARCHED))


def _read_config(run: RunDir, problems: list[str]) -> dict[str, Any]:
    # Not through the schema: a run of another version is shown as well.
    with contextlib.suppress(OSError):
        # People edit the other file, for a start that is still to come.
        config = _record(run.run_json.read_bytes()).get("config")
        if isinstance(config, dict):
            return config
    try:
        return tomllib.loads(run.config_path.read_text(encoding="utf-8"))
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


def _scores_of_training(records: list[dict[str, Any]]) -> Iterator[Score]:
    for record in records:
        if record.get("event") == "metric":
            yield from _scores({str(record.get("name")): record.get("value")}, record.get("step"))


def _scores_of_evaluations(folder: Path, problems: list[str]) -> Iterator[Score]:
    try:
        files = sorted(entry for entry in folder.iterdir() if entry.suffix == ".json")
    except FileNotFoundError:
        return
    except OSError as error:
        problems.append(_unreadable(folder, error))
        return
    for file in files:
        try:
            record = _record(file.read_bytes())
        except OSError as error:
            problems.append(_unreadable(file, error))
            continue
        if not record:
            problems.append(f"`{file}` holds no result")
        yield from _scores(record, record.get("step"))


def _scores(values: dict[str, Any], step: object) -> Iterator[Score]:
    for name in LOWER_IS_BETTER:
        value = _finite(values.get(name))
        if value is not None:
            yield Score(metric=name, value=value, step=step if isinstance(step, int) else None)


def _finite(value: object) -> float | None:
    with contextlib.suppress(OverflowError):
        if isinstance(value, (int, float)) and math.isfinite(value):
            return float(value)
    return None


def _best(scores: list[Score], wanted: str) -> Score | None:
    """The best of the scores of one name: those cannot be compared with others."""
    order = ("class_accuracy", *DISTANCES) if wanted == "class_accuracy" else (*DISTANCES, "class_accuracy")
    for name in order:
        named = [score for score in scores if score.metric == name]
        if named:
            return min(named, key=lambda score: score.value if LOWER_IS_BETTER[name] else -score.value)
    return None


def _status(
    run: RunDir, step: int | None, steps: int | None, records: list[dict[str, Any]]
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
    with contextlib.suppress(OSError):
        imported = _record(run.run_json.read_bytes()) if step is None else {}
        if "imported" in imported:
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
