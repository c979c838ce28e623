import numpy as np
import pytest

from dis_cli.data.order import epoch_permutation, index_at


def test_the_order_is_part_of_the_file_format():
    # Philox written out: key (seed, 1), counter (0, 0, epoch, 0). A change here changes every resumed run.
    draws = np.random.Philox(key=[7, 1], counter=[0, 0, 3, 0]).random_raw(10)
    expected = sorted(range(10), key=lambda index: int(draws[index]))
    assert [index_at(30 + place, num_samples=10, seed=7) for place in range(10)] == expected
    assert expected == [5, 6, 1, 2, 4, 0, 9, 7, 8, 3]


def test_neighbouring_epochs_stay_cached_when_they_alternate():
    epoch_permutation.cache_clear()
    for _ in range(5):
        for position in (99, 100):
            index_at(position, num_samples=100, seed=0)
    assert epoch_permutation.cache_info().misses == 2
    for epoch in range(20):
        index_at(100 * epoch, num_samples=100, seed=0)
    assert epoch_permutation.cache_info().currsize == 2


def test_the_shared_permutation_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        epoch_permutation(0, num_samples=4, seed=0)[0] = 1


@pytest.mark.parametrize(("position", "num_samples"), [(-1, 4), (0, 0)])
def test_impossible_positions_are_refused(position, num_samples):
    with pytest.raises(ValueError, match="must be at least"):
        index_at(position, num_samples=num_samples, seed=0)
    with pytest.raises(ValueError, match="must be at least"):
        epoch_permutation(position, num_samples=num_samples, seed=0)
