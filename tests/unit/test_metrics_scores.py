import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from dis_cli.metrics import precision_recall as module
from dis_cli.metrics.inception_score import InceptionScore
from dis_cli.metrics.kid import kernel_distance, subset_size_for
from dis_cli.metrics.precision_recall import PrecisionRecall, precision_recall


def drawn(count: int, size: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [10, 57, 500])
@pytest.mark.parametrize("batch", [1, 64])
def test_inception_score_is_torch_fidelitys(count: int, batch: int) -> None:
    logits = 3 * drawn(count, 20)
    score = InceptionScore(count)
    for first in range(0, count, batch):
        score.update(logits[first : first + batch], first)
    theirs = isc_features_to_metric(logits)
    assert score.score().mean == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert score.score().std == pytest.approx(theirs["inception_score_std"], rel=1e-9, abs=1e-12)


def test_inception_score_of_ranks() -> None:
    logits = 3 * drawn(90, 20)
    ranks = [InceptionScore(90) for _ in range(3)]
    for number, part in enumerate(logits.split(16)):
        ranks[number % 2].update(part, 16 * number)
    ranks[0].add(ranks[2])
    ranks[2].add(ranks[1])
    ranks[0].add(ranks[2])
    assert ranks[0].score().mean == pytest.approx(isc_features_to_metric(logits)["inception_score_mean"], rel=1e-9)


def test_inception_scores_with_known_values() -> None:
    certain = InceptionScore(30, num_splits=1)
    # ten classes, as many images of each, told without doubt
    certain.update(1000 * torch.eye(10).repeat(3, 1), 0)
    assert certain.score().mean == pytest.approx(10, rel=1e-12)
    unsure = InceptionScore(30, num_splits=3)
    unsure.update(torch.zeros(30, 10), 0)
    assert (unsure.score().mean, unsure.score().std) == (pytest.approx(1), pytest.approx(0, abs=1e-12))


def test_an_inception_score_needs_every_image_once() -> None:
    score = InceptionScore(20)
    with pytest.raises(ValueError, match="20, got 0"):
        score.score()
    score.update(drawn(10), 0)
    with pytest.raises(ValueError, match="20, got 10"):
        score.score()
    score.update(drawn(10), 0)
    with pytest.raises(ValueError, match="20, got 20"):
        score.score()
    with pytest.raises(ValueError, match="images must be 0 to 19"):
        score.update(drawn(10), 15)
    with pytest.raises(ValueError, match="num_splits"):
        InceptionScore(9)


def test_kernel_distance_is_torch_fidelitys() -> None:
    a, b = drawn(80), 1.2 * drawn(70, seed=1) + 0.1
    theirs = kid_features_to_metric(a, b, kid_subset_size=50, verbose=False)
    ours = kernel_distance(a, b, subset_size=50)
    assert (ours.mean, ours.std) == (
        theirs["kernel_inception_distance_mean"],
        theirs["kernel_inception_distance_std"],
    )


def test_kernel_distance_of_small_sets() -> None:
    assert [subset_size_for(*sizes) for sizes in ((5000, 3000), (5000, 30), (20, 30))] == [1000, 30, 20]
    a, b = drawn(40), drawn(30, seed=1) + 1
    x, y = (np.asarray(part, dtype=np.float64) for part in (a, b))

    def kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return (one @ other.T / 16 + 1) ** 3

    # with one subset of everything, the estimate is the unbiased one of the whole
    within = [(kernel(z, z).sum() - np.trace(kernel(z, z))) / (30 * 29) for z in (x[:30], y)]
    whole = sum(within) - 2 * kernel(x[:30], y).mean()
    assert kernel_distance(a[:30], b).mean == pytest.approx(whole, rel=1e-4)
    with pytest.raises(ValueError, match="subset_size must be 2 to the smaller set's 30 images, got 31"):
        kernel_distance(a, b, subset_size=31)
    with pytest.raises(ValueError, match="subset_size"):
        kernel_distance(a, b[:1])


@pytest.mark.parametrize(("rows", "columns"), [(1024, 8192), (7, 9), (16, 16)])
def test_precision_and_recall_are_torch_fidelitys(rows: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", rows)
    monkeypatch.setattr(module, "COLUMNS", columns)
    a, b = drawn(90), 0.8 * drawn(110, seed=1)
    theirs = prc_features_to_metric(a, b, verbose=False)
    ours = precision_recall(a, b)
    assert 0.1 < ours.precision < ours.recall < 1
    assert ours.precision == pytest.approx(theirs["precision"], rel=1e-6)
    assert ours.recall == pytest.approx(theirs["recall"], rel=1e-6)


def by_definition(generated: np.ndarray, real: np.ndarray, k: int) -> tuple[float, float]:
    distances = np.linalg.norm(real[:, None] - real[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    radii = np.sort(distances, axis=1)[:, k - 1]
    inside = np.linalg.norm(generated[:, None] - real[None], axis=2) <= radii
    return inside.sum() / (k * len(generated)), inside.any(axis=0).mean()


@given(seed=st.integers(0, 10_000), n=st.integers(6, 40), m=st.integers(6, 40), block=st.integers(1, 50))
@settings(max_examples=40, deadline=None)
def test_density_and_coverage_are_their_definition(seed: int, n: int, m: int, block: int) -> None:
    a, b = drawn(n, 3, seed), drawn(m, 3, seed + 1) + 0.3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROWS", block)
        patch.setattr(module, "COLUMNS", 2 * block)
        got = precision_recall(a, b)
    density, coverage = by_definition(a.double().numpy(), b.double().numpy(), 5)
    assert got.density == pytest.approx(density, rel=1e-12)
    assert got.coverage == pytest.approx(coverage, rel=1e-12)


def test_constructed_sets() -> None:
    real = drawn(50) * 0.1
    far = real + 100
    assert precision_recall(far, real) == PrecisionRecall(0, 0, 0, 0)
    same = precision_recall(real, real)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    # Half of the images are far away; of the real ones, only one of two clusters is there.
    two = torch.cat([real, real + 1000])
    half = precision_recall(torch.cat([real, real - 1000]), two)
    assert (half.precision, half.recall, half.coverage) == (0.5, 0.5, 0.5)
    # Images of one kind alone cover one kind.
    one = precision_recall(real, two)
    assert (one.precision, one.recall, one.coverage) == (1, 0.5, 0.5)


def test_copies_of_one_image_are_inside_their_ball_of_no_size() -> None:
    point = drawn(1).expand(20, -1) + 7
    same = precision_recall(point, point)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)


def test_too_few_images_have_no_neighbours() -> None:
    with pytest.raises(ValueError, match="more than 5 in both sets, got 5 and 20"):
        precision_recall(drawn(5), drawn(20))
    with pytest.raises(ValueError, match="neighbours must be at least 1"):
        precision_recall(drawn(9), drawn(20), num_neighbours=0)
