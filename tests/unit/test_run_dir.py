import json
import os
import signal
import socket
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from dis_cli.errors import StorageError
from dis_cli.events import Event, Metric, Note, Saved, Step
from dis_cli.runs.folder import RunDir, read_events
from dis_cli.runtime.files import atomic_write_text


def step(number: int, loss: float = 0.5) -> Step:
    return Step(step=number, loss=loss, lr=1e-3, grad_norm=1.0, seconds=0.1, images_per_second=80.0)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.create()
    return run


def in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in another process and return its pid; it exits 0 unless ``work`` raises."""
    with warnings.catch_warnings():
        # Threads of libraries loaded by other tests: the child does not use them.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001
            os._exit(1)
        os._exit(0)
    return pid


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never appeared"
        time.sleep(0.005)
    return path.read_text()


def test_the_layout_is_the_documented_one(run: RunDir) -> None:
    run.create()
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "evaluations", "samples"]
    files = (run.config_path, run.run_json, run.events_path, run.log_path)
    assert [path.relative_to(run.path).as_posix() for path in files] == [
        "config.toml",
        "run.json",
        "events.jsonl",
        "log.txt",
    ]


def test_a_run_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="Cannot create"):
        RunDir(tmp_path / "file" / "run").create()


def test_leftovers_are_removed_from_every_folder(run: RunDir) -> None:
    for folder in (run.path, run.checkpoints, run.samples, run.evaluations):
        (folder / ".tmp-1").mkdir()
        (folder / "kept").write_text("x")
    assert len(run.remove_temporaries()) == 4
    assert sum(1 for path in run.path.rglob(".tmp-*")) == 0
    assert sum(1 for path in run.path.rglob("kept")) == 4


def test_events_come_back_and_floats_are_exact(run: RunDir) -> None:
    assert read_events(run.events_path) == []
    events: list[Event] = [
        step(1, loss=0.1 + 0.2),
        Saved(step=1, path=Path("checkpoints/step-00000001"), size_bytes=7),
        Note(message="line\nbreak é"),
    ]
    for event in events:
        run.append_event(event)
    assert run.events_path.read_bytes().count(b"\n") == 3
    records = read_events(run.events_path)
    assert records == [event.to_json() for event in events]
    assert records[0]["loss"] == 0.30000000000000004


def test_what_json_cannot_say_becomes_null(run: RunDir) -> None:
    run.append_event(Metric(name="fid", value=float("nan"), context={"low": float("-inf"), "high": 2.0}))

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    record = json.loads(run.events_path.read_text(), parse_constant=refuse)
    assert record == {
        "event": "metric",
        "name": "fid",
        "value": None,
        "context": {"low": None, "high": 2.0},
        "step": None,
        "conditions": {},
    }


def test_a_killed_process_has_written_whole_events(run: RunDir) -> None:
    def work() -> None:
        for number in range(1, 4):
            run.append_event(step(number))
        os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(in_child(work), 0)
    assert [record["step"] for record in read_events(run.events_path)] == [1, 2, 3]


def test_truncation_forgets_what_will_be_done_again(run: RunDir) -> None:
    for number in (1, 2, 3, 4):
        run.append_event(step(number))
        run.append_event(Note(message=f"after {number}"))
        run.append_event(Saved(step=number, path=Path("x"), size_bytes=1))
    whole = run.events_path.read_bytes()
    run.events_path.write_bytes(whole + b'{"event": "step", "st')
    run.truncate_events(2)
    kept = [(record["event"], record.get("step")) for record in read_events(run.events_path)]
    assert kept == [
        ("step", 1),
        ("note", None),
        ("saved", 1),
        ("step", 2),
        ("note", None),
        ("saved", 2),
        ("note", None),
        ("note", None),
    ]
    run.append_event(step(3))
    assert read_events(run.events_path)[-1]["step"] == 3


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_partial_last_line_is_never_glued_to_the_next(run: RunDir, cut: int) -> None:
    run.append_event(step(1))
    first = run.events_path.read_bytes()
    run.append_event(step(2))
    run.events_path.write_bytes(run.events_path.read_bytes()[:-cut])
    assert [record["step"] for record in read_events(run.events_path)] == ([1, 2] if cut == 1 else [1])
    run.truncate_events(1)
    assert run.events_path.read_bytes() == first


def test_a_last_line_that_lacks_only_its_end_is_kept(run: RunDir) -> None:
    run.append_event(step(1))
    run.events_path.write_bytes(run.events_path.read_bytes()[:-1])
    run.truncate_events(1)
    run.append_event(step(2))
    assert [record["step"] for record in read_events(run.events_path)] == [1, 2]


def test_nothing_is_written_when_there_is_nothing_to_forget(run: RunDir) -> None:
    run.truncate_events(0)
    assert not run.events_path.exists()
    run.append_event(step(1))
    before = run.events_path.stat().st_ino
    run.truncate_events(1)
    assert run.events_path.stat().st_ino == before


def test_of_two_processes_exactly_one_wins(run: RunDir, tmp_path: Path) -> None:
    for attempt in range(20):
        here = tmp_path / str(attempt)
        here.mkdir()

        def contend(here: Path = here) -> None:
            wait_for(here / "start")
            try:
                with run.lock():
                    (here / f"{os.getpid()}.won").write_text("")
                    wait_for(here / "end")
            except StorageError as error:
                atomic_write_text(here / f"{os.getpid()}.lost", error.message)

        pids = [in_child(contend), in_child(contend)]
        (here / "start").write_text("")
        begun = time.monotonic()
        try:
            while not (lost := list(here.glob("*.lost"))):
                assert time.monotonic() - begun < 2, "the loser did not give up within 2 seconds"
                time.sleep(0.005)
        finally:
            (here / "end").write_text("")
            statuses = [os.waitpid(pid, 0)[1] for pid in pids]
        [winner] = here.glob("*.won")
        assert statuses == [0, 0]
        assert sorted(pids) == sorted([int(winner.stem), int(lost[0].stem)])
        message = lost[0].read_text()
        assert f"`{run.path}` is in use by process {winner.stem} on {socket.gethostname()}, started 2" in message


def test_a_killed_holder_needs_no_hand(run: RunDir, tmp_path: Path) -> None:
    def hold() -> None:
        with run.lock():
            (tmp_path / "held").write_text("")
            time.sleep(60)

    pid = in_child(hold)
    wait_for(tmp_path / "held")
    with pytest.raises(StorageError, match=f"in use by process {pid} on "), run.lock():
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with run.lock():
        assert json.loads((run.path / ".lock-holder.json").read_text())["pid"] == os.getpid()
    assert not (run.path / ".lock-holder.json").exists()


def test_orphans_of_a_killed_holder_are_waited_for(run: RunDir, tmp_path: Path) -> None:
    # A loader process that outlives its parent for a moment and still has the lock's file open.
    def hold() -> None:
        with run.lock():
            [descriptor] = [path for path in Path("/proc/self/fd").iterdir() if path.resolve() == run.path / ".lock"]
            kept = os.dup(int(descriptor.name))
            if os.fork() == 0:
                os.fstat(kept)
                time.sleep(0.5)
                (tmp_path / "gone").write_text("")
                os._exit(0)
            (tmp_path / "held").write_text("")
            os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(in_child(hold), 0)
    assert (tmp_path / "held").exists()
    with run.lock():
        assert (tmp_path / "gone").exists()


def test_the_same_process_cannot_hold_a_run_twice(run: RunDir) -> None:
    with run.lock():
        with pytest.raises(StorageError, match=f"process {os.getpid()} on"), RunDir(run.path).lock():
            pass
        # The loser must not have taken the note of the holder away.
        assert json.loads((run.path / ".lock-holder.json").read_text())["pid"] == os.getpid()
    with run.lock():
        pass
