"""A folder that may not be written, from the start or from some moment on: the command fails soon, and says it."""

import ctypes
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.faulty import SMALL, assert_same_run, curve, last_step, saved, start
from support.latents import Fork, wait_until
from support.tiny import dis, trained

from dis_cli.runs.folder import read_events

SAVE_EVERY = 3
SETTINGS = [f"train.save_every={SAVE_EVERY}", "train.keep_last=2", "data.num_workers=0"]
CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_OVERRIDE = 1 << 1


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("golden") / "run", *SMALL, *SETTINGS, "train.steps=9")


def obey_modes() -> None:
    """Give up what lets the superuser write where nobody may; that it may read everything stays."""
    if os.geteuid() == 0:
        header, capabilities = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.capget(header, capabilities)
        for kind in range(3):
            capabilities[kind] &= ~CAP_DAC_OVERRIDE
        if failed or libc.capset(header, capabilities):
            raise OSError(ctypes.get_errno(), "capset")


def lock_up(*paths: Path) -> None:
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder whose modes do not matter afterwards."""
    place = tmp_path / "place"
    place.mkdir()
    yield place
    for path in (place, *place.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)


def content(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("what", ["a new run", "a run that is there", "a run whose folder is empty"])
def test_from_the_start(what: str, golden: Path, place: Path, tmp_path: Path) -> None:
    run = place / "run"
    if what == "a run that is there":
        shutil.copytree(golden, run)
    elif what != "a new run":
        run.mkdir()
    lock_up(place, *place.rglob("*"))
    before = content(place)
    process = start(run, *SETTINGS, "train.steps=9", prepare=obey_modes, said=tmp_path / "said")
    assert process.wait() == 1
    assert process.errors.startswith("error: Cannot ")
    assert str(run) in process.errors
    assert "Permission denied" in process.errors
    assert "hint: " in process.errors
    assert content(place) == before


@pytest.mark.parametrize("whole", [False, True])
def test_from_some_moment_on(whole: bool, golden: Path, place: Path, tmp_path: Path) -> None:
    run = place / "run"
    process = start(run, *SETTINGS, "train.steps=100000", prepare=obey_modes, said=tmp_path / "said")
    wait_until(lambda: last_step(run) >= 2 * SAVE_EVERY + 1)
    lock_up(run / "checkpoints")
    if whole:
        lock_up(run / "events.jsonl", run / "log.txt", run)
    step = last_step(run)
    assert process.wait() == 1
    assert "Permission denied" in process.errors
    assert str(run) in process.errors
    # Within one save: the step at which one begins, and those that were taken until it had failed.
    assert len(curve(run)) <= step + 2 * SAVE_EVERY
    # What was said to be saved is there, and all that has a name verifies.
    steps = [event["step"] for event in read_events(run / "events.jsonl") if event["event"] == "saved"]
    assert f"step-{steps[-1]:08d}" in saved(run)
    if not whole:
        assert [event["event"] for event in read_events(run / "events.jsonl")][-1] == "stopped"
        # a checkpoint, or one that was to be deleted
        assert re.search(rf"Cannot (write|delete) `{run / 'checkpoints'}/step-", " ".join(process.errors.split()))


def test_when_it_may_be_written_again_the_run_goes_on(golden: Path, place: Path, tmp_path: Path) -> None:
    run = place / "run"
    process = start(run, *SETTINGS, "train.steps=6", prepare=obey_modes, said=tmp_path / "first")
    assert process.wait() == 0, process.errors
    lock_up(run / "checkpoints")
    process = start(run, *SETTINGS, "train.steps=9", prepare=obey_modes, said=tmp_path / "second")
    assert process.wait() == 1
    assert list(saved(run)) == ["step-00000003", "step-00000006"]
    (run / "checkpoints").chmod(0o755)
    process = start(run, *SETTINGS, "train.steps=9", prepare=obey_modes, said=tmp_path / "third")
    assert process.wait() == 0, process.errors
    assert_same_run(run, golden)


@pytest.mark.parametrize("name", ["out", "out.npz"])
def test_samples_have_no_place(name: str, golden: Path, place: Path, tmp_path: Path) -> None:
    out = place / name
    lock_up(place)

    def work() -> int:
        obey_modes()
        return dis("sample", "--ckpt", golden, "-n", 2, "--steps", 2, "--out", out, "-q")

    process = Fork(work, tmp_path / "said")
    assert process.wait() == 1
    assert process.errors.startswith("error: Cannot ")
    assert str(out) in process.errors
    assert "Permission denied" in process.errors
    assert list(place.iterdir()) == []
