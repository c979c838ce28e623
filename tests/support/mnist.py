"""A small data set in MNIST's layout."""

import gzip
from pathlib import Path

import numpy as np


def make_mnist(
    folder: Path, layout: str = "{}-images-idx3-ubyte.gz", num_images: int = 20
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write random images in the published format.

    Args:
        folder: The folder to give with ``--data``; made when absent.
        layout: The path of the files of images below it, for "train" and "t10k"; compressed where it ends in .gz.
        num_images: Training images; the test set has half as many.

    Returns:
        "train" and "test" as (images (N, 28, 28) uint8, labels (N,) int64). Labels run through the classes.
    """
    rng = np.random.default_rng(0)
    result = {}
    for split, part, count in (("train", "train", num_images), ("test", "t10k", num_images // 2)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count) % 10
        result[split] = images, labels
        for name, magic, array in ((layout, 2051, images), (layout.replace("images", "labels"), 2049, labels)):
            path = folder / name.format(part).replace("labels-idx3", "labels-idx1").replace(
                "labels.idx3", "labels.idx1"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            content = np.array([magic, *array.shape], ">u4").tobytes() + array.astype(np.uint8).tobytes()
            path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return result
