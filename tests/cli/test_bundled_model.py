"""The model that comes with the package, by its name wherever a checkpoint is asked for."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.tiny import dis, result, trained

import dis_cli
from dis_cli.checkpoints.bundled import BUNDLED, place_of
from dis_cli.checkpoints.portable import FOLDER_WEIGHTS

MOST_BYTES = 5_000_000


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def test_it_is_small_and_says_where_its_images_are_from() -> None:
    folder = BUNDLED["mnist"]
    assert sum(file.stat().st_size for file in folder.iterdir()) < MOST_BYTES
    card = (folder / "README.md").read_text()
    assert "license: cc-by-sa-3.0" in card
    assert "CC BY-SA 3.0" in card
    assert "Fill it in" not in card
    assert (
        str(folder.relative_to(Path(dis_cli.__file__).parents[1])) in (Path(__file__).parents[2] / "NOTICE").read_text()
    )


def test_it_is_sampled_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    assert dis("sample", "--ckpt", "mnist", "--class", "7", "-n", "2", "sample.steps=2", "--json") == 0
    told = result(capsys)
    out = Path(told["out"])
    assert out.resolve().is_relative_to(tmp_path)
    assert told["checkpoint"] == "mnist"
    files = sorted(out.glob("*class-7.png"))
    pictures = [pixels_of(file) for file in files]
    assert [picture.shape for picture in pictures] == [(32, 32)] * 2
    model = dis_cli.load_model("mnist")
    images = dis_cli.sample_images(model, n=2, classes=7, steps=2)
    assert np.array_equal(images[1].squeeze(), pictures[1])


def test_it_is_described_counted_and_begun_from(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    assert dis("checkpoint", "show", "mnist", "--json") == 0
    shown = result(capsys)
    assert (shown["kind"], shown["class_names"]) == ("folder", [str(digit) for digit in range(10)])
    assert all(file["verified"] for file in shown["files"] if file["file"].endswith(FOLDER_WEIGHTS))
    assert dis("flops", "--ckpt", "mnist", "--json") == 0
    assert result(capsys)["num_parameters"] == shown["parameters"]
    assert dis("checkpoint", "import", "mnist", "--out", "run", "-q") == 0
    assert json.loads(Path("run/run.json").read_text())["imported"]


def test_a_path_of_its_name_comes_first(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    trained(tmp_path / "mnist", "train.steps=1")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert place_of(Path("mnist")) == Path("mnist")
    assert dis("checkpoint", "show", "mnist", "--json") == 0
    assert result(capsys)["kind"] == "run"
    assert place_of(Path("./elsewhere/mnist")) == Path("elsewhere/mnist")
    assert place_of(tmp_path / "absent/mnist") == tmp_path / "absent/mnist"


def test_a_wrong_name_is_told_of_it(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    assert dis("sample", "--ckpt", "mnits") == 2
    assert "or `mnist`, which comes with dis" in capsys.readouterr().err
