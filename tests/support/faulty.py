"""Training runs that something happens to, and the run that nothing happened to, which they must equal to the bit."""

import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.latents import Fork
from support.tiny import train
from torch import Tensor

from dis_cli.checkpoints import store
from dis_cli.checkpoints.manifest import read_manifest, verify_folder
from dis_cli.checkpoints.store import list_checkpoints
from dis_cli.metrics.table import DIGIT_SCORES
from dis_cli.runs.folder import RunDir, read_events
from dis_cli.runtime.faults import inject
from dis_cli.workflows.train import train as workflow
from dis_cli.workflows.train import watch

# Two averages beside the weights, in checkpoints of 70 KB; with draws of every kind. No rate depends on the last step.
SMALL = ["model.embed_dim=8", "model.depth=1", "model.drop_path=0.1", "train.lr_schedule=constant"]
SMALL += ["train.ema_more=0.9", "train.ema_warmup=false"]

# Pictures and scores on the way.
WATCHED = ["train.preview_every=4", "train.preview_images=4", "train.evaluate_every=4", "evaluate.num_samples=16"]
WATCHED += ["sample.sampler=ddim", "sample.steps=2"]

# The parts of a checkpoint file between which a process can be killed, in tensors.
_TENSORS = 16


def start(run: Path, *settings: str, prepare: Callable[[], object] = lambda: None, said: Path | None = None) -> Fork:
    """Start ``dis train`` on a small model in a process of its own.

    Args:
        run: The run's folder.
        settings: Beside those that make the model small.
        prepare: Called there before.
        said: Where what it prints goes; None is a file beside the run's folder.
    """

    def work() -> int:
        # A quarter of such a start would go by measuring the processor, for a figure that is only shown.
        workflow.matrix_flops_per_second = lambda *_: 1e9
        prepare()
        return train(run, *SMALL, *settings)

    return Fork(work, said or run.with_name(f"{run.name}-said"))


def curve(run: Path) -> list[tuple[int, float, float, float]]:
    """Step, loss, norm of the gradient and learning rate, as often as they were recorded."""
    events = read_events(RunDir(run).events_path)
    return [(e["step"], e["loss"], e["grad_norm"], e["lr"]) for e in events if e["event"] == "step"]


def scores(run: Path) -> list[tuple[str, int, float]]:
    """Name, step and value of every score, as often as they were recorded."""
    events = read_events(RunDir(run).events_path)
    return [(event["name"], event["step"], event["value"]) for event in events if event["event"] == "metric"]


def last_step(run: Path) -> int:
    """The last step that is recorded; 0 when none is."""
    path = RunDir(run).events_path
    if not path.exists():
        return 0
    # a run that has come far is asked often
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        tail = file.read()
    # the last line may be just being written
    numbers = [line.split(b'"step": ')[1].split(b",")[0] for line in tail.split(b"\n")[:-1] if b'"step", ' in line]
    return max(map(int, numbers), default=0)


def hashes(checkpoint: Path) -> dict[str, str]:
    """The SHA-256 of every file of tensors, after all bytes of the checkpoint were found to be what they were."""
    verify_folder(checkpoint)
    entries = read_manifest(checkpoint)
    return {name: entry["sha256"] for name, entry in entries.items() if name.endswith(".safetensors")}


def saved(run: Path) -> dict[str, dict[str, str]]:
    """The hashes of all checkpoints of a run by name."""
    return {folder.name: hashes(folder) for folder in list_checkpoints(RunDir(run).checkpoints)}


def assert_same_run(run: Path, golden: Path) -> None:
    """Every step once, with the same loss; the same checkpoints, scores and pictures; nothing left behind."""
    steps = curve(run)
    assert [step for step, *_ in steps] == list(range(1, len(steps) + 1))
    assert steps == curve(golden)
    assert saved(run) == saved(golden)
    assert [*hashes(list_checkpoints(run / "checkpoints")[-1])] == [
        "model.safetensors",
        "ema.safetensors",
        "ema_more_0.safetensors",
        "optimizer.safetensors",
    ]
    assert scores(run) == scores(golden)
    for folder in ("samples", "evaluations"):
        assert _names(run / folder) == _names(golden / folder)
    for picture in (golden / "samples").iterdir():
        assert (run / "samples" / picture.name).read_bytes() == picture.read_bytes()
    assert list(run.rglob(".tmp-*")) == []
    assert list(run.rglob("*.new")) == []


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def score_quickly(patch: pytest.MonkeyPatch) -> None:
    """Let scores be of the generated images alone: the classifier of digits takes a second."""

    def score(images: Tensor, *_: object) -> dict[str, float]:
        told = {name: DIGIT_SCORES[name].beside for name in ("frechet_digits", "class_accuracy")}
        names = ("kernel_distance_digits", *told, *itertools.chain(*told.values()), "frechet_digits_train")
        return {name: float(images.double().mean()) + place for place, name in enumerate(dict.fromkeys(names))}

    patch.setattr(watch, "score", score)


def flip(path: Path, bit: int) -> None:
    """Turn one bit of a file over, in a new file of its name."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    replace(path, data)


def replace(path: Path, data: bytes) -> None:
    """Give a file other content. Cutting an old file short would make some file systems wait for the disk."""
    path.unlink()
    path.write_bytes(data)


def slow_steps(seconds: float) -> None:
    """Let every step take so much longer, so that there is time to do something to the process."""
    inject(lambda point, _step, **_: time.sleep(seconds) if point == "gradients" else None)


def hold_after(step: int) -> None:
    """Stand still before the step after this one, to be killed there, however slow the process is that does it."""
    parent = os.getppid()

    def wait(point: str, at: int, **_: object) -> None:
        if point == "gradients" and at > step:
            while os.getppid() == parent:
                time.sleep(0.05)
            os._exit(1)

    inject(wait)


def die_at(number: int, thread: str) -> Callable[[], None]:
    """What makes a process kill itself just before the n-th change that a thread makes to files, counted from 0.

    Args:
        number: Of opening a file to write, a part of its content, forcing it to the disk, making, renaming, deleting.
        thread: How its name begins.
    """
    count = itertools.count()

    def changes() -> None:
        if threading.current_thread().name.startswith(thread) and next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            changes()

    def prepare() -> None:
        fsync, write_hashed = os.fsync, store.write_hashed

        def dying_fsync(descriptor: int) -> None:
            changes()
            fsync(descriptor)

        def dying_chunks(chunks: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
            for index, chunk in enumerate(chunks, start=1):
                if index % _TENSORS == 0:
                    changes()
                yield chunk

        def dying_write(path: Path, chunks: Iterable[bytes | memoryview], **more: Any) -> str:
            return write_hashed(path, dying_chunks(chunks), **more)

        os.fsync, store.write_hashed = dying_fsync, dying_write
        sys.addaudithook(on_event)

    return prepare
