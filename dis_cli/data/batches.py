"""Training batches as a pure function of (seed, step): which images, and every random number of each.

A sample's place in the whole run, its global position ``step * batch_size + i``, keys a generator of its own. So the
draws are the same whatever the number of loader processes, and after any interruption.
"""

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np
import torch

from dis_cli.data.loaders import load_ahead
from dis_cli.data.order import index_at
from dis_cli.data.source import BatchSource, ImageSource
from dis_cli.diffusion.batch import TrainingBatch
from dis_cli.runtime.seed import Stream, generators


class TrainingSet:
    """A source seen through the run's order; the key of a batch is the global positions of its samples.

    Args:
        num_timesteps: Whole timesteps are drawn uniformly below it.
        draw_timestep: Draws one that need not be whole, in place of that.
        num_drop_path: Drop-path decisions of the model, per sample.
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        seed: int,
        num_timesteps: int,
        num_drop_path: int,
        draw_timestep: Callable[[np.random.Generator], float] | None = None,
    ) -> None:
        self.source = source
        # Asked once: to look whether a property is there computes it, and a fingerprint can take seconds.
        self._batch_source = source if isinstance(source, BatchSource) else None
        self.seed = seed
        self.num_timesteps = num_timesteps
        self.num_drop_path = num_drop_path
        self.draw_timestep = draw_timestep

    def batch(self, positions: Sequence[int], sign_of_life: Callable[[], None] | None = None) -> TrainingBatch:
        """The samples at the positions.

        Args:
            sign_of_life: Called after each sample.

        Raises:
            DataError: A sample could not be read.
        """
        source, count = self.source, len(positions)
        indices = [index_at(position, num_samples=len(source), seed=self.seed) for position in positions]
        draw_timestep = self.draw_timestep
        t = np.empty(count, dtype=np.int64 if draw_timestep is None else np.float64)
        noise = np.empty((count, source.channels, source.image_size, source.image_size), dtype=np.float32)
        label_drop = np.empty(count, dtype=np.float32)
        drop_path = np.empty((count, self.num_drop_path), dtype=np.float32)

        # One generator per sample, and all draws of a sample before those of the next.
        def rngs() -> Iterator[np.random.Generator]:
            for row, rng in enumerate(generators(self.seed, Stream.TRAIN, positions)):
                t[row] = rng.integers(self.num_timesteps) if draw_timestep is None else draw_timestep(rng)
                label_drop[row] = rng.random(dtype=np.float32)
                # Before the noise, as in runs of earlier versions: models get equal noise where none drops paths.
                rng.random(out=drop_path[row], dtype=np.float32)
                rng.standard_normal(out=noise[row], dtype=np.float32)
                # The image comes last: how many draws it takes depends on the source, and must not move the others.
                yield rng
                if sign_of_life is not None:
                    sign_of_life()

        if self._batch_source is not None:
            x_0 = self._batch_source.load_batch(indices, rngs())
        else:
            x_0 = torch.stack([source.load(index, rng) for index, rng in zip(indices, rngs(), strict=True)])
        return TrainingBatch(
            x_0,
            torch.from_numpy(source.labels[indices]),
            torch.from_numpy(t),
            torch.from_numpy(noise),
            torch.from_numpy(label_drop),
            torch.from_numpy(drop_path).t().contiguous(),
        )


def training_batches(
    dataset: TrainingSet,
    *,
    first_step: int,
    last_step: int,
    batch_size: int,
    accumulation: int,
    num_workers: int,
    pin_memory: bool = False,
    rank: int = 0,
    world_size: int = 1,
    offset: int = 0,
) -> Generator[TrainingBatch]:
    """One rank's share of steps ``first_step`` to ``last_step - 1``, each in ``accumulation`` equal parts, in order.

    A step's samples are the same whatever the number of parts and ranks; only who computes them differs.

    Args:
        dataset: The samples by global position.
        last_step: The step before which to stop.
        batch_size: Samples per optimizer step, over all ranks.
        num_workers: Loader processes; 0 loads in line.
        pin_memory: Put batches where a GPU can fetch them by itself.
        offset: Samples drawn before ``first_step``, less those of as many batches; not 0 where the batch was another.

    Raises:
        ValueError: ``batch_size`` cannot be dealt out in equal parts.
        DisError: A sample could not be read, or a loader process failed.
    """
    part, rest = divmod(batch_size, accumulation * world_size)
    if rest:
        raise ValueError(f"{batch_size} samples cannot be dealt out to {accumulation} parts of {world_size} ranks")
    parts = range(first_step * accumulation * world_size + rank, last_step * accumulation * world_size, world_size)
    load = functools.partial(_load_part, dataset, part, offset)
    if num_workers:
        # Processes beyond the number of parts would have nothing to do.
        loaded = load_ahead(load, parts, num_workers=min(num_workers, max(len(parts), 1)), pin_memory=pin_memory)
    else:
        loaded = (_pinned(load(index)) if pin_memory else load(index) for index in parts)
    with contextlib.closing(loaded):
        for tensors in loaded:
            yield TrainingBatch(*tensors)


def _load_part(
    dataset: TrainingSet, part: int, offset: int, index: int, sign_of_life: Callable[[], None] | None = None
) -> tuple[torch.Tensor, ...]:
    return dataset.batch(range(offset + index * part, offset + (index + 1) * part), sign_of_life)


def _pinned(tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.pin_memory() for tensor in tensors)
