"""CelebA, whose files torchvision names and fetches.

Its lists are compared with the published checksums. Line ends, and a byte order mark, are the reader's matter: what an
editor or an unpacker has changed in them only is taken all the same.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

from dis_cli.data.decode import printable
from dis_cli.data.images.files import FolderFiles
from dis_cli.data.images.folders import require_folder
from dis_cli.data.images.listing import Listing, examples
from dis_cli.data.published.download import downloading
from dis_cli.data.source import require_split
from dis_cli.errors import DataError
from dis_cli.text_files import NotUtf8, decode_text

FOLDER = "celeba"
IMAGES = "img_align_celeba"
ANNOTATIONS = (
    "identity_CelebA.txt",
    "list_attr_celeba.txt",
    "list_bbox_celeba.txt",
    "list_eval_partition.txt",
    "list_landmarks_align_celeba.txt",
)
HINT = (
    f"Put the aligned images in DIR/{FOLDER}/{IMAGES} (000001.jpg, ...) and {', '.join(ANNOTATIONS)} in DIR/{FOLDER} "
    "(https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html), and give `--data DIR` (or data.path=DIR); "
    "data.download=true fetches them"
)

_PARTITION = "list_eval_partition.txt"
# 1 is for validation
_PARTS = {"train": ("0",), "test": ("2",), "all": ("0", "1", "2")}


class CelebaFiles(FolderFiles):
    """CelebA's aligned and cropped images, unlabelled.

    Args:
        path: The folder that holds ``celeba``.
        split: "train" (162,770 images), "test" (19,962), or "all" (202,599, those for validation too).
        download: Fetch what is not there.

    Raises:
        DataError: When something is missing or damaged, saying what to put where.
        MissingResourceError: When it cannot be fetched.
        ValueError: When the split has another name.
    """

    def __init__(self, path: Path, split: str = "train", *, download: bool = False) -> None:
        require_split(split)
        # imported here because torchvision takes a second to load
        from torchvision.datasets import CelebA

        if download:
            with downloading("CelebA", path, f"Without a network or the package gdown, fetch it by hand. {HINT}"):
                # the step of torchvision's constructor that fetches and unpacks, which also says when nothing is to do
                fetcher: Any = CelebA.__new__(CelebA)
                fetcher.root = os.fspath(path)
                fetcher.download()
        else:
            require_folder(path, HINT)
        folder = path / FOLDER / IMAGES
        checksums = {name: md5 for _, md5, name in CelebA.file_list}
        try:
            lists = {name: _read_list(path / FOLDER / name, checksums[name]) for name in ANNOTATIONS}
            present = set(os.listdir(folder))  # noqa: PTH208 - a Path per image would be slow
        except FileNotFoundError as error:
            own = "" if (path / FOLDER).is_dir() else "To read images of your own, set data.source=folder. For CelebA: "
            raise DataError(f"CelebA is missing or damaged in `{printable(path)}`", own + HINT) from error
        except OSError as error:
            raise DataError(f"CelebA cannot be read in `{printable(path)}` ({error.strerror})", HINT) from error
        except ValueError as error:
            reason = f" ({error})" if str(error) else ""
            raise DataError(f"CelebA is missing or damaged in `{printable(path)}`{reason}", HINT) from error
        rows = [line.split() for line in lists[_PARTITION].splitlines() if line.strip()]
        names = [name for name, part in rows if part in _PARTS[split]]
        # the archive may have been unpacked in part only
        missing = [name for name in names if name not in present]
        if missing:
            raise DataError(
                f"{len(missing):,} of {len(names):,} images are missing in `{printable(folder)}`{examples(missing)}",
                f"Remove the folder to have it unpacked again with data.download=true. {HINT}",
            )
        super().__init__(folder, Listing((), names, [0] * len(names), ()))


def _read_list(path: Path, md5: str) -> str:
    """One of the lists, as it was published or with other line ends.

    Raises:
        OSError: It cannot be read.
        ValueError: It is another.
    """
    content = path.read_bytes()
    try:
        text = decode_text(content)
    except NotUtf8 as error:
        raise ValueError(f"{path.name}, {error}") from error
    published = (content, text.encode(), text.replace("\n", "\r\n").encode())
    if md5 not in {hashlib.md5(form, usedforsecurity=False).hexdigest() for form in published}:
        raise ValueError
    return text
