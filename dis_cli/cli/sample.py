"""`dis sample`: images from a checkpoint."""

from pathlib import Path
from typing import Annotated, Any, Literal

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
    VerboseFlag,
)
from dis_cli.cli.output import Output
from dis_cli.cli.text import size
from dis_cli.runtime.distributed import part_from_environment


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
            "--class",
            metavar="CLASS",
            help="Numbers, names, ranges (200-207) or all, separated by commas or repeated; several take turns. Left "
            "out, each image's seed draws one, all being equally likely.",
        ),
    ] = None,
    num_images: Annotated[
        int | None, typer.Option("--num", "-n", metavar="N", min=1, help="Number of images; 16, or as many as --seeds.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", min=0, max=2**31 - 1, help="Seed of the first image; image i adds i."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="LIST", help="All seeds instead, such as 0-15,40.")
    ] = None,
    steps: StepsOption = None,
    sampler: SamplerOption = None,
    cfg_scale: CfgOption = None,
    vae: VaeOption = None,
    preset: PresetOption = None,
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
    dry_run: DryRunLongFlag = False,
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
    settings = sample_settings(steps, sampler, cfg_scale, vae, overrides)

    from dis_cli.workflows.resources import look_for_vae, read_config

    # Before torch is imported, which takes seconds.
    config = read_config(Path(ckpt), settings)
    if not dry_run:
        look_for_vae(config, vae)

    from dis_cli.workflows.sample import sample as run_sampling

    result = output.render(
        run_sampling(
            Path(ckpt),
            num_images=num_images,
            seed=seed,
            seeds=seeds,
            classes=classes or (),
            overrides=settings,
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
    lines = [
        f"images  {result['num_images']} of {result['image_size']} pixels, seeds {result['facts']['seeds']}",
        f"how     {result['sample']['sampler']}, {result['model_evaluations']} evaluations, "
        f"guidance {result['sample']['cfg_scale']:g}",
        f"{'folder' if result['format'] == 'png' else 'file  '}  {result['out']}",
    ]
    if "dry_run" in result:
        files = "1 file" if result["num_files"] == 1 else f"{result['num_files']} files"
        return [
            *lines,
            f"batch   {result['batch_size']} images",
            f"disk    {files}, at most {size(result['result_bytes'])}; twice that on the way",
        ]
    return [*lines, f"grid    {result['grid']}"] if "grid" in result else lines
