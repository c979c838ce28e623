"""scikit-learn's bundled digits, the data that need no file."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dis_cli.data.published.stored import StoredSource
from dis_cli.data.source import grid, require_index, require_split

SIDE = 8


class DigitsSource(StoredSource):
    """1,797 handwritten digits, 8x8, in 17 grey levels x mapped to x / 8 - 1; never mirrored.

    The split is fixed: ``train_test_split(stratify=labels, random_state=0)`` with 450 test images.

    Args:
        split: "train" (1,347 images), "test" (450), or "all" (1,797, in their published order).
        image_size: Side of the result, in pixels. Other sides than 8 are resized as photographs are, from 256 levels.
        channels: 1, or 3 equal ones.

    Raises:
        ValueError: When the split has another name.
    """

    name = "digits"
    num_classes = 10
    class_names = tuple(str(digit) for digit in range(10))

    def __init__(self, split: str = "train", *, image_size: int = SIDE, channels: int = 1) -> None:
        require_split(split)
        # imported here because scikit-learn takes a second to load
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        levels, labels = load_digits(return_X_y=True)
        chosen = np.arange(len(labels))
        if split != "all":
            parts = train_test_split(chosen, test_size=450, stratify=labels, random_state=0)
            chosen = np.asarray(parts[0] if split == "train" else parts[1])
        self._published = chosen
        super().__init__(
            levels[chosen].reshape(-1, SIDE, SIDE).astype(np.uint8),
            labels[chosen],
            split=split,
            image_size=image_size,
            channels=channels,
        )

    def sample_name(self, index: int) -> str:
        """The place in the published order."""
        require_index(index, len(self))
        return f"digits/{self._published[index]:04d}"

    def load(self, index: int, rng: np.random.Generator | None) -> Float[Tensor, "c h w"]:
        """One digit, in [-1, 1]; see ImageSource."""
        require_index(index, len(self))
        levels = self._levels[index]
        if self.image_size == SIDE:
            return (grid(levels[..., None], rng, hflip=False) / 8 - 1).expand(self.channels, -1, -1).contiguous()
        return self._on_grid(np.round(levels * (255 / 16)).astype(np.uint8), rng)

    def load_batch(self, indices: Sequence[int], rngs: Iterator[np.random.Generator]) -> Float[Tensor, "b c h w"]:
        """The results of ``load`` for all indices, at once; see BatchSource."""
        if self.image_size != SIDE:
            return torch.stack([self.load(index, rng) for index, rng in zip(indices, rngs, strict=True)])
        # They draw nothing here, but whoever made them draws from each before the next.
        for index, _ in zip(indices, rngs, strict=True):
            require_index(index, len(self))
        levels = torch.from_numpy(self._levels[list(indices)].astype(np.float32))
        return (levels[:, None] / 8 - 1).expand(-1, self.channels, -1, -1).contiguous()
