"""The contract of a data source, and the code that sources share.

To add a source, write a class with the members of ImageSource (no base class to inherit), give it a branch in
``open_source`` (``dis_cli.data.open``) and a value in the setting ``data.source``.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from dis_cli.data.decode import center_crop

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
        """Its name in messages and results; printable."""
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

    def sample_name(self, index: int) -> str:
        """The name of a sample in files and messages, such as its path in the folder; not always printable."""
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


@runtime_checkable
class BatchSource(ImageSource, Protocol):
    """A source that gives many samples in less time than one by one."""

    def load_batch(self, indices: Sequence[int], rngs: Iterator[np.random.Generator]) -> Float[Tensor, "b c h w"]:
        """The samples that ``load`` would give, in the same bits.

        Args:
            rngs: One generator for each, as ``load`` takes it; each serves until the next is asked for.
        """
        ...


def grid_8_bit(image: Image.Image, image_size: int, rng: np.random.Generator | None, hflip: bool) -> Tensor:
    levels = np.asarray(center_crop(image, image_size)).reshape(image_size, image_size, -1)
    return grid(levels, rng, hflip) / 127.5 - 1


def grid(levels: npt.NDArray[np.uint8], rng: np.random.Generator | None, hflip: bool) -> Tensor:
    """(h, w, c) grey levels as a (c, h, w) tensor, mirrored by one draw in two."""
    if hflip and rng is not None and rng.random() < 0.5:
        levels = levels[:, ::-1]
    return torch.from_numpy(np.ascontiguousarray(levels.transpose(2, 0, 1), dtype=np.float32))


def require_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")


def require_index(index: int, length: int) -> None:
    if not 0 <= index < length:
        raise IndexError(f"index must be 0 to {length - 1}, got {index}")


def frozen(labels: npt.ArrayLike) -> npt.NDArray[np.int64]:
    array = np.array(labels, dtype=np.int64)
    array.flags.writeable = False
    return array


def content_hash(levels: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(levels).tobytes())
    digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()
