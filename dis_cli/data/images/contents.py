"""An archive's table of contents: its images, and entries that do not belong in any archive."""

import os
import posixpath
import re
from array import array
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from dis_cli.data.decode import printable
from dis_cli.data.images.layout import LABELS_FILE, SAMPLES_FILE, is_image_name, is_junk, suffix_of
from dis_cli.data.images.listing import FOLDER_LIKE_IMAGE, examples
from dis_cli.errors import DataError, RefusedError

# more than any file system takes
MAX_NAME_BYTES = 4096

# How deep the folders lie that say what the set is: one around everything, one for a part, one for a class.
_LEVELS = 3


class Entry(NamedTuple):
    """One line of an archive's table of contents.

    Attributes:
        name: The path as it stands there; Windows programs part folders by a backslash too, which no name may hold.
        numbers: Place and storage of the content: the arguments of ``_read``.
        unusable: Why it could not be an image, whatever its name; None for a regular file.
        link: Target, seen from the top of the archive; None when it is no link.
    """

    name: str
    numbers: tuple[int, ...]
    is_folder: bool
    unusable: str | None
    link: str | None


class Contents:
    """An archive's table of contents.

    Args:
        place: Name of the archive, printable.

    Attributes:
        files: The images, and ``dataset.json`` where it counts, by name; each with its row of the numbers.
        folders: The folders down to the third level.
        skipped: The reasons of what looks like an image and is none, by name.
        numbers: The numbers of all files, one row after the other, int64.

    Raises:
        RefusedError: An entry leads out of the archive.
        DataError: A name is there twice.
    """

    def __init__(self, entries: Iterable[Entry], place: str) -> None:
        self.files: dict[str, int] = {}
        self.folders: set[str] = set()
        self.skipped: dict[str, str] = {}
        self._other_files: Counter[tuple[str, str]] = Counter()
        self._known: dict[str, str | None] = {"": ""}
        self.numbers = array("q")
        self._columns = 0
        duplicates: list[str] = []
        for entry in entries:
            if _leads_out(entry.name) or (entry.link is not None and _leads_out(posixpath.normpath(entry.link))):
                lead = "" if entry.link is None else " -> " + printable(entry.link)
                raise RefusedError(
                    f"`{place}` was refused: its entry `{printable(entry.name)}`{lead} leads out of it",
                    "Nothing was unpacked; do not unpack it by other means either, unless you trust whoever made it",
                )
            name = self._usable_name(entry)
            if name is None:
                continue
            if name in self.files:
                duplicates.append(printable(name))
            self.files[name] = len(self.files)
            self.numbers.extend(entry.numbers)
            self._columns = len(entry.numbers)
        if duplicates:
            raise DataError(
                f"Archive holds names more than once: `{place}`, {len(duplicates):,} times{examples(duplicates)}",
                "Make it again from the folder itself",
            )

    def row(self, file: int) -> list[int]:
        """The numbers of a file."""
        return self.numbers[file * self._columns : (file + 1) * self._columns].tolist()

    def folder_around(self) -> str:
        """The one folder that holds all and has folders with images, or ``dataset.json``; with a slash, or ""."""
        tops = [name for name in self.folders if "/" not in name]
        if len(tops) != 1 or any("/" not in name for name in self.files):
            return ""
        prefix = tops[0] + "/"
        nested = any("/" in name[len(prefix) :] and is_image_name(name) for name in self.files)
        return prefix if nested or prefix + LABELS_FILE in self.files else ""

    def folders_in(self, prefix: str) -> list[str]:
        """The folders right below one of the upper levels, "" or with a slash at its end."""
        names = [name[len(prefix) :] for name in self.folders if name.startswith(prefix)]
        return [name for name in names if "/" not in name]

    def images_in(self, prefix: str) -> list[str]:
        """The images at any depth below a folder, as they are called in it."""
        return [name[len(prefix) :] for name in self.files if name.startswith(prefix) and is_image_name(name)]

    def skipped_in(self, prefix: str, around: str) -> list[str]:
        """The lines "name: reason" of what is skipped below a folder, or outside of the one around everything."""
        return [
            f"{printable(name.removeprefix(prefix))}: {why}"
            for name, why in sorted(self.skipped.items())
            if name.startswith(prefix) or not name.startswith(around)
        ]

    def other_files_in(self, prefix: str) -> Counter[str]:
        """The number of files with other suffixes at any depth below a folder, by suffix."""
        counts: Counter[str] = Counter()
        for (folder, suffix), count in self._other_files.items():
            if f"{folder}/".startswith(prefix):
                counts[suffix] += count
        unused = [name for name in self.files if name.endswith(LABELS_FILE) and name.startswith(prefix)]
        counts[suffix_of(LABELS_FILE)] += len(set(unused) - {prefix + LABELS_FILE})
        return +counts

    def _usable_name(self, entry: Entry) -> str | None:
        """The name of an image or of ``dataset.json``, without ``./`` and doubled slashes; None for anything else."""
        path = entry.name.replace("\\", "/")
        above, _, last = path.rpartition("/")
        if entry.is_folder or not last:
            self._folder(path)
            return None
        folder = self._folder(above)
        if folder is None or is_junk(last):
            return None
        name = f"{folder}/{last}" if folder else last
        is_image = is_image_name(last)
        if entry.unusable is not None:
            # a link may lead to a folder of images, whatever it is called
            if is_image or entry.link is not None:
                self.skipped[name] = entry.unusable
            return None
        if is_image and len(os.fsencode(name)) > MAX_NAME_BYTES:
            self.skipped[f"{name[:50]}..."] = f"a name of over {MAX_NAME_BYTES:,} bytes"
            return None
        if is_image or (last == LABELS_FILE and name.count("/") < _LEVELS):
            return name
        if name != SAMPLES_FILE:
            self._other_files["/".join(folder.split("/", _LEVELS)[:_LEVELS]), suffix_of(last)] += 1
        return None

    def _folder(self, path: str) -> str | None:
        """The name of a folder without ``./`` and doubled slashes, noted; None when nothing in it counts."""
        if path in self._known:
            return self._known[path]
        parts = [part for part in path.split("/") if part not in ("", ".")]
        for depth, part in enumerate(parts, start=1):
            folder = "/".join(parts[:depth])
            is_image = is_image_name(part)
            if is_image and not part.startswith("."):
                self.skipped[folder] = FOLDER_LIKE_IMAGE
            if is_image or is_junk(part):
                self._known[path] = None
                return None
            if depth <= _LEVELS:
                self.folders.add(folder)
        self._known[path] = "/".join(parts)
        return self._known[path]


def _leads_out(name: str) -> bool:
    """True if a path is absolute, on Unix or Windows, or has a component ``..``; NUL cuts a name short in C."""
    return "\0" in name or re.match(r"[/\\]|[A-Za-z]:[/\\]", name) is not None or ".." in re.split(r"[/\\]", name)
