"""Where images come from: what a data source is, the three built-in ones, and the choice between them.

To add a source, write a class with the members of ImageSource (no base class to inherit), give it a branch in
``open_source`` and a value in the setting ``data.source``.
"""

import hashlib
import os
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from dis_cli.data import cifar
from dis_cli.data.decode import center_crop, printable, read_image
from dis_cli.data.listing import FOLDER_HINT, list_images, require_folder, split_folder
from dis_cli.errors import DataError, UsageError

SPLITS = ("train", "test", "all")


@runtime_checkable
class ImageSource(Protocol):
    """A finite, ordered set of grids (images or latents) with labels.

    A source is opened once and then copied into the loader processes, so it must survive pickling, open files only
    when they are used, and keep large tables in arrays rather than in Python objects. Nothing may change after it is
    opened: sample i is the same grid in every process and every run. Errors in the user's files are DataError, raised
    when the source is opened wherever that is possible without decoding.
    """

    @property
    def name(self) -> str:
        """What to call it in messages and results; printable."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 means unlabelled. Whether the labels are used is the caller's choice."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """One printable name per class, in the order of the labels; empty when unlabelled."""
        ...

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The class of every sample, (N,), 0 to num_classes - 1, all 0 when unlabelled; costs no decoding."""
        ...

    @property
    def channels(self) -> int:
        """Channels of a grid: 1 grey, 3 RGB, 4 VAE latents."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the square grid, in its own pixels."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hexadecimal sha256 that changes when the data change; the key of everything computed from them.

        Computed at every access, in seconds for a million files: keep it.
        """
        ...

    def __len__(self) -> int:
        """Number of samples N."""
        ...

    def load(self, index: int, rng: np.random.Generator | None) -> Float[Tensor, "c h w"]:
        """One sample.

        Args:
            index: 0 to N - 1; negative numbers do not count from the end.
            rng: Drives the augmentation (mirroring, the noise of a latent's posterior). It must be the only thing that
                does, so that a sample depends on its place in the run alone. None means no augmentation.

        Returns:
            A new float32 tensor; images in [-1, 1], latents as the codec scales them.

        Raises:
            IndexError: When index is out of range.
            DataError: When the sample cannot be read, naming the file and the index.
        """
        ...


class DigitsSource:
    """scikit-learn's bundled digits: 1,797 handwritten digits, 8x8, 17 grey levels x mapped to x / 8 - 1.

    The split is fixed: ``train_test_split(stratify=labels, random_state=0)`` with 450 test images.

    Args:
        split: "train" (1,347 images), "test" (450), or "all" (1,797, in their published order).
        hflip: Mirror half of the images when augmenting; a mirrored digit is rarely a digit.

    Raises:
        ValueError: When the split has another name.
    """

    name = "digits"
    num_classes = 10
    class_names = tuple(str(digit) for digit in range(10))
    channels = 1
    image_size = 8

    def __init__(self, split: str = "train", *, hflip: bool = False) -> None:
        _require_split(split)
        # imported here because scikit-learn takes a second to load
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        levels, labels = load_digits(return_X_y=True)
        chosen = np.arange(len(labels))
        if split != "all":
            parts = train_test_split(chosen, test_size=450, stratify=labels, random_state=0)
            chosen = np.asarray(parts[0] if split == "train" else parts[1])
        self._levels: npt.NDArray[np.uint8] = levels[chosen].reshape(-1, 8, 8).astype(np.uint8)
        self._hflip = hflip
        self.labels: npt.NDArray[np.int64] = _frozen(labels[chosen])

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        """sha256 of the images and labels."""
        return _content_hash(self._levels, self.labels)

    def load(self, index: int, rng: np.random.Generator | None) -> Float[Tensor, "1 8 8"]:
        """One digit, in [-1, 1]; see ImageSource."""
        _require_index(index, len(self))
        return _grid(self._levels[index][..., None], rng, self._hflip) / 8 - 1


class FolderSource:
    """The images of a folder, each cut to a centred square and resized as the ADM code does.

    Args:
        path: A folder with one sub-folder per class (labels follow the sorted names) or a flat one (unlabelled).
        image_size: Side of the result, in pixels.
        channels: 1 converts to grey, 3 to RGB.
        hflip: Mirror half of the images when augmenting.

    Attributes:
        skipped: What looks like an image and is not used (a broken link, a folder named x.png), as "name: reason".

    Raises:
        DataError: When the folder is missing, holds no images, or has a class without any.
    """

    def __init__(self, path: Path, *, image_size: int, channels: int = 3, hflip: bool = False) -> None:
        require_folder(path, FOLDER_HINT)
        listing = list_images(path)
        self.name = printable(path)
        self.image_size = image_size
        self.channels = channels
        self.class_names = listing.class_names
        self.num_classes = len(listing.class_names)
        self.labels: npt.NDArray[np.int64] = _frozen(listing.labels)
        self.skipped = listing.skipped
        self._path = path
        self._hflip = hflip
        # Bytes in one array: a million Python strings would be copied into every loader process, page by page, as
        # their reference counts are touched.
        self._names = np.array([os.fsencode(name) for name in listing.names])

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        """sha256 of the sorted relative names and the file sizes; contents are not read."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            file = self._file(index)
            try:
                size = file.stat().st_size
            except OSError as error:
                raise DataError(f"Image cannot be opened: `{printable(file)}` ({error.strerror})") from error
            digest.update(self._names[index] + b"\0%d\0" % size)
        return digest.hexdigest()

    def load(self, index: int, rng: np.random.Generator | None) -> Float[Tensor, "c h w"]:
        """One image, in [-1, 1]; see ImageSource."""
        _require_index(index, len(self))
        try:
            image = read_image(self._file(index), channels=self.channels)
        except DataError as error:
            raise DataError(f"{error.message}, image {index} of {len(self)}", error.hint) from error
        return _grid_8_bit(image, self.image_size, rng, self._hflip)

    def _file(self, index: int) -> Path:
        return self._path / os.fsdecode(self._names[index])


class Cifar10Source:
    """CIFAR-10 in the layout its archive unpacks to, held in memory (3 kB an image).

    Args:
        path: The folder that holds ``cifar-10-batches-py``.
        split: "train" (the five data batches), "test" (the test batch), or "all" (both, in this order).
        image_size: Side of the result, in pixels; 32 keeps the images as they are.
        channels: 3, or 1 for grey.
        hflip: Mirror half of the images when augmenting.

    Raises:
        DataError: When the folder or a batch is missing or damaged, saying what to put where.
        ValueError: When the split has another name.
    """

    name = "cifar10"
    num_classes = len(cifar.CLASS_NAMES)
    class_names = cifar.CLASS_NAMES

    def __init__(
        self, path: Path, split: str = "train", *, image_size: int = 32, channels: int = 3, hflip: bool = False
    ) -> None:
        _require_split(split)
        files = {"train": cifar.TRAIN_FILES, "test": cifar.TEST_FILES, "all": cifar.TRAIN_FILES + cifar.TEST_FILES}
        self._images, labels = cifar.read_batches(cifar.find_batches(path), files[split])
        self.labels: npt.NDArray[np.int64] = _frozen(labels)
        self.image_size = image_size
        self.channels = channels
        self._hflip = hflip

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        """sha256 of the images and labels."""
        return _content_hash(self._images, self.labels)

    def load(self, index: int, rng: np.random.Generator | None) -> Float[Tensor, "c h w"]:
        """One image, in [-1, 1]; see ImageSource."""
        _require_index(index, len(self))
        image = Image.fromarray(self._images[index]).convert("L" if self.channels == 1 else "RGB")
        return _grid_8_bit(image, self.image_size, rng, self._hflip)


def open_source(
    kind: str, path: Path | None, *, split: str = "train", image_size: int, channels: int, hflip: bool = False
) -> ImageSource:
    """Open a source of images.

    Args:
        kind: "digits", "folder" or "cifar10". (Latents are opened by ``dis_cli.data.latents``.)
        path: The folder of the data; None for the digits.
        split: "train", "test" or "all". A folder that is divided into train and val or test gives that part; one that
            is not serves every split whole.
        image_size: Side of the grid wanted, in pixels.
        channels: Channels wanted, 1 or 3.
        hflip: Mirror half of the images when augmenting.

    Raises:
        UsageError: When the path is missing or superfluous, or the size or channels are impossible.
        DataError: When the data are missing or unreadable.
        ValueError: When kind or split has another name.
    """
    _require_split(split)
    if kind not in ("digits", "folder", "cifar10"):
        raise ValueError(f"kind must be digits, folder or cifar10, got {kind!r}")
    if channels not in (1, 3):
        raise UsageError(f"Images have 1 channel (grey) or 3 (RGB), got {channels}", "Set model.in_channels to 1 or 3")
    if kind == "digits":
        if path is not None:
            raise UsageError(
                f"The digits are bundled and take no folder, got `{printable(path)}`",
                "Set data.source=folder to use the images of a folder",
            )
        if (image_size, channels) != (8, 1):
            raise UsageError(
                f"The digits are 8x8 with 1 channel, got {image_size}x{image_size} with {channels}",
                "Set model.image_size=8 model.in_channels=1",
            )
        return DigitsSource(split, hflip=hflip)
    if path is None:
        raise UsageError(
            f"No folder given for data.source `{kind}`",
            "Give one with `--data DIR` (or data.path=DIR)"
            + (f"; DIR holds {cifar.FOLDER}, unpacked from {cifar.ARCHIVE}" if kind == "cifar10" else ""),
        )
    if kind == "cifar10":
        return Cifar10Source(path, split, image_size=image_size, channels=channels, hflip=hflip)
    return FolderSource(split_folder(path, split), image_size=image_size, channels=channels, hflip=hflip)


def _grid_8_bit(image: Image.Image, image_size: int, rng: np.random.Generator | None, hflip: bool) -> Tensor:
    levels = np.asarray(center_crop(image, image_size)).reshape(image_size, image_size, -1)
    return _grid(levels, rng, hflip) / 127.5 - 1


def _grid(levels: npt.NDArray[np.uint8], rng: np.random.Generator | None, hflip: bool) -> Tensor:
    """(h, w, c) grey levels as a (c, h, w) tensor, mirrored by one draw in two."""
    if hflip and rng is not None and rng.random() < 0.5:
        levels = levels[:, ::-1]
    return torch.from_numpy(np.ascontiguousarray(levels.transpose(2, 0, 1), dtype=np.float32))


def _require_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")


def _require_index(index: int, length: int) -> None:
    if not 0 <= index < length:
        raise IndexError(f"index must be 0 to {length - 1}, got {index}")


def _frozen(labels: npt.ArrayLike) -> npt.NDArray[np.int64]:
    array = np.array(labels, dtype=np.int64)
    array.flags.writeable = False
    return array


def _content_hash(levels: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(levels).tobytes())
    digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()
