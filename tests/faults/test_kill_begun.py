"""A run that begins with another one, killed at random moments and started again, ends bit-equal to one left alone."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.faulty import SMALL, curve, hold_after, last_step, saved, start
from support.latents import wait_until
from support.tiny import train

from dis_cli.checkpoints.store import list_checkpoints

KILLS = 6
STEPS = 44
SETTINGS = [f"train.steps={STEPS}", "train.save_every=4", "train.keep_last=2", "data.num_workers=0", "train.lr=0.002"]
# A killed process never comes further than this many steps beyond the one it was to be killed at.
MARGIN = 12
MOST_SECONDS = 0.06


@pytest.mark.parametrize("option", ["--init", "--branch"])
def test_killed_at_random_moments(option: str, tmp_path: Path, tally: Callable[[str, object], None]) -> None:
    source, straight, killed = tmp_path / "source", tmp_path / "straight", tmp_path / "killed"
    assert train(source, *SMALL, "train.steps=7", "train.lr=0.001") == 0
    settings = [option, str(source), *SETTINGS]
    settings += ["train.batch_size=6"] if option == "--branch" else []
    assert train(straight, *SMALL, *settings) == 0
    first = 8 if option == "--branch" else 1
    assert [step for step, *_ in curve(straight)] == list(range(first, STEPS + 1))

    rng = random.Random(option)
    kills = [first - 1, *sorted(rng.choices(range(first, STEPS - MARGIN), k=KILLS - 1))]
    for number, target in enumerate(kills):
        process = start(killed, *settings, prepare=lambda at=target + MARGIN: hold_after(at))
        # The first while it begins: with nothing, the folder, or its first checkpoint.
        if number:
            wait_until(lambda target=target: last_step(killed) >= target)
        else:
            wait_until(lambda: killed.exists())
        time.sleep(rng.uniform(0, MOST_SECONDS))
        process.kill()
    assert list_checkpoints(killed / "checkpoints")
    process = start(killed, *settings)
    assert process.wait() == 0, process.errors
    assert curve(killed) == curve(straight)
    assert saved(killed) == saved(straight)
    assert list(killed.rglob(".tmp-*")) == []
    tally(f"kills of a run with {option} survived", f"{KILLS}/{KILLS}")
