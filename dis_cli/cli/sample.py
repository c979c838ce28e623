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


def sample_settings(
    steps: int | None, sampler: str | None, cfg_scale: float | None, vae: str | None, overrides: list[str] | None
) -> list[str]:
    """The settings that options stand for, as overrides; explicit KEY=VALUE win."""
    options = {"sample.steps": steps, "sample.sampler": sampler, "sample.cfg_scale": cfg_scale, "codec.vae": vae}
    return [f"{key}={value}" for key, value in options.items() if value is not None] + (overrides or [])


StepsOption = Annotated[
    int | None, typer.Option("--steps", metavar="N", min=1, help="Model evaluations per image, instead of the run's.")
]
SamplerOption = Annotated[
    str | None, typer.Option("--sampler", metavar="NAME", help="ancestral, ddim, dpm++ or euler, instead of the run's.")
]
CfgOption = Annotated[
    float | None, typer.Option("--cfg-scale", metavar="X", help="Classifier-free guidance; 1 is none.")
]
VaeOption = Annotated[
    str | None, typer.Option("--vae", metavar="DIR", help="Folder, or cached hub id, of the VAE that decodes latents.")
]


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
    cfg_scale: CfgOption = None,
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
    settings = sample_settings(steps, sampler, cfg_scale, vae, overrides)

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
    lines = [
        f"images  {result['num_images']} of {result['image_size']} pixels, seeds from {result['seed']}",
        f"how     {result['sample']['sampler']}, {result['model_evaluations']} evaluations, "
        f"guidance {result['sample']['cfg_scale']:g}",
        f"folder  {result['out']}",
    ]
    return lines if "dry_run" in result else [*lines, f"grid    {result['grid']}"]
