"""The class of each image, from names only; nothing is decoded.

The rules are functions of names, so that a folder (``folders``) and an archive (``archives``) share them.
"""

import json
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dis_cli.data.decode import SUFFIXES, printable
from dis_cli.data.images.layout import LABELS_FILE, look_alikes, part_named, plain_name, short_list
from dis_cli.data.images.other_files import advise_on_other_files, tell_other_files
from dis_cli.errors import DataError

FOLDER_LIKE_IMAGE = "a folder named like an image"
NO_REGULAR_FILE = "not a regular file"
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
        skipped: Entries that look like images and are not used, as "name: reason", fit for a message.
        other_files: Number of files left out for their suffix, by suffix.
        notes: Further doubts about the user's intent, a sentence each.
    """

    class_names: tuple[str, ...]
    names: list[str]
    labels: list[int]
    skipped: tuple[str, ...]
    other_files: Mapping[str, int] = field(default_factory=dict[str, int])
    notes: tuple[str, ...] = ()


_NOTHING: Mapping[str, int] = {}


def list_by_folders(
    images: Sequence[str],
    folders: Iterable[str],
    skipped: Sequence[str],
    place: str,
    other_files: Mapping[str, int] = _NOTHING,
    notes: Sequence[str] = (),
) -> Listing:
    """The class rule: top-level folders that hold images, at any depth, are classes; without any, there are none.

    Args:
        images: Paths of all images, parted by "/".
        folders: The top-level folders, those without images too.
        skipped: Entries that cannot be used, for the result.
        place: Name of the folder or archive, printable.
        other_files: Files left out for their suffix, for the result.
        notes: Further notes, for the result.

    Raises:
        DataError: When there are no images, or a class has none (leaving it out would move the labels of the others).
    """
    _require_images(images, skipped, place, other_files)
    loose: list[str] = []
    classes: dict[str, list[str]] = {name: [] for name in sorted(folders)}
    for name in sorted(images):
        top, slash, _ = name.partition("/")
        (classes[top] if slash else loose).append(name)
    if not any(classes.values()):
        return Listing((), loose, [0] * len(loose), tuple(skipped), other_files, tuple(notes))
    empty = [printable(name) for name, files in classes.items() if not files]
    if empty:
        raise DataError(
            f"Class folder without images in `{place}`: {', '.join(empty[:MAX_EXAMPLES])}",
            _joined(
                tell_other_files(other_files),
                *advise_on_other_files(other_files, 0),
                f"Remove it, or add images ({_SUFFIX_LIST})",
            ),
        )
    beside = [f"{printable(name)}: lies beside the class folders" for name in loose]
    return Listing(
        class_names=tuple(printable(name) for name in classes),
        names=[name for files in classes.values() for name in files],
        labels=[label for label, files in enumerate(classes.values()) for _ in files],
        skipped=(*skipped, *beside),
        other_files=other_files,
        notes=(*notes, *_doubts(classes)),
    )


def list_by_labels(
    content: bytes,
    images: Sequence[str],
    skipped: Sequence[str],
    place: str,
    other_files: Mapping[str, int] = _NOTHING,
    notes: Sequence[str] = (),
) -> Listing:
    """The rule where a file gives the labels: the classes are the numbers in it, up to the largest; folders are none.

    Args:
        content: ``{"labels": [["00000/img00000000.png", 6], ...]}``, or ``{"labels": null}`` for unlabelled images.
        images: Paths of all images, parted by "/".
        skipped: Entries that cannot be used, for the result.
        place: Name of the folder or archive, printable.
        other_files: Files left out for their suffix, for the result.
        notes: Further notes, for the result.

    Raises:
        DataError: When there are no images, the content is another, or the labels are not one for each image.
    """
    _require_images(images, skipped, place, other_files)
    labels = _read_labels(content, f"{place}/{LABELS_FILE}")
    names = sorted(images)
    if labels is None:
        return Listing((), names, [0] * len(names), tuple(skipped), other_files, tuple(notes))
    labels = _as_found(labels, names)
    present = set(names)
    faults = [f"{printable(name)}: an image without a label" for name in names if name not in labels]
    faults += [f"{printable(name)}: a label without an image" for name in labels if name not in present]
    if faults:
        raise DataError(
            f"Labels and images differ: `{place}/{LABELS_FILE}`, {len(faults):,} names{examples(faults)}",
            _joined(
                tell_other_files(other_files),
                f"Give every image one label, or remove {LABELS_FILE} to take the folders as classes",
            ),
        )
    numbers = [labels[name] for name in names]
    class_names = tuple(str(label) for label in range(max(numbers) + 1))
    used = set(numbers)
    if len(used) < len(class_names):
        unused = [name for label, name in enumerate(class_names) if label not in used]
        share = f"{len(unused):,} of the {len(class_names):,} classes"
        notes = [*notes, f"{share} in {LABELS_FILE} have no images: {short_list(unused)}"]
    return Listing(class_names, names, numbers, tuple(skipped), other_files, tuple(notes))


def examples(lines: Sequence[str]) -> str:
    """The first lines of a list, for the end of an error message."""
    return "".join(f"\n  {line}" for line in lines[:MAX_EXAMPLES])


_SUFFIX_LIST = ", ".join(sorted(SUFFIXES))
_LABELS_HINT = (
    'Expected {"labels": [["00000/img00000000.png", 6], ...]}, or {"labels": null} for images without classes; '
    f"remove {LABELS_FILE} to take the folders as classes"
)


def _require_images(images: Sequence[str], skipped: Sequence[str], place: str, other_files: Mapping[str, int]) -> None:
    if not images:
        raise DataError(
            f"No images in `{place}`{examples(skipped)}",
            _joined(
                tell_other_files(other_files),
                *advise_on_other_files(other_files, 0),
                f"Files with these suffixes are read: {_SUFFIX_LIST}",
            ),
        )


def _joined(*sentences: str) -> str:
    return ". ".join(filter(None, sentences))


def _doubts(classes: Mapping[str, Sequence[str]]) -> list[str]:
    """Reasons against taking these folders for classes, a sentence each."""
    doubts = [
        f"Class folders that look alike are different classes: {', '.join(f'`{printable(name)}`' for name in group)}"
        for group in look_alikes(classes)
    ]
    # the folders below the class folders that hold images themselves
    holders = {name[: name.rindex("/")] for files in classes.values() for name in files}
    below = {tuple(holder.split("/")[1:]) for holder in holders}
    parts = sorted({printable(path[0]) for path in below if path and part_named(path[0])})
    if len(parts) > 1:
        doubts.append(
            f"Folders named like parts of a set lie inside class folders and are read together: {short_list(parts)}"
        )
    elif len(classes) == 1 and () not in below:
        (name,) = classes
        inner = sorted({printable(path[0]) for path in below})
        doubts.append(
            f"All images are taken for one class, `{printable(name)}`; for its folders ({short_list(inner)}) as "
            "classes, give that folder itself, or an archive of it"
        )
    elif len(taken := [printable(name) for name in classes if part_named(name)]) > 1:
        doubts.append(f"Folders named like parts of a set are taken for classes: {short_list(taken)}")
    return doubts


def _as_found(labels: Mapping[str, int], names: Sequence[str]) -> Mapping[str, int]:
    """The labels by the names of the images, where only the way to write a path differs."""
    present = set(names)
    if all(name in present for name in labels):
        return labels
    found = {plain_name(name): name for name in names}
    return {name if name in present else found.get(plain_name(name), name): label for name, label in labels.items()}


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
