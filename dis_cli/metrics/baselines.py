"""Generators too simple to be good, whose scores show what a score is worth."""

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor


class ClassGaussians:
    """One Gaussian over the pixels of each class, with the mean and covariance of its images.

    A score that a trained model does not clearly beat says nothing: on the bundled digits a classifier names 99 % of
    such images correctly.

    Args:
        images: Real images, channels last.
        labels: Their classes.

    Raises:
        ValueError: When there is not one label per image.
    """

    def __init__(self, images: UInt8[Tensor, "n h w c"], labels: Int64[np.ndarray, " m"]) -> None:
        if len(images) != len(labels):
            raise ValueError(f"labels must be one per image, got {len(labels)} for {len(images)} images")
        self._images = images.cpu().numpy()
        self._labels = labels

    def sample(self, labels: Int64[np.ndarray, " k"], *, seed: int) -> UInt8[Tensor, "k h w c"]:
        """One image per label, rounded and cut to 0..255.

        Args:
            labels: The class of each image wanted; a class must have had at least one image.

        Raises:
            ValueError: When a class had no images.
        """
        rng = np.random.default_rng(seed)
        drawn = np.empty((len(labels), *self._images.shape[1:]), dtype=np.uint8)
        for label in np.unique(labels):
            of_class = self._images[self._labels == label]
            if len(of_class) == 0:
                raise ValueError(f"class {label} has no images")
            pixels = of_class.reshape(len(of_class), -1).astype(np.float64)
            mean = pixels.mean(axis=0)
            wanted = labels == label
            # Random combinations of the images have exactly their covariance, without its square root, also when
            # there are fewer images than pixels.
            weights = rng.standard_normal((int(wanted.sum()), len(pixels))) / np.sqrt(max(len(pixels) - 1, 1))
            values = mean + weights @ (pixels - mean)
            drawn[wanted] = np.rint(values.clip(0, 255)).reshape(-1, *drawn.shape[1:])
        return torch.from_numpy(drawn)
