"""A run that is killed just before any change of a file, in a save or beside it, resumes from a complete checkpoint."""

import itertools
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.faulty import SMALL, WATCHED, assert_same_run, die_at, flip, score_quickly, start
from support.tiny import train

from dis_cli.checkpoints.manifest import verify_folder
from dis_cli.checkpoints.store import list_checkpoints

STEPS = 8
SETTINGS = ["train.save_every=2", "train.keep_last=2", "data.num_workers=0", *WATCHED]
Prepare = Callable[[Path], object]


@pytest.fixture(scope="module", autouse=True)
def _scores() -> object:
    with pytest.MonkeyPatch.context() as patch:
        score_quickly(patch)
        yield


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happens to."""
    run = tmp_path_factory.mktemp("golden") / "run"
    assert train(run, *SMALL, *SETTINGS, f"train.steps={STEPS}") == 0
    return run


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run after four steps."""
    run = tmp_path_factory.mktemp("half") / "run"
    assert train(run, *SMALL, *SETTINGS, "train.steps=4") == 0
    return run


def nothing(half: Path, run: Path) -> None:
    """A run that has not begun."""


def sound(half: Path, run: Path) -> None:
    shutil.copytree(half, run)


def damaged(half: Path, run: Path) -> None:
    """The newest checkpoint is damaged, and will be replaced; a kill has left files and half a line."""
    shutil.copytree(half, run)
    flip(run / "checkpoints" / "step-00000004" / "ema.safetensors", 5000)
    shutil.copytree(run / "checkpoints" / "step-00000002", run / "checkpoints" / ".tmp-0")
    (run / ".tmp-1").write_text("x")
    with (run / "events.jsonl").open("a") as events:
        events.write('{"event": "step", "step": 5, "loss')


def is_sound(folder: Path) -> bool:
    try:
        verify_folder(folder)
    except Exception:  # noqa: BLE001  a folder is sound or not
        return False
    return True


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("before", [nothing, sound, damaged])
@pytest.mark.parametrize("thread", ["checkpoint", "MainThread"])
@pytest.mark.timeout(1800)
def test_killed_before_a_change(
    thread: str,
    before: Callable[[Path, Path], None],
    stride: int,
    golden: Path,
    half: Path,
    tmp_path: Path,
    tally: Callable[[str, object], None],
) -> None:
    run = tmp_path / "run"
    settings = [*SETTINGS, f"train.steps={STEPS}"]
    kills = 0
    least = 0
    for point in itertools.count(0, stride):
        shutil.rmtree(run, ignore_errors=True)
        before(half, run)
        broken = {folder for folder in list_checkpoints(run / "checkpoints") if not is_sound(folder)}
        process = start(run, *settings, prepare=lambda point=point: die_at(point, thread)())
        if (status := process.wait()) == 0:
            break
        assert status == -signal.SIGKILL, process.errors
        kills += 1
        # Whatever has a name is complete, and what was saved stays until more is.
        folders = list_checkpoints(run / "checkpoints")
        assert [folder for folder in folders if not is_sound(folder) and folder not in broken] == []
        newest = max((int(folder.name[5:13]) for folder in folders if is_sound(folder)), default=0)
        assert newest >= least, f"killed before change {point}"
        least = newest
        process = start(run, *settings)
        assert process.wait() == 0, process.errors
        assert_same_run(run, golden)
    assert kills >= 60 // stride
    assert least >= STEPS - 2
    tally(f"kills survived, {thread}, {before.__name__}", f"{kills}/{kills}")
