"""Images of the ten digits at 32x32 in an archive, scored by the bundled classifier of MNIST."""

import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.tiny import TINY, dis, result, trained

from dis_cli.data.published.digits import DigitsSource

QUICK = ["model.image_size=32", "model.patch_size=16", "sample.sampler=euler", "sample.steps=1", "train.steps=1"]


def archive(path: Path, split: str, count: int, classes: str = "0123456789") -> Path:
    """Some of scikit-learn's digits at MNIST's size in their frame, in a folder for each class."""
    source = DigitsSource(split, image_size=20)
    with zipfile.ZipFile(path, "w") as out:
        for index in range(count):
            levels = ((source.load(index, None)[0] + 1) * 127.5).round().byte().numpy()
            content = BytesIO()
            Image.fromarray(np.pad(levels, 6)).save(content, "PNG")
            out.writestr(f"{classes[source.labels[index]]}/{index:04d}.png", content.getvalue())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mnist")
    archive(folder / "train.zip", "train", 120)
    archive(folder / "test.zip", "test", 60)
    archive(folder / "letters.zip", "test", 60, "abcdefghij")
    data = ["data.source=zip", f"data.path={folder / 'train.zip'}", "data.hflip=false"]
    trained(folder / "run", *QUICK, *data, "evaluate.features=mnist")
    return folder


def test_beside_a_score_stands_what_real_and_simple_images_get(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dis("eval-fid", "--ckpt", folder / "run", "--ref", folder / "test.zip", "--json") == 0
    found = result(capsys)
    assert found["frechet_mnist"] > found["floor"] > 0
    # So few images are as far from each other as from Gaussians; noise is not.
    assert found["noise"] > 5 * max(found["class_gaussians"], found["floor"])
    assert found["class_gaussians"] > 0
    assert found["frechet_mnist_train"] > 0
    # Digits of another data set: the classifier of MNIST knows most of them.
    assert 0.7 < found["class_accuracy_real"] <= 1
    assert found["class_accuracy"] < 0.5
    assert 0 <= found["near_copy_share"] <= found["copy_share"] <= 1
    assert (found["num_samples"], found["classes"]) == (60, "as in the reference")
    assert "fid" not in found
    assert dis("eval-fid", "--ckpt", folder / "run", "--ref", folder / "test.zip") == 0
    told = capsys.readouterr().out
    assert f"frechet_mnist   {found['frechet_mnist']:.2f} to the reference images  (floor: " in told


def test_training_images_have_no_floor_and_others_no_accuracy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dis("eval-fid", "--ckpt", folder / "run", "-n", "20", "--json") == 0
    found = result(capsys)
    assert {"frechet_mnist", "class_gaussians", "noise", "class_accuracy"} <= found.keys()
    assert not {"floor", "frechet_mnist_train", "copy_share"} & found.keys()
    assert dis("eval-fid", "--ckpt", folder / "run", "--ref", folder / "letters.zip", "-n", "20", "--json") == 0
    found = result(capsys)
    assert found["classes"] == "equally often"
    assert found["frechet_mnist"] > 0
    assert not {"floor", "class_accuracy"} & found.keys()


def test_a_training_watches_the_accuracy(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["data.source=zip", f"data.path={folder / 'test.zip'}", "data.hflip=false", "evaluate.features=mnist"]
    watched = ["train.evaluate_every=1", "train.best_metric=class_accuracy", "evaluate.num_samples=20"]
    assert dis("train", "--out", tmp_path / "run", "--json", *TINY, *QUICK, *data, *watched) == 0
    assert result(capsys)["best"]["metric"] == "class_accuracy"
