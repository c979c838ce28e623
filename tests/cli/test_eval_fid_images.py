"""`dis eval-fid --images`: what is read, what it is compared with, and what is refused."""

import json
import os
import signal
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.ranks import start
from support.tiny import dis, result
from torch import Tensor

from dis_cli.errors import DataError, Interrupted
from dis_cli.events import Finished
from dis_cli.metrics.extractors.base import FEATURES, FunctionFeatures
from dis_cli.metrics.extractors.digits import DigitFeatures
from dis_cli.metrics.images.extraction import extract
from dis_cli.metrics.images.sets import TensorImages
from dis_cli.metrics.statistics_file import read_reference
from dis_cli.runtime.process_group import ProcessGroup
from dis_cli.runtime.signals import StopRequest
from dis_cli.workflows.eval_fid import references
from dis_cli.workflows.eval_fid.evaluate import evaluate
from dis_cli.workflows.eval_fid.request import Request
from dis_cli.workflows.eval_fid.stats import make_statistics

COUNTS = {"a": 140, "b": 150}
METRICS = ("--metrics", "fid,kid,precision,coverage")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of pictures, each as a folder, a zip and an npz file."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, low in (("a", 0), ("b", 60)):
        (root / name).mkdir()
        pixels = rng.integers(low, low + 180, (COUNTS[name], 10, 10, 3), dtype=np.uint8)
        np.savez(root / f"{name}.npz", pixels)
        with zipfile.ZipFile(root / f"{name}.zip", "w") as archive:
            for index, image in enumerate(pixels):
                path = root / name / f"{index:03d}.png"
                Image.fromarray(image).save(path)
                archive.write(path, path.name)
    return root


def command(images: Path, ref: Path | str, out: Path, *more: object) -> list[object]:
    return ["eval-fid", "--images", images, "--ref", ref, "--features", "digits", "--out", out, "--json", "-q", *more]


def scores(data: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in data.items() if isinstance(value, float)}


def test_a_folder_a_zip_an_array_and_statistics_give_one_value(images: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "score.json"
    assert dis(*command(images / "a", images / "b", out, *METRICS)) == 0
    wanted = scores(result(capsys))
    assert len(wanted) == 5
    for scored, ref in (("a.zip", "b.npz"), ("a.npz", "b.zip")):
        assert dis(*command(images / scored, images / ref, tmp_path / f"{scored}.json", *METRICS)) == 0
        assert scores(result(capsys)) == wanted
    assert dis("eval-fid", "stats", "--data", images / "b", "--features", "digits", "-o", tmp_path / "ref.npz") == 0
    assert "150 of" in capsys.readouterr().out
    assert dis(*command(images / "a.zip", tmp_path / "ref.npz", tmp_path / "statistics.json")) == 0
    assert scores(result(capsys)) == {"frechet_digits": wanted["frechet_digits"]}


def test_results_say_what_was_measured(images: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "score.json"
    assert dis(*command(images / "a", images / "b", out, *METRICS)) == 0
    data = result(capsys)
    assert data == {"schema": 1} | json.loads(out.read_text())
    assert data["reference"] == {"kind": "images", "name": str(images / "b"), "n": 150}
    assert data["num_samples"] == 140
    assert data["kid_subsets"] == {"number": 100, "size": 140, "seed": 2020}
    assert len(data["reference_sha256"]) == 64
    for key in ("features", "features_sha256", "preprocessing", "versions", "command", "metrics"):
        assert data[key], key


def test_two_ranks_give_the_bits_of_one(images: Path, tmp_path: Path) -> None:
    texts = []
    for count in (1, 2):
        arguments = command(images / "a", images / "b.npz", tmp_path / f"{count}.json", *METRICS, "--interval")
        ended = start(count, *arguments, folder=tmp_path / f"said-{count}").finish()
        assert [rank.code for rank in ended] == [0] * count, ended
        assert all(rank.out == "" for rank in ended[1:])
        data = json.loads(ended[0].out)
        texts.append({key: data[key] for key in data if key not in ("command", "result_file")})
        # so that the second job looks at the reference by itself
        for kept in (Path(os.environ["DIS_CACHE_DIR"]) / "scores").glob("*.cache"):
            kept.unlink()
    assert texts[0] == texts[1]


def test_a_changed_reference_is_looked_at_again(images: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("DIS_CACHE_DIR", str(tmp_path / "cache"))
    folder, out = tmp_path / "ref", tmp_path / "score.json"
    folder.mkdir()
    for path in (images / "b").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    looked: list[str] = []
    extract = references.extract

    def counted(*arguments: Any) -> Any:
        looked.append(arguments[0].name)
        return extract(*arguments)

    monkeypatch.setattr(references, "extract", counted)
    found = []
    for metrics in ("fid", "fid", "fid,kid", "fid,kid"):
        assert dis(*command(images / "a", folder, tmp_path / f"{metrics}.json", "--metrics", metrics)) == 0
        found.append(result(capsys)["frechet_digits"])
    assert len(set(found)) == 1
    assert len(looked) == 2
    # the same name, size and time, another pixel
    path = folder / "000.bmp"
    image = Image.open(folder / "000.png").convert("RGB")
    (folder / "000.png").unlink()
    image.save(path)
    assert dis(*command(images / "a", folder, out)) == 0
    same = result(capsys)["frechet_digits"]
    assert same == found[0]
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[-30:] = bytes(30)
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert dis(*command(images / "a", folder, out)) == 0
    assert result(capsys)["frechet_digits"] != same


def test_grey_transparent_and_mixed_images_are_told_of(images: Path, tmp_path: Path, capsys: Any) -> None:
    folder, out = tmp_path / "mixed", tmp_path / "score.json"
    folder.mkdir()
    for index in range(12):
        with Image.open(images / "a" / f"{index:03d}.png") as image:
            kinds = {0: image.convert("L"), 1: image.convert("RGBA"), 2: image.resize((20, 12))}
            kinds.get(index, image).save(folder / f"{index:03d}.png")
    assert dis(*command(folder, images / "b", out)) == 0
    notes = "\n".join(result(capsys)["notes"])
    assert "1 scored images are grey" in notes
    assert "1 scored images are transparent, and are laid on white" in notes
    assert "of 2 sizes, most (11) of 10x10" in notes
    assert "12 scored images for 64 features: their covariance is singular" in notes


def test_sizes_are_put_back_into_order(images: Path, tmp_path: Path, capsys: Any) -> None:
    """Images of two sizes, in turn, are scored as they are one by one."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for index in range(80):
        with Image.open(images / "a" / f"{index:03d}.png") as image:
            # twice the size is reduced to the same 8x8 grey by the averages, but for nothing
            kind = image.resize((16, 16), Image.Resampling.NEAREST) if index % 3 else image.resize((8, 8))
            kind.save(folder / f"{index:03d}.png")
    seen: list[Tensor] = []

    def means(batch: Tensor) -> Tensor:
        seen.append(batch)
        return batch.float().mean(dim=(1, 2))

    own = FunctionFeatures(means, num_features=3, sha256="0" * 64)
    request = Request(
        images=folder, ref=str(folder), extractor=own, overrides=["evaluate.metrics=fid,kid"], out=tmp_path / "s.json"
    )
    finished = list(evaluate(request))[-1]
    assert isinstance(finished, Finished)
    (name,) = [key for key in finished.result if key.startswith("frechet")]
    assert "test_eval_fid_images" in name
    assert finished.result[name] == pytest.approx(0, abs=1e-6)
    assert {batch.shape[1] for batch in seen} == {8, 16}


def test_features_that_are_no_numbers_name_the_image(images: Path, tmp_path: Path) -> None:
    def bad(batch: Tensor) -> Tensor:
        features = batch.float().mean(dim=(1, 2))
        features[len(batch) - 5] = torch.nan
        return features

    own = FunctionFeatures(bad, num_features=3, sha256="1" * 64, name="bad")
    for metrics in ("fid", "kid"):
        request = Request(
            images=images / "a",
            ref=str(images / "a"),
            extractor=own,
            overrides=[f"evaluate.metrics={metrics}"],
            out=tmp_path / "score.json",
        )
        with pytest.raises(DataError, match=r"NaN or infinite values, first those of image .*/a/059\.png"):
            list(evaluate(request))
    assert list(tmp_path.iterdir()) == []


def test_statistics_of_another_extractor_are_refused(images: Path, tmp_path: Path, capsys: Any) -> None:
    def means(batch: Tensor) -> Tensor:
        return batch.float().mean(dim=(1, 2))

    own = FunctionFeatures(means, num_features=3, sha256="2" * 64, name="means", preprocessing="none")
    ref = tmp_path / "ref.npz"
    list(make_statistics(str(images / "b"), ref, extractor=own))
    assert read_reference(ref).made_with == {
        "extractor": "means",
        "extractor_sha256": "2" * 64,
        "preprocessing": "none",
    }
    assert dis(*command(images / "a", ref, tmp_path / "score.json")) == 2
    assert "made by another extractor" in result(capsys)["error"]["message"]


def test_what_makes_no_sense(images: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "empty").mkdir()
    out = tmp_path / "score.json"
    a, b = images / "a", images / "b"
    assert dis("eval-fid", "stats", "--data", b, "--features", "digits", "-o", tmp_path / "ref.npz", "-q") == 0
    capsys.readouterr()
    cases: list[tuple[list[object], int, str]] = [
        (["eval-fid"], 2, "Give a checkpoint to score"),
        (["eval-fid", "--images", a, "--ckpt", a], 2, "and not both"),
        (["eval-fid", "--images", a], 2, "No reference for"),
        (["eval-fid", "--images", a, "--ref", "data"], 2, "--preset NAME"),
        (["eval-fid", "--images", a, "--ref", b, "-n", "5"], 2, "--num-samples applies to generated images only"),
        (command(tmp_path / "empty", b, out), 1, "No images in"),
        (command(a, tmp_path / "empty", out), 1, "No images in"),
        (command(tmp_path / "absent", b, out), 2, "absent"),
        (command(a, tmp_path / "absent", out), 2, "absent"),
        (command(a, b, out, "--split", "test"), 2, "Leave `--split` out"),
        (command(a, b, out, "--metrics", "fid,fud"), 2, "evaluate.metrics"),
        (command(a, b, out, "--metrics", "sfid"), 2, "has no spatial"),
        (command(a, b, out, "--inception", b), 2, "holds weights of Inception, but the features are those of digits"),
        (command(a, tmp_path / "ref.npz", out, "--metrics", "kid"), 2, "kid needs the features of all images"),
        (command(a, b, out, "--metrics", "kid", "--interval"), 2, "--interval"),
        (["eval-fid", "stats", "--data", tmp_path / "ref.npz", "-o", out.with_suffix(".npz")], 2, "already"),
        (["eval-fid", "stats", "--data", a, "-o", out], 2, "ends in .npz"),
        (["eval-fid", "stats", "-o", out], 2, "--preset NAME"),
    ]
    for arguments, code, told in cases:
        if arguments[:2] == ["eval-fid", "stats"]:
            arguments = [*arguments, "--features", "digits"]
        assert dis(*arguments) == code, arguments
        assert told in capsys.readouterr().err, arguments
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "ref.npz"}


def test_too_few_images_for_a_metric(images: Path, tmp_path: Path, capsys: Any) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for index in range(4):
        (few / f"{index}.png").write_bytes((images / "a" / f"{index:03d}.png").read_bytes())
    for metrics, told in (("precision", "precision needs 6"), ("is", "inception_score needs 10")):
        assert dis(*command(few, images / "b", tmp_path / "score.json", "--metrics", metrics)) == 1
        assert f"{told} images or more, but there are 4" in result(capsys)["error"]["message"]
    assert dis(*command(few, images / "b", tmp_path / "score.json")) == 0


def test_the_inception_score_needs_no_reference(images: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ["--features", "digits", "--metrics", "is", "--json", "-q", "--out", tmp_path / "score.json"]
    assert dis("eval-fid", "--images", images / "a", *arguments) == 0
    data = result(capsys)
    assert 1 < data["classifier_score_digits"] < 10
    assert data["inception_score_parts"] == 10


def test_presets_data_as_statistics(tmp_path: Path, capsys: Any) -> None:
    ref = tmp_path / "digits.npz"
    assert dis("eval-fid", "stats", "--preset", "dis-xs-digits", "--out", ref, "--json", "-q") == 0
    data = result(capsys)
    assert (data["n"], data["split"], data["features"]) == (450, "test", "digits-cnn-64")
    assert read_reference(ref).statistics.count == 450


def test_a_signal_ends_it_and_says_that_it_begins_anew() -> None:
    images = TensorImages(torch.zeros(3, 8, 8, 1, dtype=torch.uint8))
    stop = StopRequest(signal.SIGTERM)
    with pytest.raises(Interrupted, match="Interrupted; 0 of 3 images were processed") as error:
        list(extract(images, DigitFeatures(), {FEATURES}, ProcessGroup(), stop))
    assert error.value.hint == "Run the same command again, from the beginning"
    assert error.value.code == 143
