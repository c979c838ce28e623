"""`dis eval-fid`: the scores of the bundled digits, their settings, and the verdict."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from support.ranks import start
from support.tiny import dis, result, train

from dis_cli.codecs.pixel import to_uint8
from dis_cli.data.published.digits import DigitsSource
from dis_cli.metrics.digit_scores import Digits, DigitScores, digit_images
from dis_cli.metrics.extractors.digits import DigitFeatures, as_digits
from dis_cli.workflows.eval_fid import sweep
from dis_cli.workflows.eval_fid.references import class_labels


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
    stored = json.loads((run / "evaluations" / "step-00000002_digits-cnn-64_dpmpp-2_cfg-1_n-60.json").read_text())
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


def test_bounds_by_name(run, tmp_path, capsys) -> None:
    command = ["eval-fid", "--ckpt", run, "-n", "20", "-q", "--out", tmp_path / "score.json"]
    for bound in ("fid=1", "frechet_digits=1"):
        assert dis(*command, "--fail-above", bound) == 3
        assert "frechet_digits is" in capsys.readouterr().err
    assert dis(*command, "--fail-above", "fid=1e6", "--fail-above", "1e6") == 0
    (tmp_path / "score.json").unlink()
    for bound, told in (("kid=1", "the metrics are fid"), ("fid=x", "NAME=X"), ("fid=-1", "NAME=X")):
        assert dis(*command, "--fail-above", bound) == 2
        assert told in capsys.readouterr().err
    # it is told before anything is generated
    assert not (tmp_path / "score.json").exists()


def test_all_metrics_of_generated_images(run, tmp_path, capsys) -> None:
    command = ["eval-fid", "--ckpt", run, "-n", "70", "--out", tmp_path / "score.json", "--json"]
    assert dis(*command, "--metrics", "fid,kid,density", "--interval") == 0
    data = result(capsys)
    assert {"frechet_digits", "kernel_distance_digits", "density_digits"} <= data.keys()
    assert not {"fid", "kid", "classifier_score_digits", "precision_digits"} & data.keys()
    interval = data["frechet_digits_interval"]
    assert interval["low"] < data["frechet_digits"] < interval["high"]
    assert data["kid_subsets"]["size"] == 70
    assert dis(*command, "--metrics", "sfid") == 2
    assert "digits-cnn-64 has no spatial" in result(capsys)["error"]["message"]


def test_draws_follow_each_other(run, tmp_path, capsys) -> None:
    command = ["eval-fid", "--ckpt", run, "-n", "30", "--json"]
    single = []
    for seed in (5, 35):
        assert dis(*command, "--seed", seed, "--out", tmp_path / f"{seed}.json") == 0
        single.append(result(capsys)["frechet_digits"])
    assert dis(*command, "--seed", 5, "--repeat", 2, "--out", tmp_path / "both.json") == 0
    data = result(capsys)
    assert data["draws"]["frechet_digits"]["values"] == single
    assert data["frechet_digits"] == pytest.approx(sum(single) / 2)
    assert data["draws"]["frechet_digits"]["std"] == pytest.approx(abs(single[0] - single[1]) / 2**0.5)
    assert data["seeds"] == "5-64"
    assert dis(*command, "--interval", "--repeat", 2) == 2
    assert "--interval and --repeat" in capsys.readouterr().err


def test_generated_images_are_kept_when_asked_for(run, tmp_path, capsys) -> None:
    command = ["eval-fid", "--ckpt", run, "-n", "70", "-q", "--json", "--out", tmp_path / "score.json"]
    assert dis(*command, "--save-images", tmp_path / "kept.npz") == 0
    wanted = result(capsys)["frechet_digits"]
    assert dis(*command, "--save-images", tmp_path / "kept") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"score.json", "kept.npz", "kept"}
    capsys.readouterr()
    # ... and score as they did on the way; the grid beside them is no image
    for kept in (tmp_path / "kept.npz", tmp_path / "kept"):
        again = ["eval-fid", "--images", kept, "--ref", "data", "--preset", "dis-xs-digits", "--json", "-q"]
        assert dis(*again, "--out", tmp_path / f"{kept.name}.json") == 0
        assert result(capsys)["frechet_digits"] == pytest.approx(wanted, rel=1e-9)
    other = ["eval-fid", "--ckpt", run, "-n", "60", "-q", "--out", tmp_path / "other.json"]
    assert dis(*other, "--save-images", tmp_path / "kept.npz") == 2
    assert "samples of other settings" in capsys.readouterr().err


def test_two_ranks_generate_and_score_what_one_does(run, tmp_path) -> None:
    found = []
    for count in (1, 2):
        out = tmp_path / f"{count}.json"
        more = ["-n", 150, "--metrics", "fid,is", "--save-images", tmp_path / f"{count}.npz", "--out", out, "--json"]
        ended = start(count, "eval-fid", "--ckpt", run, *more, folder=tmp_path / f"said-{count}").finish()
        assert [rank.code for rank in ended] == [0] * count, ended
        data = json.loads(ended[0].out)
        found.append({key: value for key, value in data.items() if isinstance(value, float)})
    assert found[0] == found[1]
    assert len(found[0]) > 10
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()


def test_a_dry_run_writes_nothing(run, tmp_path, capsys) -> None:
    command = ["eval-fid", "--ckpt", run, "--dry-run", "--out", tmp_path / "score.json"]
    assert dis(*command, "--save-images", tmp_path / "kept") == 0
    assert dis(*command, "--sweep", "cfg=1,2 steps=2,3") == 0
    assert "points  4" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_is_a_table_and_a_picture(run, tmp_path, capsys) -> None:
    out = tmp_path / "sweep.json"
    command = ["eval-fid", "--ckpt", run, "-n", "30", "--out", out]
    # the form in which a shell passes `--sweep cfg=1.0,1.5 steps=2,3`
    assert dis(*command, "--sweep", "cfg=1.0,1.5", "steps=2,3", "sample.sampler=ddim", "sample.steps=5") == 0
    text = capsys.readouterr().out
    data = json.loads(out.read_text())
    points = data["points"]
    assert [point["settings"] for point in points] == [
        {"cfg": cfg, "steps": steps} for cfg in ("1.0", "1.5") for steps in ("2", "3")
    ]
    assert {point["sample"]["sampler"] for point in points} == {"ddim"}
    scores = [point["frechet_digits"] for point in points]
    assert data["best"] == scores.index(min(scores))
    starred = [line for line in text.splitlines() if line.startswith("*")]
    assert len(starred) == 1
    assert f"{min(scores):.4g}" in starred[0]
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.size == (1000, 640)
    # a point is what the same settings give by themselves
    command[-1] = tmp_path / "point.json"
    assert dis(*command, "--steps", 3, "--cfg-scale", 1.5, "sample.sampler=ddim", "--json") == 0
    assert result(capsys)["frechet_digits"] == scores[3]


def test_sweeps_that_make_no_sense(run, tmp_path, capsys) -> None:
    command = ["eval-fid", "--ckpt", run, "-n", "30", "--out", tmp_path / "sweep.json"]
    cases = {
        ("cgf=1,2",): "Did you mean `cfg`?",
        ("train.steps=1,2",): "sample.* setting",
        ("cfg=",): "has no values",
        ("cfg=1,2 cfg=3",): "twice",
        ("cfg=1,1",): "twice",
        ("cfg=1,x",): "sample.cfg_scale",
        ("steps=2,2000",): "exceeds",
        ("cfg=1,2", "--repeat", "2", "--save-images", tmp_path / "kept"): "one set of images",
    }
    for arguments, told in cases.items():
        assert dis(*command, "--sweep", *arguments) == 2
        assert told in capsys.readouterr().err
    assert dis(*command, "cfg=1,2") == 2
    assert "Unknown key: `cfg`" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_sweep_leaves_what_it_has(run, tmp_path, monkeypatch) -> None:
    points = []

    def stop_at_the_third(*arguments):
        points.append(arguments)
        if len(points) == 3:
            raise KeyboardInterrupt
        return headlines(*arguments)

    headlines = sweep.headlines
    monkeypatch.setattr(sweep, "headlines", stop_at_the_third)
    out = tmp_path / "sweep.json"
    assert dis("eval-fid", "--ckpt", run, "-n", "20", "--out", out, "-q", "--sweep", "steps=2,3,4") == 130
    assert [point["settings"]["steps"] for point in json.loads(out.read_text())["points"]] == ["2", "3"]


def scores_of_digits(size: int) -> DigitScores:
    return DigitScores(DigitFeatures(), Digits(*digit_images("test", size)), Digits(*digit_images("train", size)))


def test_large_digits_are_scored_beside_real_ones_of_their_size() -> None:
    source = DigitsSource("test", image_size=32, channels=3)
    images = to_uint8(torch.stack([source.load(index, None) for index in range(len(source))]))
    scores = scores_of_digits(32).score(images, source.labels)
    assert scores["frechet_digits"] < 0.01 * scores["floor"]
    assert scores["class_accuracy"] == scores["class_accuracy_real"] >= 0.98
    small, _ = digit_images("test")
    assert torch.equal(as_digits(small), small)


def test_real_images_score_as_real_images() -> None:
    test, labels = digit_images("test")
    scores = scores_of_digits(8).score(test, labels)
    assert scores["frechet_digits"] == pytest.approx(0, abs=1e-6)
    assert scores["frechet_digits_train"] == pytest.approx(scores["floor"], rel=1e-9)
    assert scores["class_accuracy"] == scores["class_accuracy_real"] >= 0.98
    train, train_labels = digit_images("train")
    copies = scores_of_digits(8).score(train, train_labels)
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
