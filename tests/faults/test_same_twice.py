"""The same command twice is the same run to the bit, however its images are loaded, saved and looked at on the way."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.faulty import SMALL, WATCHED, curve, hashes, score_quickly, start
from support.tiny import train, trained

from dis_cli.checkpoints.store import list_checkpoints

STEPS = 12
SETTINGS = [f"train.steps={STEPS}", "train.accumulation=2", "train.save_every=5", "data.num_workers=0"]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("first") / "run", *SMALL, *SETTINGS)


def last(run: Path) -> dict[str, str]:
    return hashes(list_checkpoints(run / "checkpoints")[-1])


def test_another_seed_is_another_run(first: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "run", *SMALL, *SETTINGS, "seed=1") == 0
    assert all(ours != theirs for ours, theirs in zip(curve(tmp_path / "run"), curve(first), strict=True))
    assert not set(last(tmp_path / "run").values()) & set(last(first).values())


def test_in_the_same_process(first: Path, tmp_path: Path) -> None:
    # What the first run has left in this process, such as a state of torch's own generator, changes nothing.
    assert train(tmp_path / "run", *SMALL, *SETTINGS) == 0
    assert curve(tmp_path / "run") == curve(first)
    assert last(tmp_path / "run") == last(first)


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["data.num_workers=1"],
        ["data.num_workers=2"],
        ["train.save_every=1"],
        [*WATCHED, "train.log_every=1"],
    ],
    ids=["again", "one loader", "two loaders", "saved at every step", "watched"],
)
def test_in_a_process_of_its_own(
    more: list[str],
    first: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tally: Callable[[str, object], None],
) -> None:
    score_quickly(monkeypatch)
    process = start(tmp_path / "run", *SETTINGS, *more)
    assert process.wait() == 0, process.errors
    assert len(curve(first)) == STEPS
    assert curve(tmp_path / "run") == curve(first)
    assert last(tmp_path / "run") == last(first)
    tally("bit-equal", f"{STEPS} losses, {len(last(first))} files of tensors")


def test_moved_to_another_folder_between_two_starts(first: Path, tmp_path: Path) -> None:
    process = start(tmp_path / "here", *SETTINGS[1:], "train.steps=7")
    assert process.wait() == 0, process.errors
    shutil.move(tmp_path / "here", tmp_path / "there")
    process = start(tmp_path / "there", *SETTINGS, "data.num_workers=2")
    assert process.wait() == 0, process.errors
    assert curve(tmp_path / "there") == curve(first)
    assert last(tmp_path / "there") == last(first)
