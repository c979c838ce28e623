"""The choice of engine and precision: what is recorded and told, what may change later, and what is refused."""

import json
import tomllib

import pytest
from support.tiny import TINY, dis, result, train

from dis_cli.checkpoints.store import read_checkpoint
from dis_cli.runs.folder import read_events
from dis_cli.scan.engines.choose import choose_engine

AUTO = choose_engine("auto", "cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert train(folder, "train.steps=2", "sample.steps=2") == 0
    return folder


def recorded(folder):
    facts = json.loads((folder / "run.json").read_text())
    return facts["engine"], facts["precision"]


def stored_precision(folder) -> str:
    return tomllib.loads((folder / "config.toml").read_text())["train"]["precision"]


def test_choices_are_told_once_and_recorded(tmp_path, capsys) -> None:
    assert dis("train", "--out", tmp_path, *TINY, "train.steps=1", "train.precision=auto") == 0
    engine, precision = recorded(tmp_path)
    assert engine == {"name": AUTO.name, "reason": AUTO.reason}
    assert precision["name"] == stored_precision(tmp_path)
    error, log = capsys.readouterr().err, (tmp_path / "log.txt").read_text()
    for line in (f"engine {AUTO.name}: {AUTO.reason}", f"precision {precision['name']}: {precision['reason']}"):
        assert error.count(line) == log.count(line) == 1
    assert sum(event["event"] == "note" for event in read_events(tmp_path / "events.jsonl")) == 2


def test_the_engine_may_change_between_two_starts(tmp_path) -> None:
    assert train(tmp_path, "train.steps=1", "engine=torch") == 0
    assert train(tmp_path, "train.steps=2", "engine=reference") == 0
    assert recorded(tmp_path)[0] == {"name": "reference", "reason": "chosen in the settings"}
    assert read_checkpoint(tmp_path / "checkpoints" / "step-00000002").step == 2


def test_a_run_keeps_its_precision(tmp_path, capsys) -> None:
    assert train(tmp_path, "train.steps=1", "train.precision=fp32") == 0
    assert train(tmp_path, "train.steps=2", "train.precision=auto") == 0
    assert recorded(tmp_path)[1] == {"name": "fp32", "reason": "the run was begun with it"}
    assert stored_precision(tmp_path) == "fp32"
    assert train(tmp_path, "train.steps=3", "train.precision=bf16") == 2
    assert "train.precision: fp32 there, bf16 asked for" in capsys.readouterr().err


def test_a_run_from_before_the_choice_is_fp32(tmp_path, capsys) -> None:
    assert train(tmp_path, "train.steps=1") == 0
    old = (tmp_path / "config.toml").read_text()
    without = [line for line in old.splitlines() if not line.startswith(("precision", "engine"))]
    (tmp_path / "config.toml").write_text("\n".join(without))
    assert train(tmp_path, "train.steps=2") == 0
    (tmp_path / "config.toml").write_text("\n".join(without))
    assert train(tmp_path, "train.steps=3", "train.precision=auto") == 0
    assert recorded(tmp_path)[1]["name"] == stored_precision(tmp_path) == "fp32"


def test_training_in_bf16(tmp_path) -> None:
    assert train(tmp_path / "bf16", "train.steps=12", "train.precision=bf16", "sample.steps=2") == 0
    assert train(tmp_path / "fp32", "train.steps=12", "train.precision=fp32") == 0
    losses = {
        name: [event["loss"] for event in read_events(tmp_path / name / "events.jsonl") if event["event"] == "step"]
        for name in ("bf16", "fp32")
    }
    # The same batches: what differs is rounding to 8 bits.
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.03)
    assert recorded(tmp_path / "bf16")[1] == {"name": "bf16", "reason": "chosen in the settings"}
    checkpoint = read_checkpoint(tmp_path / "bf16" / "checkpoints" / "step-00000012")
    assert {str(tensor.dtype) for tensors in checkpoint.tensors.values() for tensor in tensors.values()} == {
        "torch.float32"
    }
    # It continues as what it is.
    assert train(tmp_path / "bf16", "train.steps=13", "train.precision=auto") == 0
    assert recorded(tmp_path / "bf16")[1]["name"] == "bf16"


def test_a_bf16_run_that_is_continued_ends_in_the_same_bits(tmp_path) -> None:
    settings = ["train.precision=bf16", "train.save_every=2"]
    assert train(tmp_path / "straight", "train.steps=4", *settings) == 0
    assert train(tmp_path / "resumed", "train.steps=2", *settings) == 0
    assert train(tmp_path / "resumed", "train.steps=4", *settings) == 0
    expected, got = (
        read_checkpoint(tmp_path / name / "checkpoints" / "step-00000004").tensors["model"]
        for name in ("straight", "resumed")
    )
    assert all(tensor.equal(got[name]) for name, tensor in expected.items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_sampling_records_both(precision, run, tmp_path, capsys) -> None:
    command = ["sample", "--ckpt", run, "--out", tmp_path / "out", "-n", "2", "engine=torch"]
    assert dis(*command, f"sample.precision={precision}") == 0
    data = json.loads((tmp_path / "out" / "samples.json").read_text())
    # Without the reasons, which are not the same when the command is continued.
    assert (data["engine"], data["precision"]) == ("torch", precision)
    error = capsys.readouterr().err
    assert error.count("engine torch: chosen in the settings") == 1
    assert error.count(f"precision {precision}: chosen in the settings") == 1


def test_scores_record_both(run, tmp_path, capsys) -> None:
    command = ["eval-fid", "--ckpt", run, "--num-samples", "10", "--out", tmp_path / "score.json", "--json"]
    assert dis(*command, "engine=reference", "sample.precision=auto") == 0
    captured = capsys.readouterr()
    data = json.loads(captured.out)
    assert data["engine"]["name"] == "reference"
    assert data["compute_precision"]["name"] in ("fp32", "bf16")
    told = f"precision {data['compute_precision']['name']}: {data['compute_precision']['reason']}"
    assert told in captured.err


@pytest.mark.parametrize("command", ["train", "train --dry-run", "sample", "eval-fid"])
def test_an_engine_that_cannot_run_here_is_wrong_usage(command, run, tmp_path, capsys) -> None:
    what, *flags = command.split()
    place = [] if what == "train" else ["--ckpt", run]
    assert dis(what, *flags, *place, "--device", "cpu", "--out", tmp_path / "out", "engine=mamba_ssm") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "`engine`: got `mamba_ssm`, allowed on cpu here: auto, " in captured.err
    assert "it computes on CUDA only, not on cpu" in captured.err
    assert "dis doctor" in captured.err
    assert captured.err.count("error:") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_engine_or_precision_is_wrong_usage(tmp_path, capsys) -> None:
    assert dis("train", "--out", tmp_path / "run", "engine=cuda", "train.precision=fp16") == 2
    error = capsys.readouterr().err
    assert "`engine`: got `cuda`, allowed: one of auto, kernel, torch, reference, mamba_ssm, triton" in error
    assert "`train.precision`: got `fp16`, allowed: one of auto, fp32, bf16" in error


def test_a_dry_run_shows_what_would_be_taken(tmp_path, capsys) -> None:
    command = ["train", "--dry-run", "--out", tmp_path / "run", *TINY, "train.precision=auto"]
    assert dis(*command, "--json") == 0
    plan = result(capsys)
    assert plan["engine"] == {"name": AUTO.name, "reason": AUTO.reason}
    assert plan["config"]["train"]["precision"] == plan["precision"]["name"] != "auto"
    assert dis(*command) == 0
    assert f"engine      {AUTO.name}: " in capsys.readouterr().out
