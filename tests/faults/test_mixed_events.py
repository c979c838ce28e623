"""Whatever happens to a run, in whatever order: there is always something to go on from, and the end is the same."""

import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.faulty import SMALL, assert_same_run, die_at, flip, hold_after, last_step, slow_steps, start
from support.latents import wait_until
from support.tiny import dis, trained

from dis_cli.checkpoints.store import latest_checkpoint, list_checkpoints

SAVE_EVERY = 2
STEPS = 24
SETTINGS = [f"train.save_every={SAVE_EVERY}", "train.keep_last=3", "data.num_workers=0", f"train.steps={STEPS}"]
# Nothing happens to the last saves, so that the checkpoints at the end are those of a straight run.
LAST = STEPS - 4 * SAVE_EVERY


@dataclass
class Story:
    """A run, and what is made to happen to it."""

    run: Path
    rng: random.Random
    sound: int = 0
    told: list[str] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.run / "checkpoints"

    def kill(self) -> None:
        """At some moment in the next steps."""
        target = min(last_step(self.run) + self.rng.randrange(6), LAST - 1)
        process = start(self.run, *SETTINGS, prepare=lambda: hold_after(LAST))
        wait_until(lambda: last_step(self.run) >= target)
        time.sleep(self.rng.uniform(0, 0.05))
        process.kill()

    def kill_at_a_change(self) -> None:
        """Just before a file is changed."""
        number, thread = self.rng.randrange(60), self.rng.choice(["checkpoint", "MainThread"])

        def prepare() -> None:
            hold_after(LAST)
            die_at(number, thread)()

        process = start(self.run, *SETTINGS, prepare=prepare)
        # where there are fewer changes, the process stands still in the end
        wait_until(lambda: process.poll() is not None or last_step(self.run) >= LAST)
        if process.poll() is None:
            process.kill()
        assert process.poll() == -signal.SIGKILL, process.errors

    def interrupt(self) -> None:
        """With SIGTERM or SIGINT, after which the step that was reached is saved."""
        number = self.rng.choice([signal.SIGTERM, signal.SIGINT])
        target = min(last_step(self.run) + 1 + self.rng.randrange(3), LAST - 2)
        if last_step(self.run) >= target:
            return
        process = start(self.run, *SETTINGS, prepare=lambda: slow_steps(0.02))
        wait_until(lambda: last_step(self.run) >= target)
        process.signal(number)
        assert process.wait() == 128 + number, process.errors
        self.sound = max(self.sound, int(list_checkpoints(self.root)[-1].name[5:]))

    def damage(self) -> None:
        """A bit of the newest checkpoint, or a part of it, where there is one before it."""
        folders = list_checkpoints(self.root)
        if len(folders) < 2 or latest_checkpoint(self.root)[1]:
            return
        path = self.rng.choice(sorted(folders[-1].iterdir()))
        if self.rng.random() < 0.5:
            flip(path, self.rng.randrange(8 * path.stat().st_size))
        else:
            path.unlink()
        self.sound = 0

    def fill(self) -> None:
        """The disk: nothing larger than a part of a checkpoint can be written."""

        def prepare() -> None:
            limit = self.rng.randrange(13_000, 29_000)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

        if last_step(self.run) < LAST - SAVE_EVERY:
            assert start(self.run, *SETTINGS, prepare=prepare).wait() == 1

    def leave_rubbish(self) -> None:
        """What a power cut might leave: half a checkpoint that never got its name, half a line."""
        if self.root.exists():
            (self.root / f".tmp-{self.rng.randrange(1 << 32):x}").mkdir()
            with (self.run / "events.jsonl").open("a") as events:
                events.write('{"event": "step", "step": 1, "lo')

    def sample(self) -> None:
        """From the newest sound checkpoint, beside which nothing is changed."""
        if latest_checkpoint(self.root)[0] is not None:
            out = self.run.with_name("sampled")
            assert dis("sample", "--ckpt", self.run, "--out", out, "-n", 1, "-q", "sample.steps=2") == 0
            shutil.rmtree(out)

    def check(self) -> None:
        """Something sound is there, no older than what was sound before, unless it was damaged since."""
        checkpoint, notes = latest_checkpoint(self.root)
        step = checkpoint.step if checkpoint else 0
        assert step >= self.sound, self.told
        assert checkpoint is not None or notes == [], self.told
        self.sound = step


EVENTS: list[Callable[[Story], None]] = [
    Story.kill,
    Story.kill,
    Story.kill_at_a_change,
    Story.kill_at_a_change,
    Story.interrupt,
    Story.damage,
    Story.damage,
    Story.fill,
    Story.leave_rubbish,
    Story.sample,
]


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("golden") / "run", *SMALL, *SETTINGS)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 22))])
@pytest.mark.timeout(1800)
def test_the_end_is_that_of_a_straight_run(
    seed: int, golden: Path, tmp_path: Path, tally: Callable[[str, object], None]
) -> None:
    rng = random.Random(seed)
    story = Story(tmp_path / "run", rng)
    for _ in range(10):
        event = rng.choice(EVENTS)
        story.told.append(event.__name__)
        event(story)
        story.check()
    process = start(story.run, *SETTINGS)
    assert process.wait() == 0, (story.told, process.errors)
    assert_same_run(story.run, golden)
    tally("survived", ", ".join(story.told))
