"""What a command needs beside the weights of a checkpoint, looked for without torch, which takes seconds to import."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from dis_cli.checkpoints.portable import is_folder, is_safetensors, mentions_record, read_folder_record, read_record
from dis_cli.checkpoints.store import checkpoints_of, is_checkpoint_folder, list_checkpoints, resolve_checkpoint
from dis_cli.config.overrides import apply_overrides
from dis_cli.config.schema import RunConfig
from dis_cli.config.settings import as_text, explain
from dis_cli.errors import MismatchError, UsageError, listed
from dis_cli.workflows.load.averages import choose_average, choose_held, choose_published

# A run or checkpoint folder, a folder in diffusers' layout, and files; "published" is told from "pt" by its content.
Form = Literal["run", "folder", "safetensors", "pt", "published"]


def read_config(checkpoint: Path, overrides: Sequence[str], step: int | None = None) -> RunConfig | None:
    """The settings that a command will work with.

    Args:
        checkpoint: Run folder, checkpoint folder, exported file or folder, or published ``.pt`` file.
        overrides: ``KEY=VALUE`` on the settings saved with it.
        step: The checkpoint of a run folder to take instead of its newest sound one.

    Returns:
        None for a ``.pt`` file, which only torch reads.

    Raises:
        UsageError: There is no such path or step, an override is wrong, or there is no such average of its weights.
        CheckpointError: It is damaged, or not a checkpoint.
    """
    form = form_of(checkpoint)
    if form == "run":
        found = resolve_checkpoint(checkpoint, (), step)
        saved = saved_config(found.path, found.meta)
        config = apply_overrides(saved, overrides)
        choose_average(saved, config.sample.ema)
        return config
    refuse_step(checkpoint, step)
    if form == "pt":
        if not mentions_record(checkpoint):
            choose_published(overrides)
        return None
    record = read_folder_record(checkpoint) if form == "folder" else read_record(checkpoint)
    config = apply_overrides(saved_config(checkpoint, record), overrides)
    choose_held(record["ema_decay"], config.sample.ema)
    return config


def form_of(checkpoint: Path) -> Form:
    """What a path names, by a look at it: a folder that is nothing else counts as a run, a file as a ``.pt``.

    Raises:
        UsageError: There is nothing.
    """
    if checkpoint.is_dir():
        is_own = is_checkpoint_folder(checkpoint) or list_checkpoints(checkpoints_of(checkpoint))
        return "folder" if not is_own and is_folder(checkpoint) else "run"
    if not checkpoint.is_file():
        raise UsageError(
            f"No checkpoint at `{checkpoint}`",
            "Give a run folder, one of its checkpoints/step-* folders, a file of `dis checkpoint export`, or a "
            "published .pt file",
        )
    return "safetensors" if is_safetensors(checkpoint) else "pt"


def refuse_step(checkpoint: Path, step: int | None) -> None:
    """Refuse to look for a step in what holds one model.

    Raises:
        UsageError: A step is asked for.
    """
    if step is not None:
        raise UsageError(f"`{checkpoint}` is one model, not a run with step {step}", "Leave `--step` out")


def saved_config(path: Path, meta: Mapping[str, Any]) -> RunConfig:
    """The settings saved with a checkpoint.

    Args:
        meta: What was saved beside its weights.

    Raises:
        MismatchError: They are of another version, or it is a checkpoint of something else: lists what is wrong.
    """
    settings = meta.get("config")
    if not isinstance(settings, dict):
        raise MismatchError(f"`{path}` holds no settings of a run", "Give a run folder of `dis train`")
    return parse_settings(
        settings,
        f"The settings in `{path}` are not ones that this version reads",
        "They may be of a later version: install a newer `dis`",
    )


def parse_settings(settings: dict[str, Any], wrong: str, hint: str) -> RunConfig:
    """Settings that came with a model.

    Args:
        wrong: What to say before the list of what is wrong with them.

    Raises:
        MismatchError: Something is.
    """
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        problems = [problem.message for problem in explain(error, settings, as_text)]
        raise MismatchError(f"{wrong}:{listed(problems)}", hint) from error
