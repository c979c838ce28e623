"""Training and sampling with other objectives than the preset's, on the bundled digits."""

import json

import numpy as np
import pytest
from PIL import Image
from support.tiny import TINY, dis, result, train

from dis_cli.runs.folder import read_events

FLOW = ["diffusion.schedule=rectified_flow", "diffusion.prediction=velocity", "sample.sampler=euler"]
JIT = [FLOW[0], "diffusion.prediction=x_0", "diffusion.timesteps=logit_normal", "diffusion.timestep_mean=0.8"]
JIT += ["diffusion.timestep_std=0.8", "diffusion.shift=2", "sample.sampler=auto"]


@pytest.mark.parametrize(
    "settings",
    [
        ["diffusion.prediction=x_0", "diffusion.loss_weight=min_snr"],
        FLOW,
        JIT,
    ],
    ids=["x_0", "rectified_flow", "velocity_from_x_0"],
)
def test_train_sample_and_score(settings, tmp_path, capsys) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    assert train(run, *settings, "train.steps=3", "sample.steps=4") == 0
    losses = [event["loss"] for event in read_events(run / "events.jsonl") if event["event"] == "step"]
    assert len(losses) == 3
    assert all(0 < loss < 100 for loss in losses)

    assert dis("sample", "--ckpt", run, "--out", out, "-n", "4", "-q") == 0
    data = json.loads((out / "samples.json").read_text())
    assert (data["sample"]["steps"], data["model_evaluations"], len(data["images"])) == (4, 4, 4)
    images = [np.array(Image.open(out / record["file"])) for record in data["images"]]
    assert all(image.shape == (8, 8) for image in images)
    # Four noises and classes, four images.
    assert len({image.tobytes() for image in images}) == 4

    capsys.readouterr()
    assert dis("eval-fid", "--ckpt", run, "--json", "evaluate.num_samples=20") == 0
    assert result(capsys)["num_samples"] == 20


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["diffusion.prediction=velocity"], ["'rectified_flow'", "'velocity'", "a fixed diffusion.variance"]),
        (FLOW[:2], ["sample.sampler 'dpm++'", "'rectified_flow'", "'auto' or one of 'heun', 'euler'"]),
        (["sample.sampler=heun"], ["sample.sampler 'heun' cannot take 20 steps", "19 or 21"]),
        ([*FLOW, "diffusion.loss_weight=min_snr"], ["'min_snr'", "'rectified_flow'", "'uniform'"]),
        (["diffusion.prediction=x_0", "diffusion.variance=learned_range"], ["'x_0' needs a fixed variance"]),
    ],
)
def test_what_cannot_be_sampled_is_refused_before_training(settings, words, tmp_path, capsys) -> None:
    assert dis("train", "--out", tmp_path / "run", *TINY, *settings) == 2
    error = capsys.readouterr().err
    assert [word for word in words if word not in error] == []
    assert list(tmp_path.iterdir()) == []


def test_another_sampler_than_the_objective_s_is_refused(tmp_path, capsys) -> None:
    assert train(tmp_path / "run", *FLOW, "train.steps=1", "sample.steps=2") == 0
    capsys.readouterr()
    assert dis("sample", "--ckpt", tmp_path / "run", "--out", tmp_path / "out", "--sampler", "ddim") == 2
    error = capsys.readouterr().err
    assert "sample.sampler 'ddim' cannot sample diffusion.schedule 'rectified_flow'" in error
    assert "set sample.sampler to 'auto' or one of 'heun', 'euler'" in error
    assert not (tmp_path / "out").exists()
