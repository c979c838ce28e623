"""A bootstrap interval of the Frechet distance: its spread had other images been drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float
from torch import Tensor

from dis_cli.metrics.frechet import covariance_root, frechet_distance, overlap
from dis_cli.metrics.statistics import Moments, Statistics, require_finite

NUM_GROUPS = 20


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Args:
        low: Its lower end, at least 0.
        standard_error: Of the distance.
        level: The share of such intervals that hold the distance's expectation, 0 to 1.
    """

    low: float
    high: float
    standard_error: float
    level: float
    resamples: int


class GroupedMoments:
    """Moments of a stream dealt out in turn to groups, so that each group is the whole on a smaller scale.

    Args:
        size: Features of a vector.
        num_groups: Groups; each has the memory of one covariance, 32 MiB at 2048 features.
    """

    def __init__(self, size: int, num_groups: int = NUM_GROUPS) -> None:
        if num_groups < 2:
            raise ValueError(f"num_groups must be at least 2, got {num_groups}")
        self.groups = [Moments(size) for _ in range(num_groups)]

    def update(self, features: Float[Tensor, "b d"], first: int, names: Sequence[str] | None = None) -> None:
        """Add vectors.

        Args:
            features: One vector per row.
            first: The place of the first in the stream, which decides its group on whatever rank it is.
            names: Names of their images, for a refusal; None names them by their place in the stream.

        Raises:
            DataError: A vector is not finite.
        """
        require_finite(features, first, names)
        count = len(self.groups)
        for number, group in enumerate(self.groups):
            group.update(features[(number - first) % count :: count])

    def total(self) -> Moments:
        """The moments of all vectors."""
        return Moments.merged(self.groups)


def frechet_interval(
    generated: GroupedMoments, reference: Statistics, *, resamples: int = 50, level: float = 0.95, seed: int = 0
) -> Interval:
    """A normal interval around the Frechet distance, for the draw of the scored images; the reference stays as it is.

    Groups are drawn with replacement and their moments added, so that no features are kept. The interval has the
    standard deviation of these distances but not their mean: a set with repeated groups is worth fewer images, and its
    distance is biased upwards. All resamples share one root of the reference's covariance, so that each costs the
    eigenvalues of one matrix, after two products of matrices for each group.

    Args:
        generated: The scored images' moments.
        resamples: Sets to draw, at least 2.
        level: The share of such intervals that hold the distance's expectation, 0 to 1.

    Raises:
        ValueError: There are too few resamples, or images for less than two groups.
        DataError: There are fewer than two images.
    """
    if resamples < 2:
        raise ValueError(f"resamples must be at least 2, got {resamples}")
    parts = [part.sums() for part in generated.groups if len(part)]
    if len(parts) < 2:
        raise ValueError(f"images must be in at least 2 groups, got {len(parts)}")
    counts = np.array([count for count, _, _ in parts])
    means = np.stack([mean for _, mean, _ in parts])
    root = covariance_root(reference)
    traces = np.array([np.trace(scatter) for _, _, scatter in parts])
    scatters = np.stack([root.T @ scatter @ root for _, _, scatter in parts])

    rng = np.random.default_rng(seed)
    distances: list[float] = []
    for _ in range(resamples):
        draws = rng.multinomial(len(parts), np.full(len(parts), 1 / len(parts)))
        weights = draws * counts
        total = int(weights.sum())
        mean = weights @ means / total
        # The groups' own scatter, and that of their means around the mean of all.
        shifts = (means - mean) * np.sqrt(weights)[:, None]
        trace = (draws @ traces + (shifts**2).sum()) / (total - 1)
        projected = shifts @ root
        product = (np.tensordot(draws, scatters, 1) + projected.T @ projected) / (total - 1)
        offset = mean - reference.mean
        distances.append(float(offset @ offset + trace + np.trace(reference.covariance) - 2 * overlap(product)))
    error = float(np.std(distances, ddof=1))
    centre = frechet_distance(generated.total().statistics(), reference)
    reach = NormalDist().inv_cdf((1 + level) / 2) * error
    return Interval(max(centre - reach, 0.0), centre + reach, error, level, resamples)
