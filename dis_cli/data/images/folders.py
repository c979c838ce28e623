"""The images of a folder: the part of it that is meant, and its image files.

What names mean says ``dis_cli.data.images.layout``, what the classes are ``dis_cli.data.images.listing``.
"""

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from dis_cli.data.decode import printable
from dis_cli.data.images.layout import (
    LABELS_FILE,
    SAMPLES_FILE,
    beside_parts,
    choose_part,
    find_parts,
    is_image_name,
    is_junk,
    part_named,
    suffix_of,
)
from dis_cli.data.images.listing import FOLDER_LIKE_IMAGE, NO_REGULAR_FILE, Listing, list_by_folders, list_by_labels
from dis_cli.errors import DataError

FOLDER_HINT = "Give a folder of images, or of one sub-folder per class, with `--data DIR` (or data.path=DIR)"


class SplitFolder(NamedTuple):
    """The part of a data folder that serves a split.

    Attributes:
        folder: The part, or the whole where it is not divided.
        notes: Notes on entries beside the parts, a sentence each.
    """

    folder: Path
    notes: tuple[str, ...] = ()


def require_folder(path: Path, hint: str) -> None:
    """Raise DataError unless a path is a folder."""
    try:
        is_folder = path.is_dir()
        exists = is_folder or path.exists()
    except OSError as error:
        raise DataError(f"Folder cannot be opened: `{printable(path)}` ({error.strerror})", hint) from error
    if not is_folder:
        raise DataError(f"{'Not a folder' if exists else 'Folder not found'}: `{printable(path)}`", hint)


def split_folder(path: Path, split: str) -> SplitFolder:
    """The part of a data folder that serves a split.

    A folder that is divided, itself or the one folder in it, gives the part that ``layout.choose_part`` says. Any other
    serves all, and so does one with a ``dataset.json``, whose labels are those of all images below it.

    Args:
        split: "train", "test" or "all".

    Raises:
        DataError: When it is missing or cannot be opened.
        UsageError: When all of a divided folder is asked for, or a part that is not there.
    """
    require_folder(path, FOLDER_HINT)
    top = _top(path)
    if top.has_labels:
        return SplitFolder(path)
    if len(top.folders) == 1 and not top.num_images:
        inside = path / top.folders[0]
        below = _top(inside)
        if find_parts(below.folders) and not below.has_labels:
            path, top = inside, below
    name = choose_part(top.folders, split, printable(path))
    if name is None:
        return SplitFolder(path)
    parts = {name for names in find_parts(top.folders).values() for name in names}
    return SplitFolder(path / name, tuple(beside_parts(set(top.folders) - parts, top.num_images)))


def imagenet_folder(path: Path, split: str) -> SplitFolder:
    """The part of an ImageNet folder that serves a split, with one sub-folder per class.

    Args:
        path: A folder with ``train`` or ``val``, or one of those itself.
        split: "train" gives ``train``, "test" gives ``val``; a folder of class folders serves every split.

    Raises:
        DataError: When the part is not there, or has no class folders.
        UsageError: When all of a divided folder is asked for.
    """
    require_folder(path, _IMAGENET_HINT)
    part = split_folder(path, split)
    folder = part.folder
    by_part = {part_named(name): name for name in _top(folder).folders}
    if folder == path and by_part.keys() - {None}:
        wanted = "val" if split == "test" else "train"
        folder = path / by_part.get(wanted, wanted)
        require_folder(folder, _IMAGENET_HINT)
    names = _top(folder).folders
    if folder == path and not any(_WNID.fullmatch(name) for name in names):
        raise DataError(
            f"Not an ImageNet folder: `{printable(path)}` holds neither train nor class folders like n01440764",
            "Set data.source=folder to read any folder of images",
        )
    if not names:
        raise DataError(
            f"No class folders in `{printable(folder)}`",
            "Sort the images into one folder per class (n01440764, ...), for `val` by the published labels, or "
            "set data.source=folder to read images without classes",
        )
    return SplitFolder(folder, part.notes)


def list_images(folder: Path) -> Listing:
    """List the images of a folder.

    Links are followed; hidden entries and junk are passed over in silence, files with other suffixes are counted. The
    classes follow ``list_by_folders``, or ``list_by_labels`` where the folder holds a ``dataset.json``.

    Args:
        folder: An existing folder, which is taken as a whole; ``split_folder`` finds the part of a divided one.

    Raises:
        DataError: When nothing is found, the classes cannot be told, or a folder cannot be opened.
    """
    found = _Found()
    top = _entries(folder, "", found)
    home = frozenset({_identity(folder)})
    classes: list[str] = []
    for name in top:
        before = len(found.images)
        _walk(folder, name, home, found)
        # a link back to the folder itself is no class
        if len(found.images) > before or _identity(folder / name) not in home:
            classes.append(name)
    labels_file = folder / LABELS_FILE
    try:
        content = labels_file.read_bytes() if labels_file.is_file() else None
    except OSError as error:
        raise DataError(f"Labels cannot be read: `{printable(labels_file)}` ({error.strerror})") from error
    notes: list[str] = []
    if backslashes := sum("\\" in name for name in found.images):
        notes.append(
            f"{backslashes:,} names hold a backslash, as archives made on Windows leave them when they are unpacked "
            "without their folders: unpack the archive with `unzip`, or give the archive itself"
        )
    place = printable(folder)
    if content is not None:
        return list_by_labels(content, found.images, found.skipped, place, found.other_files, notes)
    return list_by_folders(found.images, classes, found.skipped, place, found.other_files, notes)


# the name of a class: a number in WordNet
_WNID = re.compile(r"n\d{8}")
_IMAGENET_HINT = (
    "Give the folder that holds train/n01440764/*.JPEG, ... and val/n01440764/*.JPEG, ..., or one of these two, with "
    "`--data DIR` (or data.path=DIR)"
)


class _Top(NamedTuple):
    """The entries right inside a folder."""

    folders: list[str]
    num_images: int
    has_labels: bool


def _top(folder: Path) -> _Top:
    folders: list[str] = []
    num_images = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                is_image = is_image_name(entry.name)
                if is_image:
                    num_images += not entry.name.startswith(".")
                elif not is_junk(entry.name) and _is_folder(entry):
                    folders.append(entry.name)
    except OSError as error:
        raise _unopened(folder, error) from error
    return _Top(sorted(folders), num_images, (folder / LABELS_FILE).is_file())


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    # a link in a circle; `_entries` gives the reason
    except OSError:
        return False


@dataclass
class _Found:
    """The findings of a walk: paths of images, and the files that are not read."""

    images: list[str] = field(default_factory=list[str])
    skipped: list[str] = field(default_factory=list[str])
    other_files: Counter[str] = field(default_factory=Counter[str])


def _walk(root: Path, name: str, around: frozenset[tuple[int, int]], found: _Found) -> None:
    """Find the images at any depth below root/name, as paths relative to root."""
    identity = _identity(root / name)
    if identity in around:
        found.skipped.append(f"{printable(name)}: a link to a folder around it")
        return
    for sub in _entries(root, name, found):
        _walk(root, sub, around | {identity}, found)


def _entries(root: Path, name: str, found: _Found) -> list[str]:
    """Find what lies right inside root/name, in the order of the names; returns the folders."""
    folders: list[str] = []
    try:
        with os.scandir(root / name) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise _unopened(root / name, error) from error
    for entry in entries:
        if is_junk(entry.name):
            continue
        place = os.path.join(name, entry.name)  # noqa: PTH118 - a Path per image would be slow
        named_as_image = is_image_name(entry.name)
        reason = None
        try:
            if entry.is_dir():
                if named_as_image:
                    reason = FOLDER_LIKE_IMAGE
                else:
                    folders.append(place)
            elif entry.is_file():
                if named_as_image:
                    found.images.append(place)
                elif place not in (LABELS_FILE, SAMPLES_FILE):
                    found.other_files[suffix_of(entry.name)] += 1
            elif entry.is_symlink():
                reason = "a broken link"
            elif named_as_image:
                reason = NO_REGULAR_FILE
        except OSError as error:
            reason = f"cannot be followed ({error.strerror})"
        if reason:
            found.skipped.append(f"{printable(place)}: {reason}")
    return folders


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _unopened(folder: Path, error: OSError) -> DataError:
    return DataError(f"Folder cannot be opened: `{printable(folder)}` ({error.strerror})")
