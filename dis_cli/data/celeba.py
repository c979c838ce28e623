"""CelebA, listed by torchvision's reader and decoded by ours."""

import os
from pathlib import Path
from typing import Any

from dis_cli.data.decode import printable
from dis_cli.data.download import downloading
from dis_cli.data.files import FolderFiles
from dis_cli.data.listing import Listing, examples, require_folder
from dis_cli.data.source import require_split
from dis_cli.errors import DataError

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
        try:
            names = list(CelebA(os.fspath(path), split=split, target_type=[]).filename)
            present = set(os.listdir(folder))  # noqa: PTH208 - a Path per image would be slow
        # RuntimeError where something is absent or fails its MD5; torchvision takes all else for granted
        except Exception as error:
            reason = "" if isinstance(error, RuntimeError) else f" ({type(error).__name__}: {printable(str(error))})"
            own = "" if (path / FOLDER).is_dir() else "To read images of your own, set data.source=folder. For CelebA: "
            raise DataError(f"CelebA is missing or damaged in `{printable(path)}`{reason}", own + HINT) from error
        # torchvision looks at the annotations only, and unpacking may have been interrupted
        missing = [name for name in names if name not in present]
        if missing:
            raise DataError(
                f"{len(missing):,} of {len(names):,} images are missing in `{printable(folder)}`{examples(missing)}",
                f"Remove the folder to have it unpacked again with data.download=true. {HINT}",
            )
        super().__init__(folder, Listing((), names, [0] * len(names), ()))
