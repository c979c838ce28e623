"""A run that begins with another model's weights, and is then a run like any other."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny import dis, trained

import dis_cli
from dis_cli.checkpoints.store import list_checkpoints, read_checkpoint
from dis_cli.models.transfer import transfer


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("init") / "source", "train.steps=3", "train.ema_more=0.5")


def begun(source: Path, out: Path, *more: object) -> int:
    return dis("train", "--init", source, "--out", out, "-q", "train.batch_size=4", "train.warmup_steps=2", *more)


def weights(run: Path, step: int, group: str) -> dict[str, torch.Tensor]:
    return read_checkpoint(run / "checkpoints" / f"step-{step:08d}").tensors[group]


def test_a_run_begins_with_the_average_of_another(source: Path, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    assert begun(source, run, "train.steps=1", "train.keep_last=5") == 0
    assert "138" not in capsys.readouterr().out
    before = weights(source, 3, "ema")
    for group in ("model", "ema"):
        after = weights(run, 0, group)
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)
    lineage = json.loads((run / "run.json").read_text())["lineage"]
    assert lineage["kind"] == "init"
    assert lineage["step"] == 3
    assert lineage["path"] == str(list_checkpoints(source / "checkpoints")[-1].resolve())
    meta = read_checkpoint(run / "checkpoints" / "step-00000001").meta
    assert meta["lineage"] == lineage


def test_another_average_can_be_chosen(source: Path, tmp_path: Path, capsys: Any) -> None:
    assert begun(source, tmp_path / "run", "--init-ema", "0.5", "train.steps=1", "train.keep_last=5") == 0
    after, before = weights(tmp_path / "run", 0, "model"), weights(source, 3, "ema_more_0")
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert begun(source, tmp_path / "other", "--init-ema", "0.7", "train.steps=1") == 2
    assert "0.7" in capsys.readouterr().err
    assert dis("train", "--init-ema", "0.5", "--out", tmp_path / "x") == 2
    assert "--init-ema chooses an average of --init, which is not given" in capsys.readouterr().err


def test_the_same_command_continues_and_another_model_is_refused(source: Path, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    assert begun(source, run, "train.steps=2", "train.save_every=1") == 0
    assert begun(source, run, "train.steps=3") == 0
    assert "step 3" in capsys.readouterr().out
    # The settings alone continue it too, and give the same bytes as it going on did.
    whole = tmp_path / "whole"
    assert begun(source, whole, "train.steps=3", "train.save_every=1") == 0
    assert dis("train", "--preset", run / "config.toml", "--out", run, "-q", "train.steps=3") == 0
    first, second = weights(run, 3, "model"), weights(whole, 3, "model")
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = trained(tmp_path / "other", "train.steps=2")
    assert begun(other, run, "train.steps=4") == 2
    error = capsys.readouterr().err
    assert f"began with `{list_checkpoints(source / 'checkpoints')[-1].resolve()}`" in error
    assert "Leave `--init` out to continue it" in error
    assert begun(source, other, "train.steps=3") == 2
    assert "began with no model" in capsys.readouterr().err


def test_an_exported_model_is_trained_further_on_own_pictures(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for index in range(8):
        path = tmp_path / "letters" / ("7", "x")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    assert dis("checkpoint", "export", source, "--out", "small.safetensors") == 0
    command = ["train", "--init", "small.safetensors", "--data", "letters", "model.image_size=16"]
    assert (
        dis(*command, "train.steps=1", "train.batch_size=4", "data.validation=none", "train.validate_every=none") == 0
    )
    told = capsys.readouterr().err
    assert "pos_embed: interpolated from 2x2 to 4x4 patches" in told
    assert "label_emb.embedding_table.weight: 1 of 2 classes by name" in told
    assert "drawn anew: patch_embed.proj.weight" in told
    model = dis_cli.load_model("runs/letters")
    assert model.config.model.embed_dim == 16
    assert model.config.diffusion.prediction == "v"
    assert model.class_names == ("7", "x")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.backbone=dit"], "holds a dis, the run is to train model.backbone=dit"),
        (["model.embed_dim=24", "model.d_state=4"], "Nothing of"),
    ],
)
def test_what_does_not_fit_is_refused(
    source: Path, tmp_path: Path, capsys: Any, settings: list[str], message: str
) -> None:
    assert begun(source, tmp_path / "run", "train.steps=1", *settings) == 2
    assert message in capsys.readouterr().err


def test_no_checkpoint_is_told(tmp_path: Path, capsys: Any) -> None:
    assert begun(tmp_path / "absent", tmp_path / "run") == 2
    assert "No checkpoint at" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_positions_and_class_rows() -> None:
    grid = torch.arange(4.0).reshape(1, 4, 1)
    given = {"pos_embed": torch.cat([torch.full((1, 2, 1), 9.0), grid], 1), "y_embedder.embedding_table.weight": (
        torch.tensor([[1.0], [2.0], [3.0]]))}  # fmt: skip
    drawn = {"pos_embed": torch.zeros(1, 18, 1), "y_embedder.embedding_table.weight": torch.zeros(4, 1)}
    found = transfer(drawn, given, patches=(16, 4), classes=(("b", "c", "a"), ("a", "b")))
    assert found.weights["pos_embed"][0, :2].flatten().tolist() == [9.0, 9.0]
    # Interpolation keeps the mean, and the order along rows and columns.
    patches = found.weights["pos_embed"][0, 2:].reshape(4, 4)
    assert float(patches.mean()) == pytest.approx(1.5, abs=1e-6)
    assert (patches.diff(dim=0) > 0).all()
    assert (patches.diff(dim=1) > 0).all()
    # b, a drawn one, a, and none.
    assert found.weights["y_embedder.embedding_table.weight"].flatten().tolist() == [2.0, 0.0, 1.0, 3.0]
    assert found.copied == found.drawn == ()
