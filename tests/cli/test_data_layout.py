"""What users are told of their data: at every command that opens images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.archives import pack
from support.tiny import dis
from support.vae import save_tiny_vae

HEIC = "1 file with another suffix was left out: .heic 1. .heic cannot be read: convert them"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of ten grey images each, and a photo of a telephone."""
    rng = np.random.default_rng(0)
    for index in range(20):
        path = tmp_path / "photos" / ("ant" if index % 2 else "bee") / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(path)
    (tmp_path / "photos/ant/a.heic").write_bytes(b"x")
    return tmp_path / "photos"


def train(data: Path, out: Path, *more: object, kind: str = "folder", classes: int = 2) -> int:
    settings = ["train.steps=1", "train.batch_size=2", "model.depth=3", "model.embed_dim=16", "train.precision=fp32"]
    settings += [f"data.source={kind}", f"model.num_classes={classes}", "sample.steps=2"]
    return dis("train", "--data", data, "--out", out, *settings, *more)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_training_tells_what_is_left_out(photos: Path, tmp_path: Path, capsys: Any, kind: str) -> None:
    data = photos if kind == "folder" else pack(photos, tmp_path / f"photos.{kind}")
    assert train(data, tmp_path / "run", kind=kind) == 0
    assert f"warning: {HEIC}" in capsys.readouterr().err
    assert train(data, tmp_path / "dry", "--dry-run", kind=kind) == 0
    assert f"note        {HEIC}" in capsys.readouterr().out
    # nothing to say where nothing is left out
    (photos / "ant/a.heic").unlink()
    data = photos if kind == "folder" else pack(photos, tmp_path / f"whole.{kind}")
    assert train(data, tmp_path / "whole", kind=kind) == 0
    assert "warning" not in capsys.readouterr().err


def test_what_looks_like_an_image_is_told_without_the_check_too(photos: Path, tmp_path: Path, capsys: Any) -> None:
    (photos / "loose.png").write_bytes(b"x")
    assert train(photos, tmp_path / "run", "data.check=false") == 0
    found = capsys.readouterr().err
    assert "Cannot be used and left out: 1 images\n  loose.png: lies beside the class folders" in found


def test_labels_of_webdataset_are_told(photos: Path, tmp_path: Path, capsys: Any) -> None:
    shard = tmp_path / "shards/00000"
    shard.mkdir(parents=True)
    for file in photos.glob("*/*.png"):
        file.rename(shard / file.name)
        (shard / f"{file.stem}.cls").write_text("1")
    path = pack(shard, tmp_path / "shards/00000.tar")
    assert train(path, tmp_path / "run", kind="tar") == 2
    error = capsys.readouterr().err
    assert "The model has 2 classes, the data" in error
    assert ".cls 20. The labels in webdataset's .cls files are read from a folder of tar files" in error
    assert train(path, tmp_path / "run", kind="tar", classes=0) == 0
    assert "warning: 20 files with other suffixes were left out: .cls 20. The labels in" in capsys.readouterr().err


def test_scores_tell_what_is_left_out(photos: Path, tmp_path: Path, capsys: Any) -> None:
    (photos / "loose.png").write_bytes(b"x")
    out = tmp_path / "score.json"
    arguments = ["eval-fid", "--images", photos, "--ref", photos, "--features", "digits", "--metrics", "kid"]
    assert dis(*arguments, "--out", out) == 0
    error = capsys.readouterr().err
    # once, though it is true of both sets
    assert error.count(HEIC) == error.count("loose.png: lies beside the class folders") == 1
    assert any(note.startswith(HEIC) for note in json.loads(out.read_text())["notes"])


def test_statistics_tell_what_is_left_out(photos: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ["eval-fid", "stats", "--data", photos, "--out", tmp_path / "ref.npz", "--features", "digits"]
    assert dis(*arguments, "--dry-run") == 0
    assert f"warning: {HEIC}" in capsys.readouterr().err


def test_images_in_parts_are_not_mixed(photos: Path, tmp_path: Path, capsys: Any) -> None:
    (photos / "bee").rename(photos / "Valid")
    (photos / "ant").rename(photos / "Train")
    arguments = ["eval-fid", "--ref", photos, "--features", "digits", "--metrics", "kid", "--dry-run"]
    assert dis(*arguments, "--images", photos) == 2
    error = capsys.readouterr().err
    assert f"Folder is divided into parts: `{photos}` holds Train and Valid" in error
    assert f"Give one of them, such as `{photos}/Train`" in error
    path = pack(photos, tmp_path / "x.zip")
    assert dis(*arguments, "--images", path) == 2
    assert f"Archive is divided into parts: `{path}` holds Train and Valid" in capsys.readouterr().err
    assert train(photos, tmp_path / "run", classes=0) == 0
    assert "10 images, 8x8, grey" in capsys.readouterr().err


def test_encoding_tells_what_is_left_out(photos: Path, tmp_path: Path, capsys: Any) -> None:
    vae = save_tiny_vae(tmp_path / "vae")
    arguments = ["encode-latents", "--data", photos, "--vae", vae, "--image-size", 16, "--device", "cpu"]
    assert dis(*arguments, "--out", tmp_path / "latents", "--dry-run") == 0
    assert f"warning: {HEIC}" in capsys.readouterr().err
