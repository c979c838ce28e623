"""`dis eval-fid stats`: a file of statistics of images."""

from pathlib import Path
from typing import Annotated

import typer

from dis_cli.cli.display.help import Panel
from dis_cli.cli.groups.eval_fid import (
    DownloadFlag,
    FeaturesOption,
    InceptionOption,
    SplitOption,
    evaluate_settings,
    fetch,
    is_looked_for,
    output_of_rank,
)
from dis_cli.cli.options import (
    DeviceOption,
    DryRunFlag,
    JsonFlag,
    NoProgressFlag,
    Overrides,
    PresetOption,
    QuietFlag,
    RefusedDryRunFlag,
    VerboseFlag,
    path_to_write,
)
from dis_cli.errors import UsageError
from dis_cli.paths import expand_home
from dis_cli.runtime.distributed import part_from_environment


def stats(
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE.npz",
            parser=path_to_write,
            help="File to write.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ],
    overrides: Overrides = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="PATH",
            parser=expand_home,
            help="Images: a folder, zip or tar file, or an npz array as ADM writes it.",
            rich_help_panel=Panel.INPUT,
        ),
    ] = None,
    preset: PresetOption = None,
    split: SplitOption = None,
    features: FeaturesOption = None,
    inception: InceptionOption = None,
    download: DownloadFlag = False,
    device: DeviceOption = "auto",
    dry_run: DryRunFlag = False,
    _short_dry_run: RefusedDryRunFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
    no_progress: NoProgressFlag = False,
) -> None:
    """Write the mean and covariance of images' features, for --ref.

    With --preset: of the preset's data at the size of its model (data.path=DIR says where they are). With --data: of
    images as they are. ADM's and pytorch-fid's tools read the file too.

    Example: dis eval-fid stats --data photos/ --out photos.npz
    """
    output = output_of_rank(quiet=quiet, verbose=verbose, no_progress=no_progress, as_json=as_json)
    if (data is None) == (preset is None):
        raise UsageError("Give either images with `--data PATH`, or a preset with `--preset NAME` for its data")
    settings = evaluate_settings(features, split) + (overrides or [])
    fetch(download, inception)

    from dis_cli.config.overrides import apply_overrides
    from dis_cli.config.presets import load_preset
    from dis_cli.config.schema import RunConfig
    from dis_cli.workflows.preflight import look_for_features

    config = apply_overrides(RunConfig() if preset is None else load_preset(preset), settings)
    if is_looked_for(download):
        look_for_features(config, inception)

    from dis_cli.workflows.eval_fid.stats import make_statistics

    result = output.render(
        make_statistics(
            data or "data",
            out,
            preset=preset,
            inception=inception,
            overrides=settings,
            device=device,
            dry_run=dry_run,
        )
    )
    if part_from_environment().index == 0:
        lines = [
            f"images      {result['n']:,} of {result['data']}",
            f"features    {result['features']}, sha256 {result['features_sha256'][:12]}...",
            f"statistics  {result['out']}",
        ]
        output.result(lines, result)
