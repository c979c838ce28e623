"""Which files of a folder are images, and of which class: names only, nothing is decoded."""

import os
from dataclasses import dataclass
from pathlib import Path

from dis_cli.data.decode import SUFFIXES, printable
from dis_cli.errors import DataError, UsageError

FOLDER_HINT = "Give a folder of images, or of one sub-folder per class, with `--data DIR` (or data.path=DIR)"
SUFFIX_LIST = ", ".join(sorted(SUFFIXES))


@dataclass(frozen=True)
class Listing:
    """The images of a folder.

    Attributes:
        class_names: The class sub-folders, sorted; empty for a flat folder.
        names: Paths relative to the folder, sorted within each class, classes in order.
        labels: The class of each name, its place in class_names; all 0 for a flat folder.
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
    held_out = next((path / name for name in ("val", "test") if (path / name).is_dir()), None)
    train = path / "train"
    if held_out is None or not train.is_dir():
        return path
    if split == "all":
        raise UsageError(
            f"Folder is divided into parts: `{printable(path)}` holds train and {held_out.name}",
            f"Give one of them: `--data {printable(train)}`",
        )
    return train if split == "train" else held_out


def list_images(folder: Path) -> Listing:
    """List the images of a folder.

    Sub-folders that hold images are classes, read to any depth, links included; a folder without any is flat and
    unlabelled. Hidden entries and files with other suffixes are passed over in silence.

    Args:
        folder: An existing folder.

    Raises:
        DataError: When nothing is found, a class has no images (leaving it out would move the labels of the others),
            or a folder cannot be opened.
    """
    loose, folders, skipped = _entries(folder, "")
    home = frozenset({_identity(folder)})
    classes = {name: sorted(_walk(folder, name, home, skipped)) for name in folders}
    # a link back to the folder itself is no class
    classes = {name: files for name, files in classes.items() if files or _identity(folder / name) not in home}
    if not any(classes.values()):
        if not loose:
            raise DataError(
                f"No images in `{printable(folder)}`" + "".join(f"\n  {line}" for line in skipped[:10]),
                f"Files with these suffixes are read: {SUFFIX_LIST}. {FOLDER_HINT}",
            )
        return Listing((), loose, [0] * len(loose), tuple(skipped))
    empty = [printable(name) for name, files in classes.items() if not files]
    if empty:
        raise DataError(
            f"Class folder without images in `{printable(folder)}`: {', '.join(empty[:10])}",
            f"Remove it, or add images ({SUFFIX_LIST})",
        )
    skipped += [f"{printable(name)}: lies beside the class folders" for name in loose]
    return Listing(
        class_names=tuple(printable(name) for name in classes),
        names=[name for files in classes.values() for name in files],
        labels=[label for label, files in enumerate(classes.values()) for _ in files],
        skipped=tuple(skipped),
    )


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
        named_as_image = os.path.splitext(entry.name)[1].lower() in SUFFIXES  # noqa: PTH122 - the same
        reason = None
        try:
            if entry.is_dir():
                if named_as_image:
                    reason = "a folder named like an image"
                else:
                    folders.append(place)
            elif entry.is_file():
                if named_as_image:
                    images.append(place)
            elif entry.is_symlink():
                reason = "a broken link"
            elif named_as_image:
                reason = "not a regular file"
        except OSError as error:
            reason = f"cannot be followed ({error.strerror})"
        if reason:
            skipped.append(f"{printable(place)}: {reason}")
    return images, folders, skipped


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
