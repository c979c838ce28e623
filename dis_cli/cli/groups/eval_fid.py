"""Options of the data and the feature extractor, for both forms of `dis eval-fid`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from dis_cli.cli.display.help import Panel
from dis_cli.cli.display.output import Output
from dis_cli.paths import home_path
from dis_cli.runtime.distributed import part_from_environment

SplitOption = Annotated[
    Literal["train", "test", "all"] | None,
    typer.Option(
        "--split",
        help="Part of the data  [default: test for the bundled digits, else train]",
        rich_help_panel=Panel.REFERENCE,
    ),
]
FeaturesOption = Annotated[
    Literal["auto", "inception", "digits", "mnist", "clip", "dinov2"] | None,
    typer.Option(
        "--features",
        help="Feature extractor  [default: digits for the bundled digits, else inception]",
        rich_help_panel=Panel.METRICS,
    ),
]
InceptionOption = Annotated[
    Path | None,
    typer.Option(
        "--inception",
        metavar="PATH",
        parser=home_path,
        help="Inception weights, instead of those in torch's cache; only the published ones give an FID.",
        rich_help_panel=Panel.METRICS,
    ),
]
DownloadFlag = Annotated[
    bool,
    typer.Option(
        "--download", help="Download the Inception weights if they are missing.", rich_help_panel=Panel.METRICS
    ),
]


def evaluate_settings(features: str | None, split: str | None) -> list[str]:
    """The settings that options stand for, as overrides."""
    from dis_cli.config.overrides import as_overrides

    return as_overrides({"evaluate.features": features, "evaluate.split": split})


def fetch(download: bool, inception: Path | None) -> None:
    """Fetch the weights, by the first process of a job: before torch is imported, so that a failure is told at once."""
    if download and part_from_environment().index == 0:
        from dis_cli.metrics.extractors.choose import download_if_absent

        download_if_absent(inception)


def is_looked_for(download: bool) -> bool:
    """True if weights must be here by now: those that the first process downloads may still be on their way."""
    return not download or part_from_environment().index == 0


def output_of_rank(*, quiet: bool, verbose: bool, no_progress: bool, as_json: bool) -> Output:
    """The output of this process: the first of a job speaks for all."""
    is_leader = part_from_environment().index == 0
    return Output(
        quiet=quiet or not is_leader, verbose=verbose and is_leader, progress=not no_progress, as_json=as_json
    )
