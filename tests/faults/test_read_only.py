"""A run folder that may not be written, from the start or from some moment on: the run fails soon, and says it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.faulty import SMALL, assert_same_run, curve, last_step, saved, start
from support.latents import wait_until
from support.tiny import dis, train

from dis_cli.runtime.run_dir import read_events

SAVE_EVERY = 3
SETTINGS = [f"train.save_every={SAVE_EVERY}", "train.keep_last=2", "data.num_workers=0"]
# Not the superuser, whom no mode binds.
OTHER = 65534


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("golden") / "run"
    assert train(run, *SMALL, *SETTINGS, "train.steps=9") == 0
    # An error is shown once here: another user might not be able to read what Python imports for it.
    assert dis("train", "--out", run, "-q", "train.lr=1") == 2
    return run


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that any user can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def be_another_user() -> None:
    os.environ["DIS_CACHE_DIR"] = "/nonexistent"
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(OTHER)
        os.setuid(OTHER)


def give_away(folder: Path) -> None:
    """Let another user own all of a folder; where this one may not, it stays this one's."""
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, OTHER, OTHER)


def lock_up(*folders: Path) -> None:
    for folder in folders:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)


@pytest.fixture
def _unlocked(place: Path) -> Iterator[None]:
    yield
    for path in (place, *place.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)


def content(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.usefixtures("_unlocked")
@pytest.mark.parametrize("what", ["a new run", "a run that is there", "a run whose folder is empty"])
def test_from_the_start(what: str, golden: Path, place: Path, tmp_path: Path) -> None:
    run = place / "run"
    if what == "a run that is there":
        shutil.copytree(golden, run)
    elif what != "a new run":
        run.mkdir()
    give_away(place)
    lock_up(place)
    before = content(place)
    process = start(run, *SETTINGS, "train.steps=9", prepare=be_another_user, said=tmp_path / "said")
    assert process.wait() == 1
    assert process.errors.startswith("error: Cannot ")
    assert str(run) in process.errors
    assert "Permission denied" in process.errors
    assert "hint: " in process.errors
    assert content(place) == before


@pytest.mark.usefixtures("_unlocked")
@pytest.mark.parametrize("whole", [False, True])
def test_from_some_moment_on(whole: bool, golden: Path, place: Path, tmp_path: Path) -> None:
    run = place / "run"
    give_away(place)
    process = start(run, *SETTINGS, "train.steps=100000", prepare=be_another_user, said=tmp_path / "said")
    wait_until(lambda: last_step(run) >= 2 * SAVE_EVERY + 1)
    if whole:
        lock_up(run)
    else:
        (run / "checkpoints").chmod(0o555)
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
        assert f"Cannot write `{run / 'checkpoints'}" in " ".join(process.errors.split())


@pytest.mark.usefixtures("_unlocked")
def test_when_it_may_be_written_again_the_run_goes_on(golden: Path, place: Path, tmp_path: Path) -> None:
    run = place / "run"
    give_away(place)
    process = start(run, *SETTINGS, "train.steps=6", prepare=be_another_user, said=tmp_path / "first")
    assert process.wait() == 0, process.errors
    (run / "checkpoints").chmod(0o555)
    process = start(run, *SETTINGS, "train.steps=9", prepare=be_another_user, said=tmp_path / "second")
    assert process.wait() == 1
    assert list(saved(run)) == ["step-00000003", "step-00000006"]
    (run / "checkpoints").chmod(0o755)
    process = start(run, *SETTINGS, "train.steps=9", prepare=be_another_user, said=tmp_path / "third")
    assert process.wait() == 0, process.errors
    assert_same_run(run, golden)
