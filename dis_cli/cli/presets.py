"""``dis presets``: list, show and check presets, and list the settings."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dis_cli.cli.completion.words import preset_words
from dis_cli.cli.display.help import HelpCommand, HelpGroup, Panel
from dis_cli.cli.display.output import result
from dis_cli.cli.display.text import table
from dis_cli.cli.options import JsonFlag, PresetName
from dis_cli.errors import NegativeVerdict, UsageError
from dis_cli.paths import expand_home

if TYPE_CHECKING:
    from dis_cli.config.schema import RunConfig

app = typer.Typer(cls=HelpGroup, help="List, show and check presets.", rich_markup_mode=None)


@app.command("list", cls=HelpCommand)
def list_presets(as_json: JsonFlag = False) -> None:
    """List the presets.

    Example: dis presets list
    """
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


@app.command("show", cls=HelpCommand)
def show_preset(name: PresetName, as_json: JsonFlag = False) -> None:
    """Print a preset or a run's settings as TOML with every default filled in, to save, edit and pass to --preset.

    Example: dis presets show dis-s-cifar > mine.toml
    """
    from dis_cli.config.presets import dump_toml, load_preset
    from dis_cli.workflows.cost import model_cost

    config = load_preset(name)
    data = {"preset": config.model_dump(mode="json"), "num_parameters": model_cost(config).parameters}
    result(dump_toml(config).splitlines(), data, as_json)


@app.command("diff", cls=HelpCommand)
def diff_presets(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME NAME...",
            parser=expand_home,
            help="Names of presets, TOML files or run folders, two or more.",
            autocompletion=preset_words,
            rich_help_panel=Panel.INPUT,
        ),
    ],
    as_json: JsonFlag = False,
) -> None:
    """Compare presets or runs: the settings that differ.

    Example: dis presets diff dis-xs-digits runs/dis-xs-digits
    """
    if len(names) < 2:
        raise UsageError(
            f"Only one preset to compare: `{names[0]}`", f"Name another one too; `dis presets show {names[0]}` shows it"
        )

    from dis_cli.cli.runs.diff import compared
    from dis_cli.config.presets import load_preset
    from dis_cli.report.compare import differing
    from dis_cli.report.record import flat

    sections = [load_preset(name).model_dump(mode="json") for name in names]
    settings = differing([flat(each, whole_paths=True) for each in sections])
    result(compared(names, {"SETTING": settings}), {"presets": names, "settings": settings}, as_json)


@app.command("keys", cls=HelpCommand)
def list_keys(as_json: JsonFlag = False) -> None:
    """List every setting with its allowed values, default and meaning.

    Example: dis presets keys
    """
    from dis_cli.config.overrides import describe_keys

    keys = describe_keys()
    rows = [[f"{key}={default}", f"{meaning} [{allowed}]"] for key, allowed, default, meaning in keys]
    names = ("key", "allowed", "default", "description")
    result(table(rows), {"keys": [dict(zip(names, entry, strict=True)) for entry in keys]}, as_json)


@app.command("validate", cls=HelpCommand)
def validate_presets(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH",
            parser=expand_home,
            help="Preset names or TOML files  [default: every preset]",
            show_default=False,
            rich_help_panel=Panel.INPUT,
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check presets; exit with 3 if one is not valid.

    Example: dis presets validate mine.toml
    """
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
        "num_classes": "auto" if "model.num_classes" in config.open_settings else model.num_classes,
        "description": config.description,
    }
