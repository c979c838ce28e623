"""Nothing that was measured or drawn is replaced by something else: every way to get another result."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.tiny import TINY, dis, result, train, trained

from dis_cli.metrics.statistics_file import read_reference
from dis_cli.workflows.train import watch

SWEEP = ["--sweep", "cfg=1,2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"), "train.steps=2", "sample.steps=2", "train.ema_more=0.5")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folders of pictures, two of one name."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("a/x", "b/x", "y"):
        (root / name).mkdir(parents=True)
        for index, pixels in enumerate(rng.integers(0, 256, (20, 8, 8), dtype=np.uint8)):
            Image.fromarray(pixels).save(root / name / f"{index:02d}.png")
    return root


def evaluated(capsys: Any, *arguments: object) -> dict[str, Any]:
    assert dis("eval-fid", *arguments, "--json", "-q") == 0
    return result(capsys)


def test_the_name_of_a_score_says_what_it_depends_on(run: Path, pictures: Path, capsys: Any) -> None:
    def name_of(*arguments: object) -> str:
        return Path(evaluated(capsys, "--ckpt", run, "--dry-run", *arguments)["result_file"]).name

    usual = "step-00000002_digits-cnn-64_dpmpp-2_cfg-1"
    sweep = "step-00000002_digits-cnn-64_sweep"
    wanted = {
        (): usual,
        ("-n", 1797): usual,
        ("-n", 40): f"{usual}_n-40",
        ("--split", "train"): f"{usual}_train",
        ("--split", "test"): usual,
        ("--seed", 3): f"{usual}_seed-3",
        ("--metrics", "kid,fid"): f"{usual}_fid-kid",
        ("--metrics", "all"): f"{usual}_all-metrics",
        ("--repeat", 2): f"{usual}_repeat-2",
        ("--interval",): f"{usual}_interval",
        ("--ref", pictures / "y"): f"{usual}_ref-y",
        ("--steps", 3): usual.replace("dpmpp-2", "dpmpp-3"),
        ("--sampler", "ddim", "--eta", 0.5): usual.replace("dpmpp-2_cfg-1", "ddim-50_cfg-1_eta-0.5"),
        ("--cfg-scale", 1.5, "--cfg-channels", 3): f"{usual}.5_first3",
        ("sample.ema=0.5",): f"{usual}_ema-0.5",
        ("sample.precision=bf16",): f"{usual}_bf16",
        (*SWEEP,): f"{sweep}_cfg-1-2_dpmpp-2",
        ("--sweep", "cfg=1,3"): f"{sweep}_cfg-1-3_dpmpp-2",
        (*SWEEP, "steps=2,3"): f"{sweep}_cfg-1-2_steps-2-3_dpmpp",
        (*SWEEP, "sample.steps=4", "-n", 40): f"{sweep}_cfg-1-2_dpmpp-4_n-40",
        ("--sweep", "sampler=ddim,dpm++", "--cfg-scale", 2): f"{sweep}_sampler-ddim-dpmpp_cfg-2",
    }
    assert {arguments: name_of(*arguments) for arguments in wanted} == {
        arguments: f"{name}.json" for arguments, name in wanted.items()
    }


def test_a_quick_score_leaves_the_thorough_one(run: Path, capsys: Any) -> None:
    files = {}
    for options in (["-n", 40], ["-n", 8], ["-n", 8, "engine=reference"], ["-n", 40]):
        data = evaluated(capsys, "--ckpt", run, *options)
        files[data["result_file"]] = data["frechet_digits"]
    assert [Path(file).name.partition("_cfg-1_")[2] for file in files] == ["n-40.json", "n-8.json", "n-8_2.json"]
    assert {file: json.loads(Path(file).read_text())["frechet_digits"] for file in files} == files


def test_a_file_that_was_named_is_not_replaced_by_another_score(run: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "score.json"
    command = ["eval-fid", "--ckpt", run, "--out", out, "-q"]
    assert dis(*command, "-n", 40) == 0
    content = out.read_bytes()
    capsys.readouterr()
    for others in (["-n", 8], ["-n", 40, *SWEEP], ["-n", 40, "--metrics", "kid"]):
        for dry in ([], ["--dry-run"]):
            assert dis(*command, *others, *dry) == 2
            error = capsys.readouterr().err
            assert f"`{out}` holds a score of other settings" in error
            assert f"`--out {tmp_path / 'score_2.json'}`" in error
    assert dis(*command, "-n", 40) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["score.json"]
    assert json.loads(out.read_text()).items() >= json.loads(content).items()
    (tmp_path / "notes.json").write_text("[]")
    assert dis(*command[:4], tmp_path / "notes.json", "-n", 8) == 2
    assert "exists and is not a score" in capsys.readouterr().err


def test_scores_of_folders_of_one_name(pictures: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)

    def scored(images: str, ref: str, *more: object) -> dict[str, Any]:
        paths = ["--images", pictures / images, "--ref", pictures / ref]
        return evaluated(capsys, *paths, "--features", "digits", *more)

    found = [scored("a/x", "y"), scored("b/x", "y"), scored("y", "a/x"), scored("y", "b/x"), scored("a/x", "y")]
    found.append(scored("a/x", "y", "--metrics", "kid"))
    names = ["x_digits-cnn-64_ref-y", "y_digits-cnn-64_ref-x"]
    files = [data["result_file"] for data in found]
    assert files == [
        f"evaluations/{name}.json" for name in (names[0], f"{names[0]}_2", names[1], f"{names[1]}_2", names[0])
    ] + [f"evaluations/{names[0]}_kid.json"]
    for data in found:
        assert json.loads(Path(data["result_file"]).read_text())["images"] == data["images"]


def test_images_that_were_changed_give_another_score(pictures: Path, tmp_path: Path, capsys: Any) -> None:
    folder, out = tmp_path / "x", tmp_path / "score.json"
    folder.mkdir()
    for path in (pictures / "a" / "x").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    command = ["eval-fid", "--images", folder, "--ref", pictures / "y", "--features", "digits", "--out", out]
    assert dis(*command, "-q") == 0
    first = json.loads(out.read_text())["frechet_digits"]
    (folder / "00.png").write_bytes((pictures / "y" / "00.png").read_bytes())
    capsys.readouterr()
    # Known only when all is done: it is not lost, nor is the first.
    assert dis(*command) == 0
    assert f"`{out}` holds other numbers for the same settings" in capsys.readouterr().err
    assert json.loads(out.read_text())["frechet_digits"] == first
    assert json.loads((tmp_path / "score_2.json").read_text())["frechet_digits"] != first


def test_statistics_are_replaced_by_the_same_only(pictures: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "ref.npz"
    command = ["eval-fid", "stats", "--features", "digits", "--out", out, "-q"]
    assert dis(*command, "--data", pictures / "y") == 0
    content = out.read_bytes()
    capsys.readouterr()
    assert dis(*command, "--data", pictures / "a" / "x") == 2
    error = capsys.readouterr().err
    assert f"`{out}` holds statistics of other images\n  data_sha256: " in error
    assert f"`--out {tmp_path / 'ref_2.npz'}`" in error
    assert out.read_bytes() == content
    assert dis(*command, "--data", pictures / "y") == 0
    assert read_reference(out).statistics.count == 20
    # Images themselves are not to be lost to their statistics.
    images = tmp_path / "images.npz"
    np.savez(images, np.zeros((20, 8, 8, 1), np.uint8))
    content = images.read_bytes()
    assert dis(*command[:-3], "--out", images, "--data", images) == 2
    assert "exists and holds no statistics" in capsys.readouterr().err
    assert images.read_bytes() == content


@pytest.mark.long
def test_a_sweep_that_is_stopped_again_keeps_the_points_of_the_first(
    run: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    from dis_cli.workflows.eval_fid import sweep

    def stop_at(count: int) -> None:
        seen: list[object] = []

        def stopping(*arguments: Any) -> Any:
            seen.append(arguments)
            if len(seen) == count:
                raise KeyboardInterrupt
            return headlines(*arguments)

        monkeypatch.setattr(sweep, "headlines", stopping)

    headlines = sweep.headlines
    out = tmp_path / "sweep.json"
    command = ["eval-fid", "--ckpt", run, "-n", "8", "--out", out, "-q", "--sweep", "steps=2,3,4"]
    for count in (3, 2):
        stop_at(count)
        assert dis(*command) == 130
        assert len(json.loads(out.read_text())["points"]) == 2
    monkeypatch.setattr(sweep, "headlines", headlines)
    assert dis(*command) == 0
    assert len(json.loads(out.read_text())["points"]) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"sweep.json", "sweep.png"}


def test_samples_of_other_settings_stand_beside_each_other(run: Path, capsys: Any) -> None:
    places = []
    many = [f"--class={','.join(map(str, classes))}" for classes in ((*range(8), 8), (*range(8), 9))]
    for options in (
        ["-n", 2],
        ["-n", 2, "engine=reference"],
        ["-n", 2],
        ["-n", 2, many[0]],
        ["-n", 2, many[1]],
        ["-n", 2, "sample.precision=bf16"],
    ):
        assert dis("sample", "--ckpt", run, *options, "--json", "-q") == 0
        places.append(Path(result(capsys)["out"]).name)
    usual = "step-00000002_dpmpp_2_seed-0_n-2"
    classes = f"{usual}_class-0-1-2-3-4-5-6-7"
    assert places == [usual, f"{usual}_2", usual, classes, f"{classes}_2", f"{usual}_bf16"]


def cheap_score(images: Any, *_: Any) -> dict[str, float]:
    """A score in no time: the first images are the worst."""
    return {"frechet_digits": float(cheap_score.values.pop(0)), "class_accuracy": 0.5}


def test_scores_of_other_settings_do_not_decide_which_checkpoint_is_the_best(
    tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(watch, "score", cheap_score)
    cheap_score.values = [1.0, 2.0, 9.0, 8.0]
    settings = ["train.save_every=1", "train.evaluate_every=1", "train.keep_last=1", "train.lr_schedule=constant"]
    settings += ["sample.steps=2"]
    assert train(tmp_path, *settings, "evaluate.num_samples=4", "train.steps=2") == 0
    capsys.readouterr()
    more = [*settings, "evaluate.num_samples=8", "train.steps=4"]
    assert dis("train", "--out", tmp_path, "--json", "-q", *TINY, *more) == 0
    best = result(capsys)["best"]
    # 8 is the better of the two that can be compared, and the best of the earlier settings is kept as well.
    assert (best["value"], best["step"]) == (8.0, 4)
    assert sorted(int(path.name[-8:]) for path in (tmp_path / "checkpoints").iterdir()) == [1, 4]
    names = sorted(path.name.partition("cfg-1_")[2] for path in (tmp_path / "evaluations").iterdir())
    assert names == ["n-4.json"] * 2 + ["n-8.json"] * 2
    assert dis("runs", tmp_path, "--json") == 0
    [told] = result(capsys)["runs"]
    assert (told["best"]["value"], told["best"]["num_samples"], told["best"]["split"]) == (8.0, 8, "test")


def test_a_preview_of_other_settings_stays(tmp_path: Path) -> None:
    settings = ["train.steps=2", "train.preview_every=2", "train.preview_images=2", "train.save_every=1"]
    assert train(tmp_path, *settings, "sample.steps=2") == 0
    first = (tmp_path / "samples" / "preview-00000002.png").read_bytes()
    # As a kill before the second step's checkpoint leaves it.
    for path in (tmp_path / "checkpoints" / "step-00000002").iterdir():
        path.unlink()
    (tmp_path / "checkpoints" / "step-00000002").rmdir()
    assert train(tmp_path, *settings, "sample.steps=3") == 0
    assert (tmp_path / "samples" / "preview-00000002.png").read_bytes() == first
    assert (tmp_path / "samples" / "preview-00000002_2.png").read_bytes() != first


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the digits' preset on other images, scored by the features of digits."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in ("balls", "china"):
        (root / "images" / name).mkdir(parents=True)
        for index in range(4):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / name / f"{index}.png")
    data = ["data.source=folder", f"data.path={root / 'images'}", "model.num_classes=2", "data.num_workers=0"]
    return trained(root / "run", "--preset", "dis-xs-digits", *data, "train.steps=1", "sample.steps=2")


def test_features_of_digits_on_other_images_are_told_of(photos: Path, capsys: Any) -> None:
    assert dis("eval-fid", "--ckpt", photos, "--features", "digits", "-n", 8) == 0
    assert "warning: The features are those of a classifier of handwritten digits" in capsys.readouterr().err
    [file] = (photos / "evaluations").iterdir()
    assert any("handwritten digits" in note for note in json.loads(file.read_text())["notes"])
    assert dis("runs", photos) == 0
    assert "n=8, train, not digits)" in capsys.readouterr().out


def test_the_card_of_a_model_of_other_data_does_not_call_it_digits(photos: Path, run: Path, tmp_path: Path) -> None:
    assert dis("checkpoint", "export", photos, "--out", tmp_path / "photos", "-q") == 0
    card = (tmp_path / "photos" / "README.md").read_text()
    assert "# photos\n" in card
    assert "handwritten" not in card
    assert "| begun with the preset | dis-xs-digits |" in card
    assert "balls, china" in card
    # Nor one of another size; an unchanged preset is called by its name.
    assert dis("checkpoint", "export", run, "--out", tmp_path / "small", "-q") == 0
    assert "8x8 handwritten digits" not in (tmp_path / "small" / "README.md").read_text()


def test_the_card_says_of_each_score_what_it_was_compared_with(run: Path, tmp_path: Path) -> None:
    assert dis("eval-fid", "--ckpt", run, "-n", 8, "-q") == 0
    assert dis("checkpoint", "export", run, "--out", tmp_path / "card", "-q") == 0
    rows = [line for line in (tmp_path / "card" / "README.md").read_text().splitlines() if "Frechet" in line]
    assert any("| 8 | digits, test (450 images) |" in row for row in rows)
