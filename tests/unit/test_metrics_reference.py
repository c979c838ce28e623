import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dis_cli.errors import DataError, MismatchError, RefusedError
from dis_cli.metrics.extractors.base import FEATURES, FunctionFeatures, identity
from dis_cli.metrics.extractors.digits import DigitFeatures
from dis_cli.metrics.frechet import frechet_distance
from dis_cli.metrics.images import npz
from dis_cli.metrics.images.npz import NpzImages
from dis_cli.metrics.statistics import Statistics, statistics
from dis_cli.metrics.statistics_file import Reference, read_reference, require_same_extractor, write_reference


def drawn(size: int = 6, seed: int = 0) -> Statistics:
    return statistics(np.random.default_rng(seed).standard_normal((40, size)))


def mean_colour(images: Tensor) -> Tensor:
    return images.double().mean(dim=(1, 2))


COLOURS = FunctionFeatures(mean_colour, num_features=3, sha256="0" * 64, preprocessing="none")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ref.npz"
    main, spatial = drawn(), drawn(4, seed=1)
    made_with = identity(COLOURS)
    assert made_with["extractor"] == f"{__name__}:mean_colour"
    write_reference(path, Reference(main, spatial, made_with, "täst images", "ab" * 32))
    read = read_reference(path)
    assert read.made_with == made_with
    assert (read.data, read.data_sha256) == ("täst images", "ab" * 32)
    assert read.spatial is not None
    for got, wanted in ((read.statistics, main), (read.spatial, spatial)):
        assert np.array_equal(got.mean, wanted.mean)
        assert np.array_equal(got.covariance, wanted.covariance)
        assert got.count == 40
    assert frechet_distance(read.statistics, drawn(seed=2)) == frechet_distance(main, drawn(seed=2))
    # as ADM's evaluator reads it
    with np.load(path, allow_pickle=False) as arrays:
        assert np.array_equal(arrays["mu"], main.mean)
        assert np.array_equal(arrays["sigma_s"], spatial.covariance)
    before = path.read_bytes()
    write_reference(path, Reference(main, spatial, made_with, "täst images", "ab" * 32))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("compressed", [False, True])
def test_adms_files_are_read(compressed: bool, tmp_path: Path) -> None:
    path, main, spatial = tmp_path / "adm.npz", drawn(), drawn(4, seed=1)
    arrays: dict[str, Any] = {
        "mu": main.mean.astype(np.float32),
        "sigma": main.covariance,
        "mu_s": spatial.mean,
        "sigma_s": spatial.covariance,
        "arr_0": np.zeros((3, 4, 4, 3), np.uint8),
    }
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    read = read_reference(path)
    np.testing.assert_allclose(read.statistics.mean, main.mean, rtol=1e-6)
    assert np.array_equal(read.statistics.covariance, main.covariance)
    assert read.spatial is not None
    assert (read.statistics.count, read.made_with, read.data_sha256) == (None, None, "")
    assert len(NpzImages(path)) == 3
    with pytest.raises(MismatchError, match=r"does not name its extractor, and is taken to be Inception's"):
        require_same_extractor(Reference(drawn(64)), DigitFeatures(), path)


def test_statistics_of_another_extractor(tmp_path: Path) -> None:
    digits = DigitFeatures()
    own = Reference(drawn(64), made_with=identity(digits))
    assert require_same_extractor(own, digits, tmp_path) is None
    other = Reference(drawn(64), made_with=identity(digits) | {"extractor_sha256": "f" * 64})
    with pytest.raises(MismatchError) as caught:
        require_same_extractor(other, digits, tmp_path)
    assert f"extractor_sha256: `{'f' * 64}` in the file, `{digits.sha256}` here" in caught.value.message
    assert "preprocessing" not in caught.value.message
    with pytest.raises(MismatchError, match=r"extractor: `digits-cnn-64` in the file, .*mean_colour` here"):
        require_same_extractor(own, COLOURS, tmp_path)
    with pytest.raises(MismatchError, match="mu has 6 features, digits-cnn-64 has 64"):
        require_same_extractor(Reference(drawn(), made_with=identity(digits)), digits, tmp_path)
    with pytest.raises(MismatchError, match="mu_s has 4 features, digits-cnn-64 has none"):
        require_same_extractor(Reference(drawn(64), drawn(4), identity(digits)), digits, tmp_path)


EYE = np.eye(3)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"mu": np.zeros((3, 1))}, "mu must have shape"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, "mu must have shape"),
        ({"mu": np.zeros(3, np.int64)}, "mu must be float32 or float64, got int64"),
        ({"mu": np.array([0, np.nan, 0])}, "mu holds NaN"),
        ({"sigma": np.eye(4)}, "sigma has shape"),
        ({"sigma": np.eye(2)}, "sigma must have shape"),
        ({"sigma": EYE.astype(np.float16)}, "sigma must be float32 or float64, got float16"),
        ({"sigma": np.full((3, 3), np.inf)}, "sigma holds NaN"),
        ({"sigma": np.triu(np.ones((3, 3)))}, "sigma must be symmetric"),
        ({"n": np.int64(1)}, "n must be at least 2, got 1"),
        ({"n": np.float64(5)}, "n must be one whole number"),
        ({"mu_s": np.zeros(2)}, "has no array sigma_s"),
        ({"mu_s": np.zeros(2), "sigma_s": np.full((2, 2), np.nan)}, "sigma_s holds NaN"),
        ({"extractor": np.array("x")}, "has no array extractor_sha256"),
        ({"extractor": np.array(["x", "y"])}, "extractor must be a text"),
        ({"format": np.int64(9)}, "format is 9"),
        ({"mu": np.zeros(5000)}, "mu has shape"),
    ],
)
def test_files_that_are_no_statistics_name_the_array(change: dict[str, Any], key: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    valid: dict[str, Any] = {"mu": np.zeros(3), "sigma": EYE, "n": np.int64(9)}
    np.savez(path, **valid)
    assert read_reference(path).statistics.count == 9
    np.savez(path, **(valid | change))
    with pytest.raises(MismatchError, match=re.escape(key)) as caught:
        read_reference(path)
    assert caught.value.code == 2
    assert str(path) in caught.value.message


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_statistics_are_read_in_any_byte_and_memory_order(dtype: str, order: Any, tmp_path: Path) -> None:
    path = tmp_path / "ref.npz"
    mean, covariance = np.arange(3) / 4, np.eye(3) + np.arange(3) / 8 + np.arange(3)[:, None] / 8
    np.savez(path, mu=mean.astype(dtype), sigma=np.asarray(covariance, dtype, order=order))
    read = read_reference(path).statistics
    assert (read.mean.dtype, read.covariance.dtype, read.count) == (np.float64, np.float64, None)
    assert np.array_equal(read.mean, mean)
    assert np.array_equal(read.covariance, covariance)


def test_a_file_without_statistics(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    np.savez(path, np.zeros((3, 4, 4, 3), np.uint8))
    with pytest.raises(MismatchError, match="has no array mu, only arr_0"):
        read_reference(path)


def test_damage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "ref.npz"
    write_reference(path, Reference(drawn(), made_with=identity(COLOURS)))
    content = path.read_bytes()
    whole = read_reference(path)
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=str(path)):
            read_reference(path)
    rng = np.random.default_rng(0)
    noticed = 0
    for place in rng.integers(0, len(content), 150):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            read = read_reference(path)
        except (DataError, MismatchError, RefusedError):
            noticed += 1
        else:
            # in what nobody reads, such as the time of an entry; or in the name of what is said beside the statistics
            assert np.array_equal(read.statistics.covariance, whole.statistics.covariance)
            assert np.array_equal(read.statistics.mean, whole.statistics.mean)
    assert noticed > 75
    with pytest.raises(DataError, match="absent"):
        read_reference(tmp_path / "absent.npz")
    with pytest.raises(DataError, match=str(tmp_path)):
        read_reference(tmp_path)


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_is_not_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "trap.npz", tmp_path / "was_run"
    trap = np.array([Trap(mark)], dtype=object)
    np.savez(path, mu=trap, sigma=EYE, arr_0=trap)
    for read in (read_reference, NpzImages):
        with pytest.raises(RefusedError, match=r"nothing in it was run: (mu|arr_0) holds objects"):
            read(path)
    assert not mark.exists()


def test_arrays_that_claim_more_than_they_have(tmp_path: Path) -> None:
    path = tmp_path / "claims.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 64, 64, 3)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", header.getvalue() + bytes(64 * 64 * 3 * 5))
    images = NpzImages(path)
    batches = images.batches(2)
    assert next(batches).shape == (2, 64, 64, 3)
    next(batches)
    with pytest.raises(DataError, match=r"ends .* early"):
        next(batches)


def test_images_too_large_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "claims.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (1, 1 << 20, 1 << 20, 3)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", header.getvalue())
    with pytest.raises(RefusedError, match="1048576x1048576 pixels"):
        NpzImages(path)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("batch", [1, 4, 100])
def test_images_are_read_in_blocks(compressed: bool, batch: int, tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (11, 5, 7, 3), dtype=np.uint8)
    (np.savez_compressed if compressed else np.savez)(path, pixels, np.arange(11))
    images = NpzImages(path)
    assert images.shape == (11, 5, 7, 3)
    parts = list(images.batches(batch))
    assert [len(part) for part in parts] == [min(batch, 11 - first) for first in range(0, 11, batch)]
    assert np.array_equal(torch.cat(parts).numpy(), pixels)


def test_memory_does_not_grow_with_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "images.npz"
    np.savez(path, np.zeros((64, 16, 16, 3), np.uint8))
    asked: list[int] = []
    read = npz.read_exactly
    monkeypatch.setattr(npz, "read_exactly", lambda file, size: asked.append(size) or read(file, size))
    assert sum(len(part) for part in NpzImages(path).batches(8)) == 64
    assert asked == [8 * 16 * 16 * 3] * 8


def test_damaged_images_are_no_images(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    np.savez(path, np.zeros((0, 4, 4, 3), np.uint8))
    with pytest.raises(DataError, match="no images"):
        NpzImages(path)
    np.savez(path, np.zeros((9, 8, 8, 3), np.uint8))
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="CRC-32"):
        list(NpzImages(path).batches(4))


def test_a_function_of_ones_own() -> None:
    images = torch.randint(0, 256, (5, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = COLOURS.outputs(images)[FEATURES]
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, mean_colour(images).float())
    with pytest.raises(ValueError, match=r"must have shape \(5, 4\), got \(5, 3\)"):
        FunctionFeatures(mean_colour, num_features=4, sha256="0" * 64).outputs(images)
    with pytest.raises(ValueError, match="uint8"):
        COLOURS.outputs(images.float())
