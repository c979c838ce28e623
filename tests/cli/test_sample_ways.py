"""`dis sample` asked in the ways that people ask: numbers that are names, a run without ``--ckpt``, ``-n``."""

import re
from pathlib import Path

import numpy as np
import pytest
from support.sampling import arrays, command, content, record, sampled
from support.saved import config_of, save_run
from support.tiny import dis, result, trained

import dis_cli

SETTINGS = {
    "model": {"image_size": 8, "patch_size": 4, "in_channels": 1, "embed_dim": 16, "depth": 3},
    "sample": {"sampler": "ddim", "steps": 2},
}

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "run", "train.steps=1", "sample.steps=2", "sample.sampler=ddim")


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the class folders 1, 2, 3 and 10, which stand in the order 1, 10, 2, 3."""
    folder = tmp_path_factory.mktemp("runs") / "numbered"
    return save_run(folder, config_of(SETTINGS, model__num_classes=4), class_names=["1", "10", "2", "3"])


def test_a_number_a_list_and_a_range_mean_the_same_classes(numbered: Path, tmp_path: Path, capsys: Capture) -> None:
    found = {asked: record(sampled(numbered, tmp_path / asked, "-n", 4, "--class", asked)) for asked in ("1,2", "1-2")}
    assert found["1,2"]["classes"] == found["1-2"]["classes"] == [0, 2]
    assert found["1,2"]["images"] == found["1-2"]["images"]
    assert [image["class_name"] for image in found["1-2"]["images"]] == ["1", "2", "1", "2"]
    assert [image["file"] for image in found["1-2"]["images"][:2]] == ["000000_class-1.png", "000001_class-2.png"]
    capsys.readouterr()
    assert dis(*command(numbered, tmp_path / "0", "--class", 0)) == 2
    error = capsys.readouterr().err
    assert "No class is named 0" in error
    assert "`1`, `10`, `2`, `3`" in error
    assert not (tmp_path / "0").exists()


def test_which_reading_was_taken_is_said(numbered: Path, run: Path, tmp_path: Path, capsys: Capture) -> None:
    asked = ["sample", "-n", 1, "--class", "10", "--dry-run", "--ckpt"]
    assert dis(*asked, numbered) == 0
    told = capsys.readouterr()
    assert "Class names are numbers here: `--class 10` means the classes named `10`" in told.err
    assert "_class-10\n" in told.out
    # Digits are named as they stand, and there is one reading.
    asked[4] = "1"
    assert dis(*asked, run) == 0
    assert "named" not in capsys.readouterr().err


def test_every_form_says_the_same_of_classes(numbered: Path, tmp_path: Path) -> None:
    folder = sampled(numbered, tmp_path / "out", "-n", 2, "--class", "10")
    packed = sampled(numbered, tmp_path / "out.zip", "-n", 2, "--class", "10")
    assert record(folder)["images"] == record(packed)["images"]
    assert arrays(sampled(numbered, tmp_path / "out.npz", "-n", 2, "--class", "10"))[1].tolist() == [1, 1]


def test_python_means_the_same_classes(numbered: Path, tmp_path: Path) -> None:
    model = dis_cli.load_model(numbered, device="cpu")
    expected = arrays(sampled(numbered, tmp_path / "out.npz", "-n", 4, "--class", "1,2"))[0]
    for classes in ([1, 2], ["1", "2"], "1-2", "1,2", np.array([1, 2])):
        assert np.array_equal(dis_cli.sample_images(model, 4, classes=classes), expected)
    one = arrays(sampled(numbered, tmp_path / "one.npz", "-n", 2, "--class", "10"))[0]
    for classes in (10, np.int64(10), "10"):
        assert np.array_equal(dis_cli.sample_images(model, n=2, classes=classes), one)
    with pytest.raises(dis_cli.DisError, match="No class is named 0"):
        dis_cli.sample_images(model, 2, classes=0)


def test_files_are_called_after_classes(tmp_path: Path) -> None:
    names = ["a/b", "Ünter den Linden", "x" * 300]
    run = save_run(tmp_path / "run", config_of(SETTINGS, model__num_classes=3), class_names=names)
    images = record(sampled(run, tmp_path / "out", "-n", 3, "--class", "all"))["images"]
    assert [image["class_name"] for image in images] == names
    assert images[0]["file"] == "000000_class-a_b.png"
    assert images[1]["file"] == "000001_class-Ünter_den_Linden.png"
    assert len(images[2]["file"]) < 80
    assert dis("sample", "--ckpt", run, "-n", 1, "--class", "ünter den linden", "-q") == 0
    assert dis("sample", "--ckpt", run, "-n", 1, "--class", names[2], "-q") == 0


@pytest.mark.parametrize("first", ["strip", "gif"])
def test_trajectories_stand_beside_each_other(first: str, run: Path, tmp_path: Path, capsys: Capture) -> None:
    files = {"strip": "trajectory.png", "gif": "trajectory.gif"}
    second = "gif" if first == "strip" else "strip"
    out = tmp_path / "out"
    plain = content(sampled(run, out, "-n", 3))
    for number, form in enumerate((first, second), start=1):
        capsys.readouterr()
        assert dis(*command(run, out, "-n", 3, "--trajectory", form)) == 0
        assert f"{form:8}{out / files[form]}" in capsys.readouterr().out
        assert content(out).keys() - plain.keys() == {files[name] for name in (first, second)[:number]}
    assert dis(*command(run, out, "-n", 3, "--trajectory", first, "--json")) == 0
    assert result(capsys)["trajectory"] == str(out / files[first])
    # They are the same as when they are asked for at once, and so is all the rest.
    for form, file in files.items():
        once = content(sampled(run, tmp_path / form, "-n", 3, "--trajectory", form))
        assert once == plain | {file: content(out)[file]}


def test_a_trajectory_beside_samples_of_an_earlier_version(run: Path, tmp_path: Path) -> None:
    out = sampled(run, tmp_path / "out", "-n", 2)
    path = out / "samples.json"
    path.write_text(
        path.read_text().replace('"format": "png",\n  "sample"', '"format": "png",\n  "trajectory": "gif",\n  "sample"')
    )
    assert record(out)["facts"]["trajectory"] == "gif"
    sampled(run, out, "-n", 2, "--trajectory", "strip")
    assert (out / "trajectory.png").is_file()


def test_a_run_may_stand_without_its_option(run: Path, tmp_path: Path, capsys: Capture, monkeypatch) -> None:
    monkeypatch.chdir(run.parent)
    assert dis("sample", run.name, "-n", 2, "--dry-run", "--json", "sample.steps=3") == 0
    alone = result(capsys)
    assert dis("sample", "--ckpt", run.name, "-n", 2, "--dry-run", "--json", "sample.steps=3") == 0
    assert result(capsys) == alone
    assert dis("eval-fid", run.name, "-n", 20, "--dry-run", "--json") == 0
    assert result(capsys)["checkpoint"].startswith(run.name)
    for arguments, message in {
        (): "No checkpoint given",
        ("sample.steps=3",): "No checkpoint given",
        ("nothing",): "No checkpoint at `nothing`",
        (run.name, "nothing"): f"Several checkpoints given: `{run.name}`, `nothing`",
        ("--ckpt", run.name, "nothing"): "nothing",
    }.items():
        assert dis("sample", *arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("error:") == 1
    assert dis("eval-fid") == 2
    assert "Give a checkpoint to score" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["checkpoint", "export", "run", "--out", "x.pt"],
        ["checkpoint", "import", "run", "--out", "new"],
        ["eval-fid", "stats", "--data", "run", "--out", "x.npz"],
    ],
)
def test_n_is_a_number_and_no_dry_run(arguments: list[str], tmp_path: Path, capsys: Capture, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert dis(*arguments, "-n") == 2
    assert "Did you mean `--dry-run`?" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_n_still_plans_a_training_and_says_what_it_is_called_now(tmp_path: Path, capsys: Capture) -> None:
    assert dis("train", "--out", tmp_path / "run", "-n") == 0
    told = capsys.readouterr()
    assert "`-n` is taken as `--dry-run`" in told.err
    assert dis("train", "--out", tmp_path / "run", "--dry-run") == 0
    # The time comes from a timed step.
    plans = [
        re.sub(r"about \S+ (.*): \S+ s a step", r"about T \1: S s a step", text)
        for text in (told.out, capsys.readouterr().out)
    ]
    assert plans[0] == plans[1]
    assert "about T" in plans[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words", [["train"], ["checkpoint", "export"], ["checkpoint", "import"], ["eval-fid", "stats"]]
)
def test_no_help_has_a_short_dry_run(words: list[str], capsys: Capture) -> None:
    assert dis(*words, "--help") == 0
    text = capsys.readouterr().out
    assert "--dry-run" in text
    assert " -n" not in text
