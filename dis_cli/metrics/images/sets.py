"""Sets of images to be scored or compared with, read a unit at a time: none is ever held as a whole."""

import hashlib
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from dis_cli.codecs.pixel import to_uint8
from dis_cli.data.decode import RULES, decode_image, printable
from dis_cli.data.images.bulk import groups_ahead, read_ahead
from dis_cli.data.images.files import FileSource, ImageFiles
from dis_cli.data.source import ImageSource
from dis_cli.metrics.cache import ImageDigest
from dis_cli.metrics.images.npz import NpzImages
from dis_cli.runtime.files import sha256_file
from dis_cli.runtime.machine import num_cores

# How many images an extractor looks at together, torch-fidelity's number: wherever a set is cut for ranks, it meets the
# same batches, and gives the same bits.
FEATURE_BATCH = 64

_MAX_READERS = 8


@dataclass(frozen=True)
class Unit:
    """Some images of a set, in order.

    Attributes:
        images: (h, w, c) 8-bit each, c = 1 or 3; of any sizes.
        remarks: Number of images changed on reading, by the change.
    """

    first: int
    images: Sequence[Tensor]
    remarks: Counter[str] = field(default_factory=Counter[str])


@runtime_checkable
class ImageSet(Protocol):
    """A finite, ordered set of images."""

    @property
    def name(self) -> str:
        """Its name; printable."""
        ...

    @property
    def unit_size(self) -> int:
        """Images of a unit, but for the last: a multiple of FEATURE_BATCH."""
        ...

    def __len__(self) -> int:
        """The number of images."""
        ...

    def image_name(self, place: int) -> str:
        """The name of an image; printable."""
        ...

    def units(self, wanted: Sequence[range]) -> Iterator[Unit | float]:
        """Some units in order, and before each what share of it is done, where that takes long.

        Raises:
            DataError: An image cannot be read.
        """
        ...


@runtime_checkable
class StoredImages(ImageSet, Protocol):
    """Images that are there before they are looked at, so that what was measured of them can be kept."""

    def sha256(self) -> str:
        """Of the images' content, and of what is done with it."""
        ...


class FileImages:
    """Image files in colour and in their own sizes: what is generated is as large as its model makes it.

    Args:
        background: Colour behind transparent images.
    """

    unit_size = FEATURE_BATCH

    def __init__(self, files: ImageFiles, background: str = "white") -> None:
        self.files = files
        self.name = files.title
        self._background = background

    def __len__(self) -> int:
        return len(self.files.labels)

    def image_name(self, place: int) -> str:
        """Its path; see ImageSet."""
        return f"{self.name}/{_file_name(self.files, place)}"

    def sha256(self) -> str:
        """Of the files' bytes; see StoredImages."""
        return _files_sha256(self.files, f"whole {self._background}")

    def units(self, wanted: Sequence[range]) -> Iterator[Unit]:
        """Read by threads, one unit ahead; see ImageSet."""
        for unit, parts in read_ahead(self._read, wanted, num_workers=_num_readers()):
            remarks = Counter(remark for part in parts for _, own in part for remark in own)
            yield Unit(unit.start, [image for part in parts for image, _ in part], remarks)

    def _read(self, places: Sequence[int]) -> list[tuple[Tensor, list[str]]]:
        return [self._read_one(place) for place in places]

    def _read_one(self, place: int) -> tuple[Tensor, list[str]]:
        file = self.files.open(place)
        found = decode_image(file, channels=3, background=self._background, name=self.image_name(place))
        remarks = [_GREY] if found.grey else []
        if found.transparent:
            remarks.append(f"are transparent, and are laid on {self._background}")
        return torch.from_numpy(np.array(found.image)), remarks


class NpzSet:
    """The images of an npz file, such as ADM's tools write; see ``NpzImages``.

    Raises:
        DataError: It is missing or damaged.
        MismatchError: It holds something else.
    """

    unit_size = FEATURE_BATCH

    def __init__(self, path: Path) -> None:
        self._images = NpzImages(path)
        self._path = path
        self.name = printable(path)

    def __len__(self) -> int:
        return len(self._images)

    def image_name(self, place: int) -> str:
        """Its number; see ImageSet."""
        return f"{place} of {self.name}"

    def sha256(self) -> str:
        """Of the file; see StoredImages."""
        return sha256_file(self._path)

    def units(self, wanted: Sequence[range]) -> Iterator[Unit]:
        """The file is read from its beginning, the units of others are passed over; see ImageSet."""
        starts = {unit.start for unit in wanted}
        grey = self._images.shape[3] == 1
        for number, batch in enumerate(self._images.batches(FEATURE_BATCH)):
            if number * FEATURE_BATCH in starts:
                remarks = Counter({_GREY: len(batch)} if grey else {})
                yield Unit(number * FEATURE_BATCH, list(batch), remarks)


class SourceImages:
    """The images of a run's data, cut to squares of the model's size as training sees them."""

    unit_size = FEATURE_BATCH

    def __init__(self, source: ImageSource) -> None:
        self.source = source
        self.name = source.name

    def __len__(self) -> int:
        return len(self.source)

    def image_name(self, place: int) -> str:
        """As the source calls it; see ImageSet."""
        return printable(self.source.sample_name(place))

    def sha256(self) -> str:
        """Of the files' bytes and the crop, or of the pixels; see StoredImages."""
        source = self.source
        if isinstance(source, FileSource):
            return _files_sha256(source.files, f"crop {source.image_size} {source.channels} {source.background}")
        digest = ImageDigest()
        for unit in self.units(cut(len(self), FEATURE_BATCH)):
            digest.update(torch.stack(list(unit.images)))
        return digest.hexdigest()

    def units(self, wanted: Sequence[range]) -> Iterator[Unit]:
        """Read by threads, one unit ahead; see ImageSet."""
        for unit, images in groups_ahead(self.source, wanted, num_workers=_num_readers()):
            yield Unit(unit.start, list(to_uint8(images)))


class TensorImages:
    """Images in memory.

    Args:
        images: (n, h, w, c) 8-bit.
    """

    name = "images in memory"
    unit_size = FEATURE_BATCH

    def __init__(self, images: Tensor) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def image_name(self, place: int) -> str:
        """Its number; see ImageSet."""
        return f"{place}"

    def sha256(self) -> str:
        """Of the pixels; see StoredImages."""
        digest = ImageDigest()
        digest.update(self._images)
        return digest.hexdigest()

    def units(self, wanted: Sequence[range]) -> Iterator[Unit]:
        """The images in units; see ImageSet."""
        for unit in wanted:
            yield Unit(unit.start, list(self._images[unit.start : unit.stop]))


def cut(count: int, size: int) -> list[range]:
    """Places 0 to ``count - 1`` in pieces of ``size``."""
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


_GREY = "are grey: their one channel is used for all three colours"


def _file_name(files: ImageFiles, place: int) -> str:
    return printable(files.names[place].decode(errors="surrogateescape"))


def _files_sha256(files: ImageFiles, how: str) -> str:
    """Of all files' bytes in their order, whatever they are called, and of how they are read."""
    digest = hashlib.sha256(f"files {RULES} {how}".encode())
    for place in range(len(files.labels)):
        file = files.open(place)
        content = file.read_bytes() if isinstance(file, Path) else file.read()
        digest.update(struct.pack("<Q", len(content)))
        digest.update(content)
    return digest.hexdigest()


def _num_readers() -> int:
    return min(num_cores(), _MAX_READERS)
