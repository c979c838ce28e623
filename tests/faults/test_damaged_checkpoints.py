"""Of three checkpoints the newest is damaged: nothing of it is loaded, the one before takes over and it is said why."""

import hashlib
import itertools
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.faulty import SMALL, assert_same_run, flip, replace, saved
from support.tiny import TINY, dis, train, trained

from dis_cli.checkpoints.manifest import MANIFEST
from dis_cli.checkpoints.store import latest_checkpoint
from dis_cli.runs.folder import read_events

FILES = ("model.safetensors", "ema.safetensors", "ema_more_0.safetensors", "optimizer.safetensors", "meta.json")
SETTINGS = ["train.save_every=2", "train.keep_last=3", "data.num_workers=0"]
PREVIOUS, NEWEST = "step-00000004", "step-00000006"
Tally = Callable[[str, object], None]


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("golden") / "run", *SMALL, *SETTINGS, "train.steps=8")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with three checkpoints, the newest of step 6."""
    return trained(tmp_path_factory.mktemp("begun") / "run", *SMALL, *SETTINGS, "train.steps=6")


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    return shutil.copytree(begun, tmp_path / "run")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def assert_passed_over(run: Path, path: Path, found: bytes | None = None) -> None:
    """The checkpoint before is read; the one note names the file and, where there is a hash, both values."""
    checkpoint, notes = latest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.path.name == PREVIOUS
    [note] = notes
    # a manifest may have become one of other files
    assert str(path.parent if path.name == MANIFEST else path) in note
    if found is not None and path.name != MANIFEST:
        expected = json.loads((path.parent / MANIFEST).read_text())["files"][path.name]["sha256"]
        assert f"expected sha256 {expected} " in note
        assert f"found {sha256(found)} " in note


@pytest.mark.parametrize(
    ("lengths", "bits"), [(10, 30), pytest.param(100, 300, marks=pytest.mark.long)], ids=["some", "many"]
)
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.timeout(1800)
def test_truncations_and_flipped_bits(name: str, lengths: int, bits: int, run: Path, tally: Tally) -> None:
    path = run / "checkpoints" / NEWEST / name
    sound = path.read_bytes()
    rng = random.Random(name)
    cuts = {0, 1, len(sound) - 1, *rng.sample(range(2, len(sound) - 1), lengths - 3)}
    for length in cuts:
        replace(path, sound[:length])
        assert_passed_over(run, path, sound[:length])
    replace(path, sound)
    # Bits of the headers, where most can go wrong, and of everything.
    early = min(8 * len(sound), 8 * 512)
    flips = {*rng.sample(range(early), bits // 3), *rng.sample(range(8 * len(sound)), bits - bits // 3)}
    for bit in flips:
        flip(path, bit)
        assert_passed_over(run, path, path.read_bytes())
        replace(path, sound)
    checkpoint, notes = latest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    assert (checkpoint.step, notes) == (6, [])
    tally("damages refused", f"{len(cuts) + len(flips)}/{len(cuts) + len(flips)}")


def test_deleted_and_swapped_files(run: Path, tally: Tally) -> None:
    root = run / "checkpoints"
    folder = root / NEWEST
    kept = shutil.copytree(folder, run / "kept")
    count = 0

    def refused(path: Path) -> None:
        nonlocal count
        assert_passed_over(run, path)
        count += 1
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)

    for name in (*FILES, MANIFEST):
        (folder / name).unlink()
        refused(folder)
    for first, second in itertools.permutations(FILES, 2):
        shutil.copy(kept / first, folder / second)
        refused(folder / second)
    for name in (*FILES, MANIFEST):
        shutil.copy(root / PREVIOUS / name, folder)
        refused(folder)
    # A whole checkpoint under another's name.
    shutil.rmtree(folder)
    shutil.copytree(root / PREVIOUS, folder)
    refused(folder)
    assert latest_checkpoint(root)[1] == []
    tally("damages refused", f"{count}/{count}")


def delete(folder: Path) -> None:
    (folder / "ema.safetensors").unlink()


def truncate(folder: Path) -> None:
    replace(folder / "optimizer.safetensors", (folder / "optimizer.safetensors").read_bytes()[:9999])


def flip_one_bit(folder: Path) -> None:
    flip(folder / "model.safetensors", 70_000)


def swap(folder: Path) -> None:
    (folder / "ema.safetensors").rename(folder / "x")
    (folder / "model.safetensors").rename(folder / "ema.safetensors")
    (folder / "x").rename(folder / "model.safetensors")


def damage_the_manifest(folder: Path) -> None:
    flip(folder / MANIFEST, 999)


@pytest.mark.parametrize("damage", [delete, truncate, flip_one_bit, swap, damage_the_manifest])
def test_the_run_goes_on_from_the_one_before_and_replaces_the_damaged_one(
    damage: Callable[[Path], None], run: Path, golden: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run / "checkpoints" / NEWEST)
    capsys.readouterr()
    assert dis("train", "--out", run, "--no-progress", *TINY, *SMALL, *SETTINGS, "train.steps=8") == 0
    warning = " ".join(capsys.readouterr().err.split())
    assert "warning: Passed over a damaged checkpoint: " in warning
    if damage in (truncate, flip_one_bit, swap):
        assert re.search(r"is damaged: expected sha256 [0-9a-f]{64} .* found [0-9a-f]{64} ", warning)
    events = read_events(run / "events.jsonl")
    assert [event["first"] for event in events if event["event"] == "started"] == [0, 4]
    [note] = [event["message"] for event in events if event["event"] == "note" and event["level"] == "warning"]
    assert NEWEST in note
    assert note in (run / "log.txt").read_text()
    assert_same_run(run, golden)


def test_when_all_are_damaged_the_run_refuses_to_begin_anew(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (run / "checkpoints").iterdir():
        flip(folder / "model.safetensors", 70_000)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert train(run, *SMALL, *SETTINGS, "train.steps=6") == 1
    error = capsys.readouterr().err
    assert "error: All checkpoints of" in error
    assert error.count("expected sha256") == 3
    assert "--fresh" in error
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert after == before


def test_what_is_damaged_twice_falls_back_twice(run: Path, golden: Path) -> None:
    for name in (PREVIOUS, NEWEST):
        flip_one_bit(run / "checkpoints" / name)
    assert train(run, *SMALL, *SETTINGS, "train.steps=8") == 0
    assert list(saved(run)) == [PREVIOUS, NEWEST, "step-00000008"]
    assert_same_run(run, golden)
