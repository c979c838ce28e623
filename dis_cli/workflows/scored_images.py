"""Sets of images to be scored or compared with, read or generated a unit at a time: none is ever held as a whole."""

import dataclasses
import hashlib
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dis_cli.codecs.pixel import to_uint8
from dis_cli.config.schema import RunConfig
from dis_cli.data.archives import TarFiles, ZipFiles
from dis_cli.data.bulk import groups_ahead, read_ahead
from dis_cli.data.decode import RULES, decode_image, printable
from dis_cli.data.files import FileSource, FolderFiles, ImageFiles
from dis_cli.data.folders import list_images, split_folder
from dis_cli.data.images import kind_of
from dis_cli.data.source import ImageSource
from dis_cli.errors import UsageError
from dis_cli.metrics.cache import ImageDigest
from dis_cli.metrics.npz import NpzImages
from dis_cli.models.backbone import DiS
from dis_cli.runtime.files import sha256_file
from dis_cli.runtime.machine import num_cores
from dis_cli.workflows.batch_size import pick_batch_size
from dis_cli.workflows.build import Codec
from dis_cli.workflows.generate import generate
from dis_cli.workflows.sample_output import GRID_FILE, SETTINGS_FILE

# How many images an extractor looks at together, torch-fidelity's number: wherever a set is cut for ranks, it meets the
# same batches, and gives the same bits.
FEATURE_BATCH = 64

_MAX_READERS = 8
# What `dis sample` puts beside its images.
_PICTURES = (GRID_FILE, "trajectory.png", "trajectory.gif")


@dataclass(frozen=True)
class Unit:
    """Some images of a set, in order.

    Attributes:
        first: Place of the first.
        images: (h, w, c) 8-bit each, c = 1 or 3; of any sizes.
        remarks: How many are not as they were found, by what was done.
    """

    first: int
    images: Sequence[Tensor]
    remarks: Counter[str] = field(default_factory=Counter[str])


@runtime_checkable
class ImageSet(Protocol):
    """A finite, ordered set of images."""

    @property
    def name(self) -> str:
        """What to call it; printable."""
        ...

    @property
    def unit_size(self) -> int:
        """Images of a unit, but for the last: a multiple of FEATURE_BATCH."""
        ...

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def image_name(self, place: int) -> str:
        """What to call an image; printable."""
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
        files: The files.
        background: What transparent images are laid on.
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
            remarks.append(f"are transparent: they are laid on {self._background}")
        return torch.from_numpy(np.array(found.image)), remarks


class NpzSet:
    """The images of an npz file, such as ADM's tools write; see ``NpzImages``.

    Args:
        path: The file.

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
    """The images of a run's data, cut to squares of the model's size as training sees them.

    Attributes:
        source: The data.
    """

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
        """What is there; see ImageSet."""
        for unit in wanted:
            yield Unit(unit.start, list(self._images[unit.start : unit.stop]))


@dataclass(frozen=True, kw_only=True)
class GeneratedImages:
    """Images that a model makes on the way: image i has the seed ``seeds[i]``.

    Attributes:
        model: In evaluation mode.
        codec: Turns its grid into images.
        config: How they are generated.
        seeds: One an image.
        labels: The class of each; None when there are none.
        device: Where the model is.
        precision: What its linear layers compute in.
        unit_size: Images of a unit; see ``generated_unit_size``.
    """

    model: DiS
    codec: Codec
    config: RunConfig
    seeds: range
    labels: npt.NDArray[np.int64] | None
    device: torch.device
    precision: str
    unit_size: int

    name = "generated images"

    def __len__(self) -> int:
        return len(self.seeds)

    def image_name(self, place: int) -> str:
        """Its seed; see ImageSet."""
        return f"of seed {self.seeds[place]}"

    def units(self, wanted: Sequence[range]) -> Iterator[Unit | float]:
        """A few batches of the model a unit; see ImageSet."""
        for unit in wanted:
            images: list[Tensor] = []
            for batch in generate(
                self.model,
                self.codec,
                self.config,
                seeds=self.seeds[unit.start : unit.stop],
                classes=None if self.labels is None else self.labels[unit.start : unit.stop].tolist(),
                device=self.device,
                precision=self.precision,
            ):
                images += [] if batch.images is None else list(batch.images)
                yield batch.num_done / len(unit)
            yield Unit(unit.start, images)


def generated_unit_size(model: DiS, config: RunConfig, device: torch.device, *, num_images: int, num_ranks: int) -> int:
    """Images that a rank generates before their features are sent: what keeps all of them busy.

    Args:
        model: What generates.
        config: Its ``sample`` section may say how many at a time.
        device: Where.
        num_images: In all.
        num_ranks: Who share them.
    """
    batch = pick_batch_size(model, config, device) // FEATURE_BATCH
    share = -(-num_images // (num_ranks * FEATURE_BATCH))
    return FEATURE_BATCH * max(1, min(batch, share))


def open_images(path: Path, background: str = "white") -> FileImages | NpzSet:
    """The images that a path names: a folder, a zip or tar file, or an npz file.

    Args:
        path: The path. What `dis sample` puts beside its images is no image.
        background: What transparent images are laid on.

    Raises:
        UsageError: It is none of these.
        DataError: There are no images, or they cannot be read.
    """
    if path.suffix.lower() == ".npz":
        return NpzSet(path)
    if path.suffix.lower() == ".npy":
        raise UsageError(
            f"`{printable(path)}` is one bare array, and images are read from .npz files",
            f"Save it as one: `python -c \"import numpy as np; np.savez('{path.stem}.npz', np.load('{path}'))\"`",
        )
    match kind_of(path, or_npz=True):
        case "zip":
            return FileImages(ZipFiles(path), background)
        case "tar":
            return FileImages(TarFiles(path), background)
        case _:
            part = split_folder(path, "all")
            listing = list_images(part.folder)
            if (path / SETTINGS_FILE).is_file():
                own = [index for index, name in enumerate(listing.names) if name not in _PICTURES]
                listing = dataclasses.replace(
                    listing,
                    names=[listing.names[index] for index in own],
                    labels=[listing.labels[index] for index in own],
                )
            return FileImages(FolderFiles(part.folder, listing, part.notes), background)


def cut(count: int, size: int) -> list[range]:
    """Places 0 to ``count - 1`` in pieces of ``size``."""
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


_GREY = "are grey: their one channel is taken for all three colours"


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
