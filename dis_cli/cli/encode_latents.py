"""`dis encode-latents`: images to latents, once, before training."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dis_cli.cli.display.help import Panel
from dis_cli.cli.display.output import Output
from dis_cli.cli.display.text import size
from dis_cli.cli.options import (
    DeviceOption,
    DryRunFlag,
    JsonFlag,
    NoProgressFlag,
    QuietFlag,
    VerboseFlag,
    path_to_write,
)
from dis_cli.errors import UsageError
from dis_cli.paths import expand_home, home_path


def encode_latents(
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="PATH",
            parser=home_path,
            help="Images: a folder, .zip or .tar file, whose sub-folders are classes.",
            rich_help_panel=Panel.INPUT,
        ),
    ] = None,
    vae: Annotated[
        str | None,
        typer.Option(
            "--vae",
            metavar="DIR",
            parser=expand_home,
            help="VAE: folder or cached hub id of a diffusers AutoencoderKL, or digits (bundled).",
            rich_help_panel=Panel.ENCODING,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            parser=path_to_write,
            help="Folder to write to; an unfinished one is continued.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = None,
    source: Annotated[
        Literal["digits", "folder", "zip", "tar", "shards", "cifar10", "celeba", "mnist", "imagenet"] | None,
        typer.Option("--source", help="Kind of data  [default: told by the files]", rich_help_panel=Panel.INPUT),
    ] = None,
    image_size: Annotated[
        int,
        typer.Option(
            "--image-size", metavar="N", min=1, help="Side of the images in pixels.", rich_help_panel=Panel.ENCODING
        ),
    ] = 256,
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size", metavar="N", min=1, help="Images encoded at a time.", rich_help_panel=Panel.ENCODING
        ),
    ] = 16,
    shard_size: Annotated[
        float,
        typer.Option(
            "--shard-size",
            metavar="MB",
            min=0.001,
            help="Largest size of a file in megabytes.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = 512,
    no_flip: Annotated[
        bool,
        typer.Option(
            "--no-flip",
            help="Leave out the mirrored images, for half the space.",
            rich_help_panel=Panel.ENCODING,
        ),
    ] = False,
    dtype: Annotated[
        Literal["float16", "float32"],
        typer.Option("--dtype", help="Stored type; float32 takes twice the space.", rich_help_panel=Panel.OUTPUT),
    ] = "float16",
    scale: Annotated[
        float | None,
        typer.Option(
            "--scale",
            metavar="X",
            min=1e-6,
            help="Scale of the latents, instead of the VAE's own.",
            rich_help_panel=Panel.ENCODING,
        ),
    ] = None,
    background: Annotated[
        str,
        typer.Option(
            "--background", metavar="COLOUR", help="Colour behind transparent images.", rich_help_panel=Panel.INPUT
        ),
    ] = "white",
    on_bad: Annotated[
        Literal["stop", "skip"],
        typer.Option("--on-bad", help="Stop at images that cannot be used, or skip them.", rich_help_panel=Panel.INPUT),
    ] = "stop",
    no_check: Annotated[
        bool,
        typer.Option(
            "--no-check",
            help="Leave out the check that reads every image before the work starts.",
            rich_help_panel=Panel.INPUT,
        ),
    ] = False,
    download: Annotated[
        bool,
        typer.Option(
            "--download", help="Download CIFAR-10 or CelebA into --data if it is missing.", rich_help_panel=Panel.INPUT
        ),
    ] = False,
    part: Annotated[
        str | None,
        typer.Option(
            "--part",
            metavar="i/n",
            help="Encode only the i-th of n parts; other processes, anywhere, do the rest.",
            rich_help_panel=Panel.ENCODING,
        ),
    ] = None,
    num_workers: Annotated[
        int | None,
        typer.Option(
            "--num-workers",
            metavar="N",
            min=1,
            help="Threads that read images; by default one per core.",
            rich_help_panel=Panel.ENCODING,
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Only check the files in --out against their sha256.",
            rich_help_panel=Panel.INSPECTION,
        ),
    ] = False,
    decode: Annotated[
        Path | None,
        typer.Option(
            "--decode",
            metavar="DIR",
            parser=home_path,
            help="Only draw a grid of the latents in a folder.",
            rich_help_panel=Panel.INSPECTION,
        ),
    ] = None,
    num_images: Annotated[
        int,
        typer.Option(
            "--num", "-n", metavar="N", min=1, help="Number of images in that grid.", rich_help_panel=Panel.INSPECTION
        ),
    ] = 16,
    device: DeviceOption = "auto",
    dry_run: DryRunFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
    no_progress: NoProgressFlag = False,
) -> None:
    """Encode images into latents; the same command completes what is missing.

    Several processes that write to one --out share the work, also under torchrun. Train on the latents
    with `dis train --data DIR data.source=latents`.

    Example: dis encode-latents --data imagenet --vae sd-vae-ft-ema --out latents
    """
    from dis_cli.codecs.locate import locate_vae
    from dis_cli.runtime.distributed import parse_part, part_from_environment

    own_part = part_from_environment() if part is None else parse_part(part)
    # Of the processes that torchrun starts, one speaks.
    speaks = own_part.index == 0 or not own_part.together
    output = Output(quiet=quiet or not speaks, verbose=verbose, progress=not no_progress, as_json=as_json)
    # torch and diffusers take seconds to import; an absent VAE is reported before that.
    if vae is not None:
        _ = locate_vae(vae).settings
    if (verify or decode) and not speaks:
        return
    if decode is not None:
        from dis_cli.workflows.latents import decode_latents

        outcome = output.render(decode_latents(decode, vae=vae, num_images=num_images, out=out, device=device))
        output.result([f"grid  {outcome['grid']}"], outcome)
        return
    if out is None:
        raise UsageError("No folder to write to", "Give one with `--out DIR`")
    if verify:
        from dis_cli.workflows.latents import verify_latents

        outcome = output.render(verify_latents(out))
        counted = f"{outcome['verified']} of {outcome['num_shards']} shards"
        output.result([f"whole  {counted}, {size(outcome['size_bytes'])}, every sha256 as recorded"], outcome)
        return
    if vae is None:
        raise UsageError("No VAE given", "Name its folder with `--vae DIR`; `--vae digits` is bundled, for the digits")
    if data is None and source != "digits":
        raise UsageError("No images given", "Name a folder or archive with `--data PATH`, or take `--source digits`")

    from dis_cli.workflows.encode_latents import EncodeOptions, encode

    options = EncodeOptions(
        image_size=image_size,
        batch_size=batch_size,
        shard_bytes=int(shard_size * 1e6),
        mirrored=not no_flip,
        dtype=dtype,
        scale=scale,
        background=background,
        check=not no_check,
        on_bad=on_bad,
        download=download,
        device=device,
        num_workers=num_workers,
    )
    outcome = output.render(encode(data, vae, out, options, kind=source, part=own_part, dry_run=dry_run))
    if speaks:
        output.result(_lines(outcome), outcome)


def _lines(outcome: dict[str, Any]) -> list[str]:
    shape = "x".join(str(side) for side in outcome["latent_shape"])
    mirrors = "with mirrors" if outcome["mirrored"] else "without mirrors"
    lines = [
        f"images   {outcome['num_images']} in {outcome['num_classes']} classes, {outcome['image_size']} pixels"
        + (f", {outcome['skipped']} skipped" if outcome.get("skipped") else ""),
        f"latents  {shape} {outcome['dtype']}, {mirrors}, scale {outcome['scale']}",
        f"shards   {outcome['num_shards']} of up to {outcome['images_per_shard']} images, "
        f"{outcome['shards_kept']} were there",
    ]
    if "dry_run" in outcome:
        lines.append(f"disk     {size(outcome['bytes_to_write'])} to write, {size(outcome['free_bytes'])} free")
    else:
        lines.append(
            f"written  {outcome['shards_written']} shards at {outcome['images_per_second']:.3g} images/s, "
            f"{size(outcome['size_bytes'])} in all" + ("" if outcome["complete"] else ", not complete yet")
        )
    return [*lines, f"out      {outcome['out']}"]
