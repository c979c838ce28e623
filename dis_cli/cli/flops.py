"""``dis flops``: parameters, operations and memory of a model, in closed form."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dis_cli.cli.completion.words import backbone_words, preset_words, size_words
from dis_cli.cli.display import flops as flops_tables
from dis_cli.cli.display.help import Panel
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
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="SIZE",
            help=f"Named size: {', '.join(SIZES)}.",
            autocompletion=size_words,
            rich_help_panel=Panel.MODEL,
        ),
    ] = None,
    patch: Annotated[
        int | None,
        typer.Option(
            "--patch",
            metavar="N",
            min=1,
            help="Side of a patch in pixels of the model's grid; by default 2.",
            rich_help_panel=Panel.MODEL,
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            metavar="NAME",
            help=f"Family: {', '.join(FAMILIES)}  [default: {DEFAULT}]",
            autocompletion=backbone_words,
            rich_help_panel=Panel.MODEL,
        ),
    ] = None,
    match: Annotated[
        str | None,
        typer.Option(
            "--match",
            metavar="PRESET",
            help="Settings of the --backbone model nearest to a preset's.",
            autocompletion=preset_words,
            rich_help_panel=Panel.MODEL,
        ),
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            "--by",
            metavar="FIGURE",
            help="Figure that --match compares: parameters, macs, or the time of a training step on this machine.",
            rich_help_panel=Panel.MODEL,
        ),
    ] = "parameters",
    preset: PresetOption = None,
    ckpt: Annotated[
        Path | None,
        typer.Option(
            "--ckpt",
            metavar="PATH",
            parser=home_path,
            help="Checkpoint: a checkpoint folder, run folder or published .pt file.",
            rich_help_panel=Panel.INPUT,
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size",
            metavar="PIXELS",
            min=1,
            help="Side of the image in pixels, also for latent models, whose grid is 1/8 of it; by "
            "default 256, or 32 with --pixel.",
            rich_help_panel=Panel.MODEL,
        ),
    ] = None,
    pixel: Annotated[
        bool | None,
        typer.Option(
            "--pixel/--latent",
            help="Input of the model: RGB pixels, or VAE latents (4 channels, 1/8 of the side)  [default: latents]",
            show_default=False,
            rich_help_panel=Panel.MODEL,
        ),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(
            "--classes",
            metavar="N",
            min=0,
            help="Number of classes, 0 for unconditional; by default 1000.",
            rich_help_panel=Panel.MODEL,
        ),
    ] = None,
    batch: Annotated[
        int,
        typer.Option(
            "--batch",
            metavar="N",
            min=1,
            help="Images per training step and per sampling batch.",
            rich_help_panel=Panel.WORKLOAD,
        ),
    ] = 1,
    steps: Annotated[
        int,
        typer.Option(
            "--steps",
            metavar="N",
            min=1,
            help="Model evaluations per generated image.",
            rich_help_panel=Panel.WORKLOAD,
        ),
    ] = 250,
    cfg: Annotated[
        bool,
        typer.Option(
            "--cfg",
            help="Sample with classifier-free guidance, which doubles every evaluation.",
            rich_help_panel=Panel.WORKLOAD,
        ),
    ] = False,
    all_sizes: Annotated[
        bool, typer.Option("--all", help="Table of every size and patch.", rich_help_panel=Panel.REPORT)
    ] = False,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Compare with DiT and U-ViT of the same size name; without --size, all sizes that have one.",
            rich_help_panel=Panel.REPORT,
        ),
    ] = False,
    resolutions: Annotated[
        str | None,
        typer.Option(
            "--resolutions",
            metavar="PIXELS,...",
            help="Sides of the compared images in pixels; implies --compare  [default: 256,512,1024,2048, "
            "or 32,64,128,256 with --pixel]",
            rich_help_panel=Panel.REPORT,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE.png",
            parser=path_to_write,
            help="Plot GFLOPs against tokens; implies --compare.",
            rich_help_panel=Panel.REPORT,
        ),
    ] = None,
    time: Annotated[
        bool,
        typer.Option(
            "--time", help="Time a forward pass and a training step on this machine.", rich_help_panel=Panel.REPORT
        ),
    ] = False,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print the table as comma-separated values.", rich_help_panel=Panel.OUTPUT)
    ] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the tables as Markdown.", rich_help_panel=Panel.OUTPUT)
    ] = False,
) -> None:
    """Count a model's parameters, operations and memory, the scan included, without building it.

    Give a model by --size, --preset or --ckpt, which the other options then change; or --all, or --compare.

    Example: dis flops --size xl --patch 2
    """
    if plot is not None:
        _require_png(plot)
    compare = compare or plot is not None or resolutions is not None
    _require_at_most_one(json=as_json, csv=as_csv, markdown=as_markdown)
    _require_at_most_one(all=all_sizes, compare=compare, time=time, match=match is not None)
    _require_at_most_one(all=all_sizes, size=size is not None)
    for given in ({"size": size}, {"preset": preset}, {"ckpt": ckpt}):
        _require_at_most_one(match=match is not None, **{name: value is not None for name, value in given.items()})
    no_model = size is None and preset is None and ckpt is None
    if no_model and not (all_sizes or compare or match):
        raise UsageError(
            f"No model given: need --size ({', '.join(SIZES)}), --preset or --ckpt",
            "Try `dis flops --size xl --patch 2`, or `dis flops --all`",
        )

    output = Output(as_json=as_json)
    if match is not None:
        _print_match(output, match, backbone, by, batch=batch, device=device)
        return
    from dis_cli.workflows.flops.model import ask_model
    from dis_cli.workflows.flops.report import comparison_report, model_report, sizes_report

    model = ask_model(
        size=size,
        backbone=backbone,
        preset=preset,
        ckpt=ckpt,
        patch_size=patch,
        pixel_size=image_size,
        pixel=pixel,
        num_classes=classes,
    )
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


def _print_match(output: Output, preset: str, backbone: str | None, by: str, *, batch: int, device: str) -> None:
    from dis_cli.workflows.flops.match import BY, By, match_report
    from dis_cli.workflows.flops.model import known_family

    figures: dict[str, By] = {name: name for name in BY}
    if by not in figures:
        raise UsageError(f"--by: got `{by}`, allowed: {', '.join(BY)}", "Try `--by macs`")
    report = match_report(preset, known_family(backbone), figures[by], batch=batch, device=device)
    output.result(flops_tables.match_lines(report), report)


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
