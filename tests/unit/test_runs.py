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
from dis_cli.runs.folder import RunDir
from dis_cli.runs.summary import Score, find_runs, summarize_run


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
from dis_cli.runs.folder import RunDir
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


DATA = {"kind": "data", "name": "digits", "n": 450, "split": "test"}
SCORE = {
    "features": "cnn",
    "features_sha256": "a",
    "data_sha256": "b",
    "reference": DATA,
    "num_samples": 450,
    "step": 1,
}


def best_of_files(folder: Path, *results: dict[str, object], extra: str = "", events: tuple[Event, ...] = ()) -> Score:
    """The best of results that were written one after the other."""
    run = make_run(folder, *events, extra=extra)
    for place, entries in enumerate(results):
        path = run.evaluations / f"{9 - place}.json"
        path.write_text(json.dumps(SCORE | entries))
        os.utime(path, (1e9 + place, 1e9 + place))
    best = summarize_run(run.path).best
    assert best is not None
    return best


@pytest.mark.parametrize(
    "unlike",
    [
        {"num_samples": 64},
        {"reference": DATA | {"split": "train"}},
        {"reference": DATA | {"name": "others"}},
        {"reference": DATA | {"n": 9}},
        {"data_sha256": "c"},
        {"features_sha256": "c"},
        {"reference": {"kind": "images", "name": "digits", "n": 450}, "reference_sha256": "b"},
    ],
)
def test_the_best_is_of_scores_of_equal_conditions(unlike: dict[str, object], tmp_path: Path) -> None:
    others = [{"frechet_digits": 6.0, "step": 2}, {"frechet_digits": 7.0, "step": 3}]
    best = best_of_files(tmp_path, {"frechet_digits": 0.5, **unlike}, *others)
    assert (best.value, best.step, best.num_samples, best.split) == (6.0, 2, 450, "test")


def test_of_equally_many_images_the_last_kind_of_score_is_shown(tmp_path: Path) -> None:
    train = {"reference": DATA | {"split": "train"}}
    first, last = {"frechet_digits": 0.5}, {"frechet_digits": 7.0, **train}
    assert best_of_files(tmp_path / "a", first, last).split == "train"
    assert best_of_files(tmp_path / "b", last, first).split == "test"


def test_another_sampler_or_number_of_draws_may_be_the_better_one(tmp_path: Path) -> None:
    other = {"sample": {"sampler": "ddim"}, "repeat": 3, "step": 2}
    assert best_of_files(tmp_path, {"frechet_digits": 7.0}, {"frechet_digits": 6.0, **other}).step == 2


def test_scores_of_a_training_are_compared_with_later_ones_of_their_conditions(tmp_path: Path) -> None:
    def told(value: float, **conditions: object) -> Metric:
        return Metric(name="frechet_digits", value=value, step=4, conditions={**SCORE, **conditions})

    few = told(0.5, num_samples=16)
    assert best_of_files(tmp_path / "a", {"frechet_digits": 7.0}, events=(told(6.0), few)).step == 4
    assert best_of_files(tmp_path / "b", {"frechet_digits": 7.0}, events=(told(8.0), few)).value == 7
    # Of one that was written down without its conditions nothing is known.
    assert best_of_files(tmp_path / "c", {"frechet_digits": 7.0}, events=(metric("frechet_digits", 1, 4),)).value == 7


def test_features_of_digits_come_last_for_other_data(tmp_path: Path) -> None:
    extra = '[data]\nsource = "folder"'
    digits, proper = {"frechet_digits": 1.0}, {"kid": 0.5, "num_samples": 9}
    best = best_of_files(tmp_path / "a", digits, proper, extra=extra)
    assert (best.metric, best.is_foreign) == ("kid", False)
    best = best_of_files(tmp_path / "b", digits, extra=extra)
    assert (best.metric, best.is_foreign) == ("frechet_digits", True)
    assert not best_of_files(tmp_path / "c", digits).is_foreign


@pytest.mark.parametrize(("name", "better"), [("kid", 0.2), ("precision_digits", 0.7), ("coverage", 0.7)])
def test_any_metric_is_better_than_none(name: str, better: float, tmp_path: Path) -> None:
    assert best_of_files(tmp_path, {name: 0.7}, {name: 0.2}).value == better


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
