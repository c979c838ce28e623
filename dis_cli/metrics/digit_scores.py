"""Scores of generated handwritten digits, each beside the values of real and of simple images."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dis_cli.codecs.pixel import to_uint8
from dis_cli.data.published.digits import SIDE, DigitsSource
from dis_cli.data.source import ImageSource
from dis_cli.metrics.baselines import ClassGaussians
from dis_cli.metrics.extractors.classifier import DigitClassifier, as_grey
from dis_cli.metrics.frechet import frechet_distance
from dis_cli.metrics.memorization import copy_share
from dis_cli.metrics.statistics import statistics

# Images of a baseline of noise; their distance needs no more.
_NUM_NOISE = 1000


@dataclass(frozen=True)
class Digits:
    """Real digits as a classifier takes them.

    Attributes:
        images: uint8 (n, side, side, 1).
        labels: (n,)
    """

    images: Tensor
    labels: npt.NDArray[np.int64]


class DigitScores:
    """Scores digits; what real ones get is measured once.

    Args:
        reference: What generated images are compared with.
        train: What the model was trained on; None when that is the reference itself, or not there.
    """

    def __init__(self, extractor: DigitClassifier, reference: Digits, train: Digits | None) -> None:
        self._extractor = extractor
        self._train = train
        features, logits = extractor.features(reference.images)
        self._reference_statistics = statistics(features)
        self._accuracy = _accuracy(logits, reference.labels)
        self._simple: dict[str, float] = {}
        known = reference
        labels = reference.labels
        if train is not None:
            known = train
            labels = np.concatenate([train.labels, reference.labels])
            self._train_statistics = statistics(extractor.features(train.images)[0])
            self._copies = copy_share(reference.images, train.images)
            self._simple["floor"] = frechet_distance(self._train_statistics, self._reference_statistics)
        gaussians = ClassGaussians(known.images, known.labels).sample(labels, seed=0)
        levels = np.random.default_rng(0).standard_normal((_NUM_NOISE, 1, extractor.side, extractor.side))
        noise = to_uint8(torch.from_numpy(levels).float())
        for name, images in (("class_gaussians", gaussians), ("noise", noise)):
            own = statistics(extractor.features(images)[0])
            self._simple[name] = frechet_distance(own, self._reference_statistics)

    def reduced(self, images: Tensor) -> Tensor:
        """Images (n, h, w, c) as the classifier takes them."""
        return self._extractor.reduced(images)

    def score(self, generated: Tensor, labels: npt.NDArray[np.int64] | None) -> dict[str, float]:
        """All that is known of generated digits.

        Args:
            generated: (n, h, w, c) 8-bit images; others than the classifier takes are reduced to grey of its size.
            labels: The class asked for of each; None leaves the accuracy out.
        """
        generated = self._extractor.reduced(generated)
        features, logits = self._extractor.features(generated)
        own = statistics(features)
        name = f"frechet_{self._extractor.label}"
        metrics = {name: frechet_distance(own, self._reference_statistics)}
        if self._train is not None:
            metrics[f"{name}_train"] = frechet_distance(own, self._train_statistics)
        metrics |= self._simple
        if labels is not None:
            metrics["class_accuracy"] = _accuracy(logits, labels)
            metrics["class_accuracy_real"] = self._accuracy
        if self._train is not None:
            copies = copy_share(generated, self._train.images)
            metrics["copy_share"] = copies.median
            metrics["copy_share_real"] = self._copies.median
            metrics["near_copy_share"] = copies.low
            metrics["near_copy_share_real"] = self._copies.low
        return metrics


def _accuracy(logits: Tensor, labels: npt.NDArray[np.int64]) -> float:
    return float((logits.argmax(dim=1).numpy() == labels).mean())


def digits_of(source: ImageSource, side: int) -> Digits:
    """All images of a source, reduced to grey ones of a side: the form that samples are scored in."""
    images = to_uint8(torch.stack([source.load(index, None) for index in range(len(source))]))
    return Digits(as_grey(images, side), source.labels)


def digit_images(split: str, image_size: int = SIDE) -> tuple[Tensor, npt.NDArray[np.int64]]:
    """The bundled digits of a split as 8-bit images (n, 8, 8, 1), the form that samples are scored in, and labels.

    Args:
        split: "train", "test" or "all".
        image_size: The side at which a model makes them; they are enlarged to it and reduced again, as its samples are.
    """
    digits = digits_of(DigitsSource(split, image_size=image_size), SIDE)
    return digits.images, digits.labels
