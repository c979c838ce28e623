"""`dis eval-fid`: score a checkpoint or existing images. `dis eval-fid stats` has its own file."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from dis_cli.cli.completion.words import metric_words
from dis_cli.cli.display.help import Panel, WordCommand, word_app
from dis_cli.cli.display.scores import result_lines, sweep_lines
from dis_cli.cli.eval_fid_stats import stats
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
from dis_cli.cli.groups.sample import (
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
from dis_cli.cli.options import (
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
from dis_cli.config.sampling import LARGEST_SEED
from dis_cli.errors import NegativeVerdict, UsageError
from dis_cli.metrics.table import METRICS, OF_MODEL, full_name, without_reference, words
from dis_cli.paths import expand_home, home_path
from dis_cli.runtime.distributed import part_from_environment


class ScoreCommand(WordCommand):
    """`dis eval-fid`, or `dis eval-fid stats`."""

    words: ClassVar = {"stats": word_app(stats)}


def eval_fid(
    overrides: Overrides = None,
    ckpt: Annotated[
        Path | None,
        typer.Option(
            "--ckpt",
            metavar="PATH",
            parser=home_path,
            help="Checkpoint to generate images from: a run folder (its newest step), checkpoint folder, "
            "exported file or folder, or published .pt file.",
            rich_help_panel=Panel.INPUT,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            metavar="PATH",
            parser=home_path,
            help="Images to score instead: a folder, zip or tar file, or an npz array as ADM writes it.",
            rich_help_panel=Panel.INPUT,
        ),
    ] = None,
    ref: Annotated[
        str | None,
        typer.Option(
            "--ref",
            metavar="data|PATH",
            parser=expand_home,
            help="Reference to compare with: the data of the run or preset, a folder, zip or tar file, or "
            "an npz of images or statistics  [default with --ckpt: data]",
            rich_help_panel=Panel.REFERENCE,
        ),
    ] = None,
    split: SplitOption = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="PATH",
            parser=home_path,
            help="Folder of the run's or preset's data, instead of the recorded one.",
            rich_help_panel=Panel.REFERENCE,
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics",
            metavar="NAME,...",
            help=f"Metrics: {', '.join(words())}, or all  [default: fid]",
            autocompletion=metric_words,
            rich_help_panel=Panel.METRICS,
        ),
    ] = None,
    features: FeaturesOption = None,
    inception: InceptionOption = None,
    download: DownloadFlag = False,
    num_samples: Annotated[
        int | None,
        typer.Option(
            "--num-samples",
            "-n",
            metavar="N",
            min=2,
            help="Number of images to generate, by default as many as the reference has; of denoising_loss the number "
            "of held-out images.",
            rich_help_panel=Panel.SAMPLING,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="N",
            min=0,
            max=LARGEST_SEED,
            help="Seed of the first image.",
            rich_help_panel=Panel.SAMPLING,
        ),
    ] = None,
    repeat: Annotated[
        int,
        typer.Option(
            "--repeat",
            metavar="R",
            min=1,
            help="Score R sets of images, and report the spread.",
            rich_help_panel=Panel.METRICS,
        ),
    ] = 1,
    interval: Annotated[
        bool,
        typer.Option(
            "--interval",
            help="Report a 95 % bootstrap interval of the Frechet distance.",
            rich_help_panel=Panel.METRICS,
        ),
    ] = False,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep",
            metavar="KEY=A,B,...",
            help="Score every combination of these values of cfg, steps, sampler, ema, eta or a sample.* "
            "setting; more KEY=A,B,... may follow. Prints a table and draws a plot.",
            rich_help_panel=Panel.SAMPLING,
        ),
    ] = None,
    fail_above: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-above",
            metavar="[NAME=]X",
            help="Exit with 3 if a score is above its bound: fid=5, or 5 for the first metric.",
            rich_help_panel=Panel.METRICS,
        ),
    ] = None,
    save_images: Annotated[
        Path | None,
        typer.Option(
            "--save-images",
            metavar="PATH",
            parser=path_to_write,
            help="Keep the generated images: a folder, or an .npz or .zip file.",
            rich_help_panel=Panel.OUTPUT,
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
    """Score images (FID and others) from a checkpoint, folder or file.

    A bundled classifier scores the bundled digits (frechet_digits, class accuracy), Inception everything else (FID).
    `dis eval-fid stats` writes a file of statistics to compare with. Under torchrun, processes share the work.

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
        raise UsageError("--interval and --repeat both measure how far a score may be off", "Give one")
    if sweep and metrics is not None and OF_MODEL in _metric_names(metrics):
        raise UsageError(f"--sweep is about generated images, and {OF_MODEL} is measured without any", "Leave it out")
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
    asks_for_more = (ref, axes, repeat > 1, save_images, fail_above, download, metrics, data)
    is_plain = not any(asks_for_more) and not any(text.startswith(("data.", "evaluate.metrics=")) for text in given)
    if ckpt is not None and opened is not None and is_plain and _lacks_inception(opened.config, inception):
        output.warning(
            f"Inception's weights are not on this machine: measuring {OF_MODEL}, which needs none, in place of FID; "
            "`--download` fetches them"
        )
        settings = [*settings, f"evaluate.metrics={OF_MODEL}"]
        opened = open_checkpoint(ckpt, settings, step)
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
            "Give a checkpoint to score with `--ckpt PATH`, or images with `--images PATH`"
            + (", and not both" if ckpt is not None else ""),
            "Try `dis eval-fid --ckpt runs/dis-xs-digits`",
        )
    if images is None:
        return
    given = [name for name, value in generation.items() if value is not None]
    if given:
        raise UsageError(f"{', '.join(given)} applies to generated images only, and `{images}` is not generated")
    alone = without_reference()
    if ref is None and (metrics is None or not set(_metric_names(metrics).split(",")) <= set(alone)):
        names = " and ".join(f"the {METRICS[name].label}" for name in alone)
        asked = ",".join(METRICS[name].short_name or name for name in alone)
        raise UsageError(
            f"No reference for `{images}`: give `--ref PATH`, or `--ref data --preset NAME`",
            f"Only {names} (`--metrics {asked}`) {'needs' if len(alone) == 1 else 'need'} none",
        )
    if ref == "data" and preset is None:
        raise UsageError("`--ref data` needs a preset here", "Name it with `--preset NAME`, or give `--ref PATH`")


def _metric_names(text: str) -> str:
    return ",".join(map(full_name, text.replace(" ", "").split(",")))


def _config(preset: str | None, settings: list[str]) -> Any:
    from dis_cli.config.overrides import apply_overrides
    from dis_cli.config.presets import load_preset
    from dis_cli.config.schema import RunConfig

    return apply_overrides(RunConfig() if preset is None else load_preset(preset), settings)


def _lacks_inception(config: Any, inception: Path | None) -> bool:
    """Whether a score would need Inception's weights, which are not here; settings that are not known need nothing."""
    from dis_cli.metrics.extractors.choose import lacks_inception

    if config is None:
        return False
    return lacks_inception(config.evaluate.features, config.data.source, inception or config.evaluate.inception)


def _look(config: Any, inception: Path | None, vae: str | None, *, download: bool, generates: bool) -> None:
    from dis_cli.workflows.preflight import look_for_features, look_for_vae

    of_model = config is not None and OF_MODEL in config.evaluate.metrics
    if is_looked_for(download) and not of_model:
        look_for_features(config, inception)
    if generates and not of_model:
        look_for_vae(config, vae)
