"""``dis flops``: parameters and operations of a model, in closed form."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import typer

from dis_cli.cli.options import JsonFlag, PresetOption
from dis_cli.cli.output import result
from dis_cli.errors import UsageError, did_you_mean
from dis_cli.models.flops import Flops, count
from dis_cli.models.sizes import SIZES, Size

_LATENT_CHANNELS = 4
_PIXEL_CHANNELS = 3
_PIXELS_PER_LATENT = 8
_LATENT_IMAGE_SIZE = 256
_PIXEL_IMAGE_SIZE = 32


@dataclass(frozen=True)
class _Model:
    # The arguments of count() but for the grid's side, which follows from the image's.
    pixel_size: int
    pixels_per_latent: int  # 1 when the model sees pixels
    patch_size: int
    in_channels: int
    embed_dim: int
    depth: int
    num_classes: int
    learn_sigma: bool = True
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2

    @property
    def is_latent(self) -> bool:
        return self.pixels_per_latent > 1

    @property
    def grid_size(self) -> int:
        return self.pixel_size // self.pixels_per_latent

    @property
    def size(self) -> str | None:
        return next((name for name, size in SIZES.items() if size == Size(self.embed_dim, self.depth)), None)


def flops(
    size: Annotated[str | None, typer.Option("--size", metavar="SIZE", help=f"Named size: {', '.join(SIZES)}.")] = None,
    patch: Annotated[
        int | None,
        typer.Option("--patch", metavar="N", min=1, help="Side of a patch, in pixels of the model's grid; 2 if unset."),
    ] = None,
    preset: PresetOption = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size",
            metavar="PIXELS",
            min=1,
            help="Side of the image in pixels, also for a latent model, whose grid has 1/8 of it. "
            "If unset: 256, or 32 with --pixel.",
        ),
    ] = None,
    pixel: Annotated[
        bool | None,
        typer.Option(
            "--pixel/--latent",
            help="What the model sees: RGB pixels, or VAE latents (4 channels, 1/8 of the side); latents if unset.",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option("--classes", metavar="N", min=0, help="Number of classes, 0 for unconditional; 1000 if unset."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Count a model's parameters and operations, the scan included, without building it.

    Give --size, or --preset, whose model the other options then change.
    """
    named = _named_size(size) if size is not None else None
    if preset is not None:
        model = _from_preset(preset, pixel)
    elif named is not None:
        model = _from_size(named, pixel)
    else:
        raise UsageError(
            f"No model given: need --size ({', '.join(SIZES)}) or --preset", "Try `dis flops --size xl --patch 2`"
        )
    if named is not None:
        model = dataclasses.replace(model, embed_dim=named.embed_dim, depth=named.depth)
    given = {"patch_size": patch, "pixel_size": image_size, "num_classes": classes}
    model = dataclasses.replace(model, **{name: value for name, value in given.items() if value is not None})
    cost = _count(model)
    result(_lines(model, cost), _data(model, cost), as_json)


def _named_size(name: str) -> Size:
    if name.lower() in SIZES:
        return SIZES[name.lower()]
    closest = did_you_mean(name.lower(), SIZES)
    raise UsageError(
        f"Unknown size: got `{name}`, allowed: {', '.join(SIZES)}",
        f"Did you mean `{closest}`?" if closest else "Try `dis flops --size xl --patch 2`",
    )


def _from_size(size: Size, pixel: bool | None) -> _Model:
    return _Model(
        pixel_size=_PIXEL_IMAGE_SIZE if pixel else _LATENT_IMAGE_SIZE,
        pixels_per_latent=1 if pixel else _PIXELS_PER_LATENT,
        patch_size=2,
        in_channels=_PIXEL_CHANNELS if pixel else _LATENT_CHANNELS,
        embed_dim=size.embed_dim,
        depth=size.depth,
        num_classes=1000,
    )


def _from_preset(name: str, pixel: bool | None) -> _Model:
    # Imported late: reading a preset takes longer than everything else here.
    from dis_cli.config.presets import load_preset

    config = load_preset(name)
    shape = config.model
    model = _Model(
        pixel_size=config.pixel_size,
        pixels_per_latent=config.codec.downsample if config.codec.kind == "vae" else 1,
        patch_size=shape.patch_size,
        in_channels=shape.in_channels,
        embed_dim=shape.embed_dim,
        depth=shape.depth,
        num_classes=shape.num_classes,
        learn_sigma=config.learn_sigma,
        d_state=shape.d_state,
        d_conv=shape.d_conv,
        expand=shape.expand,
    )
    if pixel is None or pixel == (config.codec.kind == "pixel"):
        return model
    return dataclasses.replace(
        model,
        pixels_per_latent=1 if pixel else config.codec.downsample,
        in_channels=_PIXEL_CHANNELS if pixel else _LATENT_CHANNELS,
    )


def _count(model: _Model) -> Flops:
    multiple = model.pixels_per_latent * model.patch_size
    if model.pixel_size % multiple:
        nearest = max(1, round(model.pixel_size / multiple)) * multiple
        reason = f"{model.pixels_per_latent} per latent x patch {model.patch_size}" if model.is_latent else "the patch"
        raise UsageError(
            f"The image does not divide into patches: got an image size of `{model.pixel_size}`, allowed: a multiple "
            f"of {multiple} pixels ({reason})",
            f"Try `--image-size {nearest}`, or another `--patch`",
        )
    return count(
        image_size=model.grid_size,
        patch_size=model.patch_size,
        in_channels=model.in_channels,
        embed_dim=model.embed_dim,
        depth=model.depth,
        num_classes=model.num_classes,
        learn_sigma=model.learn_sigma,
        d_state=model.d_state,
        d_conv=model.d_conv,
        expand=model.expand,
    )


def _lines(model: _Model, cost: Flops) -> list[str]:
    name = model.size.upper() if model.size else f"{model.embed_dim}x{model.depth}"
    grid = f"{model.grid_size}x{model.grid_size}x{model.in_channels}"
    seen = f"{grid} latents of {model.pixel_size}x{model.pixel_size} pixels" if model.is_latent else f"{grid} pixels"
    labels = f"{model.num_classes} classes" if model.num_classes else "unconditional"
    parts = [
        f"{part:16}  {macs / 1e9:10.4f}  {100 * macs / cost.macs:5.1f} %" for part, macs in cost.macs_by_part.items()
    ]
    totals = [
        (f"{cost.macs / 1e9:.4f} GMAC", "true: every matrix product, convolution and scan, in both directions"),
        (f"{cost.flops / 1e9:.4f} GFLOPs", "the same, 2 per MAC"),
        (f"{cost.macs_with_elementwise / 1e9:.4f} GMAC", "+ew: also the scan's elementwise products"),
        (
            f"{cost.published_macs / 1e9:.4f} GMAC",
            "published convention: no projection, convolution or scan of a mixer",
        ),
        (f"{cost.published_flops / 1e9:.4f} GFLOPs", "the same, 2 per MAC, as the published script prints it"),
        (f"{cost.true_over_published:.2f} x", "true / published"),
    ]
    numbers, units = zip(*(amount.split() for amount, _ in totals), strict=True)
    width = max(map(len, numbers))
    return [
        f"DiS-{name}/{model.patch_size}: {seen}, {labels}, {cost.tokens} tokens",
        f"parameters {cost.parameters / 1e6:.1f} M ({cost.parameters:,})",
        "",
        "One evaluation for one image:",
        f"{'part':16}  {'GMAC':>10}  {'share':>7}",
        *parts,
        "",
        *(
            f"{number:>{width}} {unit:6}  {meaning}"
            for number, unit, (_, meaning) in zip(numbers, units, totals, strict=True)
        ),
    ]


def _data(model: _Model, cost: Flops) -> dict[str, object]:
    return {
        "size": model.size,
        "image_size_pixels": model.pixel_size,
        "grid_size": model.grid_size,
        "latent": model.is_latent,
        "patch_size": model.patch_size,
        "in_channels": model.in_channels,
        "embed_dim": model.embed_dim,
        "depth": model.depth,
        "num_classes": model.num_classes,
        "learn_sigma": model.learn_sigma,
        "d_state": model.d_state,
        "d_conv": model.d_conv,
        "expand": model.expand,
        "num_tokens": cost.tokens,
        "num_parameters": cost.parameters,
        "true_macs_by_part": cost.macs_by_part,
        "true_macs": cost.macs,
        "true_flops": cost.flops,
        "true_macs_with_elementwise": cost.macs_with_elementwise,
        "published_macs": cost.published_macs,
        "published_flops": cost.published_flops,
        "true_over_published_ratio": cost.true_over_published,
    }
