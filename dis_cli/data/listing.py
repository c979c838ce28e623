"""Which files are images, and of which class: names only, nothing is decoded.

The class rules are functions of names, so that a folder (here) and an archive (``dis_cli.data.archives``) share them.
"""

import json
import os
import re
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dis_cli.data.decode import SUFFIXES, printable
from dis_cli.errors import DataError, UsageError

FOLDER_HINT = "Give a folder of images, or of one sub-folder per class, with `--data DIR` (or data.path=DIR)"
FOLDER_LIKE_IMAGE = "a folder named like an image"
NO_REGULAR_FILE = "not a regular file"
# the parts that hold images to test on, by preference
HELD_OUT = ("val", "test")

# the file that says the labels of an image set written by StyleGAN's and EDM's tools
LABELS_FILE = "dataset.json"
MAX_CLASSES = 100_000
MAX_EXAMPLES = 10


@dataclass(frozen=True)
class Listing:
    """The images of a folder or archive.

    Attributes:
        class_names: The class folders, sorted, or "0", "1", ... where a file gives the labels; empty when unlabelled.
        names: Paths inside the folder or archive, sorted within each class, classes in order; sorted throughout where
            folders are no classes.
        labels: The class of each name, its place in class_names; all 0 when unlabelled.
        skipped: What looks like an image and is not used, as "name: reason", fit for a message.
    """

    class_names: tuple[str, ...]
    names: list[str]
    labels: list[int]
    skipped: tuple[str, ...]


def require_folder(path: Path, hint: str) -> None:
    """Raise DataError unless a path is a folder."""
    try:
        is_folder = path.is_dir()
        exists = is_folder or path.exists()
    except OSError as error:
        raise DataError(f"Folder cannot be opened: `{printable(path)}` ({error.strerror})", hint) from error
    if not is_folder:
        raise DataError(f"{'Not a folder' if exists else 'Folder not found'}: `{printable(path)}`", hint)


def split_folder(path: Path, split: str) -> Path:
    """The part of a data folder that serves a split.

    A folder with ``train`` and one of ``val`` and ``test`` is divided: "train" is its ``train``, "test" its ``val``,
    or ``test`` where there is no ``val`` (the test images of ImageNet have no labels). Any other folder serves all.

    Args:
        path: The folder given by the user.
        split: "train", "test" or "all".

    Raises:
        UsageError: When all of a divided folder is asked for.
    """
    held_out = next((path / name for name in HELD_OUT if (path / name).is_dir()), None)
    train = path / "train"
    if held_out is None or not train.is_dir():
        return path
    if split == "all":
        raise UsageError(
            f"Folder is divided into parts: `{printable(path)}` holds train and {held_out.name}",
            f"Give one of them: `--data {printable(train)}`",
        )
    return train if split == "train" else held_out


def imagenet_folder(path: Path, split: str) -> Path:
    """The part of an ImageNet folder that serves a split, with one sub-folder per class.

    Args:
        path: A folder with ``train`` or ``val``, or one of those itself.
        split: "train" gives ``train``, "test" gives ``val``; a folder of class folders serves every split.

    Raises:
        DataError: When the part is not there, or has no class folders.
        UsageError: When all of a divided folder is asked for.
    """
    require_folder(path, _IMAGENET_HINT)
    folder = split_folder(path, split)
    if folder == path and any((path / name).is_dir() for name in ("train", *HELD_OUT)):
        folder = path / ("val" if split == "test" else "train")
        require_folder(folder, _IMAGENET_HINT)
    _, names, _ = _entries(folder, "")
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
    return folder


def list_images(folder: Path) -> Listing:
    """List the images of a folder.

    Links are followed; hidden entries and files with other suffixes are passed over in silence. The classes follow
    ``list_by_folders``, or ``list_by_labels`` where the folder holds a ``dataset.json``.

    Args:
        folder: An existing folder.

    Raises:
        DataError: When nothing is found, the classes cannot be told, or a folder cannot be opened.
    """
    images, folders, skipped = _entries(folder, "")
    home = frozenset({_identity(folder)})
    classes: list[str] = []
    for name in folders:
        found = _walk(folder, name, home, skipped)
        images += found
        # a link back to the folder itself is no class
        if found or _identity(folder / name) not in home:
            classes.append(name)
    labels_file = folder / LABELS_FILE
    try:
        content = labels_file.read_bytes() if labels_file.is_file() else None
    except OSError as error:
        raise DataError(f"Labels cannot be read: `{printable(labels_file)}` ({error.strerror})") from error
    if content is not None:
        return list_by_labels(content, images, skipped, printable(folder))
    return list_by_folders(images, classes, skipped, printable(folder))


def list_by_folders(images: Sequence[str], folders: Iterable[str], skipped: Sequence[str], place: str) -> Listing:
    """The class rule: top-level folders that hold images, at any depth, are classes; without any, there are none.

    Args:
        images: Paths of all images, parted by "/".
        folders: The top-level folders, those without images too.
        skipped: What cannot be used, for the result.
        place: What to call the folder or archive, printable.

    Raises:
        DataError: When there are no images, or a class has none (leaving it out would move the labels of the others).
    """
    _require_images(images, skipped, place)
    loose: list[str] = []
    classes: dict[str, list[str]] = {name: [] for name in sorted(folders)}
    for name in sorted(images):
        top, slash, _ = name.partition("/")
        (classes[top] if slash else loose).append(name)
    if not any(classes.values()):
        return Listing((), loose, [0] * len(loose), tuple(skipped))
    empty = [printable(name) for name, files in classes.items() if not files]
    if empty:
        raise DataError(
            f"Class folder without images in `{place}`: {', '.join(empty[:MAX_EXAMPLES])}",
            f"Remove it, or add images ({_SUFFIX_LIST})",
        )
    beside = [f"{printable(name)}: lies beside the class folders" for name in loose]
    return Listing(
        class_names=tuple(printable(name) for name in classes),
        names=[name for files in classes.values() for name in files],
        labels=[label for label, files in enumerate(classes.values()) for _ in files],
        skipped=(*skipped, *beside),
    )


def list_by_labels(content: bytes, images: Sequence[str], skipped: Sequence[str], place: str) -> Listing:
    """The rule where a file gives the labels: the classes are the numbers in it, up to the largest; folders are none.

    Args:
        content: ``{"labels": [["00000/img00000000.png", 6], ...]}``, or ``{"labels": null}`` for unlabelled images.
        images: Paths of all images, parted by "/".
        skipped: What cannot be used, for the result.
        place: What to call the folder or archive, printable.

    Raises:
        DataError: When there are no images, the content is another, or the labels are not one for each image.
    """
    _require_images(images, skipped, place)
    labels = _read_labels(content, f"{place}/{LABELS_FILE}")
    names = sorted(images)
    if labels is None:
        return Listing((), names, [0] * len(names), tuple(skipped))
    present = set(names)
    faults = [f"{printable(name)}: an image without a label" for name in names if name not in labels]
    faults += [f"{printable(name)}: a label without an image" for name in labels if name not in present]
    if faults:
        raise DataError(
            f"Labels and images differ: `{place}/{LABELS_FILE}`, {len(faults):,} names{examples(faults)}",
            f"Give every image one label, or remove {LABELS_FILE} to take the folders as classes",
        )
    numbers = [labels[name] for name in names]
    return Listing(tuple(str(label) for label in range(max(numbers) + 1)), names, numbers, tuple(skipped))


def is_image_name(name: str) -> bool:
    """Whether a file is taken for an image, by its suffix."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - a Path per image would be slow


def examples(lines: Sequence[str]) -> str:
    """The first lines of a list, for the end of an error message."""
    return "".join(f"\n  {line}" for line in lines[:MAX_EXAMPLES])


# the name of a class: a number in WordNet
_WNID = re.compile(r"n\d{8}")
_IMAGENET_HINT = (
    "Give the folder that holds train/n01440764/*.JPEG, ... and val/n01440764/*.JPEG, ..., or one of these two, with "
    "`--data DIR` (or data.path=DIR)"
)
_SUFFIX_LIST = ", ".join(sorted(SUFFIXES))
_LABELS_HINT = (
    'Expected {"labels": [["00000/img00000000.png", 6], ...]}, or {"labels": null} for images without classes; '
    f"remove {LABELS_FILE} to take the folders as classes"
)


def _require_images(images: Sequence[str], skipped: Sequence[str], place: str) -> None:
    if not images:
        raise DataError(
            f"No images in `{place}`{examples(skipped)}", f"Files with these suffixes are read: {_SUFFIX_LIST}"
        )


def _read_labels(content: bytes, place: str) -> dict[str, int] | None:
    """The label of each name, or None when the file says that there are none."""
    try:
        rows: Any = json.loads(content)["labels"]
        if not isinstance(rows, list | None):
            raise TypeError("labels are not a list")
    # no JSON, or no such key in it; nesting can exhaust the stack
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            f"Labels cannot be read: `{place}` ({type(error).__name__}: {printable(str(error))})", _LABELS_HINT
        ) from error
    if rows is None:
        return None
    labels: dict[str, int] = {}
    faults: list[str] = []
    for row in rows:
        match row:
            # not int(): it takes true and false too
            case [str(name), label] if type(label) is int:
                if not 0 <= label < MAX_CLASSES:
                    faults.append(f"{printable(name)}: label {label} is not in 0 to {MAX_CLASSES - 1}")
                elif labels.setdefault(name, label) != label:
                    faults.append(f"{printable(name)}: has the labels {labels[name]} and {label}")
            case [str(name), label]:
                faults.append(f"{printable(name)}: label {reprlib.repr(label)} is not a whole number")
            case _:
                faults.append(f"{reprlib.repr(row)}: not a name and a label")
    if faults:
        raise DataError(f"Labels cannot be used: `{place}`, {len(faults):,} of them{examples(faults)}", _LABELS_HINT)
    return labels


def _walk(root: Path, name: str, around: frozenset[tuple[int, int]], skipped: list[str]) -> list[str]:
    """The images at any depth below root/name, as paths relative to root."""
    identity = _identity(root / name)
    if identity in around:
        skipped.append(f"{printable(name)}: a link to a folder around it")
        return []
    images, folders, problems = _entries(root, name)
    skipped += problems
    return images + [found for sub in folders for found in _walk(root, sub, around | {identity}, skipped)]


def _entries(root: Path, name: str) -> tuple[list[str], list[str], list[str]]:
    """The images, the folders and the unusable entries of root/name, sorted."""
    images: list[str] = []
    folders: list[str] = []
    skipped: list[str] = []
    try:
        with os.scandir(root / name) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"Folder cannot be opened: `{printable(root / name)}` ({error.strerror})") from error
    for entry in entries:
        if entry.name.startswith("."):
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
                    images.append(place)
            elif entry.is_symlink():
                reason = "a broken link"
            elif named_as_image:
                reason = NO_REGULAR_FILE
        except OSError as error:
            reason = f"cannot be followed ({error.strerror})"
        if reason:
            skipped.append(f"{printable(place)}: {reason}")
    return images, folders, skipped


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
