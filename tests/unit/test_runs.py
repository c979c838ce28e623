"""What is told of a run from its folder alone: how far it is, how well it does, and whether it is alive."""

import json
import os
import socket
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from dis_cli.errors import UsageError
from dis_cli.events import Event, Finished, Metric, Note, Progress, Saved, Started, Step, Stopped
from dis_cli.runtime.run_dir import RunDir
from dis_cli.workflows.runs import Score, find_runs, summarize_run


def step(number: int, loss: float = 0.5) -> Step:
    return Step(step=number, loss=loss, lr=1e-3, grad_norm=1.0, seconds=0.1, images_per_second=80.0)


def started(first: int = 0, total: int = 10) -> Started:
    return Started(what="training x", total=total, unit="steps", first=first)


def make_run(folder: Path, *events: Event, steps: int = 10, extra: str = "") -> RunDir:
    """A run folder as training leaves it."""
    run = RunDir(folder)
    run.create()
    run.config_path.write_text(f'name = "dis-x"\n[train]\nsteps = {steps}\n{extra}')
    for event in events:
        run.append_event(event)
    return run


def test_a_run_that_took_its_last_step(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", started(), *map(step, range(1, 10)), step(10, 0.25), Finished(result={"step": 10}))
    summary = summarize_run(run.path)
    assert (summary.preset, summary.step, summary.steps, summary.loss) == ("dis-x", 10, 10, 0.25)
    assert (summary.status, summary.detail, summary.best, summary.problems) == ("finished", None, None, ())


def stopped(reason: str) -> Stopped:
    return Stopped(step=4, reason=reason, message=f"because of {reason}")


@pytest.mark.parametrize(
    ("events", "status", "detail"),
    [
        ([], "killed", None),
        ([started(), step(4)], "killed", None),
        ([started(), step(4), stopped("signal")], "stopped", "because of signal"),
        ([started(), step(4), stopped("time"), Finished(result={})], "stopped", "because of time"),
        ([started(), step(4), stopped("error"), Note(message="x")], "failed", "because of error"),
        # An earlier start's end is past.
        ([started(), step(4), stopped("error"), started(4), step(5)], "killed", None),
        ([started(), step(4), stopped("time"), started(4), step(5), stopped("error")], "failed", "because of error"),
        ([started(), step(10), stopped("error")], "finished", None),
        # What a text says is no event.
        ([started(), step(4), Note(message='\n{"event": "stopped", "reason": "error"}')], "killed", None),
    ],
)
def test_how_a_run_ended(events, status, detail, tmp_path: Path) -> None:
    summary = summarize_run(make_run(tmp_path, *events).path)
    assert (summary.status, summary.detail) == (status, detail)


def hold(folder: Path) -> subprocess.Popen[str]:
    """A process that holds a run until it is killed."""
    program = f"""
import time
from pathlib import Path
from dis_cli.runtime.run_dir import RunDir
with RunDir(Path({str(folder)!r})).lock():
    print("held", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_run_that_a_living_process_holds(tmp_path: Path) -> None:
    run = make_run(tmp_path, started(), step(10))
    process = hold(run.path)
    try:
        before = {path: path.stat().st_mtime_ns for path in run.path.iterdir()}
        summary = summarize_run(run.path)
        assert summary.status == "running"
        assert summary.detail.startswith(f"process {process.pid} on {socket.gethostname()}")
        assert {path: path.stat().st_mtime_ns for path in run.path.iterdir()} == before
    finally:
        process.kill()
    # Dead, and not yet collected by its parent.
    deadline = time.monotonic() + 20
    while summarize_run(run.path).status == "running":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (run.path / ".lock-holder.json").exists()
    process.communicate()
    assert summarize_run(run.path).status == "finished"
    with run.lock():
        assert summarize_run(run.path).status == "running"
    assert summarize_run(run.path).status == "finished"


def note_holder(run: RunDir, **facts: object) -> None:
    now = datetime.now().astimezone()
    note = {"pid": os.getpid(), "host": socket.gethostname(), "started": now.isoformat(timespec="seconds")}
    (run.path / ".lock-holder.json").write_text(json.dumps(note | facts))


def test_a_process_that_got_the_number_of_a_dead_one_is_not_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, started(), step(4))
    note_holder(run)
    assert summarize_run(run.path).status == "running"
    long_ago = datetime.now().astimezone() - timedelta(days=400)
    note_holder(run, started=long_ago.isoformat(timespec="seconds"))
    assert summarize_run(run.path).status == "killed"


def test_another_machine_cannot_be_asked(tmp_path: Path) -> None:
    run = make_run(tmp_path, started(), step(4))
    note_holder(run, host="gpu7", pid=2**22 - 1)
    summary = summarize_run(run.path)
    assert summary.status == "running"
    assert "on gpu7" in summary.detail


@pytest.mark.parametrize(
    "note", ["", "[]", '{"pid": "x"}', '{"pid": 1' + 40 * "0" + ', "host": "HOST", "started": "x"}']
)
def test_a_damaged_note_on_the_holder_is_none(note: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, started(), step(4))
    (run.path / ".lock-holder.json").write_text(note.replace("HOST", socket.gethostname()))
    assert summarize_run(run.path).status == "killed"


def metric(name: str, value: float, number: int) -> Metric:
    return Metric(name=name, value=value, context={"floor": 0.5}, step=number)


@pytest.mark.parametrize(
    ("events", "extra", "best"),
    [
        ([metric("frechet_digits", 7, 1), metric("frechet_digits", 5, 2), metric("frechet_digits", 6, 3)], "", 2),
        ([metric("fid", 7, 1), metric("fid", 9, 2)], "", 1),
        ([metric("class_accuracy", 0.7, 1), metric("class_accuracy", 0.9, 2), metric("class_accuracy", 0.8, 3)], "", 2),
        ([metric("class_accuracy", 0.9, 1), metric("fid", 7, 2)], "", 2),
        ([metric("class_accuracy", 0.9, 1), metric("fid", 7, 2)], 'best_metric = "class_accuracy"', 1),
        ([metric("fid", 7, 2)], 'best_metric = "class_accuracy"', 2),
        ([metric("fid", float("nan"), 1), metric("fid", 9, 2)], "", 2),
        ([metric("something", 0, 1)], "", None),
    ],
)
def test_the_best_score_is_the_lowest_distance_or_the_highest_accuracy(events, extra, best, tmp_path: Path) -> None:
    summary = summarize_run(make_run(tmp_path, started(), *events, extra=extra).path)
    expected = {event.step: Score(metric=event.name, value=event.value, step=event.step) for event in events}
    assert summary.best == (None if best is None else expected[best])


def test_scores_of_dis_eval_fid_count_too(tmp_path: Path) -> None:
    run = make_run(tmp_path, started(), step(4), metric("frechet_digits", 7, 4))
    (run.evaluations / "a.json").write_text(json.dumps({"step": 3, "frechet_digits": 6.5, "class_accuracy": 1.0}))
    (run.evaluations / "b.json").write_text(json.dumps({"step": None, "frechet_digits": 8}))
    (run.evaluations / "c.json").write_text("{")
    (run.evaluations / "d.txt").write_text("no")
    summary = summarize_run(run.path)
    assert summary.best == Score(metric="frechet_digits", value=6.5, step=3)
    assert summary.problems == (f"`{run.evaluations / 'c.json'}` holds no result",)


@pytest.mark.parametrize("cut", range(1, 140, 9))
def test_a_last_line_written_in_part_is_passed_over(cut: int, tmp_path: Path) -> None:
    run = make_run(tmp_path, started(), step(3, 0.75), step(4))
    content = run.events_path.read_bytes()
    run.events_path.write_bytes(content[:-cut])
    summary = summarize_run(run.path)
    # Without its end a line is still whole.
    assert (summary.step, summary.loss) == ((4, 0.5) if cut == 1 else (3, 0.75))


def test_a_loss_that_is_no_number_is_none(tmp_path: Path) -> None:
    summary = summarize_run(make_run(tmp_path, started(), step(3), step(4, float("nan"))).path)
    assert (summary.step, summary.loss) == (4, None)


def test_damaged_lines_between_others_are_passed_over(tmp_path: Path) -> None:
    run = make_run(tmp_path, started(), step(1), metric("fid", 9, 1))
    damage = [
        b'{"event": "metric", "name"',
        b"\xff\x00\xfe",
        b"[1, 2]",
        b'{"event": "metric", "value": 1' + 400 * b"0" + b"}",
    ]
    with run.events_path.open("ab") as file:
        file.write(b"\n".join(damage) + b"\n\n")
    run.append_event(step(2))
    run.append_event(stopped("signal"))
    summary = summarize_run(run.path)
    assert (summary.step, summary.status, summary.best.value) == (2, "stopped", 9)


@pytest.mark.parametrize("damage", ["text", "bytes", "folder", "sections", "empty"])
def test_a_damaged_configuration_costs_only_what_it_says(damage: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", started(total=8), step(8, 0.75))
    run.config_path.unlink()
    match damage:
        case "folder":
            run.config_path.mkdir()
        case "bytes":
            run.config_path.write_bytes(b"\xff\xfe\x00")
        case _:
            run.config_path.write_text({"text": "[", "sections": 'name = 3\ntrain = "x"', "empty": ""}[damage])
    summary = summarize_run(run.path)
    assert (summary.preset, summary.step, summary.steps, summary.loss) == (None, 8, 8, 0.75)
    assert summary.status == "finished"
    assert [str(run.config_path) in problem for problem in summary.problems] == (
        [True] if damage in ("text", "bytes", "folder") else []
    )


def test_events_that_cannot_be_read_are_a_problem_of_that_run(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.events_path.mkdir()
    summary = summarize_run(run.path)
    assert (summary.step, summary.status) == (None, "killed")
    assert [str(run.events_path) in problem for problem in summary.problems] == [True]


def test_runs_are_found_at_any_depth_newest_first(tmp_path: Path) -> None:
    paths = ["old", "a/b/[/x]", "a/new", "a/new/earlier-1"]
    for age, name in zip((400, 300, 100, 200), paths, strict=True):
        run = make_run(tmp_path / name, started())
        os.utime(run.events_path, (time.time() - age, time.time() - age))
    # No runs: a folder of settings, a folder of checkpoints, what a run holds, what is hidden, a link to a run.
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "config.toml").write_text("")
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    make_run(tmp_path / "old" / "checkpoints" / "x")
    make_run(tmp_path / ".trash" / "x")
    (tmp_path / "link").symlink_to(tmp_path / "old", target_is_directory=True)
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert [str(run.path.relative_to(tmp_path)) for run in find_runs(tmp_path)] == [
        "a/new",
        "a/new/earlier-1",
        "a/b/[/x]",
        "old",
    ]
    # A run itself is as good as the folder that holds it.
    assert [run.path for run in find_runs(tmp_path / "a" / "b" / "[")] == [tmp_path / "a" / "b" / "[" / "x]"]


@pytest.mark.parametrize("kind", ["absent", "file"])
def test_a_folder_that_is_none_is_an_error(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if kind == "file":
        path.write_text("")
    with pytest.raises(UsageError, match=f"Cannot list the runs in `{path}`: ") as caught:
        find_runs(path)
    assert "dis runs DIR" in caught.value.hint


def test_half_a_million_steps_take_less_than_a_second(tmp_path: Path) -> None:
    run = make_run(tmp_path, started(total=500_000), steps=500_000)
    block = "".join(json.dumps(step(number).to_json()) + "\n" for number in range(1, 1001)) + (
        json.dumps(metric("fid", 9, 1000).to_json())
        + "\n"
        + json.dumps(Saved(step=1, path=Path("x"), size_bytes=1).to_json())
        + "\n"
    )
    with run.events_path.open("a") as file:
        for _ in range(499):
            file.write(block)
        file.write(json.dumps(metric("fid", 3, 77).to_json()) + "\n")
        file.write(block)
        file.write(json.dumps(Progress(done=1, total=2, unit="images").to_json()) + "\n")
    assert run.events_path.stat().st_size > 80e6
    begun = time.process_time()
    summary = summarize_run(run.path)
    assert time.process_time() - begun < 1
    assert (summary.step, summary.best.step) == (1000, 77)
