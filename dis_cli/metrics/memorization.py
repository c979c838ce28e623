"""Memorization: the share of generated images that are copies of training images."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

MAX_ROWS = 1024
MAX_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class CopyShare:
    """Shares of images that are nearer to a training image than training images are to each other.

    Args:
        median: Share nearer to a training image than the median training image is to its nearest other one, 0 to 1.
        low: The same with the 5 % quantile in the median's place: near copies.

    Images that the training set could as well have held give about 0.5 and 0.05 (the bundled digits' own test images:
    0.478 and 0.036); a model that copies gives 1 and 1.
    """

    median: float
    low: float


def copy_share(generated: UInt8[Tensor, "n h w c"], train: UInt8[Tensor, "m h w c"]) -> CopyShare:
    """The share of generated images closer to the training set than it is to itself, in L2 over 8-bit pixels.

    The shares do not depend on the scale of the pixels: they are the same in [-1, 1].

    Args:
        generated: Images to judge, at least one.
        train: The training images, at least two.

    Raises:
        ValueError: When there are too few images.
    """
    if len(generated) < 1 or len(train) < 2:
        raise ValueError(f"need 1 generated and 2 training images or more, got {len(generated)} and {len(train)}")
    within = nearest_distances(train, train, skip_self=True)
    nearest = nearest_distances(generated, train)
    return CopyShare(
        median=float((nearest < within.quantile(0.5)).double().mean()),
        low=float((nearest < within.quantile(0.05)).double().mean()),
    )


def nearest_distances(
    queries: UInt8[Tensor, "n h w c"], references: UInt8[Tensor, "m h w c"], *, skip_self: bool = False
) -> Float64[Tensor, " n"]:
    """The L2 distance of each image to the nearest of others, in 8-bit pixel values.

    Exact: sums of squares of bytes are integers, which float64 holds without rounding. Takes n m h w c
    multiplications, and the memory of two blocks of images whatever n and m.

    Args:
        queries: Images to place.
        references: Images among which neighbours are sought.
        skip_self: Do not compare an image with the one at its own position; for a set against itself.
    """
    a, b = queries.cpu().flatten(1), references.cpu().flatten(1)
    rows = max(1, min(MAX_ROWS, MAX_ELEMENTS // max(a.shape[1], 1)))
    nearest = torch.full((len(a),), torch.inf, dtype=torch.float64)
    for i in range(0, len(a), rows):
        left = a[i : i + rows].double()
        left_norms = left.square().sum(1)[:, None]
        best = nearest[i : i + rows]
        for j in range(0, len(b), rows):
            right = b[j : j + rows].double()
            squares = left_norms + right.square().sum(1) - 2 * left @ right.T
            # blocks of equal size: an image meets itself on the diagonal of the blocks i == j
            if skip_self and i == j:
                squares.fill_diagonal_(torch.inf)
            torch.minimum(best, squares.amin(1), out=best)
    return nearest.sqrt()
