"""A checkpoint opened once: all but its weights, without torch, which takes seconds to import."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from dis_cli.checkpoints.bundled import BUNDLED, place_of
from dis_cli.checkpoints.portable import FileForm, file_form, is_folder, read_folder_record, read_record
from dis_cli.checkpoints.store import (
    Checkpoint,
    checkpoints_of,
    is_checkpoint_folder,
    list_checkpoints,
    resolve_checkpoint,
)
from dis_cli.config.overrides import apply_overrides
from dis_cli.config.schema import RunConfig
from dis_cli.config.settings import as_text, explain
from dis_cli.errors import MismatchError, UsageError, listed
from dis_cli.workflows.load.averages import Average, choose_average, choose_held, choose_published

# A run or checkpoint folder, a folder in diffusers' layout, and files.
Form = Literal["run", "folder"] | FileForm


@dataclass(frozen=True)
class Settings:
    """The settings that came with a model, and those that a command works with.

    Attributes:
        saved: Of the model's run; for a published checkpoint those of the published code.
        config: These with what was asked for instead.
        average: Choice among the checkpoint's weights by ``config``.
    """

    saved: RunConfig
    config: RunConfig
    average: Average


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A checkpoint, file or folder that was looked at; `read_saved` reads its weights.

    Attributes:
        named: The path that was asked for, or the name of a model that comes with the package.
        form: Form of the weights. A ``.pt`` turns out to be "pt" or "published" when torch reads it.
        overrides: ``KEY=VALUE`` on the settings saved with it.
        asked_step: The step of a run that was asked for; None takes the newest sound checkpoint.
        checkpoint: Of a run, without tensors.
        record: Of an exported file or folder, what was saved beside its weights. Damage is told when these are read.
    """

    named: Path
    form: Form
    overrides: tuple[str, ...] = ()
    asked_step: int | None = None
    checkpoint: Checkpoint | None = None
    record: Mapping[str, Any] | None = None

    @cached_property
    def settings(self) -> Settings | None:
        """The settings; None of a ``.pt`` file, which only torch reads.

        Raises:
            UsageError: An override is wrong, or there is no such average of its weights.
            MismatchError: They are of another version, or it is of something else.
        """
        if self.checkpoint is not None:
            saved = saved_config(self.checkpoint.path, self.checkpoint.meta)
            config = apply_overrides(saved, self.overrides)
            return Settings(saved, config, choose_average(saved, config.sample.ema))
        if self.record is not None:
            saved = saved_config(self.named, self.record)
            config = apply_overrides(saved, self.overrides)
            return Settings(saved, config, choose_held(self.record["ema_decay"], config.sample.ema))
        if self.form == "published":
            choose_published(self.overrides)
        return None

    @property
    def place(self) -> Path:
        """Where its files are."""
        return place_of(self.named)

    @property
    def config(self) -> RunConfig | None:
        """The settings that a command works with; None while they are not known. Errors are those of ``settings``."""
        return None if self.settings is None else self.settings.config

    def asking(self, overrides: Sequence[str]) -> "Opened":
        """The same with further overrides."""
        return replace(self, overrides=(*self.overrides, *overrides))


def open_checkpoint(path: Path, overrides: Sequence[str] = (), step: int | None = None) -> Opened:
    """Look at a run folder, a checkpoint folder, a file or folder of `dis checkpoint export`, or a published ``.pt``.

    Args:
        path: One of these, of a run the newest sound checkpoint; or a key of `BUNDLED`, where no such path exists.
        overrides: ``KEY=VALUE`` on the settings saved with it; ``sample.ema`` says which weights are meant.
        step: The checkpoint of a run to take instead of its newest.

    Raises:
        UsageError: There is no such path or step.
        CheckpointError: It is damaged, or not a checkpoint.
        MismatchError: It is of something else.
        RefusedError: It is made to do harm.
    """
    opened = Opened(named=path, form=_form_of(place_of(path)), overrides=tuple(overrides), asked_step=step)
    if opened.form == "run":
        return replace(opened, checkpoint=resolve_checkpoint(path, (), step))
    if step is not None:
        raise UsageError(f"`{path}` is one model, not a run with step {step}", "Leave `--step` out")
    match opened.form:
        case "folder":
            return replace(opened, record=read_folder_record(opened.place))
        case "safetensors":
            return replace(opened, record=read_record(path))
        case _:
            return opened


def _form_of(path: Path) -> Form:
    """The kind of thing that a path names: a folder that is nothing else counts as a run.

    Raises:
        UsageError: There is nothing.
    """
    if path.is_dir():
        is_own = is_checkpoint_folder(path) or list_checkpoints(checkpoints_of(path))
        return "folder" if not is_own and is_folder(path) else "run"
    if not path.is_file():
        raise UsageError(
            f"No checkpoint at `{path}`",
            "Give a run folder, one of its checkpoints/step-* folders, a file of `dis checkpoint export`, a published "
            f".pt file, or `{'`, `'.join(BUNDLED)}`, which comes with dis",
        )
    return file_form(path)


def saved_config(path: Path, meta: Mapping[str, Any]) -> RunConfig:
    """The settings saved with a checkpoint.

    Args:
        path: The checkpoint, to be named.
        meta: Data saved beside its weights.

    Raises:
        MismatchError: They are of another version, or it is a checkpoint of something else: lists what is wrong.
    """
    settings = meta.get("config")
    if not isinstance(settings, dict):
        raise MismatchError(f"`{path}` holds no settings of a run", "Give a run folder of `dis train`")
    return parse_settings(
        settings,
        f"This version cannot read the settings in `{path}`",
        "They may be of a later version: install a newer `dis`",
    )


def parse_settings(settings: dict[str, Any], wrong: str, hint: str) -> RunConfig:
    """Settings that came with a model.

    Args:
        settings: By section.
        wrong: Words before the list of their faults.
        hint: Advice for that case.

    Raises:
        MismatchError: Something is.
    """
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        problems = [problem.message for problem in explain(error, settings, as_text)]
        raise MismatchError(f"{wrong}:{listed(problems)}", hint) from error
