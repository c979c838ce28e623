"""Two processes that want one run folder: exactly one gets it, and the other says at once who has it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.faulty import SMALL, curve, last_step, slow_steps, start
from support.latents import wait_until
from support.tiny import TINY

MOST_SECONDS = 2.0
SETTINGS = ["train.steps=100000", "train.save_every=10", "data.num_workers=0"]
HOLDER = re.compile(rf"is in use by process (\d+) on {re.escape(socket.gethostname())}, started 2")


@dataclass
class Ended:
    """How a process ended: its status, what it said, and its time, less that in which the machine did other work."""

    status: int
    error: str
    seconds: float


class Command:
    """`dis train` as a user starts it."""

    def __init__(self, run: Path, said: Path, *more: str) -> None:
        command = [sys.executable, "-m", "dis_cli", "train", "--out", str(run), "-q", *TINY, *SMALL, *SETTINGS, *more]
        self._said = said
        self._begun = time.monotonic()
        with said.open("wb") as file:
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)
        self.pid = self.process.pid

    def has_ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self) -> Ended:
        try:
            wait_until(self.has_ended)
        except AssertionError:
            self.kill()
            raise
        seconds = time.monotonic() - self._begun
        # Nanoseconds that it was ready to run and did not get a processor; Linux only.
        waited = Path(f"/proc/{self.pid}/schedstat")
        if waited.exists():
            seconds -= int(waited.read_text().split()[1]) / 1e9
        return Ended(self.process.wait(), " ".join(self._said.read_text().split()), seconds)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def assert_lost(ended: Ended, winner: int) -> None:
    assert ended.status == 1, ended.error
    found = HOLDER.search(ended.error)
    assert found, ended.error
    assert int(found[1]) == winner
    assert ended.seconds < MOST_SECONDS, ended.error


@pytest.mark.parametrize("times", [3, pytest.param(20, marks=pytest.mark.long)])
@pytest.mark.timeout(1800)
def test_a_second_start_beside_a_running_one(times: int, tmp_path: Path, tally: Callable[[str, object], None]) -> None:
    run = tmp_path / "run"
    holder = start(run, *SETTINGS, prepare=lambda: slow_steps(0.1))
    wait_until(lambda: last_step(run) >= 3)
    seconds: list[float] = []
    for _ in range(times):
        ended = Command(run, tmp_path / "second").wait()
        assert_lost(ended, holder.pid)
        seconds.append(ended.seconds)
    # The holder noticed nothing of it, and what it wrote is whole.
    step = last_step(run)
    wait_until(lambda: last_step(run) > step)
    holder.kill()
    assert [step for step, *_ in curve(run)] == list(range(1, len(curve(run)) + 1))
    tally("second starts refused", f"{times}/{times}, within {max(seconds):.2f} s")

    # The lock of the one that was killed needs no hand.
    next_one = start(run, *SETTINGS, prepare=lambda: slow_steps(0.1))
    wait_until(lambda: f'"pid": {next_one.pid}' in (run / ".lock-holder.json").read_text())
    wait_until(lambda: len([line for line in (run / "log.txt").read_text().splitlines() if "training" in line]) == 2)
    next_one.kill()


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.long)])
@pytest.mark.timeout(1800)
def test_both_start_at_once(times: int, tmp_path: Path, tally: Callable[[str, object], None]) -> None:
    seconds: list[float] = []
    for number in range(times):
        run = tmp_path / f"run-{number}"
        both = [Command(run, tmp_path / name) for name in ("first", "second")]
        wait_until(lambda both=both: any(command.has_ended() for command in both))
        loser, winner = sorted(both, key=lambda command: not command.has_ended())
        assert not winner.has_ended()
        assert_lost(ended := loser.wait(), winner.pid)
        seconds.append(ended.seconds)
        if number == 0:
            # It trains, though the other one was there.
            wait_until(lambda run=run: last_step(run) >= 1)
        winner.kill()
    tally("pairs of which one won", f"{times}/{times}, the other gave up within {max(seconds):.2f} s")


@pytest.mark.parametrize("times", [5, pytest.param(20, marks=pytest.mark.long)])
@pytest.mark.timeout(1800)
def test_a_folder_whose_holder_was_killed(times: int, tmp_path: Path, tally: Callable[[str, object], None]) -> None:
    run = tmp_path / "run"
    for number in range(times):
        # loader processes outlive the one that was killed for a moment, and have its lock open
        process = start(run, *SETTINGS, f"data.num_workers={number % 3}")
        step = last_step(run)
        wait_until(lambda process=process, step=step: last_step(run) > step or process.poll() is not None)
        assert process.poll() is None, process.errors
        process.kill()
        assert process.poll() == -signal.SIGKILL
        assert (run / ".lock-holder.json").exists()
    tally("stale locks taken over", f"{times - 1}/{times - 1}")
