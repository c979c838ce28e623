"""A run that is killed and started again, at any moment and however often, ends bit-equal to one that never was."""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.faulty import SMALL, WATCHED, assert_same_run, curve, hold_after, last_step, score_quickly, start
from support.latents import wait_until
from support.tiny import TINY, train

from dis_cli.checkpoints.store import latest_checkpoint
from dis_cli.runs.folder import read_events

SAVE_EVERY = 4
SETTINGS = [f"train.save_every={SAVE_EVERY}", "train.keep_last=2", "train.lr_schedule=linear"]
# A killed process never comes further than this many steps beyond the one it was to be killed at.
MARGIN = 12
MOST_SECONDS = 0.06


class Command:
    """`dis train` as a user starts it, in a process that imports everything anew."""

    def __init__(self, run: Path, *settings: str) -> None:
        command = [sys.executable, "-m", "dis_cli", "train", "--out", str(run), "-q", *TINY, *SMALL, *settings]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        self._process.kill()
        assert self._process.wait() == -9


def saved_steps(run: Path) -> list[int]:
    return [event["step"] for event in read_events(run / "events.jsonl") if event["event"] == "saved"]


@pytest.mark.parametrize(
    ("kills", "fresh", "steps", "more"),
    [
        (8, (1,), 72, ["data.num_workers=0"]),
        pytest.param(24, (3, 17), 240, [], marks=pytest.mark.long, id="24-workers"),
        pytest.param(24, (), 240, [*WATCHED, "train.keep_every=20"], marks=pytest.mark.long, id="24-watched"),
        pytest.param(200, (), 800, [], marks=pytest.mark.long, id="200"),
    ],
)
@pytest.mark.timeout(1800)
def test_killed_at_random_moments(
    kills: int,
    fresh: tuple[int, ...],
    steps: int,
    more: list[str],
    tmp_path: Path,
    tally: Callable[[str, object], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    score_quickly(monkeypatch)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    settings = [*SETTINGS, *more, f"train.steps={steps}"]
    assert train(straight, *SMALL, *settings) == 0

    rng = random.Random(kills)
    targets = sorted(rng.choices(range(1, steps - MARGIN), k=kills))
    lost: list[int] = []
    in_saves = 0
    for number, target in enumerate(targets):
        # where the number of loading processes is not set, some starts have two
        workers = [] if more[:1] == ["data.num_workers=0"] else [f"data.num_workers={2 * (number % 3 == 1)}"]
        if number in fresh:
            process = Command(killed, *settings, *workers)
        else:
            process = start(killed, *settings, *workers, prepare=lambda at=target + MARGIN: hold_after(at))
        # some while it starts, the others once they have come so far
        if number % 4 != 3:
            wait_until(lambda target=target: last_step(killed) >= target)
        time.sleep(rng.uniform(0, MOST_SECONDS))
        process.kill()

        in_saves += any((killed / "checkpoints").glob(".tmp-*"))
        before = last_step(killed)
        checkpoint, notes = latest_checkpoint(killed / "checkpoints")
        resumed = checkpoint.step if checkpoint else 0
        assert notes == []
        # What was said to be saved is there, and at most the save that was under way is missing.
        assert resumed >= max(saved_steps(killed), default=0)
        assert resumed >= (before - 1) // SAVE_EVERY * SAVE_EVERY - SAVE_EVERY
        lost.append(max(0, before - resumed))

    process = start(killed, *settings)
    assert process.wait() == 0, process.errors
    starts = [event["first"] for event in read_events(killed / "events.jsonl") if event["event"] == "started"]
    assert starts[-1] == resumed
    assert len(curve(killed)) == steps
    assert_same_run(killed, straight)
    tally("kills survived", f"{kills}/{kills}, {in_saves} of them in the middle of a save")
    tally("steps lost", f"at most {max(lost)}, {sum(lost) / kills:.1f} on average; train.save_every is {SAVE_EVERY}")
