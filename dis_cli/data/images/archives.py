"""Images inside a zip or tar file, read where they lie: nothing is ever unpacked.

Which entries are images      by the names, as in a folder: images in top-level folders are classes, flat ones have none
one folder around everything  is passed through when there are folders with images in it (``set/ant/a.png`` in
                              ``set.zip``); one that holds only images is a class, as it is in a folder
folders of parts              such as train and val give the part that is asked for, as in a folder
dataset.json                  at the top, in the one folder around everything or in that of the part gives the labels
                              instead
hidden entries, junk          passed over in silence, as in a folder; files with other suffixes are counted
backslashes                   part folders like slashes: some programs for Windows write them
links, devices, sparse files  skipped with the reason
encrypted, over 128 MiB,      refused when read, as one bad image; so is an entry that does not hold what it declares:
compressed by other methods   no more is ever inflated than declared
duplicate names               an error: which of them is meant is not known
absolute names, "..",         the whole archive is refused: nothing is unpacked, so they do no harm here, but nobody
links that lead outside       makes them by accident
compressed tar files          refused: reading an image would mean decompressing everything before it
"""

import errno
import io
import os
import posixpath
import stat
import struct
import tarfile
import weakref
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dis_cli.data.decode import UnreadableImage, printable
from dis_cli.data.images.contents import MAX_NAME_BYTES, Contents, Entry
from dis_cli.data.images.files import name_array
from dis_cli.data.images.layout import LABELS_FILE, beside_parts, choose_part, find_parts
from dis_cli.data.images.listing import NO_REGULAR_FILE, Listing, list_by_folders, list_by_labels
from dis_cli.data.source import frozen
from dis_cli.errors import DataError, DisError, UsageError

MAX_MEMBER_BYTES = 128 << 20
# the largest header of a tar file that is read: names, and records of the PAX format
MAX_HEADER_BYTES = 1 << 20
HINT = "Give a zip file (data.source=zip) or a tar file (data.source=tar) with `--data FILE` (or data.path=FILE)"

_ENCRYPTED = -1
_LINK = "a link"
# how compressed files begin, and what decompresses them
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip -k"),
    b"BZh": ("bzip2", "bunzip2 -k"),
    b"\xfd7zXZ\0": ("xz", "xz -dk"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -d"),
}


class _ArchiveFiles(ABC):
    """The common part of zip and tar files; the members are those of ImageFiles.

    The table of contents is read once, into arrays; the images are then read at their places in the file. A ``ZipFile``
    or ``TarFile`` of its own in each loader process would read the table again there and keep it as Python objects,
    some hundred bytes for each of a million entries; and both read through one file position, which threads would
    have to take turns at.
    """

    def __init__(self, path: Path, split: str = "all") -> None:
        self._path = path
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"Archive cannot be opened: `{printable(path)}` ({error.strerror})", HINT) from error
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"Not a file: `{printable(path)}`", HINT)
        self._size, self._mtime_ns = status.st_size, status.st_mtime_ns
        try:
            contents = Contents(self._entries(), printable(path))
            prefix, listing = self._list(contents, split)
        except DisError:
            raise
        # damaged archives raise anything
        except Exception as error:
            raise DataError(
                f"Archive cannot be read: `{printable(path)}` ({_reason(error)})",
                f"It is damaged, incomplete or of another kind. {HINT}",
            ) from error
        self.title = printable(path / prefix)
        self.class_names = listing.class_names
        self.labels = frozen(listing.labels)
        self.skipped = listing.skipped
        self.other_files = listing.other_files
        self.notes = listing.notes
        self.names = name_array(listing.names)
        rows = [contents.files[prefix + name] for name in listing.names]
        self._table = np.frombuffer(contents.numbers, np.int64).reshape(len(contents.files), -1)[rows]

    def facts(self, index: int) -> tuple[int, int]:
        """An image's size as declared, and the time of the archive's last change; see ImageFiles."""
        self._require_unchanged(self._path.stat())
        return self._declared_size(*self._table[index].tolist()), self._mtime_ns

    def open(self, index: int) -> io.BytesIO:
        """The content of an image, in memory; see ImageFiles."""
        try:
            return io.BytesIO(self._read(*self._table[index].tolist()))
        except (OSError, ValueError) as error:
            name = printable(os.fsdecode(self.names[index]))
            raise UnreadableImage(f"{self.title}/{name}", _reason(error)) from error

    @abstractmethod
    def _entries(self) -> Iterator[Entry]:
        """The table of contents, in its order; raises anything on damage."""

    @abstractmethod
    def _declared_size(self, *numbers: int) -> int: ...

    @abstractmethod
    def _read(self, *numbers: int) -> bytes:
        """An entry's content.

        Raises:
            OSError: The archive cannot be read, or is another than at first.
            ValueError: The entry is damaged or not allowed, saying why.
        """

    def _list(self, contents: Contents, split: str) -> tuple[str, Listing]:
        """The folder of the images, with a slash ("" where that is the whole archive), and the images in it."""
        prefix = around = contents.folder_around()
        notes: list[str] = []
        if prefix + LABELS_FILE not in contents.files:
            folders = contents.folders_in(prefix)
            part = choose_part(folders, split, printable(self._path / prefix), is_archive=True)
            if part is not None:
                parts = {name for names in find_parts(folders).values() for name in names}
                loose = sum("/" not in name for name in contents.images_in(prefix))
                notes += beside_parts(set(folders) - parts, loose)
                prefix += f"{part}/"
        images, skipped = contents.images_in(prefix), contents.skipped_in(prefix, around)
        others, place = contents.other_files_in(prefix), printable(self._path / prefix)
        labels_file = contents.files.get(prefix + LABELS_FILE)
        if labels_file is None:
            return prefix, list_by_folders(images, contents.folders_in(prefix), skipped, place, others, notes)
        try:
            content = self._read(*contents.row(labels_file))
        except ValueError as error:
            raise DataError(f"Labels cannot be read: `{place}/{LABELS_FILE}` ({error})", HINT) from error
        return prefix, list_by_labels(content, images, skipped, place, others, notes)

    def _bytes(self, offset: int, size: int) -> bytes:
        if size > MAX_MEMBER_BYTES:
            raise ValueError(f"{size:,} bytes are over the limit of {MAX_MEMBER_BYTES:,}")
        # checked first because memory is taken for the size asked for
        if offset < 0 or size < 0 or offset + size > self._size:
            raise ValueError("its place is not inside the archive")
        # by position, not from where the last read ended: threads need no lock, and a process that was forked may use
        # the descriptor it was born with
        content = os.pread(self._descriptor, size, offset)
        if len(content) != size:
            raise ValueError("the archive ends inside it")
        return content

    @cached_property
    def _descriptor(self) -> int:
        self._require_unchanged(self._path.stat())
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    def _require_unchanged(self, status: os.stat_result) -> None:
        if (status.st_size, status.st_mtime_ns) != (self._size, self._mtime_ns):
            raise OSError(errno.ESTALE, "the archive has changed since it was opened")

    def __getstate__(self) -> dict[str, object]:
        # a descriptor means nothing in another process
        return {name: value for name, value in vars(self).items() if name != "_descriptor"}


class ZipFiles(_ArchiveFiles):
    """The images in a zip file; the module's page says which.

    Args:
        split: Part of a divided archive: "train", "test", or "all", which refuses one.

    Raises:
        DataError: When it is missing, damaged or no zip file, or for the reasons of ``list_images``.
        RefusedError: When an entry leads out of it.
        UsageError: When it is divided and all of it is asked for, or a part that is not there.
    """

    def _entries(self) -> Iterator[Entry]:
        with zipfile.ZipFile(self._path) as archive:
            for info in archive.infolist():
                # zipfile takes names that are not marked as UTF-8 for code page 437, which maps every byte
                raw = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")
                method = _ENCRYPTED if info.flag_bits & 1 else info.compress_type
                numbers = (info.header_offset, info.compress_size, info.file_size, method, info.CRC)
                name = os.fsdecode(raw)
                # where Unix systems keep the mode; 0 in what others write
                kind = stat.S_IFMT(info.external_attr >> 16)
                unusable = link = None
                if stat.S_ISLNK(kind):
                    unusable, link = _LINK, posixpath.join(posixpath.dirname(name), self._link_target(numbers))
                elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    unusable = NO_REGULAR_FILE
                yield Entry(name, numbers, info.is_dir(), unusable, link)

    def _link_target(self, numbers: tuple[int, ...]) -> str:
        if self._declared_size(*numbers) > MAX_NAME_BYTES:
            return ""
        try:
            return os.fsdecode(self._read(*numbers))
        # it is skipped all the same
        except ValueError:
            return ""

    def _declared_size(self, *numbers: int) -> int:
        return numbers[2]

    def _read(self, *numbers: int) -> bytes:
        offset, stored_size, size, method, checksum = numbers
        if method == _ENCRYPTED:
            raise ValueError("it is encrypted")
        if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"compression method {method} is not supported, only 0 (stored) and 8 (deflated)")
        if size > MAX_MEMBER_BYTES:
            raise ValueError(f"{size:,} bytes are over the limit of {MAX_MEMBER_BYTES:,}")
        header = self._bytes(offset, 30)
        if not header.startswith(b"PK\3\4"):
            raise ValueError("its header is damaged")
        name_length, extra_length = struct.unpack_from("<HH", header, 26)
        content = self._bytes(offset + len(header) + name_length + extra_length, stored_size)
        if method == zipfile.ZIP_DEFLATED:
            try:
                # one byte more than declared shows that there is more
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)
            except zlib.error as error:
                raise ValueError("its compressed data are damaged") from error
        if len(content) != size:
            raise ValueError(f"it does not hold the {size:,} bytes it declares")
        if zlib.crc32(content) != checksum:
            raise ValueError("its CRC-32 is wrong")
        return content


class TarFiles(_ArchiveFiles):
    """The images in a tar file that is not compressed; the module's page says which.

    Args:
        split: Part of a divided archive: "train", "test", or "all", which refuses one.

    Raises:
        DataError: When it is missing, damaged or no tar file, or for the reasons of ``list_images``.
        RefusedError: When an entry leads out of it.
        UsageError: When it is compressed, or divided and all of it is asked for, or a part that is not there.
    """

    def _entries(self) -> Iterator[Entry]:
        with _TarHeaders(io.FileIO(self._path)) as file:
            self._refuse_compressed(file)
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
                end = 0
                while (info := archive.next()) is not None:
                    # a negative size would lead back to an entry that was read
                    if archive.offset <= end:
                        raise tarfile.ReadError(f"the header at byte {end:,} is damaged")
                    end = archive.offset
                    # else it keeps all of them
                    archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
                    yield _tar_entry(info)
            # tarfile takes a damaged header for the end
            file.seek(end)
            mark = file.read(tarfile.BLOCKSIZE)
            if len(mark) < tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it ends without its end mark")
            if mark.strip(b"\0"):
                raise tarfile.ReadError(f"the header at byte {end:,} is damaged")

    def _refuse_compressed(self, file: BinaryIO) -> None:
        start = file.read(8)
        file.seek(0)
        for magic, (method, command) in _COMPRESSED.items():
            if start.startswith(magic):
                raise UsageError(
                    f"Tar file is compressed with {method}, its images cannot be read one by one: "
                    f"`{printable(self._path)}`",
                    f"Decompress it: `{command} {printable(self._path)}`, then give the .tar file",
                )

    def _declared_size(self, *numbers: int) -> int:
        return numbers[1]

    def _read(self, *numbers: int) -> bytes:
        offset, size = numbers
        return self._bytes(offset, size)


class _TarHeaders(io.BufferedReader):
    """A tar file for tarfile to read headers from, none of which may claim any size."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes, allowed are 0 to {MAX_HEADER_BYTES}")
        return super().read(size)


def _tar_entry(info: tarfile.TarInfo) -> Entry:
    unusable = link = None
    if info.issym() or info.islnk():
        # a hard link names its target from the top of the archive
        folder = posixpath.dirname(info.name) if info.issym() else ""
        unusable, link = _LINK, posixpath.join(folder, info.linkname)
    elif info.issparse():
        unusable = "a sparse file"
    elif not info.isreg():
        unusable = NO_REGULAR_FILE
    return Entry(info.name, (info.offset_data, info.size), info.isdir(), unusable, link)


def _reason(error: Exception) -> str:
    return printable((error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__)
