"""``dis flops``: parameters, operations and memory of a model, in closed form."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dis_cli.cli.display import flops as flops_tables
from dis_cli.cli.display.output import Output
from dis_cli.cli.options import DeviceOption, JsonFlag, PresetOption, path_to_write
from dis_cli.errors import UsageError
from dis_cli.models.families import DEFAULT, FAMILIES
from dis_cli.paths import home_path
from dis_cli.runtime.targets import require_writable

if TYPE_CHECKING:
    from dis_cli.workflows.flops.model import AskedModel

SIZES = FAMILIES[DEFAULT].sizes


def flops(
    size: Annotated[str | None, typer.Option("--size", metavar="SIZE", help=f"Named size: {', '.join(SIZES)}.")] = None,
    patch: Annotated[
        int | None,
        typer.Option("--patch", metavar="N", min=1, help="Side of a patch, in pixels of the model's grid; 2 if unset."),
    ] = None,
    preset: PresetOption = None,
    ckpt: Annotated[
        Path | None,
        typer.Option(
            "--ckpt", metavar="PATH", parser=home_path, help="Checkpoint folder, run folder or published .pt file."
        ),
    ] = None,
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
    batch: Annotated[
        int, typer.Option("--batch", metavar="N", min=1, help="Images per training step, and generated at a time.")
    ] = 1,
    steps: Annotated[
        int, typer.Option("--steps", metavar="N", min=1, help="Evaluations of the model for a generated image.")
    ] = 250,
    cfg: Annotated[
        bool, typer.Option("--cfg", help="Sample with classifier-free guidance: every evaluation twice.")
    ] = False,
    all_sizes: Annotated[bool, typer.Option("--all", help="The table of every size and patch.")] = False,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Beside DiT and U-ViT of the same size name; all sizes that have one, without --size."
        ),
    ] = False,
    resolutions: Annotated[
        str | None,
        typer.Option(
            "--resolutions",
            metavar="PIXELS,...",
            help="Sides of the images compared; includes --compare. If unset: 256,512,1024,2048, or 32,64,128,256 "
            "with --pixel.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE.png", parser=path_to_write, help="Draw GFLOPs against tokens; includes --compare."
        ),
    ] = None,
    time: Annotated[
        bool, typer.Option("--time", help="Measure a forward and a training step on this machine.")
    ] = False,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the table as comma-separated values.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
) -> None:
    """Count a model's parameters, operations and memory, the scan included, without building it.

    Give --size, --preset or --ckpt, whose model the other options then change; or --all, or --compare.

    Example: dis flops --size xl --patch 2
    """
    if plot is not None:
        _require_png(plot)
    compare = compare or plot is not None or resolutions is not None
    _require_at_most_one(json=as_json, csv=as_csv, markdown=as_markdown)
    _require_at_most_one(all=all_sizes, compare=compare, time=time)
    _require_at_most_one(all=all_sizes, size=size is not None)
    no_model = size is None and preset is None and ckpt is None
    if no_model and not (all_sizes or compare):
        raise UsageError(
            f"No model given: need --size ({', '.join(SIZES)}), --preset or --ckpt",
            "Try `dis flops --size xl --patch 2`, or `dis flops --all`",
        )

    from dis_cli.workflows.flops.model import ask_model
    from dis_cli.workflows.flops.report import comparison_report, model_report, sizes_report

    model = ask_model(
        size=size,
        preset=preset,
        ckpt=ckpt,
        patch_size=patch,
        pixel_size=image_size,
        pixel=pixel,
        num_classes=classes,
    )
    output = Output(as_json=as_json)
    report: dict[str, Any]
    if compare:
        models = _compared(model) if no_model else [model]
        pixels = _resolutions(resolutions, model)
        report = comparison_report(models, pixels)
        if plot is not None:
            _draw(plot, models, pixels)
            output.note(f"wrote plot: {plot}")
        tables, records = flops_tables.comparison_tables(report), flops_tables.comparison_records(report)
    elif all_sizes:
        report = sizes_report(model, patch)
        tables, records = flops_tables.sizes_tables(report), flops_tables.sizes_records(report)
    else:
        report = model_report(model, batch=batch, steps=steps, guided=cfg)
        if time:
            from dis_cli.workflows.flops.timing import time_model

            report["time"] = output.render(time_model(model, batch=batch, device=device))
        tables, records = flops_tables.model_tables(report), flops_tables.model_records(report)
    if as_csv:
        output.result(flops_tables.as_csv(records), report)
    elif as_markdown:
        output.result(flops_tables.as_markdown(tables), report)
    else:
        output.result(flops_tables.as_text(tables), report)


def _require_at_most_one(**flags: bool) -> None:
    given = [f"--{name}" for name, is_given in flags.items() if is_given]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other", "Give one of them")


def _compared(model: "AskedModel") -> list["AskedModel"]:
    from dis_cli.workflows.flops.report import compared_sizes

    return [model.resized(model.family.sizes[name]) for name in compared_sizes()]


def _resolutions(text: str | None, model: "AskedModel") -> list[int]:
    from dis_cli.workflows.flops.report import LATENT_RESOLUTIONS, PIXEL_RESOLUTIONS

    if text is None:
        return list(LATENT_RESOLUTIONS if model.is_latent else PIXEL_RESOLUTIONS)
    sides = text.split(",")
    if not all(side.strip().isdecimal() and int(side) for side in sides):
        raise UsageError(
            f"--resolutions: got `{text}`, allowed: sides in pixels, from 1, separated by commas",
            "Try `--resolutions 256,512,1024`",
        )
    return sorted({int(side) for side in sides})


def _require_png(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise UsageError(f"--plot: got `{path}`, allowed: a name that ends in .png", "Try `--plot flops.png`")
    require_writable(path, "file", suffixes=(".png",), option="--plot")


def _draw(path: Path, models: list["AskedModel"], pixels: list[int]) -> None:
    # Imported late: drawing takes a while to import, and only this needs it.
    from dis_cli.pictures.plot import log_log_png
    from dis_cli.runtime.files import atomic_write_bytes, require_replaceable
    from dis_cli.runtime.machine import cache_folder
    from dis_cli.workflows.flops.report import plotted

    picture = log_log_png(
        list(plotted(models, pixels)),
        cache=cache_folder() / "matplotlib",
        title="One evaluation of one image, attention and scan counted",
        x_label="tokens",
        y_label="GFLOPs (2 x GMAC)",
    )
    require_replaceable(path, picture, option="--plot")
    atomic_write_bytes(path, picture)
