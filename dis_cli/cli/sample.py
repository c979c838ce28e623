"""`dis sample`: images from a checkpoint."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dis_cli.cli.display.output import Output
from dis_cli.cli.display.text import size
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
from dis_cli.runtime.distributed import part_from_environment


def sample(
    overrides: Overrides = None,
    ckpt: CkptOption = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            metavar="CLASS",
            help="Names, numbers, ranges (200-207) or all, separated by commas or repeated; several take turns. Where "
            "names are numbers, a number is a name. Left out, each image's seed draws one, all being equally likely.",
        ),
    ] = None,
    num_images: Annotated[
        int | None, typer.Option("--num", "-n", metavar="N", min=1, help="Number of images; 16, or as many as --seeds.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", min=0, max=LARGEST_SEED, help="Seed of the first image; image i adds i."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="LIST", help="All seeds instead, such as 0-15,40.")
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
            help="png: a folder with a grid; npz: one array, as evaluators read it; zip: PNGs in one file. Left out, "
            "--out tells it by its ending.",
        ),
    ] = None,
    trajectory: Annotated[
        Literal["strip", "gif"] | None,
        typer.Option("--trajectory", help="Also show how the first 8 images came about: steps in rows, or moving."),
    ] = None,
    compile_model: Annotated[
        bool, typer.Option("--compile", help="Compile the model first; pays for many images. Needs a C++ compiler.")
    ] = False,
    device: DeviceOption = "auto",
    dry_run: DryRunFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
    no_progress: NoProgressFlag = False,
) -> None:
    """Generate images and a labelled grid.

    An image depends on its seed and class only. The same command continues where it was stopped; under torchrun,
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
