import dataclasses
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dis_cli.metrics import statistics as statistics_module
from dis_cli.metrics.frechet import frechet_distance, sample_size_notes
from dis_cli.metrics.statistics import Statistics, statistics


def random_statistics(size: int, seed: int, count: int = 5000) -> Statistics:
    rng = np.random.default_rng(seed)
    return statistics(
        rng.standard_normal((count, size)) @ rng.standard_normal((size, size)) + rng.standard_normal(size)
    )


def diagonal(mean: list[float], variances: list[float]) -> Statistics:
    return Statistics(np.array(mean, dtype=float), np.diag(np.array(variances, dtype=float)), 100)


def test_statistics_are_numpys() -> None:
    features = np.random.default_rng(0).normal(3, 2, (50, 7))
    result = statistics(features)
    np.testing.assert_allclose(result.mean, features.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(result.covariance, np.cov(features, rowvar=False), rtol=1e-12)
    assert result.count == 50


def test_large_sets_are_accumulated_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics_module, "BLOCK_ROWS", 8)
    features = np.random.default_rng(0).normal(3, 2, (50, 7))
    np.testing.assert_allclose(statistics(features).covariance, np.cov(features, rowvar=False), rtol=1e-12)


def test_float32_features_are_summed_in_float64() -> None:
    # a mean that dwarfs the spread: float32 sums would lose the covariance
    features = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0)) + 1000
    expected = np.cov(features.double().numpy(), rowvar=False)
    np.testing.assert_allclose(statistics(features).covariance, expected, rtol=1e-9)


def test_full_rank_agrees_with_scipy() -> None:
    a, b = random_statistics(64, 0), random_statistics(64, 1)
    cross = np.trace(scipy.linalg.sqrtm(a.covariance @ b.covariance)).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_fewer_vectors_than_features() -> None:
    # Of centred matrices X and Y, the trace of the square root is the sum of the singular values of X Y^T / (n - 1).
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 64)), 2 * rng.standard_normal((30, 64)) + 1
    cx, cy = (x - x.mean(axis=0)) / np.sqrt(19), (y - y.mean(axis=0)) / np.sqrt(29)
    cross = scipy.linalg.svdvals(cx @ cy.T).sum()
    expected = ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum() + (cx**2).sum() + (cy**2).sum() - 2 * cross
    # eigenvalues that are zero but for rounding: scipy's general square root of the product is as far off
    assert frechet_distance(statistics(x), statistics(y)) == pytest.approx(expected, rel=2e-8)


def test_a_shifted_mean_gives_its_square() -> None:
    a = random_statistics(64, 0)
    shift = np.linspace(-1, 1, 64)
    b = dataclasses.replace(a, mean=a.mean + shift)
    assert frechet_distance(a, b) == pytest.approx(shift @ shift, rel=1e-8)


def test_diagonal_covariances_have_a_closed_form() -> None:
    a, b = diagonal([0, 1, 2], [4, 9, 0]), diagonal([1, 1, 0], [1, 16, 25])
    # squared differences of means, then of standard deviations 2, 3, 0 and 1, 4, 5
    assert frechet_distance(a, b) == pytest.approx((1 + 0 + 4) + (1 + 1 + 25), rel=1e-12)


@pytest.mark.parametrize("count", [10, 5000])
def test_equal_statistics_have_no_distance(count: int) -> None:
    a = random_statistics(64, 0, count)
    assert 0 <= frechet_distance(a, a) < 1e-9 * np.trace(a.covariance)


def test_a_constant_set_is_a_point() -> None:
    a, b = statistics(np.full((5, 3), 2.0)), statistics(np.full((9, 3), 4.0))
    assert frechet_distance(a, b) == pytest.approx(12, rel=1e-12)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros(5), "shape"),
        (np.zeros((5, 2, 2)), "shape"),
        (np.zeros((5, 0)), "shape"),
        (np.zeros((1, 4)), "at least 2"),
        (np.zeros((5, 4), dtype=np.uint8), "floating"),
        (np.array([[0.0, 1.0], [np.nan, 1.0]]), "NaN"),
        (np.array([[0.0, 1.0], [np.inf, 1.0]], dtype=np.float32), "NaN or infinite"),
    ],
)
def test_features_that_have_no_statistics(features: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^features.*{message}"):
        statistics(features)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": np.zeros((3, 1))}, "^mean .*shape"),
        ({"mean": np.zeros(3, dtype=np.float32)}, "^mean .*float64"),
        ({"mean": np.array([0, np.nan, 0])}, "^mean .*NaN"),
        ({"covariance": np.eye(4)}, "^covariance .*shape"),
        ({"covariance": np.ones(3)}, "^covariance .*shape"),
        ({"covariance": np.full((3, 3), np.inf)}, "^covariance .*infinite"),
        ({"covariance": np.triu(np.ones((3, 3)))}, "^covariance .*symmetric"),
        ({"count": 1}, "^count .*at least 2"),
    ],
)
def test_statistics_that_are_none(change: dict[str, Any], message: str) -> None:
    valid: dict[str, Any] = {"mean": np.zeros(3), "covariance": np.eye(3), "count": 10}
    Statistics(**valid)
    with pytest.raises(ValueError, match=message):
        Statistics(**(valid | change))


def test_features_of_other_extractors_are_not_compared() -> None:
    with pytest.raises(ValueError, match=r"^mean .* 3 and 2"):
        frechet_distance(diagonal([0, 0, 0], [1, 1, 1]), diagonal([0, 0], [1, 1]))


@given(seed=st.integers(0, 10_000), count=st.integers(2, 40), other=st.integers(2, 40))
@settings(max_examples=40, deadline=None)
def test_it_is_a_distance_that_does_not_depend_on_the_axes(seed: int, count: int, other: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((count, 12)), rng.standard_normal((other, 12)) * 2 + 1
    distance = frechet_distance(statistics(x), statistics(y))
    assert distance > 0
    # with fewer vectors than axes, to what zeros that are off by rounding leave
    bound = 1e-9 if min(count, other) > 12 else 1e-6
    assert frechet_distance(statistics(y), statistics(x)) == pytest.approx(distance, rel=bound)
    assert frechet_distance(statistics(x), statistics(x)) == pytest.approx(0, abs=bound)
    rotation = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    assert frechet_distance(statistics(x @ rotation), statistics(y @ rotation)) == pytest.approx(distance, rel=bound)
    assert frechet_distance(statistics(3 * x), statistics(3 * y)) == pytest.approx(9 * distance, rel=bound)


def test_few_images_are_told() -> None:
    few, small, many = random_statistics(16, 0, 10), random_statistics(16, 0, 60), random_statistics(16, 0, 200)
    assert sample_size_notes(many, many) == []
    (bias,) = sample_size_notes(small, many)
    assert "biased upwards by about c / n, and n is 60" in bias
    singular, bias = sample_size_notes(few, many)
    assert singular.startswith("10 scored images for 16 features: their covariance is singular")
    (singular,) = sample_size_notes(many, few)
    assert singular.startswith("10 reference images")
    assert sample_size_notes(dataclasses.replace(few, count=None), many) == []


@pytest.mark.parametrize(("count", "other"), [(5000, 5000), (40, 50), (20, 5000)])
def test_agrees_with_torch_fidelity_and_scipy_at_64(count: int, other: int) -> None:
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    a, b = random_statistics(64, 2, count), random_statistics(64, 3, other)
    theirs = fid_statistics_to_metric(
        {"mu": a.mean, "sigma": a.covariance}, {"mu": b.mean, "sigma": b.covariance}, verbose=False
    )
    cross = np.trace(scipy.linalg.sqrtm(a.covariance @ b.covariance)).real
    root = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-8)
    assert frechet_distance(a, b) == pytest.approx(root, rel=1e-8)
