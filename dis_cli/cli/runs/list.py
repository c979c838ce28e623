"""`dis runs`: a table of runs with their progress, best score and status."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from dis_cli.cli.display.help import Panel, WordCommand, word_app
from dis_cli.cli.display.output import Output
from dis_cli.cli.options import JsonFlag
from dis_cli.cli.runs.columns import column_words, filtered, lines_of, sorted_by
from dis_cli.cli.runs.diff import diff
from dis_cli.cli.runs.show import show
from dis_cli.paths import home_path


class RunsCommand(WordCommand):
    """`dis runs`, `dis runs show` or `dis runs diff`."""

    words: ClassVar = {"show": word_app(show), "diff": word_app(diff)}


def runs(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="DIR",
            parser=home_path,
            help="Folders that hold the runs  [default: runs]",
            show_default=False,
            rich_help_panel=Panel.INPUT,
        ),
    ] = None,
    sort: Annotated[
        str,
        typer.Option(
            "--sort",
            metavar="KEY",
            help="Column or setting to sort by, such as loss, best or train.lr; smallest first, of times the latest.",
            autocompletion=column_words,
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = "updated",
    reverse: Annotated[
        bool, typer.Option("--reverse", "-r", help="Sort the other way round.", rich_help_panel=Panel.OUTPUT)
    ] = False,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="KEY=VALUE",
            help="List only runs with this column or setting, such as status=finished or preset=dis-s*; may be given "
            "several times.",
            autocompletion=column_words,
            rich_help_panel=Panel.INPUT,
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the runs in a folder with progress, best score and status; `show` and `diff` look closer.

    dis runs show RUN describes a run, and dis runs diff RUN RUN compares several.

    STATUS is running, finished, stopped (by a signal or train.max_minutes), failed, killed, or imported from a file.
    BEST compares only scores of equal features, reference, split and number of images (n): of these kinds, the one with
    most images, and then the one measured last. EPS_MSE is the last error of epsilon on held-out images. A narrow
    terminal shows fewer columns; --json has all of them, the settings and the parameters.

    Example: dis runs runs/ablations --filter train.lr=3e-3 --sort best
    """
    from dis_cli.runs.summary import find_runs

    output = Output(as_json=as_json)
    places = folders or [Path("runs")]
    everything = {run.path: run for place in places for run in find_runs(place)}
    found = sorted_by(filtered([*everything.values()], filters or []), sort, reverse=reverse)
    for problem in (problem for run in found for problem in run.problems):
        output.warning(problem)
    if not found:
        where = ", ".join(f"`{place}`" for place in places)
        output.note(f"No runs in {where}" + (f" that {' and '.join(filters)} fits" if filters and everything else ""))
    data = [asdict(run) | {"updated": run.updated.isoformat(timespec="seconds")} for run in found] if as_json else []
    output.result(lines_of(found) if found else [], {"runs": data})
