"""Training batches as a pure function of (seed, step): which images, and every random number of each.

A sample's place in the whole run, its global position ``step * batch_size + i``, keys a generator of its own. So the
draws are the same whatever the number of loader processes, and after any interruption.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dis_cli.data.images import ImageSource
from dis_cli.data.order import index_at
from dis_cli.diffusion.batch import TrainingBatch
from dis_cli.errors import DisError
from dis_cli.runtime.seed import Stream, generator


class TrainingSet(Dataset[tuple[Tensor, ...] | DisError]):
    """A source seen through the run's order; the key of a sample is its global position.

    Args:
        source: The images.
        seed: The run's seed.
        num_timesteps: Timesteps are drawn uniformly below it.
        num_drop_path: Drop-path decisions of the model, per sample.
    """

    def __init__(self, source: ImageSource, *, seed: int, num_timesteps: int, num_drop_path: int) -> None:
        self.source = source
        self.seed = seed
        self.num_timesteps = num_timesteps
        self.num_drop_path = num_drop_path

    def __getitem__(self, position: int) -> tuple[Tensor, ...] | DisError:
        """The fields of a ``TrainingBatch`` for one sample, without the batch axis.

        An error is returned, not raised: torch would rebuild it from a loader process without its hint.
        """
        try:
            return self._sample(position)
        except DisError as error:
            return error

    def _sample(self, position: int) -> tuple[Tensor, ...]:
        rng = generator(self.seed, Stream.TRAIN, position)
        index = index_at(position, num_samples=len(self.source), seed=self.seed)
        # The image comes last: how many draws it takes depends on the source, and must not move the others.
        t = rng.integers(self.num_timesteps)
        label_drop = rng.random(dtype=np.float32)
        drop_path = torch.from_numpy(rng.random(self.num_drop_path, dtype=np.float32))
        shape = (self.source.channels, self.source.image_size, self.source.image_size)
        noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
        x_0 = self.source.load(index, rng)
        label = int(self.source.labels[index])
        return x_0, torch.tensor(label), torch.tensor(t), noise, torch.tensor(label_drop), drop_path


def training_batches(
    dataset: TrainingSet,
    *,
    first_step: int,
    last_step: int,
    batch_size: int,
    accumulation: int,
    num_workers: int,
) -> Iterator[TrainingBatch]:
    """The batches of steps ``first_step`` to ``last_step - 1``, each in ``accumulation`` equal parts, in order.

    Args:
        dataset: The samples by global position.
        first_step: First optimizer step, from 0.
        last_step: The step before which to stop.
        batch_size: Samples per optimizer step.
        accumulation: Parts per step; divides ``batch_size``.
        num_workers: Loader processes; 0 loads in line.

    Raises:
        DisError: A sample could not be read.
    """
    part = batch_size // accumulation
    parts = range(first_step * accumulation, last_step * accumulation)
    positions = (list(range(index * part, (index + 1) * part)) for index in parts)
    # The samples bring their own randomness; the loader's base seed must not come from the global generator.
    loader = DataLoader(
        dataset,
        batch_sampler=positions,
        collate_fn=_collate,
        num_workers=num_workers,
        generator=torch.Generator().manual_seed(0),
    )
    for batch in loader:
        if isinstance(batch, DisError):
            raise batch
        yield batch


def _collate(samples: list[tuple[Tensor, ...] | DisError]) -> TrainingBatch | DisError:
    failed = next((sample for sample in samples if isinstance(sample, DisError)), None)
    if failed is not None:
        return failed
    x_0, labels, t, noise, label_drop, drop_path = (torch.stack(field) for field in zip(*samples, strict=True))
    return TrainingBatch(x_0, labels, t, noise, label_drop, drop_path.t().contiguous())
