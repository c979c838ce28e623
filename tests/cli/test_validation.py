"""Held-out losses while training, and of a checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny import dis, result, trained

import dis_cli
from dis_cli.runs.folder import read_events
from dis_cli.workflows.train.watch import Watcher

HELD_OUT = ["data.validation=0.2", "train.validate_every=1", "train.validate_images=9"]


def metrics(run: Path) -> list[dict[str, Any]]:
    records = read_events(run / "events.jsonl")
    return [record for record in records if record["event"] == "metric"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("validation") / "run", "train.steps=2", *HELD_OUT)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert dis(*arguments) == 2
    return capsys.readouterr().err


def test_it_is_measured_without_touching_the_training(run: Path, tmp_path: Path) -> None:
    found = metrics(run)
    assert [(each["name"], each["step"]) for each in found] == [
        (name, step) for step in (1, 2) for name in ("denoising_loss", "eps_mse")
    ]
    assert set(found[1]["context"]) == {"std_error", *(f"quarter_{place}" for place in (1, 2, 3, 4))}
    assert {each["conditions"]["num_samples"] for each in found} == {9}
    # Without looking the weights are the same, and with all images they are others.
    unseen = trained(tmp_path / "unseen", "train.steps=2", HELD_OUT[0])
    everything = trained(tmp_path / "everything", "train.steps=2")
    weights = [dis_cli.load_model(folder, device="cpu").state_dict() for folder in (run, unseen, everything)]
    assert all(tensor.equal(weights[1][name]) for name, tensor in weights[0].items())
    assert not all(tensor.equal(weights[2][name]) for name, tensor in weights[0].items())
    meta = json.loads((next((run / "checkpoints").iterdir()) / "meta.json").read_text())
    assert meta["held_out"]["images"] == 269
    assert len(meta["held_out"]["sha256"]) == 64


def test_a_run_that_was_interrupted_ends_with_the_same_bits(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = tmp_path / "again"
    with monkeypatch.context() as patch:
        patch.setattr(Watcher, "_validate", None)
        assert dis("train", "--out", again, "-q", "train.steps=1", *tiny_settings()) != 0
    assert metrics(again) == []
    # The loss of the step that is saved is measured by the next start.
    trained(again, "train.steps=2", *HELD_OUT)
    assert metrics(again) == metrics(run)
    one, other = (dis_cli.load_model(folder, device="cpu").state_dict() for folder in (run, again))
    assert all(tensor.equal(other[name]) for name, tensor in one.items())


def tiny_settings() -> list[str]:
    from support.tiny import TINY

    return [*TINY, *HELD_OUT]


def test_a_checkpoint_has_the_losses_that_were_told_while_training(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    arguments = ["eval-fid", "--ckpt", run, "--metrics", "denoising_loss", "-n", 9, "sample.precision=fp32"]
    assert dis(*arguments, "--json") == 0
    found = result(capsys)
    told = {each["name"]: each for each in metrics(run)}
    assert {name: found[name] for name in told} == {name: each["value"] for name, each in told.items()}
    context = told["eps_mse"]["context"]
    assert found["eps_mse_quarters"] == [context[f"quarter_{place}"] for place in (1, 2, 3, 4)]
    assert found["eps_mse_std_error"] == context["std_error"]
    assert (found["num_samples"], found["trained_on"]) == (9, False)
    assert found["held_out_sha256"] == told["eps_mse"]["conditions"]["held_out_sha256"]
    assert len(found["log_snrs"]) == 16
    assert json.loads(Path(found["result_file"]).read_text())["eps_mse"] == found["eps_mse"]
    assert dis(*arguments) == 0
    text = capsys.readouterr().out
    assert "9 held-out images of digits" in text
    assert "by quarters, from the noisiest: " in text
    assert dis(*arguments, "--fail-above", "eps_mse=0.001", "--dry-run") == 0
    assert dis(*arguments, "--fail-above", "eps_mse=0.001") == 3
    assert dis("runs", run) == 0
    header, row = capsys.readouterr().out.splitlines()[-2:]
    place = header.index("EPS_MSE")
    assert row[place:].split()[0] == f"{told['eps_mse']['value']:.4f}"


def test_without_held_out_images_it_says_what_it_looks_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = trained(tmp_path / "plain", "train.steps=1")
    capsys.readouterr()
    assert dis("eval-fid", "--ckpt", plain, "--metrics", "denoising_loss", "-n", 4) == 0
    said = capsys.readouterr()
    assert "There are no held-out images (data.validation is none)" in said.err
    assert "4 training images of digits" in said.out


def test_what_makes_no_sense_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = ["train", "--preset", "dis-xs-digits", "--out", tmp_path / "new"]
    for share in ("0", "1", "1.5"):
        message = refused(capsys, *new, f"data.validation={share}")
        assert f"`data.validation`: got `{share}`, allowed: none, test, a share above 0 and below 1, or a" in message
    assert "needs held-out images: data.validation is none" in refused(capsys, *new, "train.validate_every=5")
    other = "data.validation: 0.2 there, 0.3 asked for"
    assert other in refused(capsys, "train", "--out", run, *tiny_settings(), "data.validation=0.3")
    score = ["eval-fid", "--ckpt", run, "--metrics"]
    assert "is measured alone: got fid,denoising_loss" in refused(capsys, *score, "fid,denoising_loss")
    about = "is about generated images, and denoising_loss is measured without any"
    for option in (["--ref", "data"], ["--interval"], ["--repeat", 2], ["--save-images", tmp_path / "x"]):
        assert f"{option[0]} {about}" in refused(capsys, *score, "denoising_loss", *option)
    assert f"--sweep {about}" in refused(capsys, *score, "denoising_loss", "--sweep", "steps=1,2")
    loss = ["evaluate.metrics=denoising_loss", "train.evaluate_every=2"]
    assert "Set train.validate_every in its place" in refused(capsys, *new, *loss)
    assert "Set train.validate_every too" in refused(capsys, *new, "train.best_metric=denoising_loss")


def test_the_lowest_loss_can_make_the_best_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = ["data.validation=test", "train.best_metric=denoising_loss", "train.keep_last=1", "train.lr=0.01"]
    settings = [*best, "train.validate_every=1", "train.validate_images=4", "train.steps=3", "train.ema_decay=0"]
    run = trained(tmp_path / "run", *settings)
    values = {each["step"]: each["value"] for each in metrics(run) if each["name"] == "denoising_loss"}
    step = min(values, key=lambda step: values[step])
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {f"step-{step:08d}", "step-00000003"}


def test_an_export_names_no_path_of_this_machine(tmp_path: Path) -> None:
    others = tmp_path / "others"
    settings = ["data.validation=test", "train.validate_every=9", "train.steps=1"]
    run = trained(tmp_path / "run", *settings)
    file = tmp_path / "x.safetensors"
    assert dis("checkpoint", "export", run, "--out", file, f"data.validation={others}") == 0
    data = dis_cli.load_model(file, device="cpu").config
    assert (data.data.validation, data.train.validate_every) == ("none", None)
