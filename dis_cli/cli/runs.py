"""`dis runs`: what trainings there are, and how far each of them is."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dis_cli.cli.display.output import Output
from dis_cli.cli.display.text import table
from dis_cli.cli.options import JsonFlag
from dis_cli.paths import home_path

if TYPE_CHECKING:
    from dis_cli.runs.summary import RunSummary, Score

_ONE_LINE = str.maketrans({"\n": "\\n", "\t": "\\t"})


def runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", parser=home_path, help="Where the run folders are.")] = Path(
        "runs"
    ),
    as_json: JsonFlag = False,
) -> None:
    """List the runs below a folder, the one that was active last first.

    A run is running, finished, stopped (by a signal or by train.max_minutes), failed, killed, or imported from a file.
    BEST compares only scores of equal features, reference, split and number of images (n): those of most images, and
    then the kind that was measured last.

    Example: dis runs runs/ablations
    """
    from dis_cli.runs.summary import find_runs

    output = Output(as_json=as_json)
    found = find_runs(folder)
    for problem in (problem for run in found for problem in run.problems):
        output.warning(problem)
    if not found:
        output.note(f"No runs in `{folder}`")
    data = [asdict(run) | {"updated": run.updated.isoformat(timespec="seconds")} for run in found]
    header = ["RUN", "PRESET", "STEP", "LOSS", "BEST", "STATUS", "UPDATED"]
    output.result(table([header, *map(_row, found)]) if found else [], {"runs": data})


def _row(run: "RunSummary") -> list[str]:
    step = "-" if run.step is None else str(run.step)
    best = "-"
    if run.best is not None:
        place = "" if run.best.step is None else f" at {run.best.step}"
        best = f"{run.best.metric} {run.best.value:.4g}{place}{_conditions(run.best)}"
    return [
        str(run.path).translate(_ONE_LINE),
        (run.preset or "-").translate(_ONE_LINE),
        f"{step}/{'-' if run.steps is None else run.steps}",
        "-" if run.loss is None else f"{run.loss:.4f}",
        best,
        run.status,
        f"{run.updated.astimezone():%Y-%m-%d %H:%M}",
    ]


def _conditions(score: "Score") -> str:
    """What a score can be compared by: how many images, and with what."""
    known = [] if score.num_samples is None else [f"n={score.num_samples}"]
    if score.split is not None:
        known.append(score.split)
    elif score.reference is not None:
        known.append(f"to {Path(score.reference).name.translate(_ONE_LINE)}")
    known += ["not digits"] if score.is_foreign else []
    return f" ({', '.join(known)})" if known else ""
