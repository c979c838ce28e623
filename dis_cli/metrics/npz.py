"""Reading ``.npz`` files that anybody may have made: no objects, nothing larger than announced, images in blocks."""

import math
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from dis_cli.errors import DataError, MismatchError, RefusedError

# What ADM's samples are called in their file.
IMAGES_KEY = "arr_0"
# The largest side of an image: a file that claims more is made to fill the memory.
MAX_SIDE = 4096

_OBJECTS_HINT = "Do not load it with allow_pickle either, unless you trust whoever made it"
_DAMAGED_HINT = "It is damaged or incomplete: copy or fetch it anew"


@runtime_checkable
class Readable(Protocol):
    """An open file."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes."""
        ...


class Header(NamedTuple):
    """What an array says of itself: shape, type, and whether its columns come first."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool


class NpzFile:
    """An open ``.npz`` file.

    Args:
        path: Its path, for errors.
        archive: The file.

    Attributes:
        keys: The arrays in it.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path = path
        self._archive = archive
        names = [entry.filename for entry in archive.infolist()]
        self.keys = {name.removesuffix(".npy") for name in names if name.endswith(".npy")}

    def read(self, key: str, *, max_bytes: int) -> Shaped[np.ndarray, "..."]:
        """One array.

        Args:
            key: Its name.
            max_bytes: The most that it may take.

        Raises:
            MismatchError: It is not there, or larger.
            RefusedError: It holds objects.
        """
        with self.opened(key) as (header, file):
            size = math.prod(header.shape) * header.dtype.itemsize
            if size > max_bytes:
                raise MismatchError(
                    f"`{self._path}`: {key} has shape {header.shape}, {size:,} bytes; at most {max_bytes:,} are allowed"
                )
            data = read_exactly(file, size)
            # The checksum is compared when the end is read.
            if file.read(1):
                raise zipfile.BadZipFile(f"{key} is longer than its shape")
            return np.frombuffer(data, header.dtype).reshape(header.shape, order="F" if header.fortran else "C")

    @contextmanager
    def opened(self, key: str) -> Generator[tuple[Header, Readable]]:
        """The header of an array, and the file that its values follow in.

        Raises:
            MismatchError: There is no such array.
            RefusedError: It holds objects.
        """
        if key not in self.keys:
            raise MismatchError(
                f"`{self._path}` has no array {key}, only {', '.join(sorted(self.keys)) or 'none'}",
                "Statistics are mu and sigma, images arr_0",
            )
        with self._archive.open(f"{key}.npy") as file:
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise MismatchError(
                    f"`{self._path}`: {key} is of version {version} of the format, read are 1.0 and 2.0"
                )
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            if dtype.hasobject:
                raise RefusedError(
                    f"`{self._path}` was refused, nothing in it was run: {key} holds objects", _OBJECTS_HINT
                )
            yield Header(shape, dtype, fortran), file


@contextmanager
def open_npz(path: Path) -> Generator[NpzFile]:
    """Open an ``.npz`` file for reading, and say in words what goes wrong while it is open.

    Raises:
        DataError: It is missing, damaged or of another kind.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield NpzFile(path, archive)
    # RuntimeError: it is encrypted
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        raise DataError(f"`{path}` cannot be read as an .npz file ({error})", _DAMAGED_HINT) from error
    except OSError as error:
        raise DataError(f"`{path}` cannot be read ({error.strerror or error})", "Check the path") from error


class NpzImages:
    """The images of an ``.npz`` file as ADM's tools write them, read in blocks: memory does not grow with the file.

    Args:
        path: The file, with uint8 ``arr_0`` (N, H, W, C).

    Attributes:
        shape: (N, H, W, C).

    Raises:
        DataError: The file is missing or damaged, or has no images.
        MismatchError: It holds something else than images.
        RefusedError: It holds objects.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_npz(path) as file, file.opened(IMAGES_KEY) as (header, _):
            shape = header.shape
            if header.dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or header.fortran:
                raise MismatchError(
                    f"`{path}`: {IMAGES_KEY} must be uint8 (N, H, W, 1 or 3), got {header.dtype} {shape}",
                    "Save images with `np.savez(path, images)`, channels last",
                )
        if max(shape[1:3]) > MAX_SIDE:
            raise RefusedError(
                f"`{path}` was refused: its images are of {shape[1]}x{shape[2]} pixels, at most {MAX_SIDE} a side are "
                "allowed",
                "It is made to fill the memory, or of another kind",
            )
        if 0 in shape:
            raise DataError(f"`{path}`: {IMAGES_KEY} holds no images, its shape is {shape}")
        self.shape = shape

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, batch_size: int) -> Iterator[UInt8[Tensor, "b h w c"]]:
        """All images in order, ``batch_size`` at a time.

        Raises:
            DataError: The file ends early or fails its checksum.
        """
        with open_npz(self.path) as file, file.opened(IMAGES_KEY) as (_, values):
            for first in range(0, len(self), batch_size):
                shape = (min(batch_size, len(self) - first), *self.shape[1:])
                yield torch.frombuffer(bytearray(read_exactly(values, math.prod(shape))), dtype=torch.uint8).view(shape)
            if values.read(1):
                raise zipfile.BadZipFile(f"{IMAGES_KEY} is longer than its shape")


def read_exactly(file: Readable, size: int) -> bytes:
    """As many bytes as asked for.

    Raises:
        EOFError: The file ends before.
    """
    data = file.read(size)
    if len(data) != size:
        raise EOFError(f"it ends {size - len(data):,} bytes early")
    return data
