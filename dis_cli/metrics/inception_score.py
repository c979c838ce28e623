"""The Inception Score (Salimans et al., 2016), summed as the images come."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

# torch-fidelity's: how many parts are scored apart, and how images are shuffled into them.
NUM_SPLITS = 10
SHUFFLE_SEED = 2020


def facts(*_: int | None) -> dict[str, object]:
    """The facts about the parts, for results."""
    return {"inception_score_parts": NUM_SPLITS}


@dataclass(frozen=True)
class Spread:
    """The mean of a score over parts or subsets of the images, and its standard deviation between them."""

    mean: float
    std: float


class InceptionScore:
    """``exp`` of the mean divergence of an image's class probabilities from those of all, over parts of the images.

    The sums of each part replace its probabilities, so that memory does not grow with the images; ranks add theirs.
    torch-fidelity's function needs the logits of all images at once, and is equal to 1e-12.

    Args:
        num_images: Images in all, which decides the part of each.

    Raises:
        ValueError: There are fewer images than parts.

    Differs from ADM's evaluator, which scores parts of 5,000 images in their own order.
    """

    def __init__(self, num_images: int, *, num_splits: int = NUM_SPLITS, seed: int = SHUFFLE_SEED) -> None:
        if not 1 <= num_splits <= num_images:
            raise ValueError(f"num_splits must be 1 to the number of images, {num_images}, got {num_splits}")
        bounds = np.arange(num_splits + 1) * num_images // num_splits
        part_of_place = np.repeat(np.arange(num_splits), np.diff(bounds))
        self._parts = np.empty(num_images, np.int64)
        self._parts[np.random.RandomState(seed).permutation(num_images)] = part_of_place
        self._counts = torch.zeros(num_splits, dtype=torch.float64)
        # of p log p, over images and classes; and of p, over images
        self._negentropy = torch.zeros(num_splits, dtype=torch.float64)
        self._probabilities: Tensor | None = None

    def update(self, logits: Float[Tensor, "b c"], first: int) -> None:
        """Add images.

        Args:
            logits: Of the classes, without bias, as the published score has them.
            first: The place of the first among all.

        Raises:
            ValueError: There are more images than were announced.
        """
        if not 0 <= first <= len(self._parts) - len(logits):
            raise ValueError(f"images must be 0 to {len(self._parts) - 1}, got {first} to {first + len(logits) - 1}")
        parts = torch.from_numpy(self._parts[first : first + len(logits)])
        log_p = logits.double().log_softmax(dim=1).cpu()
        p = log_p.exp()
        if self._probabilities is None:
            self._probabilities = torch.zeros(len(self._counts), logits.shape[1], dtype=torch.float64)
        self._counts.index_add_(0, parts, torch.ones(len(parts), dtype=torch.float64))
        self._negentropy.index_add_(0, parts, (p * log_p).sum(dim=1))
        self._probabilities.index_add_(0, parts, p)

    def add(self, other: "InceptionScore") -> None:
        """Add the images that another rank has seen, of the same number in all."""
        self._counts += other._counts
        self._negentropy += other._negentropy
        if other._probabilities is not None:
            mine = self._probabilities
            self._probabilities = other._probabilities if mine is None else mine + other._probabilities

    def score(self) -> Spread:
        """The mean over the parts, and the standard deviation between them.

        Raises:
            ValueError: Not all images were seen, or some twice.
        """
        wanted = torch.from_numpy(np.bincount(self._parts, minlength=len(self._counts))).double()
        if self._probabilities is None or not torch.equal(self._counts, wanted):
            raise ValueError(f"images must be {len(self._parts)}, got {int(self._counts.sum())}")
        mean = self._probabilities / self._counts[:, None]
        cross = torch.special.xlogy(self._probabilities, mean).sum(dim=1)
        scores = ((self._negentropy - cross) / self._counts).exp()
        return Spread(float(scores.mean()), float(scores.std(correction=0)))
