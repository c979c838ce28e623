"""`dis eval-fid`: score a checkpoint, or images that are there; `dis eval-fid stats` is in a file of its own."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from dis_cli.cli.display.scores import result_lines, sweep_lines
from dis_cli.cli.eval_fid_options import (
    DownloadFlag,
    FeaturesOption,
    InceptionOption,
    SplitOption,
    evaluate_settings,
    fetch,
    is_looked_for,
    output_of_rank,
)
from dis_cli.cli.eval_fid_stats import stats
from dis_cli.cli.options import (
    DataOption,
    DeviceOption,
    DryRunFlag,
    JsonFlag,
    NoProgressFlag,
    OutOption,
    Overrides,
    PresetOption,
    QuietFlag,
    StepOption,
    VerboseFlag,
    path_to_write,
    take_checkpoint,
)
from dis_cli.cli.sample_options import (
    CfgChannelsOption,
    CfgIntervalOption,
    CfgScaleOption,
    CfgScheduleOption,
    EtaOption,
    SamplerOption,
    StepsOption,
    VaeOption,
    sample_settings,
)
from dis_cli.config.sampling import LARGEST_SEED
from dis_cli.errors import NegativeVerdict, UsageError
from dis_cli.metrics.table import METRICS, full_name, without_reference, words
from dis_cli.paths import expand_home, home_path
from dis_cli.runtime.distributed import part_from_environment


class ScoreCommand(TyperCommand):
    """`dis eval-fid`, which is another command when its first word is ``stats``."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the command that is meant."""
        form = self.form(args)
        if form is not self:
            return form.make_context(f"{info_name} stats", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def form(self, args: list[str]) -> Any:
        """The command that is meant by the words after ``eval-fid``."""
        return typer.main.get_command(stats_app) if args[:1] == ["stats"] else self


# Completion is installed by `dis` alone.
stats_app = typer.Typer(
    rich_markup_mode=None, add_completion=False, context_settings={"help_option_names": ["-h", "--help"]}
)
stats_app.command()(stats)


def _complete_metrics(incomplete: str) -> list[str]:
    before, comma, word = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in (*words(), "all") if name.startswith(word)]


def eval_fid(
    overrides: Overrides = None,
    ckpt: Annotated[
        Path | None,
        typer.Option(
            "--ckpt",
            metavar="PATH",
            parser=home_path,
            help="Run folder (its newest checkpoint), checkpoint folder, exported file or folder, or published .pt "
            "file: its images are generated on the way.",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            metavar="PATH",
            parser=home_path,
            help="Images instead: a folder, zip or tar file, or an npz of ADM's.",
        ),
    ] = None,
    ref: Annotated[
        str | None,
        typer.Option(
            "--ref",
            metavar="data|PATH",
            parser=expand_home,
            help="What they are compared with: the run's or preset's data, a folder, zip or tar file, an npz of images "
            "or statistics. The data, with --ckpt.",
        ),
    ] = None,
    split: SplitOption = None,
    data: DataOption = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics",
            metavar="NAME,...",
            help=f"{', '.join(words())}, or all; fid if unset.",
            autocompletion=_complete_metrics,
        ),
    ] = None,
    features: FeaturesOption = None,
    inception: InceptionOption = None,
    download: DownloadFlag = False,
    num_samples: Annotated[
        int | None,
        typer.Option(
            "--num-samples", "-n", metavar="N", min=2, help="Generated images; as many as the reference has if unset."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", min=0, max=LARGEST_SEED, help="Seed of the first image.")
    ] = None,
    repeat: Annotated[
        int, typer.Option("--repeat", metavar="R", min=1, help="Draw R times as many images, and give the spread.")
    ] = 1,
    interval: Annotated[
        bool, typer.Option("--interval", help="Give a 95 % interval of the Frechet distance, by the bootstrap.")
    ] = False,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep",
            metavar="KEY=A,B,...",
            help="Score at all values of cfg, steps, sampler, ema, eta or a sample.* setting; further KEY=A,B,... may "
            "follow. A table and a picture.",
        ),
    ] = None,
    fail_above: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-above",
            metavar="[NAME=]X",
            help="Exit with 3 when the score is above this; fid=5, or 5 of the first.",
        ),
    ] = None,
    save_images: Annotated[
        Path | None,
        typer.Option(
            "--save-images",
            metavar="PATH",
            parser=path_to_write,
            help="Keep generated images: a folder, or an .npz or .zip file.",
        ),
    ] = None,
    steps: StepsOption = None,
    sampler: SamplerOption = None,
    eta: EtaOption = None,
    cfg_scale: CfgScaleOption = None,
    cfg_channels: CfgChannelsOption = None,
    cfg_interval: CfgIntervalOption = None,
    cfg_schedule: CfgScheduleOption = None,
    vae: VaeOption = None,
    preset: PresetOption = None,
    step: StepOption = None,
    out: OutOption = None,
    device: DeviceOption = "auto",
    dry_run: DryRunFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
    no_progress: NoProgressFlag = False,
) -> None:
    """Measure how near images are to real ones: of a checkpoint (--ckpt), or those of a folder or file (--images).

    The bundled digits are looked at by a bundled classifier (frechet_digits, class accuracy), everything else by
    Inception (FID). `dis eval-fid stats --help` tells how a file of statistics is made. Under torchrun, processes
    share the work.

    Example: dis eval-fid --ckpt runs/dis-xs-digits --fail-above 8
    """
    output = output_of_rank(quiet=quiet, verbose=verbose, no_progress=no_progress, as_json=as_json)
    given, axis_texts = _parted(overrides or [], sweep)
    if ckpt is None and images is None and any("=" not in text for text in given):
        path, given = take_checkpoint(None, given)
        ckpt = Path(path)
    generation: dict[str, object] = {
        "--num-samples": num_samples, "--seed": seed, "--step": step, "--save-images": save_images,
        "--sweep": sweep, "--repeat": None if repeat == 1 else repeat, "--vae": vae,
    }  # fmt: skip
    _require_sense(ckpt, images, ref, preset, metrics, generation)
    if interval and repeat > 1:
        raise UsageError("--interval and --repeat are two ways to the same: how far the score may be off", "Give one")
    if save_images is not None and (sweep or repeat > 1):
        raise UsageError(
            "--save-images keeps one set of images", "Leave out --sweep and --repeat, or save them one by one"
        )
    options = {
        "data.path": data,
        "evaluate.num_samples": num_samples,
        "evaluate.seed": seed,
        "evaluate.metrics": None if metrics is None else _metric_names(metrics),
    }
    from dis_cli.config.overrides import as_overrides

    settings = as_overrides(options) + evaluate_settings(features, split)
    settings += sample_settings(
        steps=steps,
        sampler=sampler,
        eta=eta,
        cfg_scale=cfg_scale,
        cfg_channels=cfg_channels,
        cfg_interval=cfg_interval,
        cfg_schedule=cfg_schedule,
        vae=vae,
        overrides=given,
    )

    # Before torch is imported, which takes seconds.
    from dis_cli.config.sweep import check_points, parse_axes, points_of
    from dis_cli.workflows.load.opened import open_checkpoint

    axes = parse_axes(axis_texts)
    opened = None if ckpt is None else open_checkpoint(ckpt, settings, step)
    config = _config(preset, settings) if opened is None else opened.config
    if config is not None:
        check_points(config, points_of(axes))
    fetch(download, inception)
    _look(config, inception, vae, download=download, generates=ckpt is not None and not dry_run)

    from dis_cli.workflows.eval_fid.bounds import check_bounds
    from dis_cli.workflows.eval_fid.evaluate import Request, evaluate
    from dis_cli.workflows.eval_fid.sweep import sweep as run_sweep

    request = Request(
        opened=opened,
        images=images,
        ref=ref,
        inception=inception,
        overrides=settings,
        preset=preset,
        out=out,
        device=device,
        interval=interval,
        repeat=repeat,
        save_images=save_images,
        fail_above=fail_above or (),
        command=shlex.join(["dis", *sys.argv[1:]]),
        dry_run=dry_run,
    )
    result = output.render(run_sweep(request, axes) if axes else evaluate(request))
    if part_from_environment().index > 0:
        return
    output.result(sweep_lines(result) if axes else result_lines(result), result)
    # Of a sweep, the best point is judged.
    judged = result["points"][result["best"]] if axes and not dry_run else result
    failure = None if dry_run else check_bounds(judged, result["bounds"])
    if failure:
        raise NegativeVerdict(failure)


def _parted(overrides: list[str], sweep: list[str] | None) -> tuple[list[str], list[str]]:
    """The settings, and the axes of the sweep: its short keys are no settings, and may stand by themselves."""
    from dis_cli.config.sweep import SHORT_KEYS

    if not sweep:
        return overrides, []
    axes = [text for text in overrides if text.partition("=")[0] in SHORT_KEYS]
    return [text for text in overrides if text not in axes], [*sweep, *axes]


def _require_sense(
    ckpt: Path | None,
    images: Path | None,
    ref: str | None,
    preset: str | None,
    metrics: str | None,
    generation: dict[str, object],
) -> None:
    if (ckpt is None) == (images is None):
        raise UsageError(
            "Give what is scored: a checkpoint with `--ckpt PATH`, or images with `--images PATH`"
            + (", and not both" if ckpt is not None else ""),
            "Try `dis eval-fid --ckpt runs/dis-xs-digits`",
        )
    if images is None:
        return
    given = [name for name, value in generation.items() if value is not None]
    if given:
        raise UsageError(f"{', '.join(given)} is about generated images, and `{images}` is there already")
    alone = without_reference()
    if ref is None and (metrics is None or not set(_metric_names(metrics).split(",")) <= set(alone)):
        names = " and ".join(f"the {METRICS[name].label}" for name in alone)
        asked = ",".join(METRICS[name].short_name or name for name in alone)
        raise UsageError(
            f"Give what `{images}` is compared with: `--ref PATH`, or `--ref data --preset NAME`",
            f"Only {names} (`--metrics {asked}`) {'needs' if len(alone) == 1 else 'need'} none",
        )
    if ref == "data" and preset is None:
        raise UsageError("`--ref data` is that of a preset here", "Name it with `--preset NAME`, or give `--ref PATH`")


def _metric_names(text: str) -> str:
    return ",".join(map(full_name, text.replace(" ", "").split(",")))


def _config(preset: str | None, settings: list[str]) -> Any:
    from dis_cli.config.overrides import apply_overrides
    from dis_cli.config.presets import load_preset
    from dis_cli.config.schema import RunConfig

    return apply_overrides(RunConfig() if preset is None else load_preset(preset), settings)


def _look(config: Any, inception: Path | None, vae: str | None, *, download: bool, generates: bool) -> None:
    from dis_cli.workflows.preflight import look_for_features, look_for_vae

    if is_looked_for(download):
        look_for_features(config, inception)
    if generates:
        look_for_vae(config, vae)
