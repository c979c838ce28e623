"""Images that are files, wherever the files lie: in a folder (here), in an archive (``archives``)."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Shaped
from torch import Tensor

from dis_cli.data.decode import UnreadableImage, printable, read_image
from dis_cli.data.images.folders import FOLDER_HINT, list_images, require_folder
from dis_cli.data.images.listing import Listing
from dis_cli.data.source import frozen, grid_8_bit, require_index
from dis_cli.errors import DataError


@runtime_checkable
class ImageFiles(Protocol):
    """A finite, ordered set of image files with labels; nothing in it decodes an image.

    Like an ImageSource it is copied into loader processes: it must survive pickling, and keep large tables in arrays.
    """

    @property
    def title(self) -> str:
        """The name of the set in messages; printable."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """One printable name per class; empty when unlabelled."""
        ...

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The class of every file, (N,); all 0 when unlabelled."""
        ...

    @property
    def names(self) -> npt.NDArray[np.bytes_]:
        """The path of every file inside the set, (N,), as bytes."""
        ...

    @property
    def skipped(self) -> tuple[str, ...]:
        """Entries that look like images and cannot be any (a broken link, a folder named x.png), as "name: reason"."""
        ...

    @property
    def other_files(self) -> Mapping[str, int]:
        """The number of files left out for their suffix, by suffix."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Doubts about the user's intent, a sentence each."""
        ...

    def facts(self, index: int) -> tuple[int, int]:
        """Size in bytes, and time of the last change in nanoseconds.

        Raises:
            OSError: The file is gone.
        """
        ...

    def open(self, index: int) -> Path | BinaryIO:
        """The file or stream of an image; a path is not opened yet.

        Raises:
            DataError: The entry of an archive is damaged or not allowed; an ``UnreadableImage``.
        """
        ...


class FileSource:
    """Image files as a source: each cut to a centred square and resized as the ADM code does.

    Args:
        image_size: Side of the result, in pixels.
        channels: 1 converts to grey, 3 to RGB.
        hflip: Mirror half of the images when augmenting.
        background: Colour behind transparent images: a name or ``#rrggbb`` that Pillow knows.
    """

    def __init__(
        self, files: ImageFiles, *, image_size: int, channels: int = 3, hflip: bool = False, background: str = "white"
    ) -> None:
        self.files = files
        self.name = files.title
        self.class_names = files.class_names
        self.num_classes = len(files.class_names)
        self.image_size = image_size
        self.channels = channels
        self._hflip = hflip
        self.background = background
        self._chosen: npt.NDArray[np.int64] | None = None
        self.labels = frozen(files.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def without(self, indices: Sequence[int]) -> "FileSource":
        """The same source without some of its samples; the classes and their numbers stay."""
        kept = np.delete(np.arange(len(self)), list(indices))
        smaller = self.whole()
        smaller._chosen = kept if self._chosen is None else self._chosen[kept]
        smaller.labels = frozen(self.labels[kept])
        return smaller

    def whole(self) -> "FileSource":
        """The same source with all that ``without`` took out."""
        return FileSource(
            self.files,
            image_size=self.image_size,
            channels=self.channels,
            hflip=self._hflip,
            background=self.background,
        )

    @property
    def left_out(self) -> tuple[int, ...]:
        """The images that ``without`` took out, by their places among the files."""
        everything = np.arange(len(self.files.labels))
        return () if self._chosen is None else tuple(np.setdiff1d(everything, self._chosen).tolist())

    @property
    def fingerprint(self) -> str:
        """sha256 of the relative names, the labels and the file sizes, in order; contents are not read."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update(self.files.names[self._place(index)] + b"\0%d\0" % self.facts(index)[0])
        digest.update(self.labels.astype("<i8").tobytes())
        digest.update("\0".join(self.class_names).encode())
        return digest.hexdigest()

    def facts(self, index: int) -> tuple[int, int]:
        """A file's size in bytes, and the time of its last change in nanoseconds.

        Raises:
            DataError: The file is gone.
        """
        try:
            return self.files.facts(self._place(index))
        except OSError as error:
            raise UnreadableImage(self._shown(index), error.strerror or "cannot be opened") from error

    def sample_name(self, index: int) -> str:
        """The path inside the folder or archive."""
        require_index(index, len(self))
        return os.fsdecode(self.files.names[self._place(index)])

    def load(self, index: int, rng: np.random.Generator | None) -> Float[Tensor, "c h w"]:
        """One image, in [-1, 1]; see ImageSource."""
        require_index(index, len(self))
        try:
            file = self.files.open(self._place(index))
            image = read_image(file, channels=self.channels, background=self.background, name=self._shown(index))
        except DataError as error:
            raise DataError(f"{error.message}, image {index} of {len(self)}", error.hint) from error
        return grid_8_bit(image, self.image_size, rng, self._hflip)

    def _place(self, index: int) -> int:
        return index if self._chosen is None else int(self._chosen[index])

    def _shown(self, index: int) -> str:
        return f"{self.name}/{printable(self.sample_name(index))}"


class FolderFiles:
    """The image files of a folder.

    Args:
        listing: Listing of its files; None lists them all.
        notes: Further notes on the folder.

    Raises:
        DataError: When the folder is missing, or for the reasons of ``list_images``.
    """

    def __init__(self, path: Path, listing: Listing | None = None, notes: Sequence[str] = ()) -> None:
        require_folder(path, FOLDER_HINT)
        self.title = printable(path)
        self._path = path
        listing = listing or list_images(path)
        self.class_names = listing.class_names
        self.labels = frozen(listing.labels)
        self.skipped = listing.skipped
        self.other_files = listing.other_files
        self.notes = (*notes, *listing.notes)
        self.names = name_array(listing.names)

    def facts(self, index: int) -> tuple[int, int]:
        """Size and time of the last change; see ImageFiles."""
        status = self._file(index).stat()
        return status.st_size, status.st_mtime_ns

    def open(self, index: int) -> Path:
        """The path of a file; see ImageFiles."""
        return self._file(index)

    def _file(self, index: int) -> Path:
        return self._path / os.fsdecode(self.names[index])


def name_array(names: Sequence[str]) -> Shaped[np.ndarray, "n"]:
    """Paths as bytes in one array.

    A million Python strings would be copied into every loader process, page by page, as their reference counts are
    touched.
    """
    return np.array([os.fsencode(name) for name in names])
