"""Whether a start belongs to the run that is already in its folder: its settings and its data."""

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from dis_cli.checkpoints.store import Checkpoint, latest_checkpoint
from dis_cli.config.presets import read_config
from dis_cli.config.schema import RunConfig
from dis_cli.config.settings import as_text
from dis_cli.data.source import ImageSource
from dis_cli.errors import CheckpointError, ConfigError, MismatchError, differing, flat, listed
from dis_cli.runs.folder import RunDir
from dis_cli.runtime.precision import Precision
from dis_cli.workflows.build import encodes_first, pick_precision
from dis_cli.workflows.load.identity import recorded_images
from dis_cli.workflows.load.opened import saved_config
from dis_cli.workflows.train.build import build_learning_rate

# Settings that may change between two starts of a run, because they change nothing that was computed so far, or, like
# engines and the parts a batch is computed in, the rounding only: a run may move to another machine.
CHANGEABLE = frozenset(
    {
        "name",
        "description",
        "engine",
        "train.steps",
        "train.accumulation",
        "train.sharding",
        "train.gradient_checkpointing",
        "train.compile",
        "train.on_nonfinite",
        "train.save_every",
        "train.keep_last",
        "train.keep_every",
        "train.log_every",
        "train.preview_every",
        "train.preview_images",
        "train.evaluate_every",
        "train.best_metric",
        "train.max_minutes",
        "train.trackers",
        "data.path",
        "data.check",
        "data.on_bad",
        "data.download",
        "data.num_workers",
        # The folder may move; that it holds the same VAE is checked by its content.
        "codec.vae",
    }
)
CHANGEABLE_SECTIONS = ("sample.", "evaluate.")
# Those of them that say where something is, which is compared by its content.
_PLACES = ("data.path", "codec.vae")


@dataclass
class LastState:
    """How far the run in a folder is; nothing of a run that is new, or is to start over.

    Attributes:
        recorded: The settings that it is trained with, from where nobody edits them; None before its first start.
        checkpoint: The newest sound one; None without one, and once `take` has given it away.
        meta: What was saved beside its weights.
        notes: Sentences on newer checkpoints that were passed over because they are damaged.
    """

    recorded: RunConfig | None = None
    checkpoint: Checkpoint | None = None
    meta: dict[str, Any] = field(default_factory=dict[str, Any])
    step: int = 0
    notes: list[str] = field(default_factory=list[str])

    def take(self) -> Checkpoint | None:
        """The checkpoint, whose tensors are not kept here any longer."""
        checkpoint, self.checkpoint = self.checkpoint, None
        return checkpoint


def read_last_state(run: RunDir, names: Iterable[str] | None = None) -> LastState:
    """Look how far a run is; changes nothing in its folder.

    Args:
        run: The run.
        names: Groups of tensors to read; None reads all.

    Raises:
        CheckpointError: All its checkpoints are damaged.
    """
    checkpoint, notes = latest_checkpoint(run.checkpoints, names)
    if checkpoint is None and notes:
        raise CheckpointError(
            f"All checkpoints of `{run.path}` are damaged. {'. '.join(notes)}",
            "Begin a new run with `--out DIR`, start this one over with `--fresh`, or remove the damaged folders",
        )
    if checkpoint is None:
        return LastState(recorded=recorded_config(run, None))
    return LastState(recorded_config(run, checkpoint), checkpoint, checkpoint.meta, checkpoint.step, notes)


def require_trainable(last: LastState) -> None:
    """Refuse to go on from weights without the optimizer's state.

    Raises:
        MismatchError: The run was imported.
    """
    checkpoint = last.checkpoint
    if checkpoint is None:
        return
    if "imported" in checkpoint.meta or (checkpoint.tensors and "optimizer" not in checkpoint.tensors):
        raise MismatchError(
            f"`{checkpoint.path}` holds weights only, and not what the optimizer needs to go on",
            "It was imported: it can be sampled and scored. Train in another folder with `--out DIR`",
        )


def is_changeable(key: str) -> bool:
    """Whether a setting may change between two starts of a run."""
    return key in CHANGEABLE or key.startswith(CHANGEABLE_SECTIONS)


def settle_precision(
    recorded: RunConfig | None, config: RunConfig, device: torch.device
) -> tuple[RunConfig, Precision]:
    """``config`` with "auto" resolved, by what the run has recorded or else by this machine, and the reason."""
    if config.train.precision == "auto" and recorded is not None:
        precision = Precision(recorded.train.precision, "the run was begun with it")
    else:
        precision = pick_precision(config.train.precision, config, device)
    return _with_precision(config, precision.name), precision


def check_same_run(run: RunDir, recorded: RunConfig, config: RunConfig) -> None:
    """Refuse to go on with other settings than the run was begun with, which are ``recorded``.

    Raises:
        MismatchError: Lists every setting that differs, with both values, and says how to continue the run.
    """
    before = {key: value for key, value in flat_settings(recorded).items() if not is_changeable(key)}
    if lines := differing(before, flat_settings(config), as_text, words=("there", "asked for")):
        raise MismatchError(
            f"`{run.path}` holds a run with other settings:{listed(lines)}",
            f"Choose another folder with `--out DIR`, start over with `--fresh`, or {_continuing(run, recorded)}",
        )


def check_same_data(run: RunDir, last: LastState, source: ImageSource, identity: dict[str, str]) -> None:
    """Refuse to go on with other data than the last checkpoint's.

    Args:
        source: What it would go on with; of a run that encodes its images these.
        identity: From `identity_of`, of ``source``.

    Raises:
        MismatchError: Gives both fingerprints, and says how to continue the run.
    """
    if last.recorded is None:
        return
    # Of a run that encodes its images the latents may not be there yet.
    is_of_images = encodes_first(last.recorded)
    key = "images_fingerprint" if is_of_images else "data_fingerprint"
    before = recorded_images(last.meta, last.recorded) if is_of_images else last.meta.get(key)
    now = identity[key]
    if before is not None and before != now:
        where = _last_used(run, last.recorded)["data.path"]
        raise MismatchError(
            f"The data {source.name} are not those that `{run.path}` was trained on: "
            f"sha256 {str(before)[:12]} then, {now[:12]} now",
            ("Bring the data back as they were" if where is None else f"Bring those back as they were in `{where}`")
            + f" and {_continuing(run, last.recorded)}, or begin a new run with `--out DIR`",
        )


def _continuing(run: RunDir, recorded: RunConfig) -> str:
    """How a run is continued: by its settings, with what was right in place of what was edited in them."""
    command = ["dis", "train", "--preset", str(run.config_path), "--out", str(run.path)]
    try:
        there = flat_settings(read_config(run.config_path))
    except ConfigError:
        return "give its settings the values that are there"
    right = flat_settings(recorded) | _last_used(run, recorded)
    wrong = [key for key in right if right[key] != there[key] and (key in _PLACES or not is_changeable(key))]
    return f"continue that run with `{shlex.join([*command, *(f'{key}={as_text(right[key])}' for key in wrong)])}`"


def _last_used(run: RunDir, recorded: RunConfig) -> dict[str, object]:
    """Where the last start found what may move."""
    settings = flat_settings(_of_last_start(run) or recorded)
    return {key: settings[key] for key in _PLACES}


def notes_on_start(run: RunDir, last: LastState, config: RunConfig) -> list[str]:
    """What the user should know before the first step of a start with the settings ``config``."""
    if last.recorded is None:
        return last.notes
    jump = _jump_of_learning_rate(last.recorded, config, last.step)
    return [*last.notes, *_edits(run, last.recorded), *([] if jump is None else [jump])]


def _edits(run: RunDir, recorded: RunConfig) -> list[str]:
    """What somebody has changed in a run's ``config.toml`` since its last start, as sentences."""
    rewritten = "It is written anew with the settings of this start"
    last = _of_last_start(run)
    try:
        there = flat_settings(_settled(read_config(run.config_path)))
    except ConfigError as error:
        return [f"{error.message}. {rewritten}"]
    # Before settings were recorded at every start, those that may change could differ from a checkpoint's.
    right = flat_settings(last or recorded)
    decisive = {key: there[key] for key in right if last is not None or not is_changeable(key)}
    lines = differing(decisive, right, as_text, words=("in the file", "recorded"))
    return [f"`{run.config_path}` was edited. {rewritten}:{listed(lines)}"] if lines else []


def _jump_of_learning_rate(recorded: RunConfig, config: RunConfig, step: int) -> str | None:
    """What another number of steps does to the learning rate where a run goes on, as a sentence; None when nothing.

    Args:
        recorded: What the run was trained with up to here.
    """
    before, now = recorded.train, config.train
    if step == 0 or step >= now.steps:
        return None
    planned, following = build_learning_rate(recorded, step), build_learning_rate(config, step)
    last = build_learning_rate(recorded, step - 1)
    if f"{planned:.3g}" == f"{following:.3g}":
        return None
    verb = "rises" if following > last else "falls"
    return (
        f"train.steps {before.steps} -> {now.steps} under train.lr_schedule={now.lr_schedule}: the learning rate "
        f"{verb} from {last:.3g} in step {step} to {following:.3g} in step {step + 1}. Such a schedule is planned for "
        f"all steps of a run: keep train.steps={before.steps}, or begin a new run with `--out DIR`"
    )


def recorded_config(run: RunDir, checkpoint: Checkpoint | None) -> RunConfig | None:
    """The settings that a run is trained with, from where nobody edits them; None before its first start.

    Args:
        checkpoint: Its last one, if there is one.
    """
    if checkpoint is not None:
        return _settled(saved_config(checkpoint.path, checkpoint.meta))
    if (last := _of_last_start(run)) is not None:
        return last
    # A run of an earlier version that was not saved yet.
    return _settled(read_config(run.config_path)) if run.config_path.exists() else None


def _of_last_start(run: RunDir) -> RunConfig | None:
    """The settings of the last start; None where they are not recorded, as by earlier versions."""
    try:
        settings = json.loads(run.run_json.read_bytes())["config"]
        return RunConfig.model_validate(settings)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _settled(config: RunConfig) -> RunConfig:
    # Only a run from before there was a choice records none; it computed in float32.
    return _with_precision(config, "fp32") if config.train.precision == "auto" else config


def _with_precision(config: RunConfig, name: str) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update={"precision": name})})


def flat_settings(config: RunConfig) -> dict[str, object]:
    """Every setting by its dotted key, as JSON can hold it."""
    return flat(config.model_dump(mode="json"))
