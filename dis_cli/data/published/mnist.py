"""MNIST's four files, as published or unpacked."""

import gzip
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from dis_cli.data.decode import printable
from dis_cli.data.images.folders import require_folder
from dis_cli.data.published.download import downloading
from dis_cli.data.published.stored import StoredSource
from dis_cli.data.source import require_index, require_split
from dis_cli.errors import DataError

SIDE = 28
# Where torchvision puts them.
FOLDER = "MNIST/raw"
_PARTS = {"train": ("train",), "test": ("t10k",), "all": ("train", "t10k")}
_NAMES = ("{}-images-idx3-ubyte", "{}-labels-idx1-ubyte")
_BORDER = 2
_IMAGES, _LABELS = 2051, 2049
HINT = (
    f"Put {', '.join(name.format(part) for part in _PARTS['all'] for name in _NAMES)}, as they are or with .gz, in DIR "
    f"or in DIR/{FOLDER} and give `--data DIR` (or data.path=DIR), or set data.download=true to have that done"
)


class MnistSource(StoredSource):
    """MNIST in its published files, held in memory (0.8 kB an image); never mirrored.

    Args:
        path: The folder that holds the files, or ``MNIST/raw`` with them.
        split: "train" (60,000 images), "test" (10,000), or "all" (both, in this order).
        image_size: Side of the result, in pixels. 28 keeps the images as they are, and 32 adds two rows and columns of
            black on every side; other sides are resized as photographs are.
        channels: 1, or 3 equal ones.
        download: Fetch the files when they are not there.

    Raises:
        DataError: When a file is missing or damaged, saying what to put where.
        MissingResourceError: When the files cannot be fetched.
        ValueError: When the split has another name.
    """

    name = "mnist"
    num_classes = 10
    class_names = tuple(str(digit) for digit in range(10))

    def __init__(
        self, path: Path, split: str = "train", *, image_size: int = 32, channels: int = 1, download: bool = False
    ) -> None:
        require_split(split)
        if download and not all(_find(path, name.format(part)) for part in _PARTS["all"] for name in _NAMES):
            fetch(path)
        require_folder(path, HINT)
        if not has_files(path):
            raise DataError(f"MNIST is missing in `{printable(path)}`", HINT)
        parts = [_read_part(path, part) for part in _PARTS[split]]
        images, labels = (np.concatenate(own) for own in zip(*parts, strict=True))
        super().__init__(images, labels, split=split, image_size=image_size, channels=channels)

    def load(self, index: int, rng: np.random.Generator | None) -> Float[Tensor, "c h w"]:
        """One digit, in [-1, 1]; see ImageSource."""
        require_index(index, len(self))
        levels = self._levels[index]
        return self._on_grid(np.pad(levels, _BORDER) if self.image_size == SIDE + 2 * _BORDER else levels, rng)


def has_files(path: Path) -> bool:
    """True if a folder holds the training images' file, or the folder where torchvision puts it."""
    return _find(path, _NAMES[0].format("train")) is not None


def fetch(path: Path) -> None:
    """Fetch the files, compare their MD5 with the published ones, and unpack them.

    Raises:
        MissingResourceError: When that fails.
    """
    # Imported here because torchvision takes a second to load.
    from torchvision.datasets import MNIST

    with downloading("MNIST", path, HINT.rpartition(", or set")[0]), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        fetcher: Any = MNIST.__new__(MNIST)
        fetcher.root = str(path)
        fetcher.download()


def _find(path: Path, name: str) -> Path | None:
    """A file by its name, or by the one that a collection of data sets gives it; None where there is none."""
    names = [name, name.replace("-idx", ".idx")]
    places = [
        folder / f"{each}{suffix}" for folder in (path, path / FOLDER) for each in names for suffix in ("", ".gz")
    ]
    return next((place for place in places if place.is_file()), None)


def _read_part(path: Path, part: str) -> tuple[UInt8[np.ndarray, "n 28 28"], UInt8[np.ndarray, "n"]]:
    images = _read_file(path, _NAMES[0].format(part), _IMAGES, SIDE * SIDE)
    labels = _read_file(path, _NAMES[1].format(part), _LABELS, 1)
    if len(images) != len(labels):
        raise DataError(
            f"MNIST's {part} files in `{printable(path)}` hold {len(images):,} images and {len(labels):,} labels", HINT
        )
    if len(labels) and labels.max() >= MnistSource.num_classes:
        raise DataError(f"MNIST's {part} labels in `{printable(path)}` are not 0 to 9: {labels.max()}", HINT)
    return images.reshape(-1, SIDE, SIDE), labels.reshape(-1)


def _read_file(path: Path, name: str, magic: int, width: int) -> UInt8[np.ndarray, "n width"]:
    """The rows of a file in the IDX format: numbers of four bytes, the highest first, and then single bytes."""
    place = _find(path, name)
    if place is None:
        raise DataError(f"MNIST's `{name}` is missing in `{printable(path)}`", HINT)
    try:
        content = place.read_bytes()
        content = gzip.decompress(content) if place.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"Cannot be read: `{printable(place)}` ({error})", "Fetch it again") from error
    num_axes = 3 if width > 1 else 1
    start = 4 + 4 * num_axes
    head = [int(number) for number in np.frombuffer(content[:start].ljust(start, b"\0"), ">u4")]
    expected = [magic, (len(content) - start) // width, *([SIDE, SIDE] if width > 1 else [])]
    if head != expected or len(content) != start + expected[1] * width:
        raise DataError(f"Not MNIST's `{name}`, or damaged: `{printable(place)}`", "Fetch it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(-1, width)
