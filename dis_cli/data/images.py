"""The choice between the sources of images; what a source is says ``dis_cli.data.source``."""

from pathlib import Path

from dis_cli.data import cifar
from dis_cli.data.decode import printable
from dis_cli.data.digits import DigitsSource
from dis_cli.data.files import FileSource, FolderFiles
from dis_cli.data.listing import split_folder
from dis_cli.data.source import ImageSource, require_split
from dis_cli.errors import UsageError

KINDS = ("digits", "folder", "zip", "tar", "cifar10", "celeba", "imagenet")


def open_source(
    kind: str,
    path: Path | None,
    *,
    split: str = "train",
    image_size: int,
    channels: int,
    hflip: bool = False,
    background: str = "white",
) -> ImageSource:
    """Open a source of images.

    Args:
        kind: One of KINDS. (Latents are opened by ``dis_cli.data.latents``.)
        path: The folder or archive of the data; None for the digits.
        split: "train", "test" or "all". A folder that is divided into train and val or test gives that part; one that
            is not serves every split whole, and so does an archive.
        image_size: Side of the grid wanted, in pixels.
        channels: Channels wanted, 1 or 3.
        hflip: Mirror half of the images when augmenting; never done to digits.
        background: What transparent images are laid on, a name or ``#rrggbb``.

    Raises:
        UsageError: When the path is missing or superfluous, or the channels are impossible.
        DataError: When the data are missing or unreadable.
        ValueError: When kind or split has another name.
    """
    require_split(split)
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if channels not in (1, 3):
        raise UsageError(f"Images have 1 channel (grey) or 3 (RGB), got {channels}", "Set model.in_channels to 1 or 3")
    if kind == "digits":
        if path is not None:
            raise UsageError(
                f"The digits are bundled and take no folder, got `{printable(path)}`",
                "Set data.source=folder to use the images of a folder",
            )
        return DigitsSource(split, image_size=image_size, channels=channels)
    if path is None:
        raise UsageError(
            f"No folder given for data.source `{kind}`",
            "Give one with `--data DIR` (or data.path=DIR)"
            + (f"; DIR holds {cifar.FOLDER}, unpacked from {cifar.ARCHIVE}" if kind == "cifar10" else ""),
        )
    if kind == "cifar10":
        return cifar.Cifar10Source(path, split, image_size=image_size, channels=channels, hflip=hflip)
    files = FolderFiles(split_folder(path, split))
    return FileSource(files, image_size=image_size, channels=channels, hflip=hflip, background=background)
