"""`dis runs`: the table, the object, and what it says when there is nothing to list."""

import json
import os
import time
from pathlib import Path

import pytest
from support.processes import python
from support.tiny import dis, result, train

from dis_cli.events import Metric, Started, Step, Stopped
from dis_cli.runs.folder import RunDir


def make_run(folder: Path, name: str, age: float, *events: object) -> None:
    run = RunDir(folder)
    run.create()
    run.config_path.write_text(f'name = "{name}"\n[train]\nsteps = 3600\n')
    for event in events:
        run.append_event(event)
    os.utime(run.events_path, (time.time() - age, time.time() - age))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    started = Started(what="x", total=3600, unit="steps")
    step = Step(step=1200, loss=0.08765, lr=1e-3, grad_norm=1.0, seconds=0.1, images_per_second=80.0)
    make_run(
        tmp_path / "second",
        "dis-xs-digits",
        60,
        started,
        step,
        Metric(name="frechet_digits", value=5.7531, step=1000),
        Stopped(step=1200, reason="signal", message="Stopped at step 1200"),
    )
    make_run(tmp_path / "[/x]", "dis-s-cifar", 0, started)
    return tmp_path


def test_one_line_a_run(root: Path, capsys) -> None:
    assert dis("runs", root) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    header, first, second = captured.out.splitlines()
    assert header.split() == ["RUN", "PRESET", "STEP", "LOSS", "EPS_MSE", "BEST", "STATUS", "UPDATED"]
    assert first.split()[:7] == [f"{root}/[/x]", "dis-s-cifar", "-/3600", "-", "-", "-", "killed"]
    best = ["frechet_digits", "5.753", "at", "1000"]
    assert second.split()[:10] == [f"{root}/second", "dis-xs-digits", "1200/3600", "0.0877", "-", *best, "stopped"]
    assert second.split()[10] == f"{time.strftime('%Y-%m-%d', time.localtime(time.time() - 60))}"


def test_as_json(root: Path, capsys) -> None:
    assert dis("runs", root, "--json") == 0
    data = result(capsys)
    assert data["schema"] == 1
    first, second = data["runs"]
    assert second.pop("updated") < first.pop("updated")
    assert second == {
        "path": str(root / "second"),
        "preset": "dis-xs-digits",
        "step": 1200,
        "steps": 3600,
        "loss": 0.08765,
        "held_out": None,
        "best": {
            "metric": "frechet_digits",
            "value": 5.7531,
            "step": 1000,
            "num_samples": None,
            "reference": None,
            "split": None,
            "features": None,
            "is_foreign": False,
        },
        "status": "stopped",
        "detail": "Stopped at step 1200",
        "problems": [],
        "parameters": None,
        "settings": {"name": "dis-xs-digits", "train": {"steps": 3600}},
    }
    assert (first["status"], first["step"], first["best"]) == ("killed", None, None)


@pytest.mark.parametrize(
    ("source", "facts", "told"),
    [
        ("digits", {"reference": {"kind": "data", "name": "digits", "split": "test"}}, "(n=450, test)"),
        ("folder", {"reference": {"kind": "data", "name": "photos", "split": "train"}}, "(n=450, train, not digits)"),
        ("digits", {"reference": {"kind": "images", "name": "/a/b/photos"}}, "(n=450, to photos)"),
        ("digits", {}, "(n=450)"),
    ],
)
def test_the_best_says_what_it_can_be_compared_by(source, facts, told, tmp_path: Path, capsys) -> None:
    make_run(tmp_path / "run", "x", 0, Started(what="x", total=3600, unit="steps"))
    config = tmp_path / "run" / "config.toml"
    config.write_text(f'{config.read_text()}[data]\nsource = "{source}"\n')
    score = {"features": "digits-cnn-64", "num_samples": 450, "step": 9, "frechet_digits": 5.7561}
    (tmp_path / "run" / "evaluations" / "a.json").write_text(json.dumps(score | facts))
    assert dis("runs", tmp_path) == 0
    assert f"frechet_digits 5.756 at 9 {told}  " in capsys.readouterr().out
    assert dis("runs", tmp_path, "--json") == 0
    [run] = result(capsys)["runs"]
    assert (run["best"]["num_samples"], run["best"]["is_foreign"]) == (450, source == "folder")


def test_the_default_folder_is_runs(root: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(root)
    assert dis("runs") == 2
    assert capsys.readouterr().err == (
        "error: Cannot list the runs in `runs`: no such folder\n\n"
        "hint: Give the folder that holds them: `dis runs DIR`\n"
    )
    (root / "runs").mkdir()
    assert dis("runs") == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "No runs in `runs`\n")
    assert dis("runs", "--json") == 0
    assert result(capsys) == {"schema": 1, "runs": []}


def test_a_bad_folder_is_one_clear_error(root: Path, capsys) -> None:
    assert dis("runs", root / "second" / "config.toml", "--json") == 2
    captured = capsys.readouterr()
    assert captured.err.count("error:") == 1
    assert "config.toml`: Not a directory" in captured.err
    assert json.loads(captured.out)["error"]["exit_code"] == 2


def test_what_is_damaged_is_named_and_the_rest_listed(root: Path, capsys) -> None:
    (root / "second" / "config.toml").write_text("[")
    assert dis("runs", root) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith(f"warning: `{root}/second/config.toml` cannot be read: ")
    assert [line.split()[0] for line in captured.out.splitlines()[1:]] == [f"{root}/[/x]", f"{root}/second"]


def test_a_name_with_line_breaks_stays_on_its_line(tmp_path: Path, capsys) -> None:
    make_run(tmp_path / "a\nb\tc\x1b[31m", "x", 0, Started(what="x", total=1, unit="steps"))
    assert dis("runs", tmp_path) == 0
    _, row = capsys.readouterr().out.splitlines()
    assert row.startswith(f"{tmp_path}/a\\nb\\tc\\x1b[31m  x")


def test_a_real_run(tmp_path: Path, capsys) -> None:
    assert train(tmp_path / "run", "train.steps=3") == 0
    capsys.readouterr()
    assert dis("runs", tmp_path, "--json") == 0
    [run] = result(capsys)["runs"]
    assert (run["preset"], run["step"], run["steps"], run["status"]) == ("dis-xs-digits", 3, 3, "finished")
    assert run["loss"] > 0


def test_it_imports_nothing_that_takes_long(root: Path) -> None:
    program = f"""
import sys
from dis_cli.cli.app import run
assert run(["runs", {str(root)!r}, "--json"]) == 0
print([name for name in ("torch", "numpy", "rich", "dis_cli.config.schema") if name in sys.modules], file=sys.stderr)
"""
    done = python("-c", program)
    assert (done.returncode, done.stderr) == (0, "[]\n")
