"""Every training sample and its draws are a function of (seed, global position) alone."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from support.cifar import make_cifar10

from dis_cli.data.batches import TrainingSet, training_batches
from dis_cli.data.order import index_at
from dis_cli.data.published.cifar import Cifar10Source
from dis_cli.data.published.digits import DigitsSource
from dis_cli.diffusion.batch import TrainingBatch
from dis_cli.diffusion.timesteps import ContinuousTimesteps
from dis_cli.errors import DataError
from dis_cli.runtime.seed import Stream, generator


def dataset(seed: int = 3, num_drop_path: int = 2) -> TrainingSet:
    return TrainingSet(DigitsSource("train"), seed=seed, num_timesteps=1000, num_drop_path=num_drop_path)


def read(
    first: int, last: int, *, batch_size: int = 8, accumulation: int = 1, workers: int = 0, offset: int = 0, **changes
):
    batches = training_batches(
        dataset(**changes),
        first_step=first,
        last_step=last,
        batch_size=batch_size,
        accumulation=accumulation,
        num_workers=workers,
        offset=offset,
    )
    return list(batches)


def joined(batches: list[TrainingBatch]) -> list[torch.Tensor]:
    """The fields of all samples in order; drop-path draws have the samples on their second axis."""
    return [torch.cat(fields, dim=-1 if index == 5 else 0) for index, fields in enumerate(zip(*batches, strict=True))]


def test_samples_go_on_where_another_batch_has_left_off() -> None:
    # 3 steps of 8, then 2 of 6: their samples are those after 24.
    all_of_them = joined(read(0, 5))
    more = joined(read(3, 5, batch_size=6, accumulation=2, offset=24 - 3 * 6))
    for index, (own, whole) in enumerate(zip(more, all_of_them, strict=True)):
        places = (slice(None), slice(24, 36)) if index == 5 else slice(24, 36)
        assert torch.equal(own, whole[places])


def assert_same(a: list[TrainingBatch], b: list[TrainingBatch]) -> None:
    for left, right in zip(joined(a), joined(b), strict=True):
        assert torch.equal(left, right)


def test_the_draws_are_part_of_the_file_format(tmp_path) -> None:
    make_cifar10(tmp_path)
    # One sample after another, each from a generator of its own, written out. A change here changes every resumed run.
    source = Cifar10Source(tmp_path, image_size=8, hflip=True)
    samples = TrainingSet(source, seed=3, num_timesteps=1000, num_drop_path=3)
    # Timesteps draw half a word, normals an unknown number: the next sample must not see what is left over.
    positions = [1345, 1346, 1347, 0, 2**62]
    batch = samples.batch(positions)
    assert isinstance(batch, TrainingBatch)
    for row, position in enumerate(positions):
        rng = generator(3, Stream.TRAIN, position)
        index = index_at(position, num_samples=len(source), seed=3)
        assert batch.t[row] == rng.integers(1000)
        assert batch.label_drop_uniform[row] == rng.random(dtype=np.float32)
        assert np.array_equal(batch.drop_path_uniform[:, row], rng.random(3, dtype=np.float32))
        assert np.array_equal(batch.noise[row], rng.standard_normal((3, 8, 8), dtype=np.float32))
        assert torch.equal(batch.x_0[row], source.load(index, rng))
        assert batch.labels[row] == source.labels[index]
    types = [torch.float32, torch.int64, torch.int64, torch.float32, torch.float32, torch.float32]
    assert [field.dtype for field in batch] == types
    assert all(field.is_contiguous() for field in batch)


def test_timesteps_between_whole_ones_are_functions_of_seed_and_position() -> None:
    draw = ContinuousTimesteps("logit_normal", 1000, mean=0.8, std=0.5)
    samples = TrainingSet(DigitsSource("train"), seed=3, num_timesteps=1000, num_drop_path=2, draw_timestep=draw)
    positions = [1345, 0, 2**62]
    batch, turned = samples.batch(positions), samples.batch(positions[::-1])
    assert batch.t.dtype == torch.float64
    assert torch.equal(batch.t, turned.t.flip(0))
    for row, position in enumerate(positions):
        rng = generator(3, Stream.TRAIN, position)
        share = 1 / (1 + np.exp(-0.8 - 0.5 * rng.standard_normal()))
        assert batch.t[row].item() == pytest.approx(1000 * share - 1, rel=1e-12)
        assert batch.label_drop_uniform[row] == rng.random(dtype=np.float32)


@pytest.mark.parametrize(("name", "mean", "std"), [("uniform", 0.0, 1.0), ("logit_normal", -0.5, 0.7)])
def test_draws_of_timesteps_have_their_distribution(name: Any, mean: float, std: float) -> None:
    draw, rng = ContinuousTimesteps(name, 1000, mean=mean, std=std), np.random.default_rng(0)
    share = (np.array([draw(rng) for _ in range(4_000)]) + 1) / 1000
    assert 0 < share.min() < share.max() <= 1
    # Ranks of the draws under the distribution function are uniform, up to chance.
    ranks = np.sort(share if name == "uniform" else ndtr((np.log(share / (1 - share)) - mean) / std))
    assert np.abs(ranks - (np.arange(4_000) + 0.5) / 4_000).max() < 0.03


def test_a_spread_of_timesteps_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="must be above 0, got 0"):
        ContinuousTimesteps("uniform", 1000, std=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_cannot_be_read_is_told_with_its_hint(workers, monkeypatch) -> None:
    def fail(source, indices, rngs):
        raise DataError("Image cannot be opened", "Bring it back")

    monkeypatch.setattr(DigitsSource, "load_batch", fail)
    with pytest.raises(DataError, match="cannot be opened") as caught:
        read(0, 2, workers=workers)
    assert caught.value.hint == "Bring it back"


def test_batch_size_parts_and_workers_change_nothing() -> None:
    expected = read(0, 6)
    assert_same(read(0, 3, batch_size=16), expected)
    assert_same(read(0, 6, accumulation=4), expected)
    assert_same(read(0, 6, workers=2), expected)


def test_a_later_start_sees_the_same_samples() -> None:
    assert_same(read(4, 6), read(0, 6)[4:])


def test_another_seed_changes_every_draw() -> None:
    for left, right in zip(joined(read(0, 8)), joined(read(0, 8, seed=4)), strict=True):
        assert not torch.equal(left, right)


def test_an_epoch_shows_every_image_once() -> None:
    source = DigitsSource("train")
    (batch,) = read(0, 1, batch_size=len(source))
    seen = {image.numpy().tobytes() for image in batch.x_0}
    assert seen == {source.load(index, None).numpy().tobytes() for index in range(len(source))}
    assert np.bincount(batch.labels).tolist() == np.bincount(source.labels).tolist()


def test_the_draws_have_their_distributions() -> None:
    batch = TrainingBatch(*joined(read(0, 16, batch_size=256)))
    assert batch.t.min() >= 0
    assert batch.t.max() <= 999
    assert batch.t.double().mean() == pytest.approx(499.5, abs=15)
    assert batch.noise.mean() == pytest.approx(0, abs=0.01)
    assert batch.noise.std() == pytest.approx(1, abs=0.01)
    for uniform in (batch.label_drop_uniform, batch.drop_path_uniform):
        assert uniform.mean() == pytest.approx(0.5, abs=0.02)
        assert uniform.min() >= 0
        assert uniform.max() < 1


def test_drop_path_draws_do_not_move_the_timesteps() -> None:
    with_drops, without = joined(read(0, 2)), joined(read(0, 2, num_drop_path=0))
    assert torch.equal(with_drops[2], without[2])
    assert without[5].shape == (0, 16)


def test_the_global_generators_are_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    read(0, 2)
    assert torch.equal(torch.random.get_rng_state(), before)
