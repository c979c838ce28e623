"""`dis encode-latents`: images to latents, once, before training."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dis_cli.cli.options import DeviceOption, DryRunFlag, JsonFlag, NoProgressFlag, QuietFlag, VerboseFlag
from dis_cli.cli.output import Output
from dis_cli.cli.text import size


def encode_latents(
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Images, one sub-folder for each class.")],
    vae: Annotated[
        str, typer.Option("--vae", metavar="DIR", help="Folder, or cached hub id, of a diffusers AutoencoderKL.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Where to write; an unfinished folder is continued.")
    ],
    image_size: Annotated[
        int, typer.Option("--image-size", metavar="N", min=1, help="Side of the images, in pixels.")
    ] = 256,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", min=1, help="Images encoded at a time.")] = 16,
    shard_size: Annotated[int, typer.Option("--shard-size", metavar="N", min=1, help="Images in a file.")] = 1024,
    no_flip: Annotated[
        bool, typer.Option("--no-flip", help="Do not store the mirrored images' latents: half the space.")
    ] = False,
    dtype: Annotated[
        Literal["float32", "float16"], typer.Option("--dtype", help="Stored type; float16 takes half the space.")
    ] = "float32",
    scale: Annotated[
        float, typer.Option("--scale", metavar="X", min=1e-6, help="Factor on the latents, for training.")
    ] = 0.18215,
    num_workers: Annotated[
        int, typer.Option("--num-workers", metavar="N", min=1, help="Threads that read images.")
    ] = 4,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Do not read all images beforehand to find those that cannot be used.")
    ] = False,
    device: DeviceOption = "auto",
    dry_run: DryRunFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
    no_progress: NoProgressFlag = False,
) -> None:
    """Encode a folder of images into latents; running it again finishes what is missing.

    Train on them with data.source=latents data.path=DIR.

    Example: dis encode-latents --data imagenet/train --vae sd-vae-ft-ema --out latents
    """
    from dis_cli.codecs.locate import locate_vae

    output = Output(quiet=quiet, verbose=verbose, progress=not no_progress, as_json=as_json)
    # torch and diffusers take seconds to import; an absent VAE is reported before that.
    locate_vae(vae)

    from dis_cli.workflows.encode import encode

    outcome = output.render(
        encode(
            data,
            vae,
            out,
            image_size=image_size,
            batch_size=batch_size,
            shard_size=shard_size,
            mirrored=not no_flip,
            dtype=dtype,
            scale=scale,
            device=device,
            num_workers=num_workers,
            check=not no_check,
            dry_run=dry_run,
        )
    )
    output.result(_lines(outcome), outcome)


def _lines(outcome: dict[str, Any]) -> list[str]:
    shape = "x".join(str(side) for side in outcome["latent_shape"])
    mirrors = "with mirrors" if outcome["mirrored"] else "without mirrors"
    lines = [
        f"images   {outcome['num_images']} in {outcome['num_classes']} classes, {outcome['image_size']} pixels",
        f"latents  {shape} {outcome['dtype']}, {mirrors}, scale {outcome['scale']}",
        f"shards   {outcome['num_shards']} (up to {outcome['shard_size']} images), {outcome['shards_kept']} were there",
    ]
    if "dry_run" in outcome:
        lines.append(f"disk     {size(outcome['bytes_to_write'])} to write, {size(outcome['free_bytes'])} free")
    else:
        lines.append(f"disk     {size(outcome['size_bytes'])}, {outcome['shards_written']} shards written now")
    return [*lines, f"out      {outcome['out']}"]
