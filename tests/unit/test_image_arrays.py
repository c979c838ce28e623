"""Arrays of images: memory orders x types x layouts that are read, and the names of those that are not."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dis_cli.errors import DataError, MismatchError, RefusedError
from dis_cli.metrics.images import npz
from dis_cli.metrics.images.npz import NpzImages

COUNT = 5
TYPES = ("u1", "i1", "<i2", ">i2", "<u2", ">u2", "<i4", ">i4", "<u4", ">i8", "<i8", ">u8")
# From (N, H, W, C) to what a person would save.
LAYOUTS = {
    "NHWC": (3, lambda images: images),
    "NHWC grey": (1, lambda images: images),
    "NCHW": (3, lambda images: images.transpose(0, 3, 1, 2)),
    "NCHW grey": (1, lambda images: images.transpose(0, 3, 1, 2)),
    "NHW": (1, lambda images: images[..., 0]),
}
ORDERS = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "neither": lambda array: np.repeat(array, 2, axis=2)[:, :, ::2],
}


def drawn(channels: int, top: int = 255) -> np.ndarray:
    images = np.random.default_rng(channels).integers(0, top + 1, (COUNT, 9, 7, channels))
    images.flat[:2] = 0, top
    return images


def read(path: Path, batch_size: int = 2) -> np.ndarray:
    images = NpzImages(path)
    found = torch.cat(list(images.batches(batch_size)))
    assert found.dtype == torch.uint8
    assert (len(images), images.shape) == (len(found), tuple(found.shape))
    return found.numpy()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("order", ORDERS)
def test_images_are_read_in_any_order_type_and_layout(
    layout: str, order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the range of values is measured in blocks of two or so
    monkeypatch.setattr(npz, "_BLOCK", 300)
    channels, arranged = LAYOUTS[layout]
    for dtype, compressed in itertools.product(TYPES, (False, True)):
        images = drawn(channels, top=127 if dtype == "i1" else 255)
        array = ORDERS[order](arranged(images).astype(dtype))
        assert array.dtype.str.lstrip("|") == dtype
        path = tmp_path / "images.npz"
        (np.savez_compressed if compressed else np.savez)(path, array)
        assert np.array_equal(read(path), images), dtype


@pytest.mark.parametrize("name", ["arr_0", "images", "samples", "x", "data"])
def test_the_only_array_of_images_may_have_any_name(name: str, tmp_path: Path) -> None:
    path, images = tmp_path / "images.npz", drawn(3).astype(np.uint8)
    labels = np.arange(COUNT)
    objects = np.array([{}], dtype=object)
    np.savez(path, **{name: images}, labels=labels, one_hot=np.eye(COUNT), mu=np.zeros(3), names=objects)
    assert np.array_equal(read(path), images)
    np.savez(path, labels, **({name: images} if name != "arr_0" else {"arr_1": images}))
    assert np.array_equal(read(path), images)


LEVELS = drawn(3).astype(np.uint8)

REFUSED: dict[str, tuple[Any, str]] = {
    "0 to 1": (np.float32(LEVELS / 255), "arr_0 is float32 (5, 9, 7, 3): its values are 0 to 1"),
    "-1 to 1": (LEVELS / 127.5 - 1, "float64 (5, 9, 7, 3): its values are -1 to 1"),
    "0 to 255": (LEVELS.astype(">f4"), "float32 (5, 9, 7, 3): its values are 0 to 255"),
    "half": (np.float16(LEVELS / 255), "float16 (5, 9, 7, 3): its values are 0 to 1"),
    "channels first": (np.float32(LEVELS / 255).transpose(0, 3, 1, 2), "float32 (5, 3, 9, 7): its values are 0 to 1"),
    "NaN": (np.where(LEVELS == 0, np.nan, LEVELS), "its values are nan to nan"),
    "bool": (LEVELS > 99, "arr_0 is bool (5, 9, 7, 3)"),
    "0 and 1": (np.int64(LEVELS > 99), "int64 (5, 9, 7, 3): its values are 0 to 1"),
    "16 bits": (np.uint16(LEVELS) * 257, "uint16 (5, 9, 7, 3): its values are 0 to 65535"),
    "32 bits": (np.int32(LEVELS) * 9999, "int32 (5, 9, 7, 3): its values are 0 to 2.54974e+06"),
    "signed": (np.int16(LEVELS) - 128, "int16 (5, 9, 7, 3): its values are -128 to 127"),
    "complex": (LEVELS + 0j, "arr_0 is complex128 (5, 9, 7, 3)"),
    "text": (LEVELS.astype(str), "levels are whole numbers from 0 to 255"),
    "RGBA": (np.zeros((5, 9, 7, 4), np.uint8), "(5, 9, 7, 4): it has 4 channels"),
    "RGBA first": (np.zeros((5, 4, 9, 7), np.uint8), "(5, 4, 9, 7): it has 4 channels"),
    "two channels": (np.zeros((5, 9, 7, 2), np.uint8), "(N, H, W, C), with C = 1 or 3"),
    "either": (np.zeros((5, 3, 9, 4), np.uint8), "(5, 3, 9, 4): it is (N, H, W, 4) or (N, 3, H, W)"),
    "either, of three pixels": (np.zeros((5, 3, 9, 3), np.uint8), "it is (N, H, W, 3) or (N, 3, H, W), and either way"),
    "one image": (LEVELS[0], "(9, 7, 3): it is one image (H, W, C)"),
    "one image, channels first": (LEVELS[0].transpose(2, 0, 1), "(3, 9, 7): it is one image (3, H, W), or 3 grey"),
    "video": (np.zeros((5, 2, 9, 7, 3), np.uint8), "uint8 (5, 2, 9, 7, 3): a set of images has the axes (N, H, W, C)"),
}

# What their hints make of an array is read, and looks like that.
MENDED = {
    "0 to 1": LEVELS,
    "-1 to 1": LEVELS,
    "0 to 255": LEVELS,
    "half": LEVELS,
    "channels first": LEVELS,
    "bool": np.uint8(LEVELS > 99) * 255,
    "0 and 1": np.uint8(LEVELS > 99) * 255,
    "16 bits": LEVELS,
    "RGBA": np.zeros((5, 9, 7, 3)),
    "RGBA first": np.zeros((5, 9, 7, 3)),
    "either": np.zeros((5, 9, 4, 3)),
    "one image": LEVELS[:1],
    "one image, channels first": LEVELS[:1],
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("order", ["C", "F"])
def test_other_arrays_are_refused_by_their_names(name: str, order: Any, tmp_path: Path) -> None:
    path, (array, reason) = tmp_path / "images.npz", REFUSED[name]
    np.savez(path, np.asarray(array, order=order))
    with pytest.raises(MismatchError, match=re.escape(reason)) as caught:
        NpzImages(path)
    assert f"`{path}`" in caught.value.message
    assert "np." not in caught.value.message
    hint = caught.value.hint
    assert hint
    if name in MENDED:
        expression = re.findall("`(.*?)`", hint)[0]
        np.savez(path, eval(expression, {"images": array, "np": np}))
        assert np.array_equal(read(path), MENDED[name])


@pytest.mark.parametrize(
    ("arrays", "reason", "hint"),
    [
        ({}, "holds no images, which are (N, H, W, C): it has no arrays", "save uint8"),
        ({"x": LEVELS.reshape(5, -1)}, "holds no images, which are (N, H, W, C): x uint8 (5, 189)", "Reshape rows"),
        ({"arr_0": np.arange(5)}, "holds no images, which are (N, H, W, C): arr_0 int64 (5,)", "Reshape rows"),
        ({"mu": np.zeros(3), "sigma": np.eye(3)}, "mu float64 (3,), sigma float64 (3, 3)", "with `--ref"),
        (
            {"arr_0": LEVELS, "arr_1": LEVELS[:2]},
            "holds 2 arrays that may be images: arr_0 uint8 (5, 9, 7, 3), arr_1 uint8 (2, 9, 7, 3)",
            "np.savez('images.npz', images)",
        ),
    ],
)
def test_which_array_is_meant_must_be_clear(
    arrays: dict[str, np.ndarray], reason: str, hint: str, tmp_path: Path
) -> None:
    path = tmp_path / "images.npz"
    np.savez(path, **arrays)
    with pytest.raises(MismatchError, match=re.escape(reason)) as caught:
        NpzImages(path)
    assert hint in (caught.value.hint or "")


def test_arrays_without_images_and_of_objects(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    np.savez(path, np.zeros((0, 9, 7, 3), np.int64))
    with pytest.raises(DataError, match=re.escape("arr_0 holds no images, its shape is (0, 9, 7, 3)")):
        NpzImages(path)
    np.savez(path, LEVELS.astype(object))
    with pytest.raises(RefusedError, match="nothing in it was run: arr_0 holds objects"):
        NpzImages(path)


def test_columns_first_are_read_at_once_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "images.npz"
    np.savez(path, np.asfortranarray(LEVELS))
    monkeypatch.setattr(npz, "MAX_COLUMNS_FIRST", LEVELS.size)
    assert np.array_equal(read(path), LEVELS)
    monkeypatch.setattr(npz, "MAX_COLUMNS_FIRST", LEVELS.size - 1)
    with pytest.raises(MismatchError, match="its columns come first") as caught:
        NpzImages(path)
    assert "np.ascontiguousarray(images)" in (caught.value.hint or "")
    np.savez(path, np.ascontiguousarray(LEVELS))
    assert np.array_equal(read(path), LEVELS)


def test_a_value_out_of_range_is_found_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "_BLOCK", 1)
    path, images = tmp_path / "images.npz", LEVELS.astype(np.int64)
    for place in (0, images.size // 2, images.size - 1):
        changed = images.copy()
        changed.flat[place] = 256
        np.savez(path, changed)
        with pytest.raises(MismatchError, match="its values are 0 to 256"):
            NpzImages(path)
