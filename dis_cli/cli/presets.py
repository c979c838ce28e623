"""``dis presets``: what presets there are, what one holds, what can be set, and whether a file is a preset."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dis_cli.cli.display.output import result
from dis_cli.cli.display.text import table
from dis_cli.cli.options import JsonFlag, PresetName
from dis_cli.errors import NegativeVerdict
from dis_cli.paths import expand_home

if TYPE_CHECKING:
    from dis_cli.config.schema import RunConfig

app = typer.Typer(help="List, show and check presets.", rich_markup_mode=None)


@app.command("list")
def list_presets(as_json: JsonFlag = False) -> None:
    """List the presets."""
    from dis_cli.config.presets import load_preset, preset_names

    entries = [_summary(load_preset(name)) for name in preset_names()]
    header = ["NAME", "SIZE", "PARAMETERS", "PIXELS", "CLASSES", "DESCRIPTION"]
    rows = [
        [
            str(entry["name"]),
            f"{entry['size'] or '-'}/{entry['patch_size']}",
            f"{entry['num_parameters']:,}",
            f"{entry['image_size_pixels']}x{entry['image_size_pixels']}",
            str(entry["num_classes"]),
            str(entry["description"]),
        ]
        for entry in entries
    ]
    result(table([header, *rows]), {"presets": entries}, as_json)


@app.command("show")
def show_preset(name: PresetName, as_json: JsonFlag = False) -> None:
    """Print a preset with every default filled in, as TOML that can be saved, edited and given to --preset."""
    from dis_cli.config.presets import dump_toml, load_preset
    from dis_cli.workflows.cost import model_cost

    config = load_preset(name)
    data = {"preset": config.model_dump(mode="json"), "num_parameters": model_cost(config).parameters}
    result(dump_toml(config).splitlines(), data, as_json)


@app.command("keys")
def list_keys(as_json: JsonFlag = False) -> None:
    """List every setting with what it allows, its default and its meaning."""
    from dis_cli.config.overrides import describe_keys

    keys = describe_keys()
    rows = [[f"{key}={default}", f"{meaning} [{allowed}]"] for key, allowed, default, meaning in keys]
    names = ("key", "allowed", "default", "description")
    result(table(rows), {"keys": [dict(zip(names, entry, strict=True)) for entry in keys]}, as_json)


@app.command("validate")
def validate_presets(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH",
            parser=expand_home,
            help="Preset names or TOML files; by default every preset.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check that presets describe valid runs; exit with 3 when one does not."""
    from dis_cli.config.presets import preset_dir, preset_names, validate_file

    known = preset_names()
    files = [(path, preset_dir() / f"{path}.toml" if path in known else Path(path)) for path in paths or known]
    checked = [(name, validate_file(file)) for name, file in files]
    lines = [line for name, problems in checked for line in [f"{name}: {text}" for text in problems or ["valid"]]]
    num_bad = sum(bool(problems) for _, problems in checked)
    presets = [{"path": name, "valid": not problems, "problems": problems} for name, problems in checked]
    result(lines, {"valid": num_bad == 0, "presets": presets}, as_json)
    if num_bad:
        raise NegativeVerdict(
            f"{num_bad} of {len(checked)} presets are not valid", "See `dis presets show dis-xs-digits` for every key"
        )


def _summary(config: "RunConfig") -> dict[str, object]:
    from dis_cli.workflows.cost import model_cost, model_shape

    model = config.model
    return {
        "name": config.name,
        "size": model_shape(config).size,
        "patch_size": model.patch_size,
        "num_parameters": model_cost(config).parameters,
        "image_size_pixels": config.pixel_size,
        "num_classes": model.num_classes,
        "description": config.description,
    }
