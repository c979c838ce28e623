"""What is known of generated digits: each number beside what real and simple images get."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dis_cli.codecs.pixel import to_uint8
from dis_cli.data.images.digits import DigitsSource
from dis_cli.metrics.baselines import ClassGaussians
from dis_cli.metrics.extractors.digits import DigitFeatures, as_digits
from dis_cli.metrics.frechet import frechet_distance
from dis_cli.metrics.memorization import copy_share
from dis_cli.metrics.statistics import statistics


class DigitScores:
    """Scores digits; what real ones get is measured once.

    Args:
        image_size: Side of the images to be scored: real ones are enlarged to it and reduced again with them.
    """

    def __init__(self, extractor: DigitFeatures, image_size: int) -> None:
        self._extractor = extractor
        self._train, train_labels = digit_images("train", image_size)
        test, test_labels = digit_images("test", image_size)
        test_features, test_logits = extractor.features(test)
        gaussians = ClassGaussians(self._train, train_labels).sample(
            np.concatenate([train_labels, test_labels]), seed=0
        )
        self._train_statistics = statistics(extractor.features(self._train)[0])
        self._test_statistics = statistics(test_features)
        self._accuracy = _accuracy(test_logits, test_labels)
        self._copies = copy_share(test, self._train)
        self._simple = {
            "floor": frechet_distance(self._train_statistics, self._test_statistics),
            "class_gaussians": frechet_distance(statistics(extractor.features(gaussians)[0]), self._test_statistics),
        }

    def score(self, generated: Tensor, labels: npt.NDArray[np.int64] | None) -> dict[str, float]:
        """All that is known of generated digits.

        Args:
            generated: (n, h, w, c) 8-bit images; larger ones are reduced to 8x8 grey.
            labels: The class asked for of each; None leaves the accuracy out.
        """
        generated = as_digits(generated)
        features, logits = self._extractor.features(generated)
        own = statistics(features)
        metrics = {
            "frechet_digits": frechet_distance(own, self._test_statistics),
            "frechet_digits_train": frechet_distance(own, self._train_statistics),
            **self._simple,
        }
        if labels is not None:
            metrics["class_accuracy"] = _accuracy(logits, labels)
            metrics["class_accuracy_real"] = self._accuracy
        copies = copy_share(generated, self._train)
        metrics["copy_share"] = copies.median
        metrics["copy_share_real"] = self._copies.median
        metrics["near_copy_share"] = copies.low
        metrics["near_copy_share_real"] = self._copies.low
        return metrics


def _accuracy(logits: Tensor, labels: npt.NDArray[np.int64]) -> float:
    return float((logits.argmax(dim=1).numpy() == labels).mean())


def digit_images(split: str, image_size: int = 8) -> tuple[Tensor, npt.NDArray[np.int64]]:
    """The bundled digits of a split as 8-bit images (n, 8, 8, 1), the form that samples are scored in, and labels.

    Args:
        split: "train", "test" or "all".
        image_size: The side at which a model makes them; they are enlarged to it and reduced again, as its samples are.
    """
    source = DigitsSource(split, image_size=image_size)
    return as_digits(to_uint8(torch.stack([source.load(index, None) for index in range(len(source))]))), source.labels
