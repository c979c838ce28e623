"""`dis checkpoint`: describe, export and import checkpoints."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dis_cli.cli.display.help import HelpCommand, HelpGroup, Panel
from dis_cli.cli.display.output import Output
from dis_cli.cli.display.text import size, table
from dis_cli.cli.options import DryRunFlag, JsonFlag, Overrides, QuietFlag, RefusedDryRunFlag, StepOption, path_to_write
from dis_cli.errors import CheckpointError
from dis_cli.paths import expand_home

if TYPE_CHECKING:
    from dis_cli.workflows.load.opened import Opened

app = typer.Typer(cls=HelpGroup, help="Show, export and import checkpoints.", rich_markup_mode=None)

_MOST_NAMES = 12

CheckpointPath = Annotated[
    str,
    typer.Argument(
        metavar="PATH",
        parser=expand_home,
        help="Run folder (its newest checkpoint), checkpoint folder, exported file or folder, published .pt file, or "
        "mnist, which comes with dis.",
        rich_help_panel=Panel.INPUT,
    ),
]


@app.command("show", cls=HelpCommand)
def show(
    path: CheckpointPath,
    overrides: Overrides = None,
    step: StepOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Verify and describe a checkpoint; exit with 1 if any of its files is damaged.

    Example: dis checkpoint show runs/dis-xs-digits
    """
    opened = _open(path, overrides, step)

    from dis_cli.workflows.checkpoint.show import describe

    output = Output(as_json=as_json)
    found = describe(opened)
    for note in found["notes"]:
        output.warning(note)
    output.result(_lines(found), found)
    if damaged := [file["file"] for file in found["files"] if file["verified"] is False]:
        raise CheckpointError(
            f"`{found['checkpoint']}` is damaged: {', '.join(damaged)}", "Its weights are sound, and can be exported"
        )


@app.command("export", cls=HelpCommand)
def export_checkpoint(
    path: CheckpointPath,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="PATH",
            parser=path_to_write,
            help="Path to write: x.safetensors, x.pt, or a folder (diffusers' layout of a model, not of a pipeline).",
            rich_help_panel=Panel.OUTPUT,
        ),
    ],
    overrides: Overrides = None,
    form: Annotated[
        Literal["safetensors", "pt", "diffusers"] | None,
        typer.Option("--format", help="Format, if --out does not tell it.", rich_help_panel=Panel.OUTPUT),
    ] = None,
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"],
        typer.Option("--dtype", help="Type of the weights; only fp32 keeps every bit.", rich_help_panel=Panel.OUTPUT),
    ] = "fp32",
    step: StepOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier export.", rich_help_panel=Panel.OUTPUT)
    ] = False,
    dry_run: DryRunFlag = False,
    _short_dry_run: RefusedDryRunFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Export a model, with all that is needed to use it, to one file or folder.

    The weights are the run's average, unless sample.ema=DECAY chooses others; other KEY=VALUE become the model's
    settings.

    Example: dis checkpoint export runs/dis-xs-digits --out digits.safetensors sample.steps=50
    """
    opened = _open(path, overrides, step)
    # What is wrong with the settings is told before torch is imported.
    _ = opened.settings

    from dis_cli.workflows.checkpoint.export import export

    output = Output(as_json=as_json, quiet=quiet)
    result = output.render(export(opened, out, form=form, dtype=dtype, force=force, dry_run=dry_run))
    lines = [
        f"model   {result['parameters']:,} parameters in {result['dtype']}, step {_or_unknown(result['step'])}, "
        f"{_average(result['ema_decay'])}",
        f"sha256  {result['sha256']}",
        f"{'would be' if dry_run else 'wrote':8}{result['out']} ({size(result['size_bytes'])}, {result['format']})",
    ]
    output.result(lines, result)


@app.command("import", cls=HelpCommand)
def import_checkpoint(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            parser=expand_home,
            help="Published .pt file, or an exported file or folder.",
            rich_help_panel=Panel.INPUT,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            parser=path_to_write,
            help="Run folder to make.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ],
    overrides: Overrides = None,
    dry_run: DryRunFlag = False,
    _short_dry_run: RefusedDryRunFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Turn a published or exported model into a run folder.

    The run has every set of weights of the file. It cannot be trained further, as the optimizer's state is missing.

    Example: dis checkpoint import dis-h-imagenet-256.pt --out runs/dis-h codec.vae=vae/
    """
    opened = _open(path, overrides)

    from dis_cli.workflows.checkpoint.import_model import import_model

    output = Output(as_json=as_json, quiet=quiet)
    result = output.render(import_model(opened, out, dry_run=dry_run))
    lines = [
        f"model   {result['parameters']:,} parameters, step {_or_unknown(result['step'])}, "
        + ", ".join(map(_average, result["averages"])),
        f"{'would be' if dry_run else 'run':8}{result['run']}",
    ]
    output.result(lines, result)


def _open(path: str, overrides: list[str] | None, step: int | None = None) -> "Opened":
    """The checkpoint, but for its weights: without torch, which takes seconds to import."""
    from dis_cli.workflows.load.opened import open_checkpoint

    return open_checkpoint(Path(path), overrides or (), step)


def _lines(found: dict[str, Any]) -> list[str]:
    from dis_cli.config.schema import RunConfig
    from dis_cli.workflows.describe import describe_model, describe_objective, describe_sampling

    config = RunConfig.model_validate(found["config"])
    names: list[str] = found["class_names"]
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    rows = {
        "kind": {"pt": "exported .pt", "folder": "exported folder"}.get(found["kind"], found["kind"]),
        "path": found["checkpoint"],
        "step": _or_unknown(found["step"]),
        "steps there": ", ".join(map(str, found["steps"])) if found["steps"] else None,
        "parameters": f"{found['parameters']:,} in {found['dtype']}",
        "model": describe_model(config),
        "objective": describe_objective(config),
        "sampling": describe_sampling(config),
        "classes": ", ".join(names[:_MOST_NAMES]) + more if names else None,
        "weights": ", ".join(map(_average, found["averages"])),
        "taken": _average(found["ema_decay"]),
        "vae": _vae(found["vae"], config.codec.vae) if config.codec.kind == "vae" else None,
        "versions": ", ".join(f"{name} {version}" for name, version in found["versions"].items()) or None,
        "sha256": found["sha256"],
        "size": f"{size(found['size_bytes'])} ({found['size_bytes']:,} bytes)",
    }
    marks = {True: "sound", False: "DAMAGED", None: ""}
    files = [[file["file"], size(file["size_bytes"]), marks[file["verified"]]] for file in found["files"]]
    return [
        # Names of classes can hold anything.
        *(f"{name:13}{' '.join(value.split())}" for name, value in rows.items() if value is not None),
        *(f"{'' if index else 'files':13}{line}" for index, line in enumerate(table(files))),
    ]


def _average(decay: float) -> str:
    return f"average of decay {decay:g}" if decay else "weights as trained"


def _or_unknown(step: int | None) -> str:
    return "unknown" if step is None else f"{step}"


def _vae(record: dict[str, Any] | None, named: str | None) -> str:
    if record is None:
        return f"{named or 'not named'} (not recorded which)"
    return f"{record['name']} (weights of sha256 {record['weights_sha256'][:12]})"
