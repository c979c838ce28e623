"""The page of runs as their folders tell them, without a model."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dis_cli.config.schema import RunConfig
from dis_cli.errors import DisError
from dis_cli.report.page import Made, Report, render
from dis_cli.report.record import RunRecord, as_exported, read_run, shell
from dis_cli.runtime.files import atomic_write_text
from dis_cli.runtime.machine import cache_folder
from dis_cli.workflows.run_facts import facts_of, open_run

REPORT_FILE = "report.html"


def page_of(
    records: Sequence[RunRecord],
    command: Sequence[str],
    *,
    full: bool = False,
    made: Sequence[Made] = (),
    private: bool = False,
    remarks: Sequence[str] = (),
) -> str:
    """The page of some runs.

    Args:
        command: The words that make it.
        full: Whether pictures are embedded as they are.
        made: Pictures made for it.
        private: Whether training images are among these.
    """
    report = Report(
        runs=records,
        facts=[facts_of(record) for record in records],
        command=shell([*command]),
        cache=cache_folder() / "matplotlib",
        full=full,
        made=made,
        private=private,
        remarks=remarks,
    )
    return render(report)


def write_run_page(run: Path, called: str) -> Path:
    """Write a run's page into its folder.

    Args:
        called: The run as commands name it.

    Raises:
        DisError: The run or the disk do not allow it.
    """
    path = run / REPORT_FILE
    atomic_write_text(path, page_of([replace(open_run(run), called=called)], ["dis", "report", called]))
    return path


def exported_page(run: Path, config: RunConfig, name: str, step: int | None) -> str:
    """The page of the run that an exported model is of, in the export's own words.

    Args:
        config: The settings that are written beside it.
        name: The export, as commands name it.

    Raises:
        UsageError: It is no run folder.
    """
    record = as_exported(open_run(run), name, step)
    command = ["dis", "checkpoint", "export", "RUN", "--out", name]
    return page_of([replace(record, config=config)], command)


def preview_of(run: Path, step: int | None) -> bytes | None:
    """The picture that a run made at a step; None when there is none."""
    try:
        return next(preview.path.read_bytes() for preview in read_run(run).previews if preview.step == step)
    except (StopIteration, OSError, DisError):
        return None
