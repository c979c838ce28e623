"""Runs side by side: sorted, filtered, described and compared."""

import json
import os
import time
from pathlib import Path

import pytest
from support.processes import python
from support.reports import HOSTILE, write_run
from support.terminal import in_terminal
from support.tiny import dis, result

from dis_cli.events import Metric


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_run(tmp_path / "slow", lr=1e-3, steps=20)
    write_run(tmp_path / "fast", lr=3e-3, steps=30)
    write_run(tmp_path / "deep", lr=3e-3, steps=10, depth=9)
    facts = json.loads((tmp_path / "deep" / "run.json").read_text())
    lineage = {"kind": "init", "path": "/data/digits.safetensors", "step": 7, "sha256": "ab" * 32}
    (tmp_path / "deep" / "run.json").write_text(json.dumps(facts | {"parameters": 900, "lineage": lineage}))
    for age, name in enumerate(("slow", "fast", "deep")):
        os.utime(tmp_path / name / "events.jsonl", (time.time() - 100 * age,) * 2)
    return tmp_path


def names(capsys: pytest.CaptureFixture) -> list[str]:
    return [Path(run["path"]).name for run in result(capsys)["runs"]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--sort", "step"], ["deep", "slow", "fast"]),
        (["--sort", "STEP", "-r"], ["fast", "slow", "deep"]),
        (["--sort", "loss"], ["fast", "slow", "deep"]),
        (["--sort", "best"], ["slow", "fast", "deep"]),
        (["--sort", "run"], ["deep", "fast", "slow"]),
        (["--sort", "train.steps"], ["deep", "slow", "fast"]),
        # Runs of which it is not known are last either way.
        ([], ["slow", "fast", "deep"]),
        (["--reverse"], ["deep", "fast", "slow"]),
        (["--sort", "parameters"], ["deep", "slow", "fast"]),
        (["--sort", "parameters", "--reverse"], ["deep", "slow", "fast"]),
        (["--sort", "run", "--filter", "train.lr=3e-3"], ["deep", "fast"]),
        (["--sort", "run", "--filter", "train.lr=0.003", "--filter", "model.depth=7"], ["fast"]),
        (["--filter", "run=*/s*"], ["slow"]),
        (["--filter", "data.hflip=false", "--filter", "step=20"], ["slow"]),
        (["--filter", "status=running"], []),
    ],
)
def test_runs_are_sorted_and_filtered(options: list[str], expected: list[str], root: Path, capsys) -> None:
    assert dis("runs", root, "--json", *options) == 0
    assert names(capsys) == expected


def test_several_folders_are_listed_once_each(root: Path, capsys) -> None:
    assert dis("runs", root / "slow", root, root / "fast", "--json", "--sort", "run") == 0
    data = result(capsys)["runs"]
    assert [Path(run["path"]).name for run in data] == ["deep", "fast", "slow"]
    assert data[0]["parameters"] == 900
    assert data[0]["settings"]["model"]["depth"] == 9


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--sort", "train.lrr"], "Did you mean `train.lr`?"),
        (["--sort", "zzz"], "Columns are run, preset, step, loss, eps_mse, best, status, updated, parameters"),
        (["--filter", "train.lr"], "allowed is KEY=VALUE"),
        (["--filter", "modle.depth=7"], "Did you mean `model.depth`?"),
    ],
)
def test_unknown_keys_are_refused(options: list[str], told: str, root: Path, capsys) -> None:
    assert dis("runs", root, *options) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_run_takes_one_row_of_a_terminal(columns: int, root: Path) -> None:
    write_run(root / ("long-" * 20), steps=1)
    shown = in_terminal("runs", str(root), columns=columns)
    rows = shown.splitlines()
    assert len(rows) == 5
    assert all(len(row) <= columns for row in rows)
    assert {"RUN", "STEP", "STATUS"} <= {*rows[0].split()}
    assert ("PRESET" in rows[0]) == (columns == 120)


def test_a_run_is_described(root: Path, capsys) -> None:
    assert dis("runs", "show", root / "deep") == 0
    shown = capsys.readouterr().out
    for told in (
        "finished, step 10 of 10",
        "parameters",
        "digits.safetensors",
        "train.steps",
        "model.depth",
        "frechet_digits",
    ):
        assert told in shown
    assert dis("runs", "show", root / "deep", "--json") == 0
    data = result(capsys)
    assert data["changed"]["model.depth"] == {"run": "9", "preset": "7"}
    assert data["lineage"]["step"] == 7
    assert data["scores"][0]["name"] == "frechet_digits"


def test_runs_are_compared(root: Path, capsys) -> None:
    assert dis("runs", "diff", root / "slow", root / "deep") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert [line.split()[0] for line in lines] == [
        "SETTING", "model.depth", "train.steps", "train.lr", "LAST", "step", "loss", "frechet_digits"
    ]  # fmt: skip
    assert lines[1].split()[1:] == ["7", "9"]
    assert dis("runs", "diff", root / "slow", root / "fast", root / "deep", "--json") == 0
    data = result(capsys)
    assert data["settings"] == {
        "model.depth": ["7", "7", "9"], "train.steps": ["20", "30", "10"], "train.lr": ["0.001", "0.003", "0.003"]
    }  # fmt: skip
    assert data["results"]["loss"] == [1 / 20, 1 / 30, 1 / 10]


def test_a_comparison_fits_a_narrow_terminal(root: Path) -> None:
    shown = in_terminal("runs", "diff", str(root / "slow"), str(root / "deep"), columns=60)
    lines = shown.splitlines()
    assert lines[:2] == ["SETTING", "model.depth"]
    assert lines[2].split()[0] == "7"


def test_presets_and_runs_are_shown_and_compared(root: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(root)
    assert dis("presets", "show", "deep") == 0
    assert "depth = 9" in capsys.readouterr().out
    assert dis("presets", "diff", "dis-xs-digits", "deep", root / "slow" / "config.toml", "--json") == 0
    assert result(capsys)["settings"]["model.depth"] == ["7", "9", "7"]
    assert dis("presets", "validate", "deep") == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["runs", "show", "."], "is no run of `dis train`"),
        (["runs", "show", "nowhere"], "There is no folder `nowhere`"),
        (["runs", "diff", "deep"], "Only one run to compare: `deep`"),
        (["runs", "diff", "deep", "nowhere"], "There is no folder `nowhere`"),
        (["presets", "diff", "deep"], "Only one preset to compare: `deep`"),
        (["presets", "show", "./"], "it holds no config.toml"),
    ],
)
def test_wrong_requests_are_refused(arguments: list[str], told: str, root: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(root)
    assert dis(*arguments) == 2
    assert told in capsys.readouterr().err


def test_damaged_runs_are_shown_as_far_as_they_go(root: Path, capsys) -> None:
    (root / "slow" / "run.json").write_text("{")
    (root / "slow" / "config.toml").write_text("[")
    with (root / "slow" / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "step", "st')
    assert dis("runs", "show", root / "slow") == 0
    assert "step 20" in capsys.readouterr().out
    assert dis("runs", "diff", root / "slow", root / "fast") == 0
    capsys.readouterr()
    assert dis("runs", root, "--sort", "train.lr", "--json") == 0
    assert names(capsys)[-1] == "slow"


@pytest.mark.parametrize("name", [HOSTILE[2], "n" * 200, "a\x1b[31m b"])
def test_hostile_names_stay_names(name: str, tmp_path: Path, capsys) -> None:
    run = write_run(tmp_path / name, steps=2, events=(Metric(name="eps_mse", value=0.5, step=2),))
    assert dis("runs", "show", run) == dis("runs", "diff", run, run) == dis("runs", tmp_path) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_a_folder_called_show_can_be_listed(root: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(root)
    write_run(root / "show" / "run", steps=1)
    assert dis("runs", "./show", "--json") == 0
    assert names(capsys) == ["run"]


def test_nothing_that_takes_long_is_imported(root: Path) -> None:
    program = f"""
import sys
from dis_cli.cli.app import run
assert run(["runs", "show", {str(root / "slow")!r}, "--json"]) == 0
assert run(["runs", "diff", {str(root / "slow")!r}, {str(root / "fast")!r}, "--json"]) == 0
print([name for name in ("torch", "matplotlib") if name in sys.modules], file=sys.stderr)
"""
    done = python("-c", program)
    assert (done.returncode, done.stderr) == (0, "[]\n")
