"""The choice between the sources of images; what a source is says ``dis_cli.data.source``."""

import contextlib
import itertools
from pathlib import Path

from PIL import ImageColor

from dis_cli.data.decode import printable
from dis_cli.data.images import archives
from dis_cli.data.images.files import FileSource, FolderFiles, ImageFiles
from dis_cli.data.images.folders import imagenet_folder, split_folder
from dis_cli.data.images.layout import is_image_name
from dis_cli.data.images.shards import ShardFiles, is_folder_of_shards
from dis_cli.data.latents.format import MANIFEST, PROGRESS
from dis_cli.data.published import celeba, cifar, mnist
from dis_cli.data.published.digits import DigitsSource
from dis_cli.data.source import ImageSource, require_split
from dis_cli.errors import DataError, UsageError

KINDS = ("digits", "folder", "zip", "tar", "shards", "cifar10", "celeba", "mnist", "imagenet")

_ARCHIVES = ("zip", "tar")
# Files and folders that are looked at for one image.
_GLANCE = 10_000
_NOUNS = {"folder": "folder", "zip": "zip file", "tar": "tar file"}
_OTHER_HINT = "Give a folder of images, a zip file or a tar file"
_NPZ_HINT = "Give a folder of images, a zip, tar or npz file"
_PATH_HINT = "Give one with `--data DIR` (or data.path=DIR)"
_PATH_HINTS = {
    "zip": archives.HINT,
    "tar": archives.HINT,
    "cifar10": f"{_PATH_HINT}; DIR holds {cifar.FOLDER}, or data.download=true puts it there",
    "mnist": f"{_PATH_HINT}; data.download=true puts the images there",
    "celeba": f"{_PATH_HINT}; DIR holds {celeba.FOLDER}, or data.download=true puts it there",
}
# those of compressed tar files too, which the reader of tar files refuses with advice
_SUFFIXES = {".zip": "zip"} | dict.fromkeys(
    (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst"), "tar"
)


def open_source(
    kind: str,
    path: Path | None,
    *,
    split: str = "train",
    image_size: int,
    channels: int,
    hflip: bool = False,
    background: str = "white",
    download: bool = False,
) -> ImageSource:
    """Open a source of images.

    Args:
        kind: One of KINDS. (Latents are opened by ``dis_cli.data.latents.source``.)
        path: The folder or archive of the data; None for the digits.
        split: "train", "test" or "all". A folder or archive that is divided, as into train and val, gives that part;
            one that is not serves every split whole. ImageNet's "test" is its ``val``.
        image_size: Side of the grid wanted, in pixels.
        channels: Channels wanted, 1 or 3.
        hflip: Mirror half of the images when augmenting; never done to digits and MNIST.
        background: Colour behind transparent images, a name or ``#rrggbb``.
        download: Fetch CIFAR-10, CelebA or MNIST when they are not there; nothing else is ever fetched.

    Raises:
        UsageError: When no path is given, or one that another kind reads, or the channels are impossible.
        DataError: When the data are missing or unreadable.
        RefusedError: When a file could do harm.
        MissingResourceError: When the data cannot be fetched.
        ValueError: When kind or split has another name.
    """
    require_split(split)
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    _require_colour(background)
    if channels not in (1, 3):
        raise UsageError(f"Images have 1 channel (grey) or 3 (RGB), got {channels}", "Set model.in_channels to 1 or 3")
    if kind == "digits":
        if path is not None:
            raise UsageError(
                f"The bundled digits take no folder, got `{printable(path)}`",
                f"Set data.source={_layout(path) or _what_is(path) or 'folder'} to use these images",
            )
        return DigitsSource(split, image_size=image_size, channels=channels)
    reads = kind if kind in _ARCHIVES else "folder"
    if path is None:
        raise UsageError(f"No {_NOUNS[reads]} given for data.source `{kind}`", _PATH_HINTS.get(kind, _PATH_HINT))
    found = _what_is(path)
    if found not in (None, reads):
        raise UsageError(
            f"data.source `{kind}` reads a {_NOUNS[reads]}, got the {_NOUNS[found]} `{printable(path)}`",
            cifar.unpack_hint(path) if (kind, path.name) == ("cifar10", cifar.ARCHIVE) else f"Set data.source={found}",
        )
    try:
        if kind == "cifar10":
            return cifar.Cifar10Source(
                path, split, image_size=image_size, channels=channels, hflip=hflip, download=download
            )
        if kind == "mnist":
            return mnist.MnistSource(path, split, image_size=image_size, channels=channels, download=download)
        files = _files(kind, path, split, download=download)
    except DataError as error:
        layout = _layout(path)
        if layout in (None, kind):
            raise
        hint = f"Set data.source={layout}"
        if layout == "latents":
            hint = "It holds latents: `dis train` takes them with data.source=latents"
        raise DataError(error.message, hint) from error
    return FileSource(files, image_size=image_size, channels=channels, hflip=hflip, background=background)


def _files(kind: str, path: Path, split: str, *, download: bool) -> ImageFiles:
    match kind:
        case "zip":
            return archives.ZipFiles(path, split)
        case "tar":
            return archives.TarFiles(path, split)
        case "shards":
            return ShardFiles(path, split)
        case "celeba":
            return celeba.CelebaFiles(path, split, download=download)
        case "imagenet":
            part = imagenet_folder(path, split)
        case _:
            part = split_folder(path, split)
    return FolderFiles(part.folder, notes=part.notes)


def kind_of(path: Path, *, or_npz: bool = False) -> str:
    """The kind that a path looks like; ImageNet's layout is a folder like any other.

    Args:
        or_npz: Whether the caller reads npz files too, which the message then lists.

    Raises:
        UsageError: When it is neither a folder nor named like an archive, or is not there.
        DataError: When it may not be looked at.
    """
    found = _what_is(path)
    if found is None:
        suffixes = [*_SUFFIXES, ".npz"] if or_npz else _SUFFIXES
        raise UsageError(
            f"Neither a folder nor a {', '.join(suffixes)} file: `{printable(path)}`",
            _NPZ_HINT if or_npz else _OTHER_HINT,
        )
    if found == "folder":
        layout = _layout(path)
        return layout if layout in ("cifar10", "mnist", "shards") else found
    return found


def recognise(path: Path, usual: str = "auto") -> str:
    """The kind of the data at a path, of all that `dis train` reads.

    Args:
        usual: The kind that a preset expects: taken where the path does not say, as when nothing is there yet.
    """
    if usual == "digits":
        usual = "auto"
    found = _what_is(path)
    if found in _ARCHIVES:
        # CIFAR-10's own archive is told how to be unpacked.
        return usual if (usual, path.name) == ("cifar10", cifar.ARCHIVE) else found
    if found is None:
        return "folder" if usual == "auto" else usual
    if layout := _layout(path):
        return layout
    # What a preset expects may be about to be downloaded, or missing: it says what has to be where.
    may_be_missing = usual in ("celeba", "cifar10", "mnist", "latents") and not _shows_images(path)
    return usual if usual == "imagenet" or may_be_missing else "folder"


def _shows_images(path: Path) -> bool:
    """Whether images lie in a folder or below it, as far as a glance shows."""
    with contextlib.suppress(OSError):
        return any(is_image_name(found.name) for found in itertools.islice(path.rglob("*"), _GLANCE))
    return False


def _layout(path: Path) -> str | None:
    """The kind of source whose files a folder holds under their own names; None where images may have any."""
    # What may not be looked at tells nothing.
    with contextlib.suppress(OSError):
        if cifar.has_batches(path):
            return "cifar10"
        if mnist.has_files(path):
            return "mnist"
        if (path / celeba.FOLDER / celeba.IMAGES).is_dir():
            return "celeba"
        if (path / MANIFEST).is_file() or (path / PROGRESS).is_dir():
            return "latents"
        if is_folder_of_shards(path):
            return "shards"
    return None


def _require_colour(text: str) -> None:
    try:
        ImageColor.getrgb(text)
    except ValueError as error:
        raise UsageError(
            f"Unknown colour: `{printable(text)}`", "Give a name such as white, black or gray, or `#rrggbb`"
        ) from error


def _what_is(path: Path) -> str | None:
    """A folder, or by its name a zip or tar file; None for anything else."""
    try:
        if path.is_dir():
            return "folder"
        is_file = path.is_file()
    except OSError as error:
        raise DataError(f"Cannot be opened: `{printable(path)}` ({error.strerror})", _OTHER_HINT) from error
    return next((kind for suffix, kind in _SUFFIXES.items() if is_file and path.name.lower().endswith(suffix)), None)
