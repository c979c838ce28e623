"""A branch as it is asked for: the state that it goes on from, its settings and its folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dis_cli.checkpoints.manifest import verify_folder
from dis_cli.checkpoints.portable import is_folder
from dis_cli.checkpoints.store import (
    Checkpoint,
    checkpoints_of,
    is_checkpoint_folder,
    latest_checkpoint,
    list_checkpoints,
    read_checkpoint,
    resolve_checkpoint,
)
from dis_cli.config.overrides import apply_overrides
from dis_cli.config.schema import RunConfig
from dis_cli.errors import CheckpointError, MismatchError, UsageError
from dis_cli.runs.folder import RunDir, read_facts
from dis_cli.runs.place import branches_of, name_of
from dis_cli.workflows.train.branch import Branch
from dis_cli.workflows.train.resume import (
    decisive,
    is_changeable,
    of_last_start,
    recorded_config,
    while_training,
)

_MOST_STEPS = 10


@dataclass(frozen=True)
class Fork:
    """A branch as it is asked for.

    Attributes:
        config: Settings of the new run.
        out: Its folder.
        branch: The state that it goes on from; None where the folder holds this branch, which goes on by itself.
    """

    config: RunConfig
    out: Path
    branch: Branch | None


def fork(
    path: Path, overrides: Sequence[str], *, step: int | None, out: Path | None, fresh: bool, reads: bool = True
) -> Fork:
    """Find the state to go on from, and the settings and the folder of the run that does.

    The same command continues a branch that was begun, whatever has become of the run that it comes from.

    Args:
        path: A run folder, or one of its checkpoints.
        overrides: ``KEY=VALUE`` on the run's settings.
        step: The checkpoint to go on from; None is the newest sound one.
        out: The folder; None is ``runs/NAME-branch``, or the first ``NAME-branch-N`` that is free.
        fresh: Whether what is in the folder is to start over.
        reads: Whether tensors are read: those of the leader are enough.

    Raises:
        UsageError: There is no such run or step, it holds no state to go on from, or the settings do not go with it.
    """
    _require_state(path)
    run = _run_of(path)
    asked = _step_named(path) if step is None else step
    place, begun = _place(run, overrides, step=asked, out=out)
    if begun is not None and not fresh:
        return Fork(begun, place, None)
    checkpoint, notes = _read(path, run, step, None if reads else ())
    if "imported" in checkpoint.meta or "optimizer" not in checkpoint.groups:
        raise _no_state(path)
    saved = _settings_of(run, checkpoint)
    branch = Branch(run, saved, checkpoint, asked, tuple(notes))
    config = apply_overrides(saved, [f"name={name_of(place)}", *overrides])
    branch.check_settings(config)
    return Fork(config, place, branch)


def _require_state(path: Path) -> None:
    if not path.exists():
        raise UsageError(
            f"No run at `{path}`", "Give a run folder of `dis train`; `dis runs DIR` lists the runs in one"
        )
    is_run = path.is_dir() and (is_checkpoint_folder(path) or list_checkpoints(checkpoints_of(path)))
    if path.is_file() or (not is_run and is_folder(path)):
        raise _no_state(path)


def _no_state(path: Path) -> MismatchError:
    return MismatchError(
        f"`{path}` holds weights only, without the optimizer's state that a branch goes on with",
        f"Begin a new run with these weights: `--init {path}`",
    )


def _run_of(path: Path) -> Path:
    """The run folder that a path is, or is in."""
    up = 2 if is_checkpoint_folder(path) else 1 if path.name == "checkpoints" else 0
    # "step-00000100" alone, given inside the folder of checkpoints, has no parents of its own.
    path = path if len(path.parts) > up else path.absolute()
    return path if up == 0 else path.parents[up - 1]


def _step_named(path: Path) -> int | None:
    """The step of a checkpoint; None for a folder of several, and for one that is damaged, as is told later."""
    try:
        return read_checkpoint(path, ()).step if is_checkpoint_folder(path) else None
    except CheckpointError:
        return None


def _place(run: Path, overrides: Sequence[str], *, step: int | None, out: Path | None) -> tuple[Path, RunConfig | None]:
    """The folder of a branch; and the settings to continue it with, where it was begun there."""
    for place in [out] if out is not None else branches_of(Path("runs"), run):
        if place.resolve() == run.resolve():
            raise UsageError(
                f"`--out`: got `{place}`, which is the run that the branch is to go on from",
                "Give another folder with `--out DIR`",
            )
        begun = _begun(place, run, overrides, step)
        if begun is not None and (out is not None or _is_same(of_last_start(RunDir(place)), begun)):
            # Without a checkpoint it has still to begin.
            return place, begun if list_checkpoints(RunDir(place).checkpoints) else None
        if out is not None or not _is_taken(place):
            return place, None
    raise AssertionError("there are always more names")


def _is_taken(place: Path) -> bool:
    """True if there is more than the lock of a start that is under way, perhaps this one."""
    return place.exists() and (not place.is_dir() or any(not path.name.startswith(".") for path in place.iterdir()))


def _begun(place: Path, run: Path, overrides: Sequence[str], step: int | None) -> RunConfig | None:
    """The settings asked for of a branch of this run that is in a folder; None where there is no such branch."""
    facts, recorded = read_facts(RunDir(place)), of_last_start(RunDir(place))
    lineage = facts.get("lineage")
    if not isinstance(lineage, dict) or lineage.get("kind") != "branch" or recorded is None:
        return None
    source, steps = Path(lineage["path"]), (lineage["asked_step"], lineage["step"])
    # The newest one may be another by now: the same words are the same branch.
    if source.parents[1] != run.resolve() or step not in steps or _is_another(source, lineage["sha256"]):
        return None
    before = {key: old for key, (old, _) in lineage["changed"].items()}
    sections = recorded.model_dump(mode="json")
    for key, value in before.items():
        section, _, leaf = key.rpartition(".")
        (sections[section] if section else sections)[leaf] = value
    config = apply_overrides(RunConfig.model_validate(sections), overrides)
    if config.train.precision != "auto":
        return config
    return apply_overrides(config, [f"train.precision={recorded.train.precision}"])


def _is_another(checkpoint: Path, sha256: str) -> bool:
    """True if a checkpoint was made anew since; that of a run that has deleted it was not."""
    try:
        return read_checkpoint(checkpoint, ()).sha256 != sha256
    except CheckpointError:
        return False


def _is_same(recorded: RunConfig | None, config: RunConfig) -> bool:
    """True if a run may be continued with these settings."""
    if recorded is None:
        return False
    before, now = decisive(recorded), decisive(config)
    return all(is_changeable(key) or before[key] == now.get(key) for key in before)


def _read(path: Path, run: Path, step: int | None, names: tuple[str, ...] | None) -> tuple[Checkpoint, list[str]]:
    """The checkpoint to go on from, and sentences on how it was found."""
    root = checkpoints_of(run)
    if step is not None or is_checkpoint_folder(path):
        try:
            return resolve_checkpoint(path, names, step), []
        except CheckpointError as error:
            steps = ", ".join(str(number) for number in _sound_steps(root)[-_MOST_STEPS:])
            raise UsageError(
                f"The checkpoint to go on from is damaged: {error.message}",
                f"Sound ones of `{run}` are of steps {steps}: choose one with `--at STEP`"
                if steps
                else "Give another run",
            ) from error
    checkpoint, notes = _newest(root, names)
    if checkpoint is None and notes:
        raise UsageError(f"All checkpoints of `{run}` are damaged. {'. '.join(notes)}", "Give another run")
    if checkpoint is None:
        raise UsageError(
            f"`{run}` has no checkpoint to go on from", "`dis train` saves one every train.save_every steps"
        )
    return checkpoint, [*notes, *while_training(run, checkpoint.step)]


def _newest(root: Path, names: tuple[str, ...] | None) -> tuple[Checkpoint | None, list[str]]:
    while True:
        there = list_checkpoints(root)
        checkpoint, notes = latest_checkpoint(root, names)
        # What a training has deleted meanwhile looks damaged, and there is a newer one.
        if not notes or list_checkpoints(root) == there:
            return checkpoint, notes


def _sound_steps(root: Path) -> list[int]:
    found: list[int] = []
    for folder in list_checkpoints(root):
        try:
            verify_folder(folder)
            found.append(read_checkpoint(folder, ()).step)
        except CheckpointError:
            continue
    return found


def _settings_of(run: Path, checkpoint: Checkpoint) -> RunConfig:
    """The settings of a run: of its last start, which may say more than a checkpoint how it is to go on."""
    saved = recorded_config(RunDir(run), checkpoint)
    assert saved is not None
    last = of_last_start(RunDir(run))
    return last if last is not None and _is_same(saved, last) else saved
