"""The meaning of names in a set of images: images, junk, and folders that are parts of the set.

Functions of names only, so that folders, zip files and tar files follow one rule.

images              by their suffix, in upper or lower case: those of the formats that ``dis_cli.data.decode`` reads
hidden names, junk  what operating systems, network drives and tools leave behind is passed over in silence
parts               folders whose names differ only in a word such as train, val or test (``train`` and ``valid``,
                    ``Training`` and ``Testing``, ``train_64x64`` and ``valid_64x64``) are parts of one set, never
                    classes. Two different parts are needed; without one to train on, all folders have to be parts.
"""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from dis_cli.data.decode import SUFFIXES, printable
from dis_cli.errors import UsageError

# the file that says the labels of an image set written by StyleGAN's and EDM's tools
LABELS_FILE = "dataset.json"
# what `dis sample` says of the images it writes
SAMPLES_FILE = "samples.json"

# Part by part, its spellings; the first is the one that wins over others beside it.
_SPELLINGS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev", "devel", "development", "eval", "evaluation"),
    "test": ("test", "testing", "tst", "holdout", "heldout"),
}
# The parts that serve each split, by preference: the test images of ImageNet have no labels.
_SERVES = {"train": ("train",), "test": ("val", "test")}

_PART_OF = {spelling: part for part, spellings in _SPELLINGS.items() for spelling in spellings}
# A spelling as a word of its own; `trainset` and `testimages` are in use too.
_PART = re.compile(
    rf"(?<![^\W_\d])({'|'.join(sorted(_PART_OF, key=len, reverse=True))})(?=$|[\W_\d]|(?:sets?|data|images?|imgs?)$)"
)
# What may differ besides the word itself: train and test1, Training and test_set.
_FILLING = re.compile(r"[\W_\d]|sets?|data|images?|imgs?")

_JUNK = frozenset(
    {
        # macOS and AFP servers
        "__macosx",
        "icon\r",
        "network trash folder",
        "temporary items",
        "desktop db",
        "desktop df",
        # Windows
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "$recycle.bin",
        "recycler",
        "recycled",
        "system volume information",
        "found.000",
        "picasa.ini",
        # Linux
        "lost+found",
        "__pycache__",
        # Synology
        "@eadir",
        "@tmp",
        "#recycle",
        "#snapshot",
        # QNAP
        "@__thumb",
        "@recycle",
        "@recently-snapshot",
        # NetApp
        "~snapshot",
    }
)
_JUNK_ENDINGS = ("@synoeastream", "@synoresource")


def suffix_of(name: str) -> str:
    """A file's suffix in lower case; "" when it has none."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - a Path per image would be slow


def is_image_name(name: str) -> bool:
    """True if a file is taken for an image, by its suffix."""
    return suffix_of(name) in SUFFIXES


def is_junk(name: str) -> bool:
    """True if a file or folder is hidden, or known to be left behind by a system or tool."""
    if name.startswith("."):
        return True
    name = name.lower()
    return name in _JUNK or name.endswith(_JUNK_ENDINGS)


def plain_name(name: str) -> str:
    r"""A path that is the same for all ways to write it: with ``/`` or ``\``, with ``./``, in any form of Unicode."""
    return unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("./"))


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Names that differ in upper and lower case, in outer blanks or in their form of Unicode only, group by group."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[plain_name(name).casefold().strip()].append(name)
    return [group for group in groups.values() if len(group) > 1]


def part_named(name: str) -> str | None:
    """The part that a folder's name means by itself: "train", "val" or "test"; None for any other name."""
    found = _part_and_rest(name)
    return found[0] if found and not found[1] else None


def choose_part(folders: Collection[str], split: str, place: str, *, is_archive: bool = False) -> str | None:
    """The folder that serves a split, where a set is divided into parts; None where it is not.

    Args:
        folders: The names of all folders at the top.
        split: "train" gives the part to train on; "test" that for validation, else that for tests; "all" none.
        place: Name of the folder or archive, printable.

    Raises:
        UsageError: All of a divided set is asked for, or a part that it has not, or has twice.
    """
    parts = find_parts(folders)
    if not parts:
        return None
    wanted = [parts[part] for part in _SERVES.get(split, ()) if part in parts]
    if wanted and len(wanted[0]) == 1:
        return wanted[0][0]
    noun = "Archive" if is_archive else "Folder"
    if wanted:
        shown, problem = wanted[0], f"has more than one part to {split} on"
    else:
        held_out = parts.get("val") or parts.get("test", [])
        others = held_out if "train" in parts else [name for names in parts.values() for name in names]
        shown, problem = [*parts.get("train", []), *others], "is divided into parts"
        problem += " and has none to train on" if split == "train" else ""
    first = shown[0]
    raise UsageError(
        f"{noun} {problem}: `{place}` holds {_listed(shown)}",
        "Make an archive of each part, or unpack it and give the folder of one (data.source=folder)"
        if is_archive
        else f"Give one of them, such as `{place}/{printable(first)}`",
    )


def find_parts(folders: Collection[str]) -> dict[str, list[str]]:
    """The folders that are parts of a divided set, by what they are: "train", "val", "test"; {} when it is none."""
    groups: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in sorted(folders):
        found = _part_and_rest(name)
        if found:
            groups[found[1]][found[0]].append(name)
    divided = [group for _, group in sorted(groups.items()) if len(group) > 1]
    if not divided or ("train" not in divided[0] and sum(map(len, divided[0].values())) < len(folders)):
        return {}
    if divided[0] is groups.get(""):
        # train and test win over cats_train and cats_test
        divided = divided[:1]
    parts: dict[str, list[str]] = {}
    for part in _SPELLINGS:
        names = [name for group in divided for name in group.get(part, [])]
        if names:
            parts[part] = [part] if part in names else names
    return parts


def beside_parts(folders: Iterable[str], num_images: int) -> list[str]:
    """A note on files and folders beside the parts of a divided set, which are never read."""
    others = [printable(name) for name in sorted(folders)]
    found = [f"{num_images:,} {'image' if num_images == 1 else 'images'}"] if num_images else []
    found += [f"the {'folder' if len(others) == 1 else 'folders'} {short_list(others)}"] if others else []
    return [f"Beside its parts the set holds {' and '.join(found)}: not read"] if found else []


def short_list(names: Sequence[str], most: int = 10) -> str:
    """The first names of a list, for a sentence."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


def _part_and_rest(name: str) -> tuple[str, str] | None:
    """The part that a folder's name means, and what else of the name has to be alike in all parts."""
    lower = name.lower()
    found = _PART.search(lower)
    if found is None:
        return None
    rest = lower[: found.start()] + " " + lower[found.end() :]
    return _PART_OF[found[1]], _FILLING.sub("", rest)


def _listed(names: Sequence[str]) -> str:
    shown = [printable(name) for name in names]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
