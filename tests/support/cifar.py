"""A small data set in CIFAR-10's layout."""

import pickle
from pathlib import Path

import numpy as np


def make_cifar10(root: Path, num_images: int = 20) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write ``root/cifar-10-batches-py`` with random images in the published format.

    Args:
        root: The folder to give with ``--data``; made when absent.
        num_images: Training images, at least 5, over the five data batches; the test batch holds half as many.

    Returns:
        "train" and "test" as (images (N, 32, 32, 3) uint8, labels (N,) int64), in the order of the files. Labels run
        through the classes: 0, 1, .. 9, 0, ..
    """
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    result = {}
    for split, count, files in (
        ("train", num_images, [f"data_batch_{number}" for number in range(1, 6)]),
        ("test", num_images // 2, ["test_batch"]),
    ):
        images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        labels = np.arange(count) % 10
        result[split] = images, labels
        for name, part in zip(files, np.array_split(np.arange(count), len(files)), strict=True):
            planes = np.ascontiguousarray(images[part].transpose(0, 3, 1, 2)).reshape(len(part), 3072)
            batch = {"batch_label": name, "labels": [int(label) for label in labels[part]], "data": planes}
            # protocol 2, as published
            (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return result
