"""Options that several commands share, each with one name, one help text and one meaning.

A command writes ``preset: PresetOption = None``; the default stays in the command's signature, where it is read. An
option that takes a path has `home_path` as its parser, one that takes a path or a name `expand_home`.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from dis_cli.config.sampling import LARGEST_SEED
from dis_cli.errors import UsageError
from dis_cli.paths import expand_home, home_path
from dis_cli.runtime.targets import FILE_SUFFIXES, is_folder, without_ending

JsonForm = Literal["object", "lines"]


class JsonLinesCommand(TyperCommand):
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
    """What an option that names a result says: a path, and not what other programs mean by no path."""
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


def _complete_presets(incomplete: str) -> list[str]:
    # Imported late: only completion needs it.
    from dis_cli.config.presets import preset_names

    return [name for name in preset_names() if name.startswith(incomplete)]


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings that replace the preset's, such as train.steps=1000. See `dis presets keys`.",
        show_default=False,
    ),
]

PresetName = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        parser=expand_home,
        help="Preset name, or path of a TOML file.",
        autocompletion=_complete_presets,
    ),
]

PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset",
        "-p",
        metavar="NAME",
        parser=expand_home,
        help="Preset name, or path of a TOML file (a run folder's config.toml is one). See `dis presets list`.",
        autocompletion=_complete_presets,
    ),
]

CkptOption = Annotated[
    str | None,
    typer.Option(
        "--ckpt",
        metavar="PATH",
        parser=expand_home,
        help="Run folder (its newest checkpoint), checkpoint folder, exported file or folder, or published .pt file. "
        "May stand alone, without --ckpt.",
    ),
]

StepOption = Annotated[
    int | None,
    typer.Option("--step", metavar="N", min=0, help="The run's checkpoint of this step, instead of the newest."),
]

DataOption = Annotated[
    Path | None,
    typer.Option("--data", metavar="PATH", parser=home_path, help="Folder of the images, instead of the preset's."),
]

OutOption = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="PATH", parser=path_to_write, help="Where to write.")
]

SeedOption = Annotated[
    int | None, typer.Option("--seed", metavar="N", min=0, max=LARGEST_SEED, help="Seed of every random draw.")
]

DeviceOption = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="auto (a GPU if there is one), cpu, cuda or cuda:N.")
]

DryRunFlag = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be done, with estimates, and write nothing.")
]

# What was once short for --dry-run: understood by `dis train`, where scripts have it, and refused elsewhere.
OldDryRunFlag = Annotated[bool, typer.Option("-n", hidden=True)]
RefusedDryRunFlag = Annotated[bool, typer.Option("-n", hidden=True, callback=refuse_short_dry_run)]

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result, or the error, as one JSON object.")]

JsonOption = Annotated[
    str | None,
    typer.Option(
        "--json",
        parser=_json_form,
        metavar="[=lines]",
        help="Print the result, or the error, as one JSON object; with --json=lines every event as a line, while it "
        "runs, and the result or the error as the last.",
    ),
]

QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]

VerboseFlag = Annotated[bool, typer.Option("--verbose", "-v", help="Print a line for every step.")]

NoProgressFlag = Annotated[bool, typer.Option("--no-progress", help="Print no progress; notes stay.")]
