"""Options that several commands share, each with one name, one help text and one meaning.

A command writes ``preset: PresetOption = None``; the default stays in the command's signature, where it is read. An
option that takes a path has `home_path` as its parser, one that takes a path or a name `expand_home`.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dis_cli.cli.completion.settings import setting_words
from dis_cli.cli.completion.words import device_words, preset_words
from dis_cli.cli.display.help import HelpCommand, Panel
from dis_cli.config.sampling import LARGEST_SEED
from dis_cli.errors import UsageError
from dis_cli.paths import expand_home, home_path
from dis_cli.runtime.targets import FILE_SUFFIXES, is_folder, without_ending

JsonForm = Literal["object", "lines"]


class JsonLinesCommand(HelpCommand):
    """A command with `JsonOption`. Options with a value that may be left out are not known to the parser."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give ``--json`` alone an empty value; names after ``--`` stay as they are."""
        end = args.index("--") if "--" in args else len(args)
        return super().parse_args(ctx, ["--json=" if arg == "--json" else arg for arg in args[:end]] + args[end:])


def _json_form(value: str) -> JsonForm:
    if value not in ("", "lines"):
        raise UsageError(
            f"Unknown form of --json: got `{value}`, allowed: lines",
            "`--json` alone prints one object at the end; `--json=lines` prints every event when it happens",
        )
    return "lines" if value else "object"


def path_to_write(text: str) -> Path:
    """The path given by an option that names a result; other programs' signs for no path are refused."""
    if not text.strip():
        raise UsageError("The path to write to is empty", "Give a path, or leave the option out")
    if text == "-":
        raise UsageError(
            "`-` is no path to write to: results are files and folders", "Give a path; `./-` is a file of this name"
        )
    path = home_path(text)
    if text.endswith(os.sep) and path.suffix.lower() in FILE_SUFFIXES and not is_folder(path):
        raise UsageError(
            f"`{text}` ends in a slash like a folder, and before it in {path.suffix} like a file",
            f"Give `{path}` for a file, or `{without_ending(path)}{os.sep}` for a folder",
        )
    return path


def take_checkpoint(ckpt: str | None, overrides: list[str] | None) -> tuple[str, list[str]]:
    """The checkpoint, which may stand without ``--ckpt`` among the settings, and the settings.

    Raises:
        UsageError: There is none, or there are several.
    """
    overrides = overrides or []
    paths = [text for text in overrides if "=" not in text or home_path(text).exists()]
    if ckpt is not None:
        return ckpt, overrides
    if len(paths) > 1:
        raise UsageError(
            f"Several checkpoints given: {', '.join(f'`{path}`' for path in paths)}",
            "Give one with `--ckpt PATH`; settings are given as KEY=VALUE",
        )
    if not paths:
        raise UsageError("No checkpoint given", "Give one with `--ckpt PATH`, such as `--ckpt runs/dis-xs-digits`")
    return expand_home(paths[0]), [text for text in overrides if text != paths[0]]


def refuse_short_dry_run(value: bool) -> None:
    """``-n`` is a number of images in other commands; here it was ``--dry-run``."""
    if value:
        raise UsageError("No such option: -n", "Did you mean `--dry-run`? `-n` is the number of images elsewhere")


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings to change, such as train.steps=1000; `dis presets keys` lists them all.",
        show_default=False,
        autocompletion=setting_words,
        rich_help_panel=Panel.INPUT,
    ),
]

PresetName = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        parser=expand_home,
        help="Name of a preset, path of a TOML file, or run folder.",
        autocompletion=preset_words,
        rich_help_panel=Panel.INPUT,
    ),
]

PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset",
        "-p",
        metavar="NAME",
        parser=expand_home,
        help="Name of a preset, path of a TOML file, or run folder, whose settings are one; `dis presets list` lists "
        "them.",
        autocompletion=preset_words,
        rich_help_panel=Panel.INPUT,
    ),
]

CkptOption = Annotated[
    str | None,
    typer.Option(
        "--ckpt",
        metavar="PATH",
        parser=expand_home,
        help="Checkpoint: a run folder (its newest step), checkpoint folder, exported file or folder, "
        "published .pt file, or mnist, which comes with dis. The word --ckpt may be left out.",
        rich_help_panel=Panel.INPUT,
    ),
]

StepOption = Annotated[
    int | None,
    typer.Option(
        "--step",
        metavar="N",
        min=0,
        help="Checkpoint of this step, instead of the newest.",
        rich_help_panel=Panel.INPUT,
    ),
]

DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="PATH",
        parser=home_path,
        help="Folder of images, instead of the preset's.",
        rich_help_panel=Panel.INPUT,
    ),
]

OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="PATH",
        parser=path_to_write,
        help="Path to write to, instead of the usual place.",
        rich_help_panel=Panel.OUTPUT,
    ),
]

SeedOption = Annotated[
    int | None,
    typer.Option(
        "--seed", metavar="N", min=0, max=LARGEST_SEED, help="Seed of all random numbers.", rich_help_panel=Panel.INPUT
    ),
]

DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="Device: auto (a GPU if there is one), cpu, cuda or cuda:N.",
        autocompletion=device_words,
        rich_help_panel=Panel.INPUT,
    ),
]

DryRunFlag = Annotated[
    bool,
    typer.Option("--dry-run", help="Print the plan, with estimates, and write nothing.", rich_help_panel=Panel.OUTPUT),
]

# What was once short for --dry-run: understood by `dis train`, where scripts have it, and refused elsewhere.
OldDryRunFlag = Annotated[bool, typer.Option("-n", hidden=True)]
RefusedDryRunFlag = Annotated[bool, typer.Option("-n", hidden=True, callback=refuse_short_dry_run)]

JsonFlag = Annotated[
    bool,
    typer.Option("--json", help="Print the result or error as one JSON object.", rich_help_panel=Panel.OUTPUT),
]

JsonOption = Annotated[
    str | None,
    typer.Option(
        "--json",
        parser=_json_form,
        metavar="[=lines]",
        help="Print the result or error as one JSON object; with --json=lines also every event as it happens, one "
        "object a line.",
        rich_help_panel=Panel.OUTPUT,
    ),
]

QuietFlag = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print results and errors only.", rich_help_panel=Panel.OUTPUT)
]

VerboseFlag = Annotated[
    bool, typer.Option("--verbose", "-v", help="Print a line for every step.", rich_help_panel=Panel.OUTPUT)
]

NoProgressFlag = Annotated[
    bool, typer.Option("--no-progress", help="Print notes, but no progress.", rich_help_panel=Panel.OUTPUT)
]
