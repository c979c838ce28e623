"""The check that a start belongs to the run already in its folder, by settings and data."""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dis_cli.checkpoints.store import Checkpoint, latest_checkpoint, steps_in
from dis_cli.config.presets import read_config
from dis_cli.config.schema import RunConfig
from dis_cli.config.settings import as_text
from dis_cli.data.source import ImageSource
from dis_cli.errors import CheckpointError, ConfigError, MismatchError, differing, flat, listed
from dis_cli.runs.folder import RunDir, read_facts
from dis_cli.runtime.precision import Precision
from dis_cli.workflows.build import encodes_first, pick_precision, with_precision
from dis_cli.workflows.load.identity import recorded_images
from dis_cli.workflows.load.mismatch import TRAINING_ONLY
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
        "train.report",
        "train.preview_images",
        "train.evaluate_every",
        "train.validate_every",
        "train.validate_images",
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
# Settings that a branch of a run cannot change either: they decide what its weights mean, or which images it sees.
_FIXED_SECTIONS = ("model.", "diffusion.", "codec.")
_FIXED = frozenset({"data.source", "data.max_images", "data.background", "data.validation"})
_FREE = frozenset({"model.label_drop", "model.drop_path", *(f"diffusion.{name}" for name in TRAINING_ONLY)})


@dataclass
class LastState:
    """The last state of the run in a folder; empty for a run that is new, or is to start over.

    Attributes:
        recorded: The settings that it is trained with, from where nobody edits them; None before its first start.
        checkpoint: The newest sound one; None without one, and once `take` has given it away.
        meta: Data saved beside its weights; without a checkpoint what the run was to begin with, as "lineage".
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
        lineage = read_facts(run).get("lineage")
        return LastState(recorded=recorded_config(run, None), meta={} if lineage is None else {"lineage": lineage})
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
            f"`{checkpoint.path}` holds weights only, without the optimizer's state",
            "It was imported: it can be sampled and scored. Train in another folder with `--out DIR`",
        )


def require_begun(run: RunDir, last: LastState) -> None:
    """Refuse to begin at random what was to begin with another model, and was stopped before it did.

    Raises:
        MismatchError: It was: says how to begin it.
    """
    lineage = last.meta.get("lineage")
    if last.checkpoint is None and lineage is not None:
        kind, path, step = (lineage.get(key) for key in ("kind", "path", "step"))
        # The run of a checkpoint, which keeps it no longer than others.
        there = ["--branch", str(Path(path).parents[1]), "--at", str(step)] if kind == "branch" else ["--init", path]
        raise MismatchError(
            f"The run in `{run.path}` was to begin with `{path}`, and was stopped before it did",
            f"Begin it with `{shlex.join(['dis', 'train', *there, '--out', str(run.path)])}` and the settings typed "
            "then, or start over with `--fresh`",
        )


def while_training(run: Path, step: int) -> list[str]:
    """A sentence on the newest checkpoint of a run, where that is being trained."""
    holder = RunDir(run).holder()
    return [] if holder is None else [f"`{run}` is in use by {holder}: its newest sound checkpoint is of step {step}"]


def counts_of(checkpoint: Checkpoint, config: RunConfig) -> tuple[int, int, int]:
    """Steps taken, updates left out and images drawn up to a checkpoint.

    Args:
        config: Settings that it was trained with: earlier versions did not count images, and their batch was one.
    """
    meta, step = checkpoint.meta, checkpoint.step
    return step, int(meta.get("num_skipped", 0)), int(meta.get("images", step * config.train.batch_size))


def is_changeable(key: str) -> bool:
    """True if a setting may change between two starts of a run."""
    return key in CHANGEABLE or key.startswith(CHANGEABLE_SECTIONS)


def fixed_differences(recorded: RunConfig, config: RunConfig) -> list[str]:
    """The keys of settings that differ and cannot be others in a branch of a run."""
    before, now = decisive(recorded), decisive(config)
    fixed = [key for key in before if key in _FIXED or key.startswith(_FIXED_SECTIONS)]
    # It draws the images that are held out.
    fixed += ["seed"] if recorded.data.validation_share is not None else []
    free = [key for key in fixed if key in _FREE or is_changeable(key)]
    return [key for key in fixed if key not in free and before[key] != now.get(key)]


def settle_precision(
    recorded: RunConfig | None, config: RunConfig, device: torch.device
) -> tuple[RunConfig, Precision]:
    """``config`` with "auto" resolved, by what the run has recorded or else by this machine, and the reason."""
    if config.train.precision == "auto" and recorded is not None:
        precision = Precision(recorded.train.precision, "the run was begun with it")
    else:
        precision = pick_precision(config.train.precision, config, device)
    return with_precision(config, precision.name), precision


def check_same_run(run: RunDir, recorded: RunConfig, config: RunConfig) -> None:
    """Refuse to go on with other settings than the run was begun with, which are ``recorded``.

    Raises:
        MismatchError: Lists every setting that differs, with both values, and says how to continue the run.
    """
    before = {key: value for key, value in decisive(recorded).items() if not is_changeable(key)}
    if lines := differing(before, decisive(config), as_text, words=("there", "asked for")):
        raise MismatchError(
            f"`{run.path}` holds a run with other settings:{listed(lines)}",
            f"Choose another folder with `--out DIR`, start over with `--fresh`, or {_continuing(run, recorded)}"
            + _branching(run, recorded, config),
        )


def _branching(run: RunDir, recorded: RunConfig, config: RunConfig) -> str:
    """The sentence that offers a branch with the settings asked for; none where there can be no such branch."""
    steps = steps_in(run.checkpoints)
    if not steps or fixed_differences(recorded, config):
        return ""
    # Of a run that was imported there are weights only.
    if not (run.checkpoint(steps[-1]) / "optimizer.safetensors").exists():
        return ""
    before, now = decisive(recorded), decisive(config)
    wanted = {key: now[key] for key in before if before[key] != now[key] and not is_changeable(key)}
    if config.train.steps <= steps[-1]:
        wanted["train.steps"] = steps[-1] + recorded.train.steps
    elif config.train.steps != recorded.train.steps:
        wanted["train.steps"] = config.train.steps
    settings = [f"{key}={as_text(value)}" for key, value in wanted.items()]
    command = shlex.join(["dis", "train", "--branch", str(run.path), *settings])
    return f". To go on with these settings in a new run: `{command}`"


def decisive(config: RunConfig) -> dict[str, object]:
    """Every setting by its key; of the held-out images only what is left out of training."""
    is_share = config.data.validation_share is not None
    return flat_settings(config) | {"data.validation": config.data.validation if is_share else "none"}


def check_same_data(run: RunDir, last: LastState, source: ImageSource, identity: dict[str, str]) -> None:
    """Refuse to go on with other data than the last checkpoint's.

    Args:
        source: Data that it would go on with; of a run that encodes its images these.
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
    """The command that continues a run: its settings, with the right values in place of edited ones."""
    command = ["dis", "train", "--preset", str(run.config_path), "--out", str(run.path)]
    try:
        there = flat_settings(read_config(run.config_path))
    except ConfigError:
        return "give its settings the values that are there"
    right = flat_settings(recorded) | _last_used(run, recorded)
    wrong = [key for key in right if right[key] != there[key] and (key in _PLACES or not is_changeable(key))]
    return f"continue that run with `{shlex.join([*command, *(f'{key}={as_text(right[key])}' for key in wrong)])}`"


def _last_used(run: RunDir, recorded: RunConfig) -> dict[str, object]:
    """The places where the last start found data that may move."""
    settings = flat_settings(of_last_start(run) or recorded)
    return {key: settings[key] for key in _PLACES}


def notes_on_start(run: RunDir, last: LastState, config: RunConfig) -> list[str]:
    """Notes before the first step of a start with the settings ``config``."""
    if last.recorded is None:
        return last.notes
    jump = _jump_of_learning_rate(run, last.recorded, config, last.step)
    return [*last.notes, *_edits(run, last.recorded), *([] if jump is None else [jump])]


def _edits(run: RunDir, recorded: RunConfig) -> list[str]:
    """Edits of a run's ``config.toml`` since its last start, as sentences."""
    rewritten = "It is written anew with the settings of this start"
    last = of_last_start(run)
    try:
        there = flat_settings(_settled(read_config(run.config_path)))
    except ConfigError as error:
        return [f"{error.message}. {rewritten}"]
    # Before settings were recorded at every start, those that may change could differ from a checkpoint's.
    right = flat_settings(last or recorded)
    decisive = {key: there[key] for key in right if last is not None or not is_changeable(key)}
    lines = differing(decisive, right, as_text, words=("in the file", "recorded"))
    return [f"`{run.config_path}` was edited. {rewritten}:{listed(lines)}"] if lines else []


def _jump_of_learning_rate(run: RunDir, recorded: RunConfig, config: RunConfig, step: int) -> str | None:
    """The jump of the learning rate that another number of steps causes, as a sentence; None when there is none.

    Args:
        recorded: Settings that the run was trained with up to here.
    """
    before, now = recorded.train, config.train
    if step == 0 or step >= now.steps:
        return None
    planned, following = build_learning_rate(recorded, step), build_learning_rate(config, step)
    last = build_learning_rate(recorded, step - 1)
    if f"{planned:.3g}" == f"{following:.3g}":
        return None
    verb = "rises" if following > last else "falls"
    command = ["dis", "train", "--branch", str(run.path), "--at", str(step), f"train.steps={now.steps}"]
    command += ["train.lr_schedule=constant", f"train.lr={last or recorded.train.lr:.3g}"]
    return (
        f"train.steps {before.steps} -> {now.steps} under train.lr_schedule={now.lr_schedule}: the learning rate "
        f"{verb} from {last:.3g} in step {step} to {following:.3g} in step {step + 1}. Such a schedule is planned for "
        f"all steps of a run: keep train.steps={before.steps}, or stop this and go on in a new run from step {step}, "
        f"without a jump, with `{shlex.join(command)}`"
    )


def recorded_config(run: RunDir, checkpoint: Checkpoint | None) -> RunConfig | None:
    """The settings that a run is trained with, from where nobody edits them; None before its first start.

    Args:
        checkpoint: Its last one, if there is one.
    """
    if checkpoint is not None:
        return _settled(saved_config(checkpoint.path, checkpoint.meta))
    if (last := of_last_start(run)) is not None:
        return last
    # A run of an earlier version that was not saved yet.
    return _settled(read_config(run.config_path)) if run.config_path.exists() else None


def of_last_start(run: RunDir) -> RunConfig | None:
    """The settings of the last start; None where they are not recorded, as by earlier versions."""
    try:
        return RunConfig.model_validate(read_facts(run)["config"])
    except (ValueError, KeyError):
        return None


def _settled(config: RunConfig) -> RunConfig:
    # Only a run from before there was a choice records none; it computed in float32.
    return with_precision(config, "fp32") if config.train.precision == "auto" else config


def flat_settings(config: RunConfig) -> dict[str, object]:
    """Every setting by its dotted key, as JSON can hold it."""
    return flat(config.model_dump(mode="json"))
