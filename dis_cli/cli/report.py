"""`dis report`: one page that shows a run, or compares several."""

from pathlib import Path
from typing import Annotated

import typer

from dis_cli.cli.display.help import Panel
from dis_cli.cli.display.output import Output
from dis_cli.cli.display.text import size
from dis_cli.cli.options import DeviceOption, JsonFlag, OutOption, QuietFlag
from dis_cli.errors import UsageError
from dis_cli.paths import home_path


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", parser=home_path, help="Run folders.", rich_help_panel=Panel.INPUT),
    ],
    out: OutOption = None,
    samples: Annotated[
        int,
        typer.Option(
            "--samples",
            metavar="N",
            min=0,
            max=400,
            help="Images to make of each run's newest weights, class by seed and class by guidance.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = 0,
    nearest: Annotated[
        bool,
        typer.Option(
            "--nearest",
            help="Show samples beside their nearest training images, which the page then carries.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = False,
    full: Annotated[
        bool,
        typer.Option("--full", help="Embed the PNGs themselves instead of WebP.", rich_help_panel=Panel.OUTPUT),
    ] = False,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Write one HTML page that shows a run, or compares several: curves, previews, scores, settings.

    The page needs no server and no network. It is RUN/report.html, of several runs report.html, or --out.

    Example: dis report runs/dis-xs-digits --samples 64
    """
    if len(set(runs)) < len(runs):
        twice = next(run for run in runs if runs.count(run) > 1)
        raise UsageError(f"`{twice}` is named twice", "Name each run once")

    from dis_cli.workflows.report import report as make

    output = Output(as_json=as_json, quiet=quiet)
    result = output.render(make(runs, out, samples=samples, nearest=nearest, full=full, device=device))
    output.result([f"report  {result['out']} ({size(result['size_bytes'])})"], result)
