from hypothesis import given
from hypothesis import strategies as st

from dis_cli.data.order import index_at

SEEDS = st.integers(0, 2**63 - 1)


@given(seed=SEEDS, num_samples=st.integers(1, 50), epoch=st.integers(0, 10**12))
def test_every_epoch_visits_every_sample_once(seed, num_samples, epoch):
    positions = range(epoch * num_samples, (epoch + 1) * num_samples)
    visited = [index_at(position, num_samples=num_samples, seed=seed) for position in positions]
    assert sorted(visited) == list(range(num_samples))


@given(seed=SEEDS, epoch=st.integers(0, 10**6))
def test_epochs_and_seeds_differ(seed, epoch):
    # 64 samples: two equal permutations by chance once in 10**89
    def visited(seed, epoch):
        return [index_at(64 * epoch + place, num_samples=64, seed=seed) for place in range(64)]

    assert visited(seed, epoch) != visited(seed, epoch + 1)
    assert visited(seed, epoch) != visited((seed + 1) % 2**63, epoch)


@given(seed=SEEDS, num_samples=st.integers(1, 20), positions=st.lists(st.integers(0, 200), max_size=30))
def test_an_index_does_not_depend_on_what_was_asked_before(seed, num_samples, positions):
    in_order = [index_at(position, num_samples=num_samples, seed=seed) for position in range(201)]
    assert [index_at(position, num_samples=num_samples, seed=seed) for position in positions] == [
        in_order[position] for position in positions
    ]
