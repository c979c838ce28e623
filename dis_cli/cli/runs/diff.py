"""`dis runs diff`: the settings in which runs differ, their last losses and scores."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from dis_cli.cli.display.colour import is_terminal
from dis_cli.cli.display.help import Panel
from dis_cli.cli.display.output import Output
from dis_cli.cli.display.text import table
from dis_cli.cli.options import JsonFlag
from dis_cli.errors import UsageError
from dis_cli.paths import home_path


def diff(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN RUN...", parser=home_path, help="Run folders, two or more.", rich_help_panel=Panel.INPUT
        ),
    ],
    as_json: JsonFlag = False,
) -> None:
    """Compare runs: the settings that differ, last losses and last scores.

    Example: dis runs diff runs/dis-xs-digits runs/dis-xs-digits-branch
    """
    if len(runs) < 2:
        raise UsageError(
            f"Only one run to compare: `{runs[0]}`", f"Name another one too; `dis runs show {runs[0]}` describes it"
        )

    from dis_cli.report.compare import differing
    from dis_cli.report.record import flat, read_run
    from dis_cli.report.scores import last_values

    output = Output(as_json=as_json)
    records = [read_run(run) for run in runs]
    for problem in dict.fromkeys(problem for record in records for problem in record.summary.problems):
        output.warning(problem)
    settings = differing([flat(record.summary.settings, whole_paths=True) for record in records])
    values = [last_values(record) for record in records]
    results = {name: [own.get(name) for own in values] for name in dict.fromkeys(key for own in values for key in own)}
    told = {name: ["-" if value is None else f"{value:.5g}" for value in found] for name, found in results.items()}
    output.result(
        compared(list(map(str, runs)), {"SETTING": settings, "LAST": told}),
        {"runs": list(map(str, runs)), "settings": settings, "results": results},
    )


def compared(names: Sequence[str], parts: Mapping[str, Mapping[str, Sequence[str]]]) -> list[str]:
    """A table with a column for each name, or, where that is wider than the terminal, a line for each value.

    Args:
        parts: By heading, rows of one value for each name.
    """
    blocks = [
        table([[heading, *names], *([key, *row] for key, row in rows.items())]) for heading, rows in parts.items()
    ]
    width = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None
    if width is not None and max(len(line) for block in blocks for line in block) > width:
        blocks = [
            [heading, *(line for key, row in rows.items() for line in [key, *_indented(names, row)])]
            for heading, rows in parts.items()
        ]
    filled = [block for block in blocks if len(block) > 1]
    return [line for place, block in enumerate(filled) for line in ([""] if place else []) + block]


def _indented(names: Sequence[str], row: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in table([[value, name] for name, value in zip(names, row, strict=True)])]
