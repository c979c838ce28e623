"""`dis sample`: images that depend on their seed and class alone, and what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny import dis, result, train

from dis_cli.checkpoints.store import list_checkpoints


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert train(folder, "train.steps=2", "sample.steps=3") == 0
    return folder


def sample(run, out, *arguments):
    assert dis("sample", "--ckpt", run, "--out", out, "-q", *arguments) == 0
    return json.loads((out / "samples.json").read_text())


def pixels(folder, record) -> np.ndarray:
    with Image.open(folder / record["file"]) as image:
        return np.array(image)


def test_images_grid_and_settings(run, tmp_path, capsys) -> None:
    data = sample(run, tmp_path / "out", "--class", "all", "-n", "20", "--seed", "5")
    assert [record["seed"] for record in data["images"]] == list(range(5, 25))
    # Classes take turns.
    assert [record["class"] for record in data["images"]] == [index % 10 for index in range(20)]
    assert data["sample"]["steps"] == 3
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "grid.png",
        "samples.json",
        *(record["file"] for record in data["images"]),
    }
    assert pixels(tmp_path / "out", data["images"][0]).shape == (8, 8)
    height, width, _ = pixels(tmp_path / "out", {"file": "grid.png"}).shape
    # A row of two tiles for each of ten classes, and a name before each.
    assert 10 * 32 < height < 12 * 40
    assert 2 * 32 < width < 4 * 40
    assert f"grid    {tmp_path / 'out' / 'grid.png'}" in capsys.readouterr().out


def test_an_image_depends_on_its_seed_and_class_only(run, tmp_path) -> None:
    many = sample(run, tmp_path / "many", "-n", "12", "--class", "3,4")
    parts = sample(run, tmp_path / "parts", "-n", "12", "--class", "3,4", "sample.batch_size=5")
    alone = sample(run, tmp_path / "alone", "-n", "1", "--class", "4", "--seed", "7")
    for a, b in zip(many["images"], parts["images"], strict=True):
        # The sums of a matrix product may be ordered by the batch's size: one grey level at most, hardly ever.
        difference = np.abs(pixels(tmp_path / "many", a).astype(int) - pixels(tmp_path / "parts", b))
        assert difference.max() <= 1
        assert (difference > 0).mean() <= 0.02
    difference = np.abs(
        pixels(tmp_path / "many", many["images"][7]).astype(int) - pixels(tmp_path / "alone", alone["images"][0])
    )
    assert difference.max() <= 1
    again = sample(run, tmp_path / "again", "-n", "12", "--class", "3,4")
    for a, b in zip(many["images"], again["images"], strict=True):
        assert np.array_equal(pixels(tmp_path / "many", a), pixels(tmp_path / "again", b))


def test_seeds_and_classes_change_the_image(run, tmp_path) -> None:
    data = sample(run, tmp_path, "-n", "4", "--class", "1")
    images = [pixels(tmp_path, record) for record in data["images"]]
    assert all(not np.array_equal(images[0], image) for image in images[1:])


def test_without_a_class_the_seed_chooses(run, tmp_path) -> None:
    first = sample(run, tmp_path / "a", "-n", "30")
    labels = [record["class"] for record in first["images"]]
    assert len(set(labels)) > 5
    shifted = sample(run, tmp_path / "b", "-n", "10", "--seed", "20")
    assert [record["class"] for record in shifted["images"]] == labels[20:]


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpm++"])
def test_every_sampler_with_guidance(sampler, run, tmp_path) -> None:
    arguments = ("-n", "2", "--class", "1", "--sampler", sampler, "--steps", "4", "--cfg-scale", "2")
    data = sample(run, tmp_path, *arguments)
    assert data["sample"] | {"sampler": sampler, "steps": 4, "cfg_scale": 2.0} == data["sample"]
    assert data["model_evaluations"] == 4


def test_a_checkpoint_folder_serves_as_well(run, tmp_path) -> None:
    folder = list_checkpoints(run / "checkpoints")[-1]
    assert sample(folder, tmp_path / "out", "-n", "1")["step"] == 2


def test_the_default_folder_is_in_the_run(run, capsys) -> None:
    assert dis("sample", "--ckpt", run, "-n", "2", "--json", "--class", "2") == 0
    data = result(capsys)
    assert data["out"] == str(run / "samples" / "step-00000002_dpmpp_3_seed-0_n-2_class-2")
    # Again: replaced, not refused.
    assert dis("sample", "--ckpt", run, "-n", "2", "--json", "--class", "2") == 0
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["step-00000002_dpmpp_3_seed-0_n-2_class-2"]


def test_dry_run_writes_nothing(run, tmp_path, capsys) -> None:
    assert dis("sample", "--ckpt", run, "--out", tmp_path / "out", "--dry-run", "--json") == 0
    assert result(capsys)["num_images"] == 16
    assert not (tmp_path / "out").exists()


def test_a_published_checkpoint(tmp_path, capsys) -> None:
    from dis_cli.models import DiS

    torch.manual_seed(0)
    model = DiS(image_size=8, patch_size=2, in_channels=3, embed_dim=32, depth=3, num_classes=300)
    torch.save({"model": model.state_dict(), "ema": model.state_dict()}, tmp_path / "x.pt")
    command = ["sample", "--ckpt", tmp_path / "x.pt", "--out", tmp_path / "out", "--steps", "2", "-q"]
    assert dis(*command, "--class", "207", "-n", "3") == 0
    data = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert [record["class"] for record in data["images"]] == [207] * 3
    assert pixels(tmp_path / "out", data["images"][0]).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("arguments", "status", "message", "hint"),
    [
        (["--class", "10"], 2, "Class 10 is out of range: the model has 10 classes, 0 to 9", ""),
        (["--class", "three"], 2, "Unknown class: `three`", "0 to 9"),
        (["--class", "-1"], 2, "Class -1 is out of range: the model has 10 classes, 0 to 9", ""),
        (["--sampler", "euler"], 2, "euler", "ancestral"),
        (["--steps", "2000"], 2, "sample.steps 2000 exceeds diffusion.num_timesteps 1000", ""),
        (["--sampler", "ddim", "--steps", "300"], 2, "300", "--steps"),
        (["-n", "0"], 2, "greater than or equal to 1, got `0`", "dis sample --help"),
        (["--preset", "dis-m-cifar"], 2, "model.image_size: 8 in the checkpoint, 32 in the preset", ""),
        (["sample.stps=4"], 2, "sample.stps", "sample.steps"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, status, message, hint, run, tmp_path, capsys) -> None:
    assert dis("sample", "--ckpt", run, "--out", tmp_path / "out", *arguments) == status
    error = capsys.readouterr().err
    assert message in error
    assert hint in error
    assert error.count("error:") == 1
    assert not (tmp_path / "out").exists()


def test_what_is_not_a_checkpoint_is_refused(run, tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("hello")
    for path in (tmp_path / "missing", tmp_path / "empty", tmp_path / "text.pt"):
        assert dis("sample", "--ckpt", path, "--out", tmp_path / "out") in (1, 2)
        error = capsys.readouterr().err
        assert str(path) in error
        assert error.count("error:") == 1
    assert not (tmp_path / "out").exists()


def test_a_truncated_checkpoint_is_passed_over_or_refused(tmp_path, capsys) -> None:
    assert train(tmp_path / "run", "train.steps=2", "train.save_every=1", "sample.steps=2") == 0
    _, newest = list_checkpoints(tmp_path / "run" / "checkpoints")
    weights = newest / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    capsys.readouterr()
    assert dis("sample", "--ckpt", tmp_path / "run", "--out", tmp_path / "out", "-n", "1", "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["step"] == 1
    assert "damaged" in captured.err
    assert str(weights) in captured.err
    assert dis("sample", "--ckpt", newest, "--out", tmp_path / "other", "-n", "1") == 1
    assert str(weights) in capsys.readouterr().err


def test_a_foreign_folder_is_not_overwritten(run, tmp_path, capsys) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    assert dis("sample", "--ckpt", run, "--out", tmp_path) == 2
    assert "holds no samples" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
