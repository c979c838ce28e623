"""Reports of files that are not read, counted by suffix, so that none is left out silently."""

from collections.abc import Mapping

from dis_cli.data.decode import FORMATS, SUFFIXES_OF, printable
from dis_cli.data.images.layout import short_list

MAX_SUFFIXES = 10

# What usually lies beside images, and is not missed.
_TEXT = frozenset(
    {".txt", ".json", ".jsonl", ".csv", ".tsv", ".md", ".rst", ".xml", ".yaml", ".yml", ".html", ".htm", ".log", ".pdf"}
)
# When there are about as many as images, they belong to them.
_SIDECARS = (".txt", ".json", ".caption", ".xml")
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_HEIF = (".heic", ".heif", ".hif")
_CLASSES = ".cls"
_MISSING_DECODERS = {
    suffix: name for name, suffixes in SUFFIXES_OF.items() if name not in FORMATS for suffix in suffixes
}


def tell_other_files(counts: Mapping[str, int]) -> str:
    """The files left out, in one sentence; "" for none.

    Args:
        counts: Number of files with each suffix, as ``layout.suffix_of`` gives it.
    """
    total = sum(counts.values())
    if not total:
        return ""
    files = "1 file with another suffix was" if total == 1 else f"{total:,} files with other suffixes were"
    return f"{files} left out: {_counted(counts)}"


def advise_on_other_files(counts: Mapping[str, int], num_images: int) -> list[str]:
    """Advice on files that are not read, a sentence for each kind; [] when they will not be missed.

    Args:
        counts: Number of files with each suffix.
        num_images: The images that are read.
    """
    advice: list[str] = []
    if heif := [suffix for suffix in _HEIF if suffix in counts]:
        advice.append(f"{_and(heif)} cannot be read: convert them, `heif-convert a.heic a.jpg`")
    for suffix, name in _MISSING_DECODERS.items():
        if suffix in counts:
            advice.append(f"This Pillow cannot read {name}: `pip install -U pillow` brings one that can")
    if _CLASSES in counts:
        advice.append(
            f"The labels in webdataset's {_CLASSES} files are read from a folder of tar files: give that folder; else "
            "sort the images into one folder per class, or list their labels in a dataset.json"
        )
    if sidecars := [suffix for suffix in _SIDECARS if num_images and 2 * counts.get(suffix, 0) >= num_images]:
        advice.append(
            f"Labels or captions in {_and(sidecars)} files beside the images are not read: classes come from folders "
            "or from a dataset.json"
        )
    if archives := [suffix for suffix in _ARCHIVES if suffix in counts]:
        advice.append(
            f"Archives inside ({_and(archives)}) are not opened: unpack them into one folder"
            + ("" if num_images else ", or give a single one with its own path and data.source=tar or zip")
        )
    if "" in counts:
        advice.append("Images without a suffix are read once they have one, such as .png, whatever their format")
    known = {*_TEXT, *_HEIF, *_MISSING_DECODERS, _CLASSES, *_ARCHIVES, ""}
    if others := sorted(counts.keys() - known):
        shown = short_list([printable(suffix) for suffix in others], MAX_SUFFIXES)
        advice.append(f"Convert what of these are images to PNG or JPEG: {shown}")
    return advice


def _counted(counts: Mapping[str, int]) -> str:
    by_number = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return short_list([f"{printable(suffix) or 'without a suffix'} {n:,}" for suffix, n in by_number], MAX_SUFFIXES)


def _and(suffixes: list[str]) -> str:
    return " and ".join(suffixes)
