"""Fidelity and diversity apart: precision, recall, density and coverage, from the distances to nearest neighbours."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

# A block of distances has 64 MiB.
ROWS = 1024
COLUMNS = 8192

# Neighbours that give a ball its radius: of Kynkaanniemi et al. (2019), and of Naeem et al. (2020).
NUM_NEIGHBOURS = 3
NUM_NEIGHBOURS_DENSITY = 5


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares of images that lie among the others.

    Args:
        precision: Generated images within the ball of a real one, 0 to 1.
        recall: Real images within the ball of a generated one, 0 to 1.
        density: Balls of real images that a generated one lies in, over the neighbours k; 1 on average when both sets
            are alike.
        coverage: Real images whose ball holds a generated one, 0 to 1.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(
    generated: Float[Tensor, "n d"],
    real: Float[Tensor, "m d"],
    *,
    num_neighbours: int = NUM_NEIGHBOURS,
    num_neighbours_density: int = NUM_NEIGHBOURS_DENSITY,
    device: torch.device | str = "cpu",
) -> PrecisionRecall:
    """The overlap of generated and real images; an image's ball reaches to its k-th neighbour.

    Precision and recall: Kynkaanniemi et al. (2019). Density and coverage: Naeem et al. (2020), with the edge of a ball
    in it, as with the other two.

    Own and not torch-fidelity's function, which has no density and coverage, computes four matrices of distances where
    three do, and holds rows of 10,000 by all images; here memory does not grow with the square. Distances are float64,
    because its float32 ones lose digits where images are near each other.

    Args:
        generated: Features of the scored images, more than k.
        real: Features of what they are compared with, more than k.
        num_neighbours: k of precision and recall, at least 1.
        num_neighbours_density: k of density and coverage, at least 1.

    Raises:
        ValueError: There are too few images, or features of different lengths.
    """
    most = max(num_neighbours, num_neighbours_density)
    if min(num_neighbours, num_neighbours_density) < 1:
        raise ValueError(f"neighbours must be at least 1, got {num_neighbours} and {num_neighbours_density}")
    if min(len(generated), len(real)) <= most:
        raise ValueError(f"images must be more than {most} in both sets, got {len(generated)} and {len(real)}")
    # Around the middle of the real images, norms are smaller, and so is what rounding takes from the distances.
    centre = real.mean(dim=0, dtype=torch.float64)
    a, b = _Points(generated, centre, device), _Points(real, centre, device)
    radii_a, radii_b = _radii(a, most), _radii(b, most)
    a_within = torch.zeros(len(a), dtype=torch.bool)
    b_within, b_covered = torch.zeros(len(b), dtype=torch.bool), torch.zeros(len(b), dtype=torch.bool)
    balls = 0
    k, k_density = num_neighbours - 1, num_neighbours_density - 1
    for i in range(0, len(a), ROWS):
        for j in range(0, len(b), COLUMNS):
            rows, columns = slice(i, i + ROWS), slice(j, j + COLUMNS)
            squares = _squares(a[rows], b[columns])
            within = squares <= radii_b[columns, k].to(device)
            a_within[rows] |= within.any(dim=1).cpu()
            b_within[columns] |= (squares <= radii_a[rows, k].to(device)[:, None]).any(dim=0).cpu()
            near: Bool[Tensor, "i j"] = squares <= radii_b[columns, k_density].to(device)
            b_covered[columns] |= near.any(dim=0).cpu()
            balls += int(near.sum())
    return PrecisionRecall(
        precision=_share(a_within),
        recall=_share(b_within),
        density=balls / (num_neighbours_density * len(a)),
        coverage=_share(b_covered),
    )


class _Points:
    """Features of which blocks are taken, in float64 and centred; all of them would take twice their memory."""

    def __init__(
        self, features: Float[Tensor, "n d"], centre: Float64[Tensor, " d"], device: torch.device | str
    ) -> None:
        self._features = features
        self._centre = centre.to(device)
        self.device = device

    def __len__(self) -> int:
        return len(self._features)

    def __getitem__(self, rows: slice) -> Float64[Tensor, "b d"]:
        return self._features[rows].to(self.device).double() - self._centre


def _radii(points: _Points, k: int) -> Float64[Tensor, "n k"]:
    """Squared distances of each point to its nearest 1st to k-th other."""
    radii = torch.empty(len(points), k, dtype=torch.float64)
    for i in range(0, len(points), ROWS):
        rows = points[i : i + ROWS]
        nearest = torch.full((len(rows), k), torch.inf, dtype=torch.float64, device=points.device)
        for j in range(0, len(points), COLUMNS):
            squares = _squares(rows, points[j : j + COLUMNS])
            own = torch.arange(i, i + len(rows), device=points.device) - j
            here = (own >= 0) & (own < squares.shape[1])
            squares[here.nonzero().flatten(), own[here]] = torch.inf
            nearest = torch.cat([nearest, squares], dim=1).topk(k, dim=1, largest=False).values
        radii[i : i + ROWS] = nearest.cpu()
    return radii


def _squares(a: Float64[Tensor, "i d"], b: Float64[Tensor, "j d"]) -> Float64[Tensor, "i j"]:
    norms = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)
    squares = torch.addmm(norms, a, b.T, alpha=-2)
    # Points that are equal have no distance, whatever rounding says.
    return squares.where(squares > 1e-13 * norms, 0.0)


def _share(flags: Bool[Tensor, " n"]) -> float:
    return float(flags.double().mean())
