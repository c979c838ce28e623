"""Mean and covariance of feature vectors, summed in float64 as they come: in memory that does not grow with them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dis_cli.errors import DataError

# How many vectors are added at a time: wherever a stream is cut into batches, the same sums are made in the same order.
BLOCK_ROWS = 1024


# The shapes of the fields are checked below and not by the annotations: a file may hold anything.
@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and covariance of a set of feature vectors.

    Args:
        mean: Mean, float64 (D,).
        covariance: Unbiased covariance (divided by ``count - 1``), float64 (D, D), symmetric.
        count: Number of feature vectors, at least 2; None when it is not known.

    Raises:
        ValueError: When a field has the wrong shape or type or is not finite; the message begins with its name.
    """

    mean: Shaped[np.ndarray, "..."]
    covariance: Shaped[np.ndarray, "..."]
    count: int | None

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.size == 0:
            raise ValueError(f"mean must have shape (D,) with D >= 1, got {self.mean.shape}")
        size = self.mean.size
        if self.covariance.shape != (size, size):
            raise ValueError(
                f"covariance must have shape {(size, size)} to go with the mean, got {self.covariance.shape}"
            )
        for name, array in (("mean", self.mean), ("covariance", self.covariance)):
            if array.dtype != np.float64:
                raise ValueError(f"{name} must be float64, got {array.dtype}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds NaN or infinite values")
        if not np.allclose(self.covariance, self.covariance.T, rtol=1e-6, atol=1e-9 * np.abs(self.covariance).max()):
            raise ValueError("covariance must be symmetric")
        if self.count is not None and self.count < 2:
            raise ValueError(f"count must be at least 2, got {self.count}")


class Moments:
    """Count, mean and centred scatter of a stream of feature vectors.

    Blocks of vectors are centred on their own mean and joined by the update of Chan, Golub and LeVeque (1979), so that
    a mean that dwarfs the spread costs no digits, as sums of outer products would. One stream gives the same bits
    however it is cut into batches; parts of it that are summed apart and merged differ from it by rounding alone.
    The Frechet distance enlarges that rounding when there are fewer vectors than features (1e-8 at 2048): where ranks
    must give the bits of one, each sends its batch of features to the leader, which adds them in the order of images.

    Args:
        size: Features of a vector, D.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.size = size
        self._count = 0
        self._mean = torch.zeros(size, dtype=torch.float64)
        self._scatter = torch.zeros(size, size, dtype=torch.float64)
        self._waiting: list[Tensor] = []
        self._num_waiting = 0

    def __len__(self) -> int:
        """The number of added vectors."""
        return self._count + self._num_waiting

    def update(self, features: Float[Tensor, "b d"], names: Sequence[str] | None = None) -> None:
        """Add vectors; the sums are kept on their device.

        Args:
            features: One vector per row.
            names: Names of their images, for a refusal; None names them by their place in the stream.

        Raises:
            DataError: A vector is not finite.
            ValueError: The vectors have another length.
        """
        if features.shape[1] != self.size:
            raise ValueError(f"features must have shape (B, {self.size}), got {tuple(features.shape)}")
        require_finite(features, len(self), names)
        if self._mean.device != features.device:
            self.to(features.device)
        rest = features.detach()
        while len(rest):
            room = BLOCK_ROWS - self._num_waiting
            self._waiting.append(rest[:room])
            self._num_waiting += len(self._waiting[-1])
            rest = rest[room:]
            if self._num_waiting == BLOCK_ROWS:
                self._add_waiting()

    def to(self, device: torch.device | str) -> "Moments":
        """Move the sums to a device, such as the CPU before they are sent to another process; returns itself."""
        self._mean, self._scatter = self._mean.to(device), self._scatter.to(device)
        self._waiting = [part.to(device) for part in self._waiting]
        return self

    def statistics(self) -> Statistics:
        """The mean and the unbiased covariance of all vectors so far, as ``numpy.cov`` has it.

        Raises:
            DataError: There are fewer than two vectors.
        """
        if len(self) < 2:
            raise DataError(f"A covariance needs 2 images or more, got {len(self)}")
        self._add_waiting()
        scatter = self._scatter.cpu().numpy()
        covariance = (scatter + scatter.T) / (2 * (self._count - 1))
        return Statistics(self._mean.cpu().numpy().copy(), covariance, self._count)

    def sums(self) -> tuple[int, Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
        """Count, mean and scatter (the sum of the outer products of the centred vectors), not to be changed."""
        self._add_waiting()
        return self._count, self._mean.cpu().numpy(), self._scatter.cpu().numpy()

    def _add_waiting(self) -> None:
        if self._num_waiting:
            block = torch.cat(self._waiting).double()
            self._waiting, self._num_waiting = [], 0
            mean = block.mean(dim=0)
            centred = block - mean
            self._join(len(block), mean)
            self._scatter.addmm_(centred.T, centred)

    def _join(self, count: int, mean: Tensor) -> None:
        """Account for other vectors whose scatter around their own mean is added apart."""
        shift = mean - self._mean
        total = self._count + count
        self._scatter.addr_(shift, shift, alpha=self._count * count / total)
        self._mean = self._mean + shift * (count / total)
        self._count = total

    @classmethod
    def merged(cls, parts: Iterable["Moments"]) -> "Moments":
        """The moments of all vectors of several streams, such as one of each rank, in their order; at least one.

        Raises:
            ValueError: They are of different lengths.
        """
        merged: Moments | None = None
        for part in parts:
            part._add_waiting()
            # not `or`: moments of nothing have no length
            if merged is None:
                merged = cls(part.size).to(part._mean.device)
            if part.size != merged.size:
                raise ValueError(f"parts must have one size, got {merged.size} and {part.size}")
            if part._count:
                merged._join(part._count, part._mean.to(merged._mean.device))
                merged._scatter += part._scatter.to(merged._scatter.device)
        if merged is None:
            raise ValueError("parts must be one or more, got none")
        return merged


def statistics(features: Shaped[np.ndarray | Tensor, "..."]) -> Statistics:
    """The mean and the unbiased covariance of feature vectors, accumulated in float64.

    Args:
        features: One vector per row, (N, D) with N >= 2, of any floating type, on the CPU.

    Raises:
        ValueError: When ``features`` is not a matrix of at least two finite rows of floating type.
    """
    rows = np.asarray(features)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"features must have shape (N, D), got {rows.shape}")
    if not np.issubdtype(rows.dtype, np.floating):
        raise ValueError(f"features must have a floating type, got {rows.dtype}")
    if len(rows) < 2:
        raise ValueError(f"features must have at least 2 rows for a covariance, got {len(rows)}")
    if not np.isfinite(rows).all():
        raise ValueError("features hold NaN or infinite values")
    moments = Moments(rows.shape[1])
    moments.update(torch.as_tensor(rows))
    return moments.statistics()


def require_finite(features: Float[Tensor, "b d"], first: int, names: Sequence[str] | None = None) -> None:
    """Refuse features that are no numbers.

    Args:
        features: One vector per row.
        first: The place of the first in its stream.
        names: Names of their images; None names them by their place.

    Raises:
        DataError: Names the first image whose features hold NaN or infinite values.
    """
    # The sum is finite only when all are, and takes one pass; it may also overflow, which the rows then tell.
    if features.sum(dtype=torch.float64).isfinite():
        return
    bad = (~features.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        image = names[bad[0]] if names else f"number {first + bad[0]}, counted from 0"
        raise DataError(
            f"The features of {len(bad)} of {len(features)} images hold NaN or infinite values, first those of image "
            f"{image}",
            "Look at that image; when all are so, the weights of the extractor are damaged or overflow",
        )
