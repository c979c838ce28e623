"""`dis sample`: images from a checkpoint."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dis_cli.cli.completion.words import class_words
from dis_cli.cli.display.help import Panel
from dis_cli.cli.display.output import Output
from dis_cli.cli.display.text import size
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
    CkptOption,
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
    take_checkpoint,
)
from dis_cli.config.sampling import LARGEST_SEED
from dis_cli.runtime.distributed import part_from_environment


def sample(
    overrides: Overrides = None,
    ckpt: CkptOption = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            metavar="CLASS",
            help="Classes: names, numbers, ranges (200-207) or all, separated by commas or repeated; "
            "images take them in turn. If class names are numbers, a number is a name  [default: "
            "each image's seed draws one]",
            autocompletion=class_words,
            rich_help_panel=Panel.SAMPLING,
        ),
    ] = None,
    num_images: Annotated[
        int | None,
        typer.Option(
            "--num",
            "-n",
            metavar="N",
            min=1,
            help="Number of images; by default 16, or one for each of --seeds.",
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
            help="Seed of the first image; each further image adds 1.",
            rich_help_panel=Panel.SAMPLING,
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            "--seeds",
            metavar="LIST",
            help="Seeds of all images, such as 0-15,40, instead of --seed.",
            rich_help_panel=Panel.SAMPLING,
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
    form: Annotated[
        Literal["png", "npz", "zip"] | None,
        typer.Option(
            "--format",
            help="Format: png (a folder with a grid), npz (one array, as evaluators read it) or zip (PNGs "
            "in one file)  [default: told by the ending of --out, else png]",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = None,
    trajectory: Annotated[
        Literal["strip", "gif"] | None,
        typer.Option(
            "--trajectory",
            help="Also save the denoising of the first 8 images: strip (a row per image) or gif.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = None,
    compile_model: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the model first, which pays off for many images; needs a C++ compiler.",
            rich_help_panel=Panel.SAMPLING,
        ),
    ] = False,
    device: DeviceOption = "auto",
    dry_run: DryRunFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
    no_progress: NoProgressFlag = False,
) -> None:
    """Generate images and a labelled grid.

    Each image depends only on its seed and class. The same command continues one that stopped; under torchrun,
    processes share the work.

    Example: dis sample --ckpt runs/dis-xs-digits --class 3 -n 64
    """
    is_leader = part_from_environment().index == 0
    output = Output(
        quiet=quiet or not is_leader, verbose=verbose and is_leader, progress=not no_progress, as_json=as_json
    )
    path, given = take_checkpoint(ckpt, overrides)
    settings = sample_settings(
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

    from dis_cli.workflows.load.opened import open_checkpoint
    from dis_cli.workflows.preflight import look_for_vae

    # Before torch is imported, which takes seconds.
    opened = open_checkpoint(Path(path), settings, step)
    if not dry_run:
        look_for_vae(opened.config, vae)

    from dis_cli.workflows.sample.sample import sample as run_sampling

    result = output.render(
        run_sampling(
            opened,
            num_images=num_images,
            seed=seed,
            seeds=seeds,
            classes=classes or (),
            preset=preset,
            out=out,
            form=form,
            trajectory=trajectory,
            compile_model=compile_model,
            device=device,
            dry_run=dry_run,
        )
    )
    if is_leader:
        output.result(_lines(result), result)


def _lines(result: dict[str, Any]) -> list[str]:
    how, evaluations, guided = result["sample"], result["model_evaluations"], result["guided_evaluations"]
    where = f" in {guided} of them" if 0 < guided < evaluations else ""
    lines = [
        f"images  {result['num_images']} of {result['image_size']} pixels, seeds {result['facts']['seeds']}",
        f"how     {how['sampler']}, {evaluations} evaluations, guidance {how['cfg_scale']:g}{where}",
        f"{'folder' if result['format'] == 'png' else 'file  '}  {result['out']}",
    ]
    if "dry_run" in result:
        files = "1 file" if result["num_files"] == 1 else f"{result['num_files']} files"
        return [
            *lines,
            f"batch   {result['batch_size']} images",
            f"disk    {files}, at most {size(result['result_bytes'])}; twice that on the way",
        ]
    if "grid" in result:
        lines.append(f"grid    {result['grid']}")
    if "trajectory" in result:
        lines.append(f"{'gif' if result['trajectory'].endswith('.gif') else 'strip':8}{result['trajectory']}")
    return lines
