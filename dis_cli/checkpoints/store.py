"""Checkpoints that are complete, verified, or refused.

A checkpoint is a folder ``step-00000100`` with one ``GROUP.safetensors`` per group of tensors, ``meta.json`` and
``manifest.json``, which holds the size and the SHA-256 of every other file and is written last. The folder gets its
name only when all of it is on the disk and has been read back. The newest checkpoint is found by looking, so no
"latest" file can be wrong. Reading checks every byte before anything is made of it.
"""

import io
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from dis_cli.checkpoints.manifest import (
    MANIFEST,
    Entries,
    check_listing,
    entry_of,
    manifest_bytes,
    parse_json,
    read_manifest,
    read_verified,
    to_json,
    unreadable,
    verify_folder,
)
from dis_cli.checkpoints.tensors import bytes_of, stored
from dis_cli.errors import CheckpointError, StorageError, UsageError
from dis_cli.runtime.files import atomic_folder, discard_folder, storage_error, write_durably, write_hashed
from dis_cli.runtime.safetensors_layout import layout
from dis_cli.runtime.untrusted import check_header

if TYPE_CHECKING:
    from torch import Tensor

_META = "meta.json"
_MOST_STEPS = 20
_SUFFIX = ".safetensors"
_GROUP = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)
# A checkpoint that takes another's place waits beside it under this ending until the other one is gone.
_REPLACEMENT = ".new"
_STEP_FOLDER = re.compile(rf"step-(\d{{8,18}})({re.escape(_REPLACEMENT)})?", re.ASCII)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose every byte was verified.

    Args:
        step: Optimizer steps taken when it was saved.
        meta: Data saved beside the tensors, ``step`` included.
        entries: Size and SHA-256 of its files, by the manifest.
        tensors: Group name -> tensor name -> tensor, on the CPU; only the groups that were asked for.
        notes: Sentences on newer checkpoints that were passed over because they are damaged.
    """

    path: Path
    step: int
    meta: dict[str, Any]
    entries: Entries
    tensors: "dict[str, dict[str, Tensor]]"
    notes: tuple[str, ...] = ()

    @property
    def groups(self) -> list[str]:
        """The groups of tensors that it has, read or not."""
        return [name.removesuffix(_SUFFIX) for name in self.entries if name.endswith(_SUFFIX)]

    @property
    def sha256(self) -> str:
        """Of the manifest, and so of all content."""
        return str(entry_of(manifest_bytes(self.entries))["sha256"])

    def with_groups(self, names: Iterable[str]) -> "Checkpoint":
        """The same with these groups of tensors, read now and verified by the entries read before.

        Raises:
            CheckpointError, RefusedError: As in `read_checkpoint`; or the folder is another by now, or gone.
        """
        names = list(names)
        if missing := [name for name in names if name not in self.groups]:
            raise CheckpointError(f"`{self.path}` holds no {', '.join(missing)}, only {', '.join(self.groups)}")
        tensors = {group: _read_tensors(self.path, group + _SUFFIX, self.entries) for group in names}
        return replace(self, tensors=tensors)


def write_checkpoint(
    root: Path, step: int, tensors: "Mapping[str, Mapping[str, Tensor]]", meta: Mapping[str, Any]
) -> Path:
    """Save a checkpoint and verify it; at every moment the previous ones, and one of this step if there was, stay.

    Files are hashed while they are written, and read back before the folder gets its name.

    Args:
        root: The folder of all checkpoints of a run; made when missing.
        step: Optimizer steps taken, 0 or more; names the folder.
        tensors: Group name (lower case) -> tensor name -> tensor on any device. Tensors that share memory are saved
            one by one and are separate when read.
        meta: Anything JSON can hold, without NaN; tuples come back as lists.

    Returns:
        The checkpoint's folder.

    Raises:
        StorageError: It could not be written, or what was read back differs. No folder has its name.
    """
    if step < 0:
        raise ValueError(f"step must be at least 0, got {step}")
    if meta.get("step", step) != step:
        raise ValueError(f"meta says step {meta['step']}, the checkpoint is of step {step}")
    if bad := [group for group in tensors if not _GROUP.fullmatch(group)]:
        raise ValueError(f"group names must match {_GROUP.pattern}, got {bad}")
    final = root / f"step-{step:08d}"
    _finish_replacement(final)
    target = final.with_name(final.name + _REPLACEMENT) if final.exists() else final
    with atomic_folder(target) as folder:
        entries: Entries = {}
        for group, group_tensors in tensors.items():
            name = group + _SUFFIX
            header, _, size = layout(stored_tensors := stored(group_tensors))
            chunks = itertools.chain([header], (bytes_of(group_tensors[key]) for key in stored_tensors))
            sha256 = write_hashed(folder / name, chunks, size=size, shown_as=final / name)
            entries[name] = {"size": size, "sha256": sha256}
        settings = to_json({"step": step, **meta})
        write_durably(folder / _META, settings, shown_as=final / _META)
        entries[_META] = entry_of(settings)
        write_durably(folder / MANIFEST, manifest_bytes(entries), shown_as=final / MANIFEST)
        try:
            verify_folder(folder)
        except CheckpointError as error:
            raise StorageError(
                f"`{final}` was not saved: what was read back is not what was written: {error.message}",
                "Check the disk; earlier checkpoints are untouched",
            ) from error
    _finish_replacement(final)
    return final


def read_checkpoint(folder: Path, names: Iterable[str] | None = None) -> Checkpoint:
    """Read a checkpoint, every byte of which is verified before anything is made of it.

    Args:
        names: Groups of tensors to read and verify; None reads all, and then also refuses files that the manifest
            does not list.

    Raises:
        CheckpointError: It is not a checkpoint, of a later format, incomplete or damaged: names the file, the
            expected and the found value.
        RefusedError: Its files are as they were written, but made to do harm.
    """
    if not (folder / MANIFEST).exists():
        raise _no_manifest(folder)
    entries = read_manifest(folder)
    meta = parse_json(folder / _META, read_verified(folder, _META, entries))
    step = meta.get("step")
    if not isinstance(step, int) or step < 0:
        raise CheckpointError(f"`{folder / _META}` holds no step: {step!r}")
    match = _STEP_FOLDER.fullmatch(folder.name)
    if match and int(match[1]) != step:
        raise CheckpointError(
            f"`{folder}` is named after step {int(match[1])} but holds step {step}", "Give the folder its name back"
        )
    checkpoint = Checkpoint(path=folder, step=step, meta=meta, entries=entries, tensors={})
    if names is None:
        check_listing(folder, entries)
    return checkpoint.with_groups(checkpoint.groups if names is None else names)


def list_checkpoints(root: Path) -> list[Path]:
    """The checkpoint folders in ``root`` by name, oldest step first; whether they are sound is not looked at."""
    if not root.is_dir():
        return []
    try:
        found = [path for path in root.iterdir() if _STEP_FOLDER.fullmatch(path.name) and path.is_dir()]
    except OSError as error:
        raise unreadable(root, error) from error
    return sorted(found, key=lambda path: (_step_of(path), path.name))


def latest_checkpoint(root: Path, names: Iterable[str] | None = None) -> tuple[Checkpoint | None, list[str]]:
    """Read the newest checkpoint that is sound.

    Args:
        root: The folder of all checkpoints of a run.

    Returns:
        The checkpoint, or None when there is none or all are damaged; and a sentence on each damaged one passed over.
    """
    names = None if names is None else tuple(names)
    notes: list[str] = []
    for folder in reversed(list_checkpoints(root)):
        try:
            return replace(read_checkpoint(folder, names), notes=tuple(notes)), notes
        except CheckpointError as error:
            notes.append(f"Passed over a damaged checkpoint: {error.message}")
    return None, notes


def resolve_checkpoint(path: Path, names: Iterable[str] | None = None, step: int | None = None) -> Checkpoint:
    """Read the checkpoint that a path stands for: a run folder, its ``checkpoints``, or one ``step-*`` folder.

    Args:
        path: For the first two, the newest checkpoint that is sound is read, and ``notes`` tells what was passed over.
        step: The one to read instead of the newest.

    Raises:
        CheckpointError: There is none, or the one of ``step`` is damaged.
        UsageError: There is none of ``step``: lists those there are.
    """
    if is_checkpoint_folder(path):
        checkpoint = read_checkpoint(path, names)
        if step not in (None, checkpoint.step):
            raise _no_step(path, step, [checkpoint.step])
        return checkpoint
    root = checkpoints_of(path)
    if step is not None:
        # Of two folders of a step the later one is what replaces the other.
        folders = {_step_of(folder): folder for folder in list_checkpoints(root)}
        if step not in folders:
            raise _no_step(path, step, steps_in(root))
        return read_checkpoint(folders[step], names)
    checkpoint, notes = latest_checkpoint(root, names)
    if checkpoint is not None:
        return checkpoint
    if notes:
        raise CheckpointError(f"All {len(notes)} checkpoints in `{root}` are damaged. {'. '.join(notes)}")
    if root != path or (path / "config.toml").exists():
        raise CheckpointError(
            f"The run `{path}` has no checkpoint yet", "`dis train` saves every train.save_every steps"
        )
    raise _no_manifest(path)


def is_checkpoint_folder(path: Path) -> bool:
    """True if a folder is one checkpoint, as opposed to a folder of several."""
    return (path / MANIFEST).exists() or _STEP_FOLDER.fullmatch(path.name) is not None


def steps_in(root: Path) -> list[int]:
    """The steps of the checkpoints in a folder, in order; whether they are sound is not looked at."""
    return sorted({_step_of(folder) for folder in list_checkpoints(root)})


def checkpoints_of(path: Path) -> Path:
    """The folder of checkpoints in a run folder; one that has none is taken for it itself."""
    return path / "checkpoints" if (path / "checkpoints").is_dir() else path


def prune(
    root: Path, keep_last: int, verified: Path | None = None, *, keep: Callable[[int], bool] = lambda _step: False
) -> list[Path]:
    """Delete all but the newest checkpoints, and never the newest sound one.

    Args:
        root: The folder of all checkpoints of a run.
        keep_last: Number of newest ones to keep, at least 1.
        verified: A checkpoint known to be sound, for example the one just written: saves reading checkpoints to find
            out. None reads from the newest on until one is sound; when none is, nothing is deleted.
        keep: Whether the checkpoint of a step is kept however old it is.

    Returns:
        The folders that were deleted.

    Raises:
        StorageError: One could not be deleted.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last must be at least 1, got {keep_last}")
    folders = list_checkpoints(root)
    sound = verified or next((folder for folder in reversed(folders) if _is_sound(folder)), None)
    if sound is None:
        return []
    doomed = [folder for folder in folders[:-keep_last] if folder != sound and not keep(_step_of(folder))]
    for folder in doomed:
        discard_folder(folder)
    return doomed


def finish_replacements(root: Path) -> None:
    """Let checkpoints that replace others, and that a kill has kept from it, take their places.

    To be called at a start, by the only process that writes there.

    Raises:
        StorageError: One could not be renamed, or what it replaces could not be deleted.
    """
    for folder in list_checkpoints(root):
        if folder.name.endswith(_REPLACEMENT):
            _finish_replacement(folder.with_name(folder.name.removesuffix(_REPLACEMENT)))


def checkpoint_bytes(folder: Path) -> int:
    """The size of a checkpoint on disk, in bytes."""
    return sum(path.stat().st_size for path in folder.iterdir())


def _finish_replacement(final: Path) -> None:
    """Let a replacement that is complete take the place of ``final``; a kill in between leaves one of them sound."""
    replacement = final.with_name(final.name + _REPLACEMENT)
    if not replacement.exists():
        return
    if not _is_sound(replacement):
        discard_folder(replacement)
        return
    if final.exists():
        discard_folder(final)
    try:
        replacement.rename(final)
    except OSError as error:
        raise storage_error(final, error) from error


def _is_sound(folder: Path) -> bool:
    try:
        verify_folder(folder)
    except CheckpointError:
        return False
    return True


def _read_tensors(folder: Path, name: str, entries: Entries) -> "dict[str, Tensor]":
    # Imported here because torch takes seconds, and a checkpoint's settings are looked up without it.
    from safetensors.torch import load

    path = folder / name
    # Damage can look like malice. It is malice only when the manifest vouches for it.
    data = read_verified(folder, name, entries)
    check_header(path, io.BytesIO(data))
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"`{path}` is not a safetensors file: {error}") from error


def _no_step(path: Path, step: int | None, there: list[int]) -> UsageError:
    shown = ", ".join(map(str, there[-_MOST_STEPS:]))
    few = f"the last are {shown}" if len(there) > _MOST_STEPS else f"there are {shown or 'none'}"
    return UsageError(f"`{path}` has no checkpoint of step {step}: {few}", "Without a step the newest is taken")


def _no_manifest(path: Path) -> CheckpointError:
    """The error for a path that is no checkpoint, by its looks."""
    hint = "Give a run folder or one of its step-* folders"
    if not path.exists():
        return CheckpointError(f"Checkpoint not found: `{path}`", hint)
    if path.is_file():
        return CheckpointError(f"`{path}` is a file, not a checkpoint folder", hint)
    if inside := list_checkpoints(path / "checkpoints") or list_checkpoints(path):
        return CheckpointError(f"`{path}` is a folder of checkpoints, not one of them", f"The newest is `{inside[-1]}`")
    if _STEP_FOLDER.fullmatch(path.name):
        return CheckpointError(
            f"`{path}` is not complete: `{MANIFEST}` is missing", "Use another checkpoint of the run"
        )
    return CheckpointError(f"`{path}` is not a checkpoint: it has no `{MANIFEST}`", hint)


def _step_of(folder: Path) -> int:
    return int(folder.name.removesuffix(_REPLACEMENT).removeprefix("step-"))
