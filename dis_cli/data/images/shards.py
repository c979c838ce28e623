"""Images in a folder of tar files, as WebDataset writes them, read where they lie.

An image and its label have one name up to its first dot: ``00017.png`` and ``00017.cls``, a number or a class's name,
or ``00017.json``, an object with ``label``, ``cls`` or ``class``. Folders inside a tar file are no classes. Order and
random access are those of any other source: the tables of contents are read once, and nothing is shuffled by shard.
"""

import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dis_cli.data.decode import printable
from dis_cli.data.images.archives import TarFiles
from dis_cli.data.images.contents import Contents, Entry
from dis_cli.data.images.files import name_array
from dis_cli.data.images.folders import require_folder
from dis_cli.data.images.layout import is_image_name
from dis_cli.data.images.listing import Listing, examples
from dis_cli.data.source import frozen
from dis_cli.errors import DataError

HINT = "Give a folder of tar files with images, and beside each image NAME.cls or NAME.json with its label, or none"

_LABELS = ("cls", "json")
_KEYS = ("label", "cls", "class")
_MAX_LABEL_BYTES = 1 << 20
_PART = re.compile(r"(?:^|[-_.])(train|val|valid|validation|test)(?=[-_.]|$)", re.IGNORECASE)


def is_folder_of_shards(path: Path) -> bool:
    """Whether a folder holds tar files, and neither images nor folders.

    Raises:
        OSError: It may not be looked at.
    """
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    if any(entry.is_dir() or is_image_name(entry.name) for entry in entries):
        return False
    return any(entry.suffix.lower() == ".tar" for entry in entries)


class ShardFiles:
    """The images of a folder of tar files; the members are those of ImageFiles.

    Args:
        split: "train", "test" or "all". Where names say train and val or test, as in ``set-train-0000.tar``, these part
            the shards; others serve every split whole.

    Raises:
        DataError: There are no shards or no images, one is damaged, or some images have labels and others do not.
        RefusedError: An entry leads out of a shard.
    """

    def __init__(self, path: Path, split: str = "all") -> None:
        require_folder(path, HINT)
        self.title = printable(path)
        files = _of_split(sorted(file for file in path.iterdir() if file.suffix.lower() == ".tar"), split)
        if not files:
            raise DataError(f"No tar files in `{self.title}`", HINT)
        self._shards = [_Shard(file) for file in files]
        counts = [len(shard.names) for shard in self._shards]
        self._ends = np.cumsum(counts)
        if not sum(counts):
            raise DataError(f"No images in the tar files of `{self.title}`", HINT)
        self.names = name_array(
            [
                f"{file.name}/{os.fsdecode(name)}"
                for file, shard in zip(files, self._shards, strict=True)
                for name in shard.names
            ]
        )
        texts = [text for shard in self._shards for text in shard.texts]
        self.class_names, labels = self._classes(texts)
        self.labels = frozen(np.array(labels, dtype=np.int64))
        self.skipped = tuple(line for shard in self._shards for line in shard.skipped)
        self.other_files = _summed([shard.other_files for shard in self._shards])
        self.notes: tuple[str, ...] = ()

    def facts(self, index: int) -> tuple[int, int]:
        """Size, and time of the last change of its tar file; see ImageFiles."""
        shard, place = self._at(index)
        return shard.facts(place)

    def open(self, index: int) -> io.BytesIO:
        """The content of an image, in memory; see ImageFiles."""
        shard, place = self._at(index)
        return shard.open(place)

    def _at(self, index: int) -> "tuple[_Shard, int]":
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._shards[number], index - (int(self._ends[number - 1]) if number else 0)

    def _classes(self, texts: Sequence[str | None]) -> tuple[tuple[str, ...], list[int]]:
        """The names of the classes, and each image's: numbers are themselves, names are sorted."""
        known = {text for text in texts if text is not None}
        if not known:
            return (), [0] * len(texts)
        without = [os.fsdecode(name) for name, text in zip(self.names, texts, strict=True) if text is None]
        if without:
            raise DataError(
                f"{len(without):,} of {len(texts):,} images in `{self.title}` have no label"
                + examples([printable(name) for name in without]),
                HINT,
            )
        if all(text.isascii() and text.isdecimal() for text in known):
            names = tuple(map(str, range(max(map(int, known)) + 1)))
            return names, [int(text or 0) for text in texts]
        places = {name: place for place, name in enumerate(sorted(known))}
        return tuple(map(printable, places)), [places[text or ""] for text in texts]


class _Shard(TarFiles):
    """One tar file of a set.

    Attributes:
        texts: The label of each image as it stands there; None where there is none.
    """

    def __init__(self, path: Path) -> None:
        self._label_files: dict[str, tuple[int, ...]] = {}
        super().__init__(path)
        self.texts = [self._text(os.fsdecode(name)) for name in self.names]
        self._label_files = {}

    def _entries(self) -> Iterator[Entry]:
        for entry in super()._entries():
            key, suffix = _key(entry.name.removeprefix("./"))
            if suffix in _LABELS and not entry.is_folder and entry.unusable is None:
                # What stands in .cls counts before what stands in .json.
                if suffix == "cls" or key not in self._label_files:
                    self._label_files[key] = entry.numbers
                continue
            yield entry

    def _list(self, contents: Contents, split: str) -> tuple[str, Listing]:
        del split  # it parts the shards, not what is in them
        names = sorted(contents.images_in(""))
        return "", Listing((), names, [0] * len(names), tuple(contents.skipped_in("", "")), contents.other_files_in(""))

    def _text(self, name: str) -> str | None:
        numbers = self._label_files.get(_key(name)[0])
        if numbers is None:
            return None
        if self._declared_size(*numbers) > _MAX_LABEL_BYTES:
            raise DataError(f"The label of `{self.title}/{printable(name)}` is over a megabyte", HINT)
        text = self._read(*numbers).decode("utf-8", "surrogateescape").strip()
        return _label_of(text) if text.startswith("{") else text


def _key(name: str) -> tuple[str, str]:
    """What an image and its label have in common, and the rest, in small letters."""
    folder, slash, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def _label_of(text: str) -> str | None:
    """The label in a JSON object; None where it has none."""
    try:
        record: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return next((str(record[key]) for key in _KEYS if type(record.get(key)) in (int, str)), None)


def _of_split(files: Sequence[Path], split: str) -> list[Path]:
    """The shards that serve a split, by their names."""
    parts = {file: match.group(1).lower() for file in files if (match := _PART.search(file.stem))}
    if split == "all" or len({part == "train" for part in parts.values()}) < 2:
        return [*files]
    return [file for file in files if (parts.get(file, "train") == "train") == (split == "train")]


def _summed(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for some in counts:
        for suffix, count in some.items():
            total[suffix] = total.get(suffix, 0) + count
    return total
