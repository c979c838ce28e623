"""Images that a run is not trained on: a share of its own, drawn by the seed, and what they are noised with."""

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dis_cli.data.images.files import FileSource
from dis_cli.data.source import BatchSource, ImageSource, frozen, require_index
from dis_cli.diffusion.batch import TrainingBatch
from dis_cli.runtime.seed import Stream, generator


class Part:
    """Some of the samples of a source, in its order; an `ImageSource`, whose samples are in every bit those of it.

    Args:
        source: All of them.
        places: Which, ascending.
        augmented: Whether samples are mirrored, or drawn, as those of ``source``; else they are always the same.
    """

    def __init__(self, source: ImageSource, places: npt.NDArray[np.int64], *, augmented: bool) -> None:
        self.whole = source
        self.places = places
        self._augmented = augmented
        self.name = source.name
        self.num_classes = source.num_classes
        self.class_names = source.class_names
        self.channels = source.channels
        self.image_size = source.image_size
        self.labels = frozen(source.labels[places])

    @property
    def fingerprint(self) -> str:
        """sha256 of the source's and the places."""
        digest = hashlib.sha256(self.whole.fingerprint.encode())
        digest.update(self.places.astype("<i8").tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.places)

    def sample_name(self, index: int) -> str:
        """That of the source; see ImageSource."""
        return self.whole.sample_name(self._place(index))

    def load(self, index: int, rng: np.random.Generator | None) -> Float[Tensor, "c h w"]:
        """That of the source; see ImageSource."""
        return self.whole.load(self._place(index), rng if self._augmented else None)

    def _place(self, index: int) -> int:
        require_index(index, len(self))
        return int(self.places[index])


class BatchPart(Part):
    """The same of a source that gives many samples at once; a `BatchSource`."""

    whole: BatchSource  # pyright: ignore[reportIncompatibleVariableOverride]

    def load_batch(self, indices: Sequence[int], rngs: Iterator[np.random.Generator]) -> Float[Tensor, "b c h w"]:
        """Those of the source; see BatchSource."""
        return self.whole.load_batch([self._place(index) for index in indices], rngs)


def training_part(source: ImageSource, share: float, seed: int) -> ImageSource:
    """What is trained on when a share is held out."""
    return _part(source, ~_drawn(source, share, seed), augmented=True)


def held_out_part(source: ImageSource, share: float, seed: int) -> ImageSource:
    """The share that is held out, which is never augmented."""
    return _part(source, _drawn(source, share, seed), augmented=False)


def unaugmented(source: ImageSource) -> ImageSource:
    """All of a source, never augmented."""
    return Part(source, np.arange(len(source)), augmented=False)


def first_look(source: ImageSource, most: int | None) -> ImageSource:
    """At most so many samples of a source, evenly spread over it, as its classes are; None takes all."""
    if most is None or most >= len(source):
        return source
    places = spread_places(len(source), most)
    if isinstance(source, FileSource):
        return source.without(np.setdiff1d(np.arange(len(source)), places).tolist())
    chosen = np.zeros(len(source), dtype=np.bool_)
    chosen[places] = True
    return _part(source, chosen, augmented=True)


def held_out_places(count: int, share: float, seed: int) -> Int64[np.ndarray, " held"]:
    """Which of ``count`` samples are held out: those with the lowest draws; ascending.

    Args:
        share: Above 0 and below 1; at least one sample is held out, and one is not.
        seed: The run's.

    Raises:
        ValueError: There are fewer than 2 samples, or the share is none.
    """
    if count < 2 or not 0 < share < 1:
        raise ValueError(f"a share above 0 and below 1 of 2 samples or more can be held out, got {share} of {count}")
    number = min(max(round(share * count), 1), count - 1)
    # As in `epoch_permutation`: these draws are the same in every release of NumPy.
    draws = generator(seed, Stream.HELD_OUT).bit_generator.random_raw(count)
    return np.sort(np.argsort(draws, kind="stable")[:number]).astype(np.int64)


def spread_places(count: int, number: int) -> list[int]:
    """As many of ``count`` places as asked for, or all, evenly spread: data are often sorted by class."""
    return [place * count // number for place in range(number)] if number < count else list(range(count))


def held_out_batch(
    source: ImageSource,
    places: Sequence[int],
    *,
    seed: int,
    num_timesteps: int,
    draw_timestep: Callable[[np.random.Generator], float] | None = None,
) -> TrainingBatch:
    """Samples with their timesteps and noise, which are functions of the seed and a sample's place alone.

    Args:
        source: One that does not augment.
        seed: The run's.
        num_timesteps: Whole timesteps are drawn uniformly below it.
        draw_timestep: Draws one that need not be whole, in place of that.

    Raises:
        DataError: A sample could not be read.
    """
    x_0 = torch.stack([source.load(place, None) for place in places])
    t = torch.empty(len(places), dtype=torch.int64 if draw_timestep is None else torch.float64)
    noise = np.empty(x_0.shape, dtype=np.float32)
    for row, place in enumerate(places):
        # The first is what the share is drawn by.
        rng = generator(seed, Stream.HELD_OUT, place + 1)
        t[row] = int(rng.integers(num_timesteps)) if draw_timestep is None else draw_timestep(rng)
        rng.standard_normal(out=noise[row], dtype=np.float32)
    labels = torch.from_numpy(np.asarray(source.labels[list(places)]))
    nothing = torch.ones(len(places))
    return TrainingBatch(x_0, labels, t, torch.from_numpy(noise), nothing, nothing.new_empty(0, len(places)))


def _drawn(source: ImageSource, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Whether each sample is held out. What bad images are left out changes it for no other."""
    if isinstance(source, FileSource) and source.left_out:
        places = np.delete(np.arange(len(source.files.labels)), source.left_out)
        drawn = np.isin(places, held_out_places(len(source.files.labels), share, seed))
        # Of a few images (data.max_images) that draw may hold out none, or all.
        if drawn.any() and not drawn.all():
            return drawn
    return np.isin(np.arange(len(source)), held_out_places(len(source), share, seed))


def _part(source: ImageSource, chosen: npt.NDArray[np.bool_], *, augmented: bool) -> ImageSource:
    kind = BatchPart if augmented and isinstance(source, BatchSource) else Part
    return kind(source, np.flatnonzero(chosen), augmented=augmented)
