"""Trackers of steps, scores and pictures besides ``events.jsonl``: TensorBoard and Weights & Biases.

Both get the field names of ``events.jsonl`` as keys. They only watch: once training has begun, one that fails is closed
and said so, and the training goes on. Nothing here imports torch before a tracker is opened.
"""

import contextlib
import importlib
import importlib.util
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dis_cli.errors import MissingResourceError, first_line
from dis_cli.events import Event, Finished, Metric, Note, Saved, Step, Stopped, Wrote
from dis_cli.runs.folder import RunDir
from dis_cli.runtime.files import atomic_write_text, storage_error
from dis_cli.text_files import NotUtf8, read_text

STEP_KEYS = ("loss", "lr", "grad_norm", "images_per_second", "data_seconds", "memory_bytes", "mfu")
WANDB_PROJECT = "dis"

# What is in memory and not on the disk yet is at most this old.
_SECONDS_UNWRITTEN = 10
# Without a network, so long is waited for the start; and for the end, which must not keep a stopped run from ending.
_SECONDS_TO_START = 30.0
_SECONDS_TO_FINISH = 20.0


class Tracker(Protocol):
    """A tracker, which shows a run. Any of its methods may raise anything."""

    @property
    def name(self) -> str:
        """Its name in ``train.trackers``."""
        ...

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Take numbers of one step; steps never go back."""
        ...

    def image(self, key: str, path: Path, step: int) -> None:
        """Take a PNG file."""
        ...

    def flush(self) -> None:
        """Write down what was taken so far."""
        ...

    def close(self, *, succeeded: bool) -> None:
        """Write down the rest and end; ``succeeded`` is False when the training failed."""
        ...


class Trackers:
    """Several trackers as one that never fails.

    Args:
        first_step: The step that training continues from.
        notes: Notes on their opening; the first ``record`` returns it.
    """

    def __init__(self, trackers: Sequence[Tracker], *, first_step: int = 0, notes: Sequence[Note] = ()) -> None:
        self._trackers = list(trackers)
        self._step = first_step
        self._notes = list(notes)

    def record(self, event: Event) -> list[Note]:
        """Show one event; ``Finished`` and ``Stopped`` also close.

        Returns:
            What there is to say: a tracker that failed, and was closed.
        """
        match event:
            case Step():
                self._step = event.step
                values = {key: value for key in STEP_KEYS if (value := getattr(event, key)) is not None}
                self._each(lambda tracker: tracker.scalars(values, event.step))
            case Metric():
                step = self._step if event.step is None else event.step
                self._each(lambda tracker: tracker.scalars({event.name: event.value}, step))
            case Wrote(what="preview"):
                self._each(lambda tracker: tracker.image("preview", event.path, self._step))
            case Saved():
                # Steps up to here are never taken again, so they must not be lost.
                self._each(lambda tracker: tracker.flush())
            case Finished() | Stopped():
                self._close(succeeded=not (isinstance(event, Stopped) and event.reason == "error"))
            case _:
                pass
        notes, self._notes = self._notes, []
        return notes

    def close(self) -> None:
        """Close what is still open, because the training ends without a word."""
        self._close(succeeded=False)

    def _close(self, *, succeeded: bool) -> None:
        self._each(lambda tracker: tracker.close(succeeded=succeeded))
        self._trackers.clear()

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for tracker in tuple(self._trackers):
            try:
                action(tracker)
            except Exception as error:  # noqa: BLE001 - the training is worth more, whatever a package raises
                self._trackers.remove(tracker)
                with contextlib.suppress(Exception):
                    tracker.close(succeeded=False)
                message = f"{tracker.name} failed and shows no more of this run: {first_line(error)}"
                self._notes.append(Note(message=message, level="warning"))


def look_for_trackers(names: Sequence[str]) -> None:
    """Find the packages of trackers, without importing them.

    Args:
        names: "tensorboard" or "wandb".

    Raises:
        MissingResourceError: One is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise _missing(name, "is not installed")


def open_trackers(names: Sequence[str], run: RunDir, *, config: Mapping[str, object], first_step: int) -> Trackers:
    """Begin to show a run, or go on with it.

    Args:
        names: "tensorboard" or "wandb".
        config: The run's settings as a JSON object; ``name`` is shown as the run's.
        first_step: The step that training continues from; what was shown of later ones is taken back or kept, and
            shown once.

    Raises:
        MissingResourceError: A package, or what it needs to begin, is not there; the run's folder is as it was.
        StorageError: The folder cannot be written to.
    """
    look_for_trackers(names)
    before = _written(run)
    opened: list[Tracker] = []
    notes: list[Note] = []
    try:
        for name in dict.fromkeys(names):
            match name:
                case "tensorboard":
                    opened.append(_TensorBoard(run.tensorboard, first_step))
                case "wandb":
                    opened.append(_Wandb(run, config, notes))
                case _:
                    raise ValueError(f"unknown tracker {name!r}")
    except BaseException:
        Trackers(opened).close()
        for path in sorted(_written(run) - before, reverse=True):
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        raise
    return Trackers(opened, first_step=first_step, notes=notes)


def _written(run: RunDir) -> set[Path]:
    """All that trackers have written so far."""
    folders = (run.tensorboard, run.path / "wandb")
    own = (*folders, run.wandb_id_path, *(path for folder in folders for path in folder.rglob("*")))
    return {path for path in own if path.exists() or path.is_symlink()}


class _TensorBoard:
    name = "tensorboard"

    def __init__(self, folder: Path, first_step: int) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._summary: Any = importlib.import_module("tensorboard.compat.proto.summary_pb2").Summary
        except ImportError as error:
            raise _missing(self.name, f"does not load: {error}") from error
        try:
            # What an earlier start has shown of steps that are taken again is hidden.
            self._writer: Any = SummaryWriter(folder, purge_step=first_step + 1, flush_secs=_SECONDS_UNWRITTEN)
        except OSError as error:
            raise storage_error(folder, error) from error

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        # One record for all of them: a fourth of the time that as many calls of add_scalar take.
        value = [self._summary.Value(tag=key, simple_value=number) for key, number in values.items()]
        self._writer.file_writer.add_summary(self._summary(value=value), step)

    def image(self, key: str, path: Path, step: int) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self._writer.add_image(key, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def flush(self) -> None:
        self._writer.flush()

    def close(self, *, succeeded: bool) -> None:
        del succeeded
        self._writer.close()


class _Wandb:
    name = "wandb"

    def __init__(self, run: RunDir, config: Mapping[str, object], notes: list[Note]) -> None:
        try:
            self._wandb = importlib.import_module("wandb")
            identity = _wandb_id(run.wandb_id_path)
            self._run, reason = self._begin(run, config, identity)
            # Not before it has begun: a start that is refused changes nothing.
            atomic_write_text(run.wandb_id_path, f"{identity}\n")
        except Exception as error:
            raise MissingResourceError(
                f"train.trackers asks for wandb, which cannot start: {first_line(error)}",
                "Run `wandb login`, keep the curves on this disk with WANDB_MODE=offline, or leave it out",
            ) from error
        if reason:
            kept = f"the curves are kept in {run.path / 'wandb'}; `wandb sync` uploads its offline-run-* folders"
            notes.append(Note(message=f"wandb works offline ({reason}): {kept}", level="warning"))
        elif not self._run.offline and (address := self._run.url):
            notes.append(Note(message=f"wandb: {address}"))

    def _begin(self, run: RunDir, config: Mapping[str, object], identity: str) -> tuple[Any, str | None]:
        """The open run, and why it is kept on this disk though WANDB_MODE does not say so."""
        wandb = self._wandb
        arguments = {
            "project": WANDB_PROJECT,
            "name": config.get("name"),
            "id": identity,
            "resume": "allow",
            "dir": str(run.path),
            "config": dict(config),
            # train.steps and the like may be others at every start.
            "allow_val_change": True,
            "reinit": "create_new",
            "settings": wandb.Settings(
                # It would take over both standard streams, and write between the lines.
                console="off",
                silent=True,
                init_timeout=_SECONDS_TO_START,
                finish_timeout=_SECONDS_TO_FINISH,
                finish_timeout_raises=True,
            ),
        }
        chosen = os.environ.get("WANDB_MODE")
        if chosen not in (None, "online"):
            return wandb.init(**arguments), None
        try:
            # Left to itself, it would ask for the login in the middle of everything.
            if not wandb.login(prompt=False, verify=False):
                raise ConnectionError("there is no login on this machine")
            return wandb.init(**arguments), None
        except Exception as error:
            if chosen:
                raise
            # Its process goes on trying to begin the run, and allows no other of that name meanwhile.
            wandb.teardown()
            return wandb.init(**arguments, mode="offline"), first_line(error)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        # Of steps that it has already, it keeps the first values, which are the same.
        self._run.log(dict(values), step=step)

    def image(self, key: str, path: Path, step: int) -> None:
        self._run.log({key: self._wandb.Image(str(path))}, step=step)

    def flush(self) -> None:
        # It writes in a process of its own, at once.
        pass

    def close(self, *, succeeded: bool) -> None:
        self._run.finish(exit_code=0 if succeeded else 1)


def _wandb_id(path: Path) -> str:
    """The recorded name of the run, or a new one."""
    with contextlib.suppress(OSError, NotUtf8):
        recorded = read_text(path).strip()
        if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", recorded):
            return recorded
    return secrets.token_hex(4)


def _missing(name: str, what: str) -> MissingResourceError:
    return MissingResourceError(
        f"train.trackers asks for {name}, which {what}",
        f"`pip install 'dis-cli[{name}]'`, or leave it out of train.trackers",
    )
