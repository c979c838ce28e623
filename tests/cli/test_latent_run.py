"""Latents from images to samples: encode, train on them, continue, and decode what is sampled."""

import json

import numpy as np
import pytest
from PIL import Image
from support.inception import save_random_inception
from support.tiny import dis, result
from support.vae import DOWNSAMPLE, LATENT_CHANNELS, save_tiny_vae

from dis_cli.runtime.run_dir import read_events

SIZE = 16


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return save_tiny_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    return save_random_inception(tmp_path_factory.mktemp("inception") / "random.pth")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for index in range(4):
            pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, images, vae):
    """A run on latents, made by the commands alone."""
    folder = tmp_path_factory.mktemp("latent-run")
    latents, out = folder / "latents", folder / "run"
    encode = ["encode-latents", "--data", images, "--vae", vae, "--out", latents, "--image-size", SIZE, "-q"]
    assert dis(*encode) == 0
    assert dis("train", "--preset", "dis-l-imagenet256", "--data", latents, "--out", out, "-q", *SETTINGS) == 0
    return out


SETTINGS = [
    f"model.image_size={SIZE // DOWNSAMPLE}",
    f"codec.downsample={DOWNSAMPLE}",
    "model.num_classes=2",
    "model.embed_dim=16",
    "model.depth=3",
    "train.steps=3",
    "train.batch_size=4",
    "sample.steps=2",
]


def test_classes_are_known_by_name_and_latents_become_images(run, vae, tmp_path) -> None:
    assert [event["step"] for event in read_events(run / "events.jsonl") if event["event"] == "step"] == [1, 2, 3]
    command = ["sample", "--ckpt", run, "--vae", vae, "--out", tmp_path / "out", "-n", "2", "-q"]
    assert dis(*command, "--class", "dog", "--cfg-scale", "1.5") == 0
    data = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert [record["class"] for record in data["images"]] == [1, 1]
    for record in data["images"]:
        with Image.open(tmp_path / "out" / record["file"]) as image:
            assert (image.size, image.mode) == ((SIZE, SIZE), "RGB")


def test_an_unknown_class_is_guessed(run, vae, capsys) -> None:
    assert dis("sample", "--ckpt", run, "--vae", vae, "--class", "dgo") == 2
    assert "Did you mean `dog`?" in capsys.readouterr().err


def test_an_absent_vae_says_what_to_put_where(run, tmp_path, capsys) -> None:
    assert dis("sample", "--ckpt", run, "--out", tmp_path / "out", "-n", "1") == 1
    error = capsys.readouterr().err
    assert "stabilityai/sd-vae-ft-ema" in error
    assert "--vae DIR" in error
    assert not (tmp_path / "out").exists()


def test_latents_of_another_shape_are_refused(run, tmp_path, capsys) -> None:
    latents = run.parent / "latents"
    command = ["train", "--preset", "dis-l-imagenet256", "--data", latents, "--out", tmp_path / "run"]
    assert dis(*command, *SETTINGS, "model.image_size=4") == 2
    error = capsys.readouterr().err
    assert f"{LATENT_CHANNELS} x 8 x 8" in error
    assert f"{LATENT_CHANNELS} x 4 x 4" in error
    assert not (tmp_path / "run").exists()


def test_latents_are_no_reference_for_a_score(run, inception, capsys) -> None:
    assert dis("eval-fid", "--ckpt", run) == 1
    assert "--inception PATH" in capsys.readouterr().err
    assert dis("eval-fid", "--ckpt", run, "--inception", inception) == 2
    assert "data.source=folder data.path=DIR" in capsys.readouterr().err


def test_fid_of_decoded_latents_against_the_images(run, images, vae, inception, tmp_path, capsys) -> None:
    command = ["eval-fid", "--ckpt", run, "--vae", vae, "--inception", inception, "--json", "data.source=folder"]
    scores = []
    for name in ("a.json", "b.json"):
        assert dis(*command, "--data", images, "--num-samples", "4", "--out", tmp_path / name) == 0
        captured = capsys.readouterr()
        scores.append(json.loads(captured.out))
        assert "not the published Inception" in captured.err
    assert scores[0]["fid"] == scores[1]["fid"] > 0
    assert scores[0]["features"] == "inception-v3-2048"
    assert scores[0]["num_samples"] == 4
    assert "frechet_digits" not in scores[0]
    # Fewer generated images, another distance: the score is of these images.
    assert dis(*command, "--data", images, "--num-samples", "2", "--out", tmp_path / "c.json") == 0
    assert result(capsys)["fid"] != scores[0]["fid"]
