"""`dis encode-latents`: images to latents, once, before training."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

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
            help="Folder, .zip or .tar of images; classes are its sub-folders.",
        ),
    ] = None,
    vae: Annotated[
        str | None,
        typer.Option(
            "--vae",
            metavar="DIR",
            parser=expand_home,
            help="Folder, or cached hub id, of a diffusers AutoencoderKL; or digits.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            parser=path_to_write,
            help="Where to write; an unfinished folder is continued.",
        ),
    ] = None,
    source: Annotated[
        Literal["digits", "folder", "zip", "tar", "cifar10", "celeba", "imagenet"] | None,
        typer.Option("--source", help="What kind of data it is, instead of what it looks like."),
    ] = None,
    image_size: Annotated[
        int, typer.Option("--image-size", metavar="N", min=1, help="Side of the images, in pixels.")
    ] = 256,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", min=1, help="Images encoded at a time.")] = 16,
    shard_size: Annotated[
        float, typer.Option("--shard-size", metavar="MB", min=0.001, help="Largest size of a file, in megabytes.")
    ] = 512,
    no_flip: Annotated[
        bool, typer.Option("--no-flip", help="Do not store the mirrored images' latents: half the space.")
    ] = False,
    dtype: Annotated[
        Literal["float16", "float32"], typer.Option("--dtype", help="Stored type; float32 takes twice the space.")
    ] = "float16",
    scale: Annotated[
        float | None,
        typer.Option("--scale", metavar="X", min=1e-6, help="Factor on the latents, instead of the VAE's own."),
    ] = None,
    background: Annotated[
        str, typer.Option("--background", metavar="COLOUR", help="What transparent images are laid on.")
    ] = "white",
    on_bad: Annotated[
        Literal["stop", "skip"], typer.Option("--on-bad", help="What to do when images cannot be used.")
    ] = "stop",
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Do not read all images beforehand to find those that cannot be used.")
    ] = False,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch CIFAR-10 or CelebA into --data when it is not there.")
    ] = False,
    part: Annotated[
        str | None,
        typer.Option("--part", metavar="i/n", help="Encode the i-th of n parts only; others do the rest, anywhere."),
    ] = None,
    num_workers: Annotated[
        int | None, typer.Option("--num-workers", metavar="N", min=1, help="Threads that read images; default: cores.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare the files in --out with their sha256, and do nothing else.")
    ] = False,
    decode: Annotated[
        Path | None,
        typer.Option(
            "--decode", metavar="DIR", parser=home_path, help="Draw a grid of what is in a folder of latents."
        ),
    ] = None,
    num_images: Annotated[int, typer.Option("--num", "-n", metavar="N", min=1, help="Images of that grid.")] = 16,
    device: DeviceOption = "auto",
    dry_run: DryRunFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
    no_progress: NoProgressFlag = False,
) -> None:
    """Encode images into latents; running it again finishes what is missing.

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
