"""A folder of latents while it is being written, by any number of processes on any number of machines.

    .progress/begin.lock         held by the process that checks the images and agrees on the settings
    .progress/settings.json      what is written, agreed on by the first process; with the images left out
    .progress/shard-00000.json   one finished shard's record
    .progress/shard-00000.lock   held by the process that encodes it
    .progress/shard-00000.tmp    what it has written so far
    .progress/manifest.json      the manifest, in the moment before it gets its place

A shard belongs to whoever holds its lock; the operating system gives the lock back when its holder ends, however it
ends. So no process waits for the manifest of another, none writes into a file of another, and a kill costs one shard.
When all records are there, whoever sees it first writes the manifest and removes the folder; all would write the same.
"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock

from dis_cli.data.latents.format import (
    FORMAT,
    MANIFEST,
    PROGRESS,
    VERSION,
    LatentSettings,
    Manifest,
    Shard,
    Skipped,
    damaged,
    parse,
    read_manifest,
    read_record,
    shard_name,
    write_manifest,
)
from dis_cli.errors import DataError, StorageError
from dis_cli.runtime.files import atomic_write_text, publish, storage_error, try_lock


@dataclass(frozen=True)
class Plan:
    """The agreement of all processes that write a folder."""

    settings: LatentSettings
    skipped: tuple[Skipped, ...]


class Unfinished:
    """The ``.progress`` of a folder of latents.

    Args:
        folder: The folder of latents; it need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._progress = folder / PROGRESS
        # The folders that were not there before, the innermost first.
        self._made: list[Path] = []

    @property
    def exists(self) -> bool:
        """True if a process has begun."""
        return (self._progress / "settings.json").is_file()

    def create(self) -> None:
        """Make the folder.

        Raises:
            StorageError: It cannot be made.
        """
        self._made = self._made or [path for path in (self._folder, *self._folder.parents) if not path.exists()]
        try:
            self._progress.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(self._folder, error, action="create") from error

    @contextlib.contextmanager
    def beginning(self) -> Generator[bool]:
        """Hold the folder's beginning, in which the images are checked and the settings agreed on.

        Yields:
            Whether it is held; False while another process holds it.

        Raises:
            StorageError: The folder allows no locks.
        """
        with self._held("begin") as held:
            try:
                yield held
            finally:
                # nothing was agreed on: images are bad, or the check was interrupted
                if held and not self.exists:
                    shutil.rmtree(self._progress, ignore_errors=True)
                    with contextlib.suppress(OSError):
                        for folder in self._made:
                            folder.rmdir()

    def read_plan(self) -> Plan | None:
        """The agreed plan; None when no process has begun, or all have ended.

        Raises:
            DataError: The record is damaged or of another version.
        """
        path = self._progress / "settings.json"
        try:
            content = read_record(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return parse(Plan, content)
        except ValueError as error:
            raise damaged(path, error) from error

    def write_plan(self, plan: Plan) -> None:
        """Agree; called once, while holding ``beginning``."""
        content = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(plan)}
        atomic_write_text(self._progress / "settings.json", json.dumps(content, indent=1) + "\n")

    @contextlib.contextmanager
    def claim(self, number: int) -> Generator[bool]:
        """Hold a shard.

        Yields:
            Whether it is ours to encode: False when another process holds it or has finished it.
        """
        with self._held(f"shard-{number:05d}") as held:
            yield held and not self._record(number).is_file() and not (self._folder / MANIFEST).exists()

    def add(self, number: int, shard: Shard) -> None:
        """Record a finished shard, while holding it."""
        content = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(shard)}
        atomic_write_text(self._record(number), json.dumps(content, indent=1) + "\n")

    def shards(self, settings: LatentSettings) -> dict[int, Shard | None]:
        """The recorded shards by their numbers; None for one whose record is damaged."""
        found: dict[int, Shard | None] = {}
        for number in sorted(self.done(settings)):
            # another process may have finished the folder meanwhile
            with contextlib.suppress(FileNotFoundError):
                try:
                    found[number] = parse(Shard, read_record(self._record(number)))
                except (DataError, ValueError):
                    found[number] = None
        return found

    def sound_shards(self, settings: LatentSettings) -> dict[int, Shard]:
        """The finished shards. One whose file is missing or has another size is forgotten, to be encoded again."""
        found: dict[int, Shard] = {}
        for number, shard in self.shards(settings).items():
            if shard is None or shard.fault(self._folder, hashed=False):
                self._record(number).unlink(missing_ok=True)
            else:
                found[number] = shard
        return found

    def done(self, settings: LatentSettings) -> set[int]:
        """Numbers of the shards that are recorded; cheaper than ``shards``."""
        if (self._folder / MANIFEST).exists():
            return set(range(settings.num_shards))
        return {number for number in range(settings.num_shards) if self._record(number).is_file()}

    def finish(self, plan: Plan) -> Manifest | None:
        """Write the manifest when all shards are there, and remove the folder; None while some are missing."""
        if not (self._folder / MANIFEST).exists():
            shards = self.sound_shards(plan.settings)
            if len(shards) == plan.settings.num_shards:
                in_order = tuple(shards[number] for number in range(plan.settings.num_shards))
                self._publish(Manifest(settings=plan.settings, skipped=plan.skipped, shards=in_order))
            # unless another process finished the last shards and wrote it in this moment
            elif not (self._folder / MANIFEST).exists():
                return None
        shutil.rmtree(self._progress, ignore_errors=True)
        return read_manifest(self._folder)

    def reopen(self, manifest: Manifest, faulty: Sequence[Shard]) -> None:
        """Turn a finished folder whose files were damaged or deleted into an unfinished one."""
        self.create()
        for number, shard in enumerate(manifest.shards):
            if shard not in faulty:
                self.add(number, shard)
        self.write_plan(Plan(manifest.settings, manifest.skipped))
        try:
            (self._folder / MANIFEST).unlink()
        except OSError as error:
            raise storage_error(self._folder / MANIFEST, error, action="delete") from error

    def _publish(self, manifest: Manifest) -> None:
        try:
            # in here first, so that a kill leaves nothing beside the shards
            write_manifest(self._progress, manifest)
            publish(self._progress / MANIFEST, self._folder / MANIFEST)
        except (StorageError, OSError) as error:
            # another process wrote the same, and removed this folder
            if (self._folder / MANIFEST).exists():
                return
            cause = error if isinstance(error, StorageError) else storage_error(self._folder / MANIFEST, error)
            raise cause from error

    def _record(self, number: int) -> Path:
        return self._progress / f"{Path(shard_name(number)).stem}.json"

    @contextlib.contextmanager
    def _held(self, name: str) -> Generator[bool]:
        lock = filelock.FileLock(self._progress / f"{name}.lock")
        try:
            held = try_lock(lock)
        except OSError as error:
            # the last process of all removes the folder
            if not (self._folder / MANIFEST).exists():
                raise storage_error(self._progress, error, action="lock") from error
            held = False
        if not held:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()
