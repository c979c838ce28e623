"""Rebuilds the bundled classifier of MNIST, in the folder tests: ``python -m rebuild.mnist_classifier DATA [OUT]``.

DATA holds the archives that ``tests/study/data.py`` builds. It takes about two minutes on one core. Measured with torch
2.14 on a CPU: accuracy 98.5 % on the 1,996 test images; Frechet distances to them, in its features, of the 8,004
training images (the floor) 0.89, of 1,996 of these 1.6 to 2.2, of one pixel Gaussian per class 119 (134 times the
floor), of noise 991. Eight epochs without shifts came to 98.3 %. The distances depend on the network: compare scores of
one classifier only, as multiples of its floor.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rebuild.digits_classifier import train_classifier
from safetensors.torch import save
from study.data import TEST, TRAIN

from dis_cli.codecs.pixel import to_uint8
from dis_cli.data.open import open_source
from dis_cli.events import Event, Finished
from dis_cli.metrics.baselines import ClassGaussians
from dis_cli.metrics.digit_scores import Digits, digits_of
from dis_cli.metrics.extractors.base import to_unit
from dis_cli.metrics.extractors.mnist import MNIST_WEIGHTS, MnistFeatures, MnistNetwork
from dis_cli.metrics.frechet import frechet_distance
from dis_cli.metrics.statistics import statistics
from dis_cli.runtime.files import atomic_write_bytes

SEED = 0
NUM_EPOCHS = 12
WARMUP_STEPS = 100
# Pixels; the images have at least two empty rows and columns on every side.
SHIFT = 2


def rebuild(data: Path, out: Path = MNIST_WEIGHTS) -> Iterator[Event]:
    """Train the classifier on the training images, write its weights and measure what it is good for.

    Args:
        data: The folder of the archives.
        out: The file to write.

    Raises:
        StorageError: The file cannot be written.
    """
    train, test = digits_in(data / TRAIN), digits_in(data / TEST)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = MnistNetwork()
    yield from train_classifier(
        network,
        to_unit(train.images),
        torch.tensor(train.labels),
        num_epochs=NUM_EPOCHS,
        warmup_steps=WARMUP_STEPS,
        shift=SHIFT,
    )
    content = save(network.state_dict())
    atomic_write_bytes(out, content)
    extractor = MnistFeatures(out)
    written: dict[str, object] = {"path": str(out), "size_bytes": len(content), "sha256": extractor.sha256}
    yield Finished(result=written | measure(extractor, train, test))


def digits_in(archive: Path) -> Digits:
    """The images of an archive, as the classifier takes them."""
    return digits_of(open_source("zip", archive, split="all", image_size=32, channels=1), MnistFeatures.side)


def measure(extractor: MnistFeatures, train: Digits, test: Digits) -> dict[str, float]:
    """Accuracy on the test images, and Frechet distances to them in these features.

    Returns:
        ``test_accuracy``; ``dead``, the features that are never above zero on test images; and the distances of the
        training images (``floor``), of as many of them as there are test images, of a Gaussian per class and of noise.
    """
    features, logits = extractor.features(test.images)
    of_train = extractor.features(train.images)[0]
    real = statistics(features)
    labels = np.concatenate([train.labels, test.labels])
    gaussians = ClassGaussians(train.images, train.labels).sample(labels, seed=0)
    noise = to_uint8(torch.from_numpy(np.random.default_rng(0).standard_normal((len(test.labels), 1, 32, 32))).float())
    measured = {
        "test_accuracy": float((logits.argmax(1).numpy() == test.labels).mean()),
        "dead": float((features.amax(0) <= 0).sum()),
        "floor": frechet_distance(statistics(of_train), real),
        "class_gaussians": frechet_distance(statistics(extractor.features(gaussians)[0]), real),
        "noise": frechet_distance(statistics(extractor.features(noise)[0]), real),
    }
    for seed in range(3):
        chosen = np.random.default_rng(seed).choice(len(of_train), len(test.labels), replace=False)
        measured[f"floor_of_{len(chosen)}_images_{seed}"] = frechet_distance(statistics(of_train[chosen]), real)
    return measured


def main() -> None:
    """Rebuild, and print what was measured, one number a line."""
    for event in rebuild(Path(sys.argv[1]), *map(Path, sys.argv[2:3])):
        if isinstance(event, Finished):
            sys.stdout.writelines(f"{name}: {value}\n" for name, value in event.result.items())


if __name__ == "__main__":
    main()
