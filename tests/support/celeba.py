"""A small data set in CelebA's layout."""

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path

from support.archives import png

PARTITION = (0, 2, 0, 1, 2)


def make_celeba(root: Path, partition: Sequence[int] = PARTITION) -> list[tuple[str, str, str]]:
    """Write ``root/celeba`` with random images, numbered from 1, and their archive.

    Args:
        root: The folder to give with ``--data``; made when absent.
        partition: 0 (train), 1 (validation) or 2 (test) for each image.

    Returns:
        What to set torchvision's ``CelebA.file_list`` to: the files with their MD5, in place of the published ones.
    """
    folder = root / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{number:06d}.jpg" for number in range(1, len(partition) + 1)]
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
        for seed, name in enumerate(names):
            (folder / "img_align_celeba" / name).write_bytes(png(seed))
            archive.writestr(f"img_align_celeba/{name}", png(seed))

    def lines(values: str) -> str:
        return "".join(f"{name} {values}\n" for name in names)

    # as published: some files begin with the number of images and the names of the columns
    head = f"{len(names)}\n"
    texts = {
        "list_eval_partition.txt": "".join(f"{n} {part}\n" for n, part in zip(names, partition, strict=True)),
        "identity_CelebA.txt": lines("7"),
        "list_bbox_celeba.txt": f"{head}image_id x_1 y_1 width height\n{lines('95 71 226 313')}",
        "list_landmarks_align_celeba.txt": f"{head}lefteye_x lefteye_y\n{lines('69 109')}",
        "list_attr_celeba.txt": f"{head}Bald Young\n{lines('-1  1')}",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    return [
        (f"id-{name}", hashlib.md5((folder / name).read_bytes()).hexdigest(), name)
        for name in ("img_align_celeba.zip", *texts)
    ]
