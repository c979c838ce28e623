"""Two folders of images, scored by this package and by torch-fidelity with the same network.

Its weights are random: what is compared is what both make of the same numbers.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image
from support.inception import save_random_inception
from support.tiny import dis
from torch import Tensor

from dis_cli.data.images.files import FileSource, FolderFiles
from dis_cli.metrics.extractors.base import FEATURES, LOGITS, SPATIAL, identity
from dis_cli.metrics.extractors.inception import InceptionFeatures
from dis_cli.metrics.frechet import frechet_distance
from dis_cli.metrics.images import extraction
from dis_cli.metrics.images.npz import NpzImages
from dis_cli.metrics.inception_score import InceptionScore
from dis_cli.metrics.kid import kernel_distance
from dis_cli.metrics.precision_recall import precision_recall
from dis_cli.metrics.statistics import Moments, Statistics
from dis_cli.metrics.statistics_file import Reference, read_reference, require_same_extractor, write_reference

COUNTS = {"a": 20, "b": 24}
SIZE = 40
BATCH = 8


class Scored(NamedTuple):
    """What one set of images gives."""

    statistics: Statistics
    features: Tensor
    score: InceptionScore
    spatial: Tensor


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth pictures, dark ones and bright ones."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, low in (("a", 0), ("b", 96)):
        (root / name).mkdir()
        for index in range(COUNTS[name]):
            coarse = rng.integers(low, low + 160, (3 + index % 6, 3 + index % 4, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            image.save(root / name / f"{index:03d}.png")
        pixels = [np.asarray(Image.open(path)) for path in sorted((root / name).iterdir())]
        np.savez(root / f"{name}.npz", np.stack(pixels))
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = save_random_inception(tmp_path_factory.mktemp("inception") / "random.pth")
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def extractor(weights: Path) -> InceptionFeatures:
    return InceptionFeatures(weights)


@pytest.fixture(scope="module")
def theirs(folders: Path, weights: Path) -> dict[str, float]:
    return torch_fidelity.calculate_metrics(
        input1=str(folders / "a"),
        input2=str(folders / "b"),
        fid=True,
        isc=True,
        kid=True,
        prc=True,
        kid_subset_size=COUNTS["a"],
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights),
        batch_size=BATCH,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )


def read_folder(path: Path) -> Tensor:
    source = FileSource(FolderFiles(path), image_size=SIZE)
    images = torch.stack([source.load(index, None) for index in range(len(source))])
    return ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


def scored(images: Tensor, extractor: InceptionFeatures) -> Scored:
    moments, score = Moments(2048), InceptionScore(len(images))
    features, spatial = list[Tensor](), list[Tensor]()
    for number, batch in enumerate(images.split(BATCH)):
        outputs = extractor.outputs(batch)
        moments.update(outputs[FEATURES])
        score.update(outputs[LOGITS], number * BATCH)
        features.append(outputs[FEATURES])
        spatial.append(outputs[SPATIAL])
    return Scored(moments.statistics(), torch.cat(features), score, torch.cat(spatial))


@pytest.fixture(scope="module")
def ours(folders: Path, extractor: InceptionFeatures) -> dict[str, Scored]:
    return {name: scored(read_folder(folders / name), extractor) for name in COUNTS}


@pytest.mark.long
def test_every_score_is_theirs(ours: dict[str, Scored], theirs: dict[str, float]) -> None:
    a, b = ours["a"], ours["b"]
    score = a.score.score()
    kid = kernel_distance(a.features, b.features)
    balls = precision_recall(a.features, b.features)
    assert 0 < balls.precision < 1
    assert 0 < balls.recall < 1
    got = {
        "frechet_inception_distance": frechet_distance(a.statistics, b.statistics),
        "inception_score_mean": score.mean,
        "inception_score_std": score.std,
        "kernel_inception_distance_mean": kid.mean,
        "kernel_inception_distance_std": kid.std,
        "precision": balls.precision,
        "recall": balls.recall,
    }
    assert got == pytest.approx({name: theirs[name] for name in got}, rel=1e-6)


@pytest.mark.long
def test_the_command_gives_theirs(
    folders: Path,
    weights: Path,
    theirs: dict[str, float],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The last bits of features depend on the batch.
    monkeypatch.setattr(extraction, "FEATURE_BATCH", BATCH)
    arguments = ["--inception", weights, "--json", "-q", "--out", tmp_path / "score.json"]
    scored = ["eval-fid", "--images", folders / "a", *arguments]
    assert dis(*scored, "--ref", folders / "b", "--metrics", "fid,is,kid,precision,recall") == 0
    found = json.loads(capsys.readouterr().out)
    # These weights are not the published ones.
    told = {
        "frechet_inception_distance": found["frechet_inception"],
        "inception_score_mean": found["classifier_score_inception"],
        "inception_score_std": found["classifier_score_inception_std"],
        "kernel_inception_distance_mean": found["kernel_distance_inception"],
        "kernel_inception_distance_std": found["kernel_distance_inception_std"],
        "precision": found["precision_inception"],
        "recall": found["recall_inception"],
    }
    assert told == pytest.approx({name: theirs[name] for name in told}, rel=1e-6)
    assert "fid" not in found
    assert dis("eval-fid", "stats", "--data", folders / "b.npz", "-o", tmp_path / "b.npz", *arguments[:4]) == 0
    capsys.readouterr()
    # as ADM's files are, which do not say what they were made with
    with np.load(tmp_path / "b.npz") as arrays:
        np.savez(tmp_path / "adm.npz", **{key: arrays[key] for key in ("mu", "sigma", "mu_s", "sigma_s")})
    assert dis(*scored, "--ref", tmp_path / "adm.npz", "--metrics", "all", "--out", tmp_path / "all.json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["metrics"] == ["fid", "sfid", "inception_score"]
    assert "the published Inception is assumed" in "".join(again["notes"])
    assert again["frechet_inception"] == pytest.approx(found["frechet_inception"], rel=1e-9)
    assert again["frechet_spatial_inception"] > 0


@pytest.mark.long
def test_an_array_and_a_statistics_file_give_the_value_of_the_folder(
    ours: dict[str, Scored], folders: Path, extractor: InceptionFeatures, tmp_path: Path
) -> None:
    wanted = frechet_distance(ours["a"].statistics, ours["b"].statistics)
    from_array = scored(torch.cat(list(NpzImages(folders / "a.npz").batches(5))), extractor)
    path = tmp_path / "ref.npz"
    write_reference(path, Reference(ours["b"].statistics, made_with=identity(extractor)))
    reference = read_reference(path)
    assert require_same_extractor(reference, extractor, path) is None
    assert frechet_distance(from_array.statistics, reference.statistics) == pytest.approx(wanted, rel=1e-9)


def test_spatial_features_tell_the_sets_apart(ours: dict[str, Scored]) -> None:
    assert ours["a"].spatial.shape == (COUNTS["a"], 2023)
    gap = (ours["a"].spatial.mean(dim=0) - ours["b"].spatial.mean(dim=0)).norm()
    assert gap > 0.1 * ours["a"].spatial.mean(dim=0).norm()
