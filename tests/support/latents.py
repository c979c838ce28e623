"""Encoding images into latents: images, what a folder of latents holds, and processes that can be killed at it."""

import ctypes
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from dis_cli.events import Event, Finished

SIZE = 16
PR_SET_PDEATHSIG = 1


def save_images(folder: Path, count: int, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """Fill a folder with random images, the first half of them in the first class and so on."""
    rng = np.random.default_rng(0)
    for index in range(count):
        path = folder / classes[index * len(classes) // count] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(path)
    return folder


def finish(events: Iterator[Event]) -> dict[str, object]:
    """What a workflow ends with."""
    *_, last = events
    assert isinstance(last, Finished)
    return last.result


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a finished folder of latents, in which nothing else may be: no hidden files, no folders."""
    entries = list(folder.iterdir())
    assert not [path.name for path in entries if path.name.startswith(".") or path.is_dir()]
    return {path.name: path.read_bytes() for path in entries}


def finished_shards(folder: Path) -> dict[str, tuple[int, int]]:
    """Which file stands where since when, of the shards that are recorded as finished."""
    if (folder / "manifest.json").exists():
        names = [path.name for path in folder.glob("shard-*")]
    else:
        names = [f"{path.stem}.safetensors" for path in (folder / ".progress").glob("shard-*.json")]
    return {name: ((folder / name).stat().st_ino, (folder / name).stat().st_mtime_ns) for name in sorted(names)}


def encode_slowly(seconds: float, arguments: list[str]) -> int:
    """Run a command with a VAE that takes a while for every batch; for processes of their own."""
    from dis_cli.cli.app import run
    from dis_cli.codecs.vae import VaeCodec

    quick = VaeCodec.moments

    def moments(self: VaeCodec, images: object) -> object:
        time.sleep(seconds)
        return quick(self, images)

    VaeCodec.moments = moments
    return run(arguments)


class Fork:
    """Work in a process of its own. It begins as a copy of this one, so that nothing has to be imported again.

    Args:
        work: Its result is the exit status; None is 0.
        said: Where what it prints goes: standard output, and beside it, with ``.err``, standard error.
        environment: Changes to it.
    """

    def __init__(self, work: Callable[[], int | None], said: Path, **environment: str) -> None:
        self.said = said
        files = (said, said.with_suffix(".err"))
        for file in files:
            file.write_text("")
        self._status: int | None = None
        with warnings.catch_warnings():
            # threads of libraries loaded by other tests: the child does not use them
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                if sys.platform == "linux":
                    # not to outlive tests that were given up
                    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                os.environ.update(environment)
                for number, name in enumerate(files, start=1):
                    os.dup2(os.open(name, os.O_WRONLY), number)
                # not those of the tests' capture
                with open(1, "w", closefd=False) as out, open(2, "w", closefd=False) as err:
                    sys.stdout, sys.stderr = out, err
                    status = work() or 0
            # whatever it is: the child must not go on as a second test run
            except BaseException:  # noqa: BLE001
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(status)

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        if self._status is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if ended else None
        return self._status

    def wait(self) -> int:
        """Its exit status, in the end."""
        try:
            wait_until(lambda: self.poll() is not None)
        finally:
            if self.poll() is None:
                os.kill(self.pid, signal.SIGKILL)
        return self.poll() or 0

    def signal(self, number: int) -> None:
        """Send it a signal."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL, f"it had ended by itself: {self.errors}"

    @property
    def output(self) -> str:
        """What it printed."""
        return self.said.read_text()

    @property
    def errors(self) -> str:
        """What it printed on standard error."""
        return self.said.with_suffix(".err").read_text()


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something that happens in another process."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for never happened"
        time.sleep(0.001)
