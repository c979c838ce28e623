"""What a long run holds does not grow: its memory, its open files, its threads, its disk."""

import contextlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.faulty import curve, saved, start
from support.latents import wait_until

from dis_cli.runtime.faults import inject

SAVE_EVERY = 10
KEEP_LAST = 3
KEEP_EVERY = 100
# Steps until all that is kept has been made: buffers, copies, the first checkpoint to be deleted.
WARM = 80
MOST_GROWTH = 1 << 20


def watch(run: Path, file: Path) -> Callable[[], None]:
    """What makes a process write down what it holds whenever a checkpoint is finished.

    A forked process inherits the open files of the tests before it, and closes them whenever their garbage is
    collected: they are not counted.
    """
    inherited = set[tuple[str, str]]()

    def measure(point: str, step: int, **_: object) -> None:
        if point != "saved":
            return
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        record = {
            "step": step,
            "resident": pages * os.sysconf("SC_PAGE_SIZE"),
            "open_files": len(open_files() - inherited),
            "threads": threading.active_count(),
            "checkpoints": sorted(path.name for path in (run / "checkpoints").iterdir()),
        }
        with file.open("a") as records:
            records.write(json.dumps(record) + "\n")

    def prepare() -> None:
        inherited.update(open_files())
        inject(measure)

    return prepare


def open_files() -> set[tuple[str, str]]:
    """Number and target of every open file of this process; one that was closed during the listing has none."""
    files = set[tuple[str, str]]()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            files.add((path.name, str(path.readlink())))
    return files


def expected_checkpoints(step: int) -> list[str]:
    newest = range(max(SAVE_EVERY, step - (KEEP_LAST - 1) * SAVE_EVERY), step + 1, SAVE_EVERY)
    kept = range(KEEP_EVERY, step + 1, KEEP_EVERY)
    return [f"step-{number:08d}" for number in sorted({*newest, *kept})]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory in use is read from /proc")
@pytest.mark.parametrize("steps", [300, pytest.param(2000, marks=pytest.mark.long)])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.timeout(1800)
def test_nothing_grows(steps: int, workers: int, tmp_path: Path, tally: Callable[[str, object], None]) -> None:
    run, file = tmp_path / "run", tmp_path / "held"
    settings = [f"train.steps={steps}", f"train.save_every={SAVE_EVERY}", f"train.keep_last={KEEP_LAST}"]
    settings += [f"train.keep_every={KEEP_EVERY}", f"data.num_workers={workers}"]
    process = start(run, *settings, prepare=watch(run, file))
    wait_until(lambda: process.poll() is not None, 1200)
    assert process.poll() == 0, process.errors

    records: list[dict[str, Any]] = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(SAVE_EVERY, steps + 1, SAVE_EVERY))
    for record in records:
        assert record["checkpoints"] == expected_checkpoints(record["step"])
    warm = [record for record in records if record["step"] >= WARM]
    assert {record["threads"] for record in warm} == {warm[0]["threads"]}
    third = len(warm) // 3
    # Tensors on their way from a loader process hold files for a moment.
    held = [min(record["open_files"] for record in part) for part in (warm[:third], warm[-third:])]
    assert held[1] == held[0]
    if not workers:
        assert {record["open_files"] for record in warm} == {held[0]}
    early, late = (max(record["resident"] for record in part) for part in (warm[:third], warm[-third:]))
    tally(
        f"over {steps} steps and {len(records)} saves",
        f"{(late - early) / 1e6:+.2f} MB, {held[0]} open files, {warm[0]['threads']} threads",
    )
    assert late - early < MOST_GROWTH
    assert [step for step, *_ in curve(run)] == list(range(1, steps + 1))
    assert list(saved(run)) == expected_checkpoints(steps)
