"""Reading ``.npz`` files that anybody may have made: no objects, nothing larger than announced, images in blocks."""

import functools
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
from dis_cli.metrics.images.array import Range, as_levels, layout_of, require_levels, require_numbers

# The largest side of an image: a file that claims more is made to fill the memory.
MAX_SIDE = 4096
# Images whose columns come first are spread over the whole array, which has to be read at once.
MAX_COLUMNS_FIRST = 1 << 31
# Bytes that are looked at together when the range of values is measured.
_BLOCK = 1 << 24

_OBJECTS_HINT = "Do not load it with allow_pickle either, unless you trust whoever made it"
_DAMAGED_HINT = "It is damaged or incomplete: copy or fetch it anew"


@runtime_checkable
class Readable(Protocol):
    """An open file."""

    def read(self, size: int = -1, /) -> bytes:
        """At most so many bytes."""
        ...


class Header(NamedTuple):
    """The header of an array: shape, type, and whether its columns come first."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool


class NpzFile:
    """An open ``.npz`` file."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path = path
        self._archive = archive
        names = [entry.filename for entry in archive.infolist()]
        self.keys = {name.removesuffix(".npy") for name in names if name.endswith(".npy")}

    def read(self, key: str, *, max_bytes: int) -> Shaped[np.ndarray, "..."]:
        """One array.

        Args:
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

    def headers(self) -> dict[str, Header]:
        """The header of every array, in the order of names.

        Raises:
            MismatchError: One is of another version of the format.
        """
        found: dict[str, Header] = {}
        for key in sorted(self.keys):
            with self._archive.open(f"{key}.npy") as file:
                found[key] = self._header(key, file)
        return found

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
                "Statistics are mu and sigma",
            )
        with self._archive.open(f"{key}.npy") as file:
            header = self._header(key, file)
            if header.dtype.hasobject:
                raise RefusedError(
                    f"`{self._path}` was refused, nothing in it was run: {key} holds objects", _OBJECTS_HINT
                )
            yield header, file

    def _header(self, key: str, file: Readable) -> Header:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise MismatchError(f"`{self._path}`: {key} is of version {version} of the format, read are 1.0 and 2.0")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        return Header(shape, dtype, fortran)


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


def may_be_images(file: NpzFile) -> dict[str, Header]:
    """The arrays of a file that have the axes of images; labels, features and statistics have fewer."""
    return {
        key: header for key, header in file.headers().items() if len(header.shape) > 2 and not header.dtype.hasobject
    }


class NpzImages:
    """The images of an ``.npz`` file, read in blocks: memory does not grow with the file.

    ADM's tools call them ``arr_0``; any name will do for the only array with the axes of images. Which arrays are
    images says ``dis_cli.metrics.images.array``.

    Attributes:
        shape: (N, H, W, C).

    Raises:
        DataError: The file is missing or damaged, or has no images.
        MismatchError: It holds something else than images.
        RefusedError: It holds objects.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_npz(path) as file:
            self._key, self._header = self._find(file)
            if 0 in self._header.shape:
                raise DataError(f"`{path}`: {self._key} holds no images, its shape is {self._header.shape}")
            self._layout = layout_of(self._header.shape, self._refusal)
            self.shape = self._layout.shape
            self._require_size()
            self._require_levels(file)

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, batch_size: int) -> Iterator[UInt8[Tensor, "b h w c"]]:
        """All images in order, ``batch_size`` at a time.

        Raises:
            DataError: The file ends early or fails its checksum.
        """
        with open_npz(self.path) as file:
            for block in self._blocks(file, batch_size):
                yield torch.from_numpy(as_levels(self._layout.channels_last(block)))

    def _find(self, file: NpzFile) -> tuple[str, Header]:
        found = may_be_images(file)
        if len(found) == 1:
            return next(iter(found.items()))
        headers = file.headers()
        for key in (key for key, header in headers.items() if header.dtype.hasobject and not found):
            with file.opened(key):
                pass
        listed = ", ".join(f"{key} {header.dtype.name} {header.shape}" for key, header in (found or headers).items())
        if found:
            raise MismatchError(
                f"`{self.path}` holds {len(found)} arrays that may be images: {listed}",
                "Save the one that is meant alone: `np.savez('images.npz', images)`",
            )
        raise MismatchError(
            f"`{self.path}` holds no images, which are (N, H, W, C): {listed or 'it has no arrays'}",
            f"It holds statistics, which `dis eval-fid` takes as a reference, with `--ref {self.path}`"
            if "mu" in headers
            else "Reshape rows with `images.reshape(-1, height, width, channels)`, and save uint8",
        )

    def _refusal(self, reason: str, hint: str) -> MismatchError:
        shape, dtype, _ = self._header
        return MismatchError(f"`{self.path}`: {self._key} is {dtype.name} {shape}: {reason}", hint)

    def _require_size(self) -> None:
        height, width = self.shape[1:3]
        if max(height, width) > MAX_SIDE:
            raise RefusedError(
                f"`{self.path}` was refused: its images are of {height}x{width} pixels, at most {MAX_SIDE} a side are "
                "allowed",
                "It is made to fill the memory, or of another kind",
            )
        size = math.prod(self.shape) * self._header.dtype.itemsize
        if self._header.fortran and size > MAX_COLUMNS_FIRST:
            raise self._refusal(
                f"its columns come first (Fortran order), so that all of its {size:,} bytes must be read at once, and "
                f"at most {MAX_COLUMNS_FIRST:,} are",
                "Save `np.ascontiguousarray(images)`",
            )

    def _require_levels(self, file: NpzFile) -> None:
        """Bytes are levels, whatever they are; of other types the values are looked at, before any work is done."""
        dtype = self._header.dtype
        if dtype == np.uint8:
            return
        require_numbers(dtype, self._refusal)
        per_image = math.prod(self.shape[1:]) * dtype.itemsize
        ranges = map(Range.of, self._blocks(file, max(1, _BLOCK // per_image)))
        require_levels(dtype, functools.reduce(Range.joined, ranges), self._refusal)

    def _blocks(self, file: NpzFile, batch_size: int) -> Iterator[Shaped[np.ndarray, "..."]]:
        """The array as it is, some images at a time."""
        shape, dtype, fortran = self._header
        with file.opened(self._key) as (_, values):
            whole = None
            if fortran:
                whole = np.frombuffer(read_exactly(values, math.prod(shape) * dtype.itemsize), dtype)
                whole = whole.reshape(shape, order="F")
            for first in range(0, len(self), batch_size):
                block = (min(batch_size, len(self) - first), *shape[1:])
                if whole is None:
                    yield np.frombuffer(read_exactly(values, math.prod(block) * dtype.itemsize), dtype).reshape(block)
                else:
                    yield whole[first : first + batch_size]
            if values.read(1):
                raise zipfile.BadZipFile(f"{self._key} is longer than its shape")


def read_exactly(file: Readable, size: int) -> bytes:
    """As many bytes as asked for.

    Raises:
        EOFError: The file ends before.
    """
    data = file.read(size)
    if len(data) != size:
        raise EOFError(f"it ends {size - len(data):,} bytes early")
    return data
