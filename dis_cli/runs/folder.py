"""The folder of a run: where its files are, who may write to it, and the record of what happened.

    config.toml run.json events.jsonl log.txt checkpoints/step-*/ samples/ evaluations/
    latents/ when the run encoded its images itself
    tensorboard/ wandb/ wandb-id.txt when it is shown there
    report.html when `dis report` or ``train.report`` wrote its page

Two hidden files stand beside them while a process holds the run: the lock, and a note on who holds it.
"""

import contextlib
import itertools
import json
import math
import os
import socket
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dis_cli.errors import StorageError
from dis_cli.events import Event
from dis_cli.runtime.files import atomic_write_bytes, atomic_write_text, remove_temporaries, storage_error, try_lock

if TYPE_CHECKING:
    import filelock

# Loader processes of a killed run notice within 5 seconds that they are orphans, and hold its lock until then.
_ORPHANS_SECONDS = 10.0
_POLL_SECONDS = 0.02

# A process notes itself after it has started; clocks that are set meanwhile move by less than this.
_CLOCK_SECONDS = 60.0


@dataclass(frozen=True)
class RunDir:
    """The folder of one run.

    Args:
        path: The folder; it need not exist yet.
    """

    path: Path

    @property
    def config_path(self) -> Path:
        """The resolved configuration, itself a preset."""
        return self.path / "config.toml"

    @property
    def run_json(self) -> Path:
        """Versions, machine, command line and times."""
        return self.path / "run.json"

    @property
    def events_path(self) -> Path:
        """One JSON object a line, in the order in which things happened."""
        return self.path / "events.jsonl"

    @property
    def log_path(self) -> Path:
        """The messages shown to the user, as plain text."""
        return self.path / "log.txt"

    @property
    def checkpoints(self) -> Path:
        """Folder of ``step-*`` folders."""
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint of a step."""
        return self.checkpoints / f"step-{step:08d}"

    @property
    def samples(self) -> Path:
        """Folder of generated images."""
        return self.path / "samples"

    @property
    def evaluations(self) -> Path:
        """Folder of measured scores."""
        return self.path / "evaluations"

    @property
    def latents(self) -> Path:
        """Folder of the images' latents, in a run that encodes them itself."""
        return self.path / "latents"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def wandb_id_path(self) -> Path:
        """The run's id at Weights & Biases, so that a later start continues its curves."""
        return self.path / "wandb-id.txt"

    def holder(self) -> "Holder | None":
        """The process that is working on the run, as far as can be told without touching the lock; None when none is.

        A process of another machine cannot be asked whether it lives, and counts as working until its note is gone.
        """
        holder = Holder.read(self._holder_path)
        return holder if holder is not None and holder.is_alive() and not holder.has_ended() else None

    def create(self) -> None:
        """Make the folder and its sub-folders; those that exist are left alone.

        Raises:
            StorageError: They cannot be made.
        """
        for folder in (self.path, self.checkpoints, self.samples, self.evaluations):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise storage_error(folder, error, action="create") from error

    def remove_temporaries(self) -> list[Path]:
        """Delete what a killed process left in the run's folders, and return it. Call it while holding the lock."""
        folders = (self.path, self.checkpoints, self.samples, self.evaluations)
        return [leftover for folder in folders for leftover in remove_temporaries(folder)]

    def set_aside(self) -> Path | None:
        """Move what a run has written into ``earlier-N``, which is then a run folder of its own.

        Latents stay: they are the images' and not the run's. Call it while holding the lock.

        Returns:
            The new folder; None when there was nothing to move.

        Raises:
            StorageError: Something could not be moved.
        """
        mine = (self.config_path, self.run_json, self.events_path, self.log_path)
        mine += (self.checkpoints, self.samples, self.evaluations)
        mine += (self.tensorboard, self.wandb_id_path, self.path / "wandb", self.path / "report.html")
        found = [path for path in mine if path.exists()]
        if not found:
            return None
        number = next(number for number in itertools.count(1) if not (self.path / f"earlier-{number}").exists())
        folder = self.path / f"earlier-{number}"
        try:
            folder.mkdir()
            # Without its configuration a folder is no run: that goes last.
            for path in reversed(found):
                path.rename(folder / path.name)
        except OSError as error:
            raise storage_error(folder, error, action="move what was there to") from error
        return folder

    def put_back(self, folder: Path) -> None:
        """Undo `set_aside`, which returned ``folder``; nothing may have been written since."""
        for path in sorted(folder.iterdir()):
            path.rename(self.path / path.name)
        folder.rmdir()

    @contextlib.contextmanager
    def lock(self) -> Generator[None, None, None]:
        """Hold the run: no other process on any machine that shares the disk can hold it at the same time.

        The operating system gives the lock back when its holder ends, however it ends. A living holder is reported
        at once; when the holder is dead and the lock still taken, its orphaned children are given time to end. The
        folder is made when missing. Where nothing is added to the folder meanwhile, it is left, or is not there, as it
        was before.

        Raises:
            StorageError: Another process holds the run (names its pid, machine and start), or the folder does not
                allow locks.
        """
        made = self._make_folder()
        before = self._names()
        # Imported late: `dis --help` locks nothing.
        import filelock

        lock = filelock.FileLock(self.path / ".lock")
        deadline = time.monotonic() + _ORPHANS_SECONDS
        while not self._try_lock(lock):
            holder = Holder.read(self._holder_path)
            if (holder is not None and holder.is_alive()) or time.monotonic() > deadline:
                raise StorageError(
                    f"`{self.path}` is in use by {holder or 'another process'}",
                    "Wait for it to end, stop it, or choose another run folder",
                )
            time.sleep(_POLL_SECONDS)
        try:
            Holder.this_process().write(self._holder_path)
            yield
        finally:
            with contextlib.suppress(OSError):
                self._holder_path.unlink(missing_ok=True)
            if ".lock" not in before and self._names() == before | {".lock"}:
                self._leave_no_trace(made)
            lock.release()

    def _try_lock(self, lock: "filelock.BaseFileLock") -> bool:
        try:
            return try_lock(lock)
        except OSError as error:
            raise storage_error(self.path / ".lock", error, action="lock") from error

    def _make_folder(self) -> list[Path]:
        """Make the folder and its parents; returns those that were not there, the innermost first."""
        made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(self.path, error, action="create") from error
        return made

    def _names(self) -> set[str]:
        with contextlib.suppress(OSError):
            return {path.name for path in self.path.iterdir()}
        return set()

    def _leave_no_trace(self, made: list[Path]) -> None:
        """Take the lock's file away, and the folders that were made for it."""
        with contextlib.suppress(OSError):
            (self.path / ".lock").unlink(missing_ok=True)
            for folder in made:
                folder.rmdir()

    def append_event(self, event: Event) -> None:
        """Add one line to ``events.jsonl``; numbers that are not finite become null, which JSON has no other way for.

        Raises:
            StorageError: The line may be there in part; `truncate_events` removes it.
        """
        line = json.dumps(_finite(event.to_json()), allow_nan=False) + "\n"
        try:
            with self.events_path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise storage_error(self.events_path, error, len(line)) from error

    def append_log(self, line: str) -> None:
        """Add one line to ``log.txt``.

        Raises:
            StorageError: The line may be there in part.
        """
        try:
            with self.log_path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{line}\n")
        except OSError as error:
            raise storage_error(self.log_path, error, len(line) + 1) from error

    def truncate_events(self, step: int) -> None:
        """Forget what happened after ``step``, because the work is about to be done again from there.

        Drops every record with a ``step`` beyond it, and lines that a kill left unreadable. Records without a step
        stay. The file is replaced at once or not at all, and left alone when there is nothing to drop.

        Raises:
            StorageError: The file is as it was.
        """
        old = self.events_path.read_bytes() if self.events_path.exists() else b""
        kept = b"".join(line.rstrip(b"\n") + b"\n" for line, record in _records(old) if not _is_beyond(record, step))
        if kept != old:
            atomic_write_bytes(self.events_path, kept)

    @property
    def _holder_path(self) -> Path:
        return self.path / ".lock-holder.json"


def read_events(path: Path) -> list[dict[str, Any]]:
    """The records of an ``events.jsonl``, in order; none when there is no such file.

    Lines that a kill or a power cut left unreadable are passed over.
    """
    return [record for _, record in _records(path.read_bytes() if path.exists() else b"")]


def read_facts(run: RunDir) -> dict[str, Any]:
    """What ``run.json`` says of the last start of a run; empty where there is none that can be read."""
    try:
        facts = json.loads(run.run_json.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


@dataclass(frozen=True)
class Holder:
    """The process that holds a run, as it has noted itself.

    Args:
        started: When it took the run, as ISO 8601 with the offset from UTC.
    """

    pid: int
    host: str
    started: str

    @classmethod
    def this_process(cls) -> "Holder":
        return cls(os.getpid(), socket.gethostname(), datetime.now().astimezone().isoformat(timespec="seconds"))

    @classmethod
    def read(cls, path: Path) -> "Holder | None":
        try:
            note = json.loads(path.read_bytes())
            return cls(int(note["pid"]), str(note["host"]), str(note["started"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, path: Path) -> None:
        atomic_write_text(path, json.dumps({"pid": self.pid, "host": self.host, "started": self.started}) + "\n")

    def is_alive(self) -> bool:
        """False only when it is known to be dead: a process of another machine cannot be asked."""
        if self.host != socket.gethostname():
            return True
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except OSError:
            return True
        return True

    def has_ended(self) -> bool:
        """True when a number that lives is known to mean no holder: what is left of one, or a later process.

        Numbers are given out again, after a boot at once. Only Linux is asked.
        """
        if self.host != socket.gethostname():
            return False
        try:
            # The name, in brackets, may hold anything. After it: the state, and 19 fields on the start, in ticks.
            fields = Path(f"/proc/{self.pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
            noted = datetime.fromisoformat(self.started).timestamp()
        except (OSError, ValueError, IndexError, AttributeError):
            return False
        return fields[0] in ("Z", "X") or time.time() - age > noted + _CLOCK_SECONDS

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, started {self.started}"


def _records(content: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each readable line with its record."""
    for line in content.splitlines(keepends=True):
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                yield line, record


def _is_beyond(record: dict[str, Any], step: int) -> bool:
    value = record.get("step")
    return isinstance(value, int) and value > step


def _finite(value: object) -> object:
    """``value`` with None for every number that is not finite, and text for every path, at any depth."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Path():
            return str(value)
        case dict():
            return {str(key): _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case _:
            return value
