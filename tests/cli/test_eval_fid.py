"""`dis eval-fid`: the scores of the bundled digits, their settings, and the verdict."""

import json

import numpy as np
import pytest
import torch
from support.tiny import dis, result, train

from dis_cli.codecs.pixel import to_uint8
from dis_cli.data.digits import DigitsSource
from dis_cli.metrics.features import DigitFeatures
from dis_cli.workflows.digit_features import as_digits, digit_images
from dis_cli.workflows.evaluate import class_labels, score_digits


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert train(folder, "train.steps=2", "sample.steps=2") == 0
    return folder


def test_a_score_with_all_its_settings(run, capsys) -> None:
    assert dis("eval-fid", "--ckpt", run, "--num-samples", "60", "--json") == 0
    data = result(capsys)
    # An untrained model is near noise, far above everything real.
    assert data["frechet_digits"] > 5 * data["class_gaussians"] > 10 * data["floor"] > 0
    assert data["class_accuracy"] < 0.5 < data["class_accuracy_real"]
    assert "fid" not in data
    for key in ("checkpoint", "step", "features", "features_sha256", "data_sha256", "num_samples", "seed", "sample"):
        assert data[key] is not None
    stored = json.loads((run / "evaluations" / "step-00000002_digits-cnn-64_dpmpp-2_cfg-1.json").read_text())
    assert stored["frechet_digits"] == data["frechet_digits"]


def test_the_text_names_the_floor_beside_the_score(run, capsys) -> None:
    assert dis("eval-fid", "--ckpt", run, "--num-samples", "20", "-q") == 0
    out = capsys.readouterr().out
    assert "frechet_digits" in out
    assert "floor" in out
    assert "class accuracy" in out


def test_fail_above_is_a_verdict(run, tmp_path, capsys) -> None:
    command = ["eval-fid", "--ckpt", run, "--num-samples", "20", "--json", "--out", tmp_path / "score.json"]
    assert dis(*command, "--fail-above", "1") == 3
    captured = capsys.readouterr()
    score = json.loads(captured.out)["frechet_digits"]
    assert "above --fail-above 1" in captured.err
    assert json.loads((tmp_path / "score.json").read_text())["frechet_digits"] == score
    assert dis(*command, "--fail-above", str(score)) == 0


def test_large_digits_are_scored_beside_real_ones_of_their_size() -> None:
    extractor = DigitFeatures()
    source = DigitsSource("test", image_size=32, channels=3)
    images = to_uint8(torch.stack([source.load(index, None) for index in range(len(source))]))
    scores = score_digits(images, source.labels, extractor)
    assert scores["frechet_digits"] < 0.01 * scores["floor"]
    assert scores["class_accuracy"] == scores["class_accuracy_real"] >= 0.98
    small, _ = digit_images("test")
    assert torch.equal(as_digits(small), small)


def test_real_images_score_as_real_images() -> None:
    extractor = DigitFeatures()
    test, labels = digit_images("test")
    scores = score_digits(test, labels, extractor)
    assert scores["frechet_digits"] == pytest.approx(0, abs=1e-6)
    assert scores["frechet_digits_train"] == pytest.approx(scores["floor"], rel=1e-9)
    assert scores["class_accuracy"] == scores["class_accuracy_real"] >= 0.98
    train, train_labels = digit_images("train")
    copies = score_digits(train, train_labels, extractor)
    assert copies["copy_share"] == copies["near_copy_share"] == 1.0
    assert copies["frechet_digits_train"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("count", [7, 100, 1797, 5000])
def test_labels_have_the_frequencies_of_the_data(count) -> None:
    source = DigitsSource("all")
    labels = class_labels(source, count)
    wanted = np.bincount(source.labels) * count / len(source)
    assert len(labels) == count
    assert np.abs(np.bincount(labels, minlength=10) - wanted).max() < 1


def test_other_data_need_inception(run, tmp_path, capsys) -> None:
    image_folder = tmp_path / "images"
    image_folder.mkdir()
    assert dis("eval-fid", "--ckpt", run, "data.source=folder", "--data", image_folder) == 1
    error = capsys.readouterr().err
    assert "--inception PATH" in error
    assert dis("eval-fid", "--ckpt", run, "--inception", tmp_path / "absent.pth") == 1
    assert "absent.pth" in capsys.readouterr().err
