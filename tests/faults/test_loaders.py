"""Loader processes that die, fail, hang or cannot be started: one error that says what to do, and none is left over."""

import errno
import faulthandler
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.tiny import dis, train

from dis_cli.checkpoints.store import read_checkpoint
from dis_cli.data import loaders
from dis_cli.data.loaders import load_ahead
from dis_cli.data.published.digits import DigitsSource
from dis_cli.errors import DataError, DisError

Sign = Callable[[], None]


class Unsendable(Exception):
    """Cannot be made again from what it is stored as."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def numbers(index: int, sign_of_life: Sign) -> tuple[torch.Tensor, ...]:
    # More than a pipe holds; an empty tensor; another type.
    return torch.full((300, 200), float(index)), torch.empty(0, 5), torch.tensor(index)


def fail_at(bad: int, action: Callable[[], object], index: int, sign_of_life: Sign) -> tuple[torch.Tensor, ...]:
    if index == bad:
        action()
    return numbers(index, sign_of_life)


def die(number: int) -> None:
    faulthandler.disable()
    os.kill(os.getpid(), number)


def throw(error: BaseException) -> None:
    raise error


def load(action: Callable[[], object], bad: int = 3, count: int = 8, num_workers: int = 2) -> list[int]:
    items = load_ahead(functools.partial(fail_at, bad, action), range(count), num_workers=num_workers)
    return [int(index) for _, _, index in items]


@pytest.fixture(autouse=True)
def nothing_left_over(capfd):
    """No process outlives its work, and none says anything for itself."""
    yield
    assert multiprocessing.active_children() == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("num_workers", [1, 2, 5])
def test_items_come_in_order_and_not_through_shared_memory(num_workers: int) -> None:
    made = list(load_ahead(numbers, range(3, 14), num_workers=num_workers))
    assert [int(item[2]) for item in made] == list(range(3, 14))
    for index, item in zip(range(3, 14), made, strict=True):
        assert all(torch.equal(got, wanted) for got, wanted in zip(item, numbers(index, time.time), strict=True))
        assert not any(tensor.is_shared() for tensor in item)


def test_whoever_stops_early_leaves_no_process() -> None:
    items = load_ahead(numbers, range(1000), num_workers=3)
    next(items)
    assert len(multiprocessing.active_children()) == 3
    items.close()


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (signal.SIGKILL, ["SIGKILL", "memory"]),
        (signal.SIGBUS, ["SIGBUS", "--shm-size", "/dev/shm"]),
        (signal.SIGSEGV, ["SIGSEGV"]),
        (signal.SIGRTMIN + 7, ["killed by signal"]),
    ],
)
def test_a_killed_process_is_told_with_its_cause(number: int, cause: list[str]) -> None:
    with pytest.raises(DisError, match=r"Loader process [12] of 2 was killed by signal") as caught:
        load(functools.partial(die, number))
    text = f"{caught.value.message} {caught.value.hint}"
    assert all(word in text for word in [*cause, "data.num_workers=0", "Run the same command again"])


def test_a_process_that_ends_without_a_word_is_told() -> None:
    with pytest.raises(DisError, match="ended before its work was done, with status 7") as caught:
        load(functools.partial(os._exit, 7))
    assert "data.num_workers=0" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (DataError("Image 3 vanished", "Bring it back"), DataError, "Image 3 vanished"),
        (MemoryError(), DisError, "A loader process ran out of memory"),
        (RuntimeError("[enforce fail at alloc] DefaultCPUAllocator: no"), DisError, "ran out of memory"),
        (OSError(errno.EIO, "Input/output error", "a.png"), OSError, "a.png"),
        (ValueError("odd"), ValueError, "odd"),
        (Unsendable("one", "two"), DisError, "A loader process failed: Unsendable: one two"),
        (KeyboardInterrupt("now"), KeyboardInterrupt, "now"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_raised_there_is_raised_here(error: BaseException, kind: type[BaseException], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        load(functools.partial(throw, error))
    assert type(caught.value) is kind
    if isinstance(error, DisError):
        assert caught.value.hint == error.hint


def test_a_stuck_process_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "_PATIENCE_SECONDS", 2)
    with pytest.raises(DisError, match="has read nothing for 2 seconds, and was ended") as caught:
        load(functools.partial(die, signal.SIGSTOP))
    assert "data.num_workers=0" in (caught.value.hint or "")


def slowly(index: int, sign_of_life: Sign) -> tuple[torch.Tensor, ...]:
    for _ in range(12):
        time.sleep(0.2)
        sign_of_life()
    return numbers(index, sign_of_life)


def test_a_slow_one_that_gets_on_is_not_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "_PATIENCE_SECONDS", 1)
    monkeypatch.setattr(loaders, "_SECONDS_BETWEEN_SIGNS", 0.1)
    assert len(list(load_ahead(slowly, range(1), num_workers=1))) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_job_is_not_theirs(number: signal.Signals) -> None:
    assert load(functools.partial(die, number)) == list(range(8))


@pytest.mark.parametrize(
    "error", [OSError(errno.EAGAIN, "Resource temporarily unavailable"), OSError(errno.ENOMEM, "")]
)
def test_a_process_that_cannot_be_started_is_told(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(loaders.Process):
        def start(self) -> None:
            if len(multiprocessing.active_children()) == 2:
                raise error
            super().start()

    monkeypatch.setattr(loaders, "Process", Refused)
    with pytest.raises(DisError, match="Loader process 3 of 4 cannot be started") as caught:
        load(os.getpid, num_workers=4)
    assert "data.num_workers=2, or data.num_workers=0" in (caught.value.hint or "")
    assert "ulimit -u" in (caught.value.hint or "")


def test_too_many_open_files_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*, duplex: bool) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(loaders, "Pipe", refuse)
    with pytest.raises(DisError, match="Loader process 1 of 2 cannot be started: Too many open files") as caught:
        load(os.getpid)
    assert (caught.value.hint or "").startswith("Set data.num_workers=0")
    assert "ulimit -n" in (caught.value.hint or "")


ORPHANS = """
import os, time, torch
from dis_cli.data.loaders import load_ahead
from multiprocessing import active_children

def numbers(index, sign_of_life):
    return (torch.zeros(300, 200),)

items = load_ahead(numbers, range(10**9), num_workers=3)
next(items)
print(*(child.pid for child in active_children()), flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "kept = items; raise SystemExit"])
def test_processes_end_with_the_one_that_trains(end: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ORPHANS.format(end=end)], capture_output=True, text=True, timeout=60, check=False
    )
    deadline = time.monotonic() + 20
    left = [int(pid) for pid in done.stdout.split()]
    assert len(left) == 3
    while left and time.monotonic() < deadline:
        left = [pid for pid in left if Path(f"/proc/{pid}").exists() and "Z" not in state(pid)]
        time.sleep(0.05)
    assert left == []
    assert done.stderr == ""


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def test_training_ends_with_one_error_and_keeps_what_was_saved(tmp_path: Path, monkeypatch, capfd) -> None:
    load_batch, calls = DigitsSource.load_batch, []

    def deadly(source, indices, rngs):
        calls.append(None)
        if len(calls) == 3:
            die(signal.SIGKILL)
        return load_batch(source, indices, rngs)

    monkeypatch.setattr(DigitsSource, "load_batch", deadly)
    assert train(tmp_path, "train.steps=40", "train.save_every=2", "data.num_workers=2") == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("error: Loader process 1 of 2 was killed by signal 9 (SIGKILL)\n") == 1
    assert captured.err.count("hint: ") == 1
    assert len(captured.err.splitlines()) == 3
    assert read_checkpoint(tmp_path / "checkpoints" / "step-00000004").step == 4
    monkeypatch.setattr(DigitsSource, "load_batch", load_batch)
    assert train(tmp_path, "train.steps=6", "data.num_workers=2") == 0


def test_an_image_that_vanishes_while_training_is_named(tmp_path: Path, monkeypatch, capfd) -> None:
    def vanish(source, indices, rngs):
        raise DataError("`a.png` cannot be read: No such file or directory", "Bring it back")

    monkeypatch.setattr(DigitsSource, "load_batch", vanish)
    assert train(tmp_path, "train.steps=4", "data.num_workers=2") == 1
    error = capfd.readouterr().err
    assert error == "error: `a.png` cannot be read: No such file or directory\n\nhint: Bring it back\n"


def test_a_process_that_cannot_be_started_ends_the_command(tmp_path: Path, monkeypatch, capfd) -> None:
    def refuse(process):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(loaders.Process, "start", refuse)
    assert dis("train", "--out", tmp_path, "-q", "train.steps=4", "data.num_workers=2") == 1
    assert "error: Loader process 1 of 2 cannot be started: Resource temp" in capfd.readouterr().err
