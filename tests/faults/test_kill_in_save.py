"""A run that is killed just before any change of a file, in a save or beside it, resumes from a complete checkpoint."""

import functools
import itertools
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.faulty import SMALL, WATCHED, assert_same_run, die_at, flip, score_quickly, scores, start
from support.states import events
from support.tiny import train

from dis_cli.checkpoints.manifest import verify_folder
from dis_cli.checkpoints.store import list_checkpoints, prune
from dis_cli.events import Event, Metric, Wrote
from dis_cli.runs.folder import RunDir

STEPS = 8
KEEP_LAST = 2
SETTINGS = ["train.save_every=2", f"train.keep_last={KEEP_LAST}", "data.num_workers=0"]
# By the thread that is killed: the one that saves, and the one that does all else.
MORE = {"checkpoint": [], "MainThread": WATCHED}
Runs = Callable[[str, int], Path]


@pytest.fixture(scope="module", autouse=True)
def _scores() -> object:
    with pytest.MonkeyPatch.context() as patch:
        score_quickly(patch)
        yield


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs that nothing happens to: of a thread's settings, of so many steps."""

    @functools.cache
    def make(thread: str, steps: int) -> Path:
        run = tmp_path_factory.mktemp("straight") / "run"
        assert train(run, *SMALL, *SETTINGS, *MORE[thread], f"train.steps={steps}") == 0
        prune(run / "checkpoints", KEEP_LAST)
        return run

    return make


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


# A replacement waits for its place for 11 changes, so one of them is always hit.
FEW = [
    ("checkpoint", nothing, 29),
    ("checkpoint", sound, 13),
    ("checkpoint", damaged, 11),
    ("MainThread", nothing, 23),
    ("MainThread", sound, 19),
    ("MainThread", damaged, 19),
]


@pytest.mark.parametrize(
    ("thread", "before", "stride"),
    [*FEW, *(pytest.param(thread, before, 1, marks=pytest.mark.long) for thread, before, _ in FEW)],
)
@pytest.mark.timeout(1800)
def test_killed_before_a_change(
    thread: str,
    before: Callable[[Path, Path], None],
    stride: int,
    straight: Runs,
    tmp_path: Path,
    tally: Callable[[str, object], None],
) -> None:
    run = tmp_path / "run"
    # So few that the one that was damaged is still there in the end.
    steps = 6 if before is damaged else STEPS
    settings = [*SETTINGS, *MORE[thread], f"train.steps={steps}"]
    kills = 0
    least = 0
    for point in itertools.count(0, stride):
        shutil.rmtree(run, ignore_errors=True)
        before(straight(thread, 4), run)
        broken = {folder for folder in list_checkpoints(run / "checkpoints") if not is_sound(folder)}
        process = start(run, *settings, prepare=lambda point=point: die_at(point, thread)())
        if (status := process.wait()) == 0:
            break
        assert status == -signal.SIGKILL, process.errors
        kills += 1
        # Whatever has a name is complete, and what the run has told to be saved stays until more is.
        folders = list_checkpoints(run / "checkpoints")
        assert [folder for folder in folders if not is_sound(folder) and folder not in broken] == []
        newest = max((int(folder.name[5:13]) for folder in folders if is_sound(folder)), default=0)
        told = {event["step"]: run / "checkpoints" / f"step-{event['step']:08d}" for event in events(run, "saved")}
        promised = [step for step, folder in told.items() if folder not in broken]
        assert newest >= max(promised, default=0), f"killed before change {point}"
        if thread == "checkpoint":
            # How far it has come when the other thread is killed is not the same twice.
            assert newest >= least, f"killed before change {point}"
        least = newest
        process = start(run, *settings)
        assert process.wait() == 0, process.errors
        # After a kill in the last deletion nothing is left to do: an old checkpoint, or one that was the best, stays.
        prune(run / "checkpoints", KEEP_LAST)
        assert_same_run(run, straight(thread, steps))
    # so many changes there are at least
    assert kills >= 55 // stride
    assert least >= steps - 2
    tally(f"kills survived, {thread}, {before.__name__}", f"{kills}/{kills}")


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_killed_in_the_middle_of_a_score(number: int, straight: Runs, tmp_path: Path) -> None:
    """After one of its three metrics was recorded, or after the result."""
    run = tmp_path / "run"
    settings = [*SETTINGS, *WATCHED, f"train.steps={STEPS}"]

    def prepare() -> None:
        append_event, count = RunDir.append_event, itertools.count(1)

        def dying(self: RunDir, event: Event) -> None:
            append_event(self, event)
            is_part = isinstance(event, Metric) or (isinstance(event, Wrote) and event.what == "result")
            if is_part and next(count) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        RunDir.append_event = dying

    assert start(run, *settings, prepare=prepare).wait() == -signal.SIGKILL
    assert len(scores(run)) == min(number, 3)
    assert train(run, *SMALL, *settings) == 0
    prune(run / "checkpoints", KEEP_LAST)
    assert_same_run(run, straight("MainThread", STEPS))
