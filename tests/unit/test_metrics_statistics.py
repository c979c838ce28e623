import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dis_cli.errors import DataError
from dis_cli.metrics import statistics as module
from dis_cli.metrics.bootstrap import GroupedMoments, frechet_interval
from dis_cli.metrics.frechet import frechet_distance
from dis_cli.metrics.statistics import Moments, Statistics, statistics


def drawn(count: int, size: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)) * 2 + 10


def streamed(features: Tensor, batch: int) -> Moments:
    moments = Moments(features.shape[1])
    for part in features.split(batch):
        moments.update(part)
    return moments


@pytest.mark.parametrize("batch", [1, 7, 64, 5000])
def test_batches_make_no_difference_in_any_bit(batch: int) -> None:
    features = drawn(2500)
    wanted, got = streamed(features, 2500).statistics(), streamed(features, batch).statistics()
    assert np.array_equal(got.mean, wanted.mean)
    assert np.array_equal(got.covariance, wanted.covariance)
    np.testing.assert_allclose(got.covariance, np.cov(features.double().numpy(), rowvar=False), rtol=1e-12)


@given(seed=st.integers(0, 10_000), cuts=st.lists(st.integers(0, 90), min_size=1, max_size=4), block=st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_parts_merge_to_the_whole(seed: int, cuts: list[int], block: int) -> None:
    features = drawn(90, seed=seed) * 1000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_ROWS", block)
        bounds = sorted({0, 90, *cuts})
        # as they come from other ranks
        parts = [pickle.loads(pickle.dumps(streamed(features[i:j], 8))) for i, j in pairwise(bounds)]
        merged = Moments.merged([*parts, Moments(5)]).statistics()
    assert merged.count == 90
    rows = features.double().numpy()
    np.testing.assert_allclose(merged.mean, rows.mean(axis=0), rtol=1e-12)
    expected = np.cov(rows, rowvar=False)
    np.testing.assert_allclose(merged.covariance, expected, rtol=1e-9, atol=1e-12 * np.abs(expected).max())


def test_two_ranks_give_the_distance_of_one() -> None:
    features, reference = drawn(3000, 64), statistics(drawn(3000, 64, seed=1) * 1.1)
    batches = features.split(32)
    ranks = [Moments.merged([streamed(torch.cat(batches[rank::2]), 32)]) for rank in range(2)]
    one, two = streamed(features, 32).statistics(), Moments.merged(ranks).statistics()
    assert frechet_distance(two, reference) == pytest.approx(frechet_distance(one, reference), rel=1e-9)


def test_a_mean_that_dwarfs_the_spread_costs_no_digits() -> None:
    features = drawn(2000).double() + 1e7
    np.testing.assert_allclose(
        streamed(features, 64).statistics().covariance, np.cov(features.numpy(), rowvar=False), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_no_numbers_name_the_image(value: float) -> None:
    moments = streamed(drawn(10), 4)
    bad = drawn(4)
    bad[2, 3] = value
    with pytest.raises(DataError, match=r"1 of 4 images .* image number 12, counted from 0"):
        moments.update(bad)
    with pytest.raises(DataError, match=r"image c.png"):
        moments.update(bad, names=["a.png", "b.png", "c.png", "d.png"])
    assert len(moments) == 10
    with pytest.raises(DataError, match=r"image number 32, counted from 0"):
        GroupedMoments(5).update(bad, 30)


def test_large_features_are_numbers() -> None:
    moments = Moments(2)
    moments.update(torch.tensor([[1e308, 1e308], [1e308, -1e308]], dtype=torch.float64))
    assert len(moments) == 2


def test_what_has_no_moments() -> None:
    with pytest.raises(DataError, match="2 images or more, got 1"):
        streamed(drawn(1), 1).statistics()
    with pytest.raises(ValueError, match=r"shape \(B, 5\)"):
        Moments(5).update(drawn(2, 4))
    with pytest.raises(ValueError, match="one size"):
        Moments.merged([Moments(3), Moments(4)])
    with pytest.raises(ValueError, match="one or more"):
        Moments.merged([])
    with pytest.raises(ValueError, match="at least 1"):
        Moments(0)


def grouped(features: Tensor, batch: int, groups: int = 20) -> GroupedMoments:
    moments = GroupedMoments(features.shape[1], groups)
    for first in range(0, len(features), batch):
        moments.update(features[first : first + batch], first)
    return moments


def test_groups_are_dealt_by_place_and_make_the_whole() -> None:
    features = drawn(103)
    one, other = grouped(features, 103, 4), grouped(features, 9, 4)
    for number, (a, b) in enumerate(zip(one.groups, other.groups, strict=True)):
        assert np.array_equal(a.statistics().covariance, b.statistics().covariance)
        np.testing.assert_allclose(a.statistics().mean, features[number::4].double().mean(dim=0).numpy(), rtol=1e-12)
    np.testing.assert_allclose(
        one.total().statistics().covariance, np.cov(features.double().numpy(), rowvar=False), rtol=1e-12
    )


def resampled(features: Tensor, reference: Statistics, resamples: int, groups: int = 20) -> list[float]:
    """The bootstrap as it is defined: the vectors of the groups drawn, put together."""
    rng = np.random.default_rng(0)
    distances = []
    for _ in range(resamples):
        draws = rng.multinomial(groups, np.full(groups, 1 / groups))
        rows = torch.cat([features[number::groups] for number, times in enumerate(draws) for _ in range(times)])
        drawn_statistics = statistics(rows.numpy())
        distances.append(frechet_distance(drawn_statistics, reference))
    return distances


@pytest.mark.parametrize("count", [400, 43])
def test_the_interval_is_the_bootstrap_of_groups(count: int) -> None:
    features, reference = drawn(count, 6), statistics(drawn(500, 6, seed=1) * 1.3)
    interval = frechet_interval(grouped(features, 64), reference, resamples=12)
    assert interval.standard_error == pytest.approx(np.std(resampled(features, reference, 12), ddof=1), rel=1e-7)
    centre = frechet_distance(statistics(features), reference)
    assert (interval.low + interval.high) / 2 == pytest.approx(centre, rel=1e-12)
    assert interval.high - centre == pytest.approx(1.959964 * interval.standard_error, rel=1e-6)
    assert frechet_interval(grouped(features, 7), reference, resamples=12).high == pytest.approx(
        interval.high, rel=1e-9
    )


def test_the_interval_covers_what_other_draws_give() -> None:
    reference = statistics(drawn(20_000, 4, seed=99) + 0.3)
    distances = [frechet_distance(statistics(drawn(500, 4, seed=seed)), reference) for seed in range(200)]
    truth, spread = np.mean(distances), np.std(distances)
    intervals = [frechet_interval(grouped(drawn(500, 4, seed=seed), 500), reference) for seed in range(100)]
    # both are estimates: of 100 intervals, and of 20 groups each
    assert np.mean([interval.standard_error for interval in intervals]) == pytest.approx(spread, rel=0.15)
    assert 85 <= sum(interval.low <= truth <= interval.high for interval in intervals) <= 100


def test_an_interval_needs_images_in_groups() -> None:
    reference = statistics(drawn(50))
    with pytest.raises(ValueError, match="at least 2 groups, got 1"):
        frechet_interval(grouped(drawn(1), 1), reference)
    with pytest.raises(ValueError, match="resamples must be at least 2"):
        frechet_interval(grouped(drawn(50), 50), reference, resamples=1)
    with pytest.raises(ValueError, match="num_groups must be at least 2"):
        GroupedMoments(3, 1)
