"""`dis sample`: images from a checkpoint."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dis_cli.cli.options import (
    CkptOption,
    DeviceOption,
    DryRunLongFlag,
    JsonFlag,
    NoProgressFlag,
    OutOption,
    Overrides,
    PresetOption,
    QuietFlag,
    StepOption,
    VerboseFlag,
)
from dis_cli.cli.output import Output
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


def sample(
    ckpt: CkptOption,
    overrides: Overrides = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class", metavar="CLASS", help="Number or name; repeat it or separate by commas; all is every class."
        ),
    ] = None,
    num_images: Annotated[int, typer.Option("--num", "-n", metavar="N", min=1, help="Number of images.")] = 16,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, max=2**31 - 1, help="Seed of the first image; image i adds i.")
    ] = 0,
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
    dry_run: DryRunLongFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
    no_progress: NoProgressFlag = False,
) -> None:
    """Generate images and a labelled grid.

    Several classes take turns. An image depends on its seed and class only.

    Example: dis sample --ckpt runs/dis-xs-digits --class 3 -n 64
    """
    output = Output(quiet=quiet, verbose=verbose, progress=not no_progress, as_json=as_json)
    settings = sample_settings(
        steps=steps,
        sampler=sampler,
        eta=eta,
        cfg_scale=cfg_scale,
        cfg_channels=cfg_channels,
        cfg_interval=cfg_interval,
        cfg_schedule=cfg_schedule,
        vae=vae,
        overrides=overrides,
    )

    from dis_cli.workflows.resources import look_for_vae, read_config

    # Before torch is imported, which takes seconds.
    config = read_config(Path(ckpt), settings, step)
    if not dry_run:
        look_for_vae(config, vae)

    from dis_cli.workflows.sample import sample as run_sampling

    result = output.render(
        run_sampling(
            Path(ckpt),
            num_images=num_images,
            seed=seed,
            classes=classes or (),
            overrides=settings,
            preset=preset,
            step=step,
            out=out,
            device=device,
            dry_run=dry_run,
        )
    )
    output.result(_lines(result), result)


def _lines(result: dict[str, Any]) -> list[str]:
    how, evaluations, guided = result["sample"], result["model_evaluations"], result["guided_evaluations"]
    where = f" in {guided} of them" if 0 < guided < evaluations else ""
    lines = [
        f"images  {result['num_images']} of {result['image_size']} pixels, seeds from {result['seed']}",
        f"how     {how['sampler']}, {evaluations} evaluations, guidance {how['cfg_scale']:g}{where}",
        f"folder  {result['out']}",
    ]
    return lines if "dry_run" in result else [*lines, f"grid    {result['grid']}"]
