"""Images of one size that are held in memory, as their files have them."""

from typing import ClassVar

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from dis_cli.data.source import content_hash, frozen, grid_8_bit, require_index


class StoredSource:
    """Images and labels in memory; an `ImageSource`, whose subclasses read them and say what they are called.

    Args:
        levels: uint8, (n, h, w) or (n, h, w, 3).
        labels: Class of each.
        split: What part of the data set they are, for names of samples.
        image_size: Side of the result, in pixels.
        channels: 3, or 1 for grey.
        hflip: Mirror half of the images when augmenting.
    """

    name: ClassVar[str]
    num_classes: ClassVar[int]
    class_names: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        levels: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.integer],
        *,
        split: str,
        image_size: int,
        channels: int,
        hflip: bool = False,
    ) -> None:
        self._levels = levels
        self.labels: npt.NDArray[np.int64] = frozen(labels)
        self._split = split
        self.image_size = image_size
        self.channels = channels
        self._hflip = hflip

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        """sha256 of the images and labels."""
        return content_hash(self._levels, self.labels)

    def sample_name(self, index: int) -> str:
        """The place in the order of the files."""
        require_index(index, len(self))
        return f"{self.name}/{self._split}/{index:05d}"

    def load(self, index: int, rng: np.random.Generator | None) -> Float[Tensor, "c h w"]:
        """One image, in [-1, 1]; see ImageSource."""
        require_index(index, len(self))
        return self._on_grid(self._levels[index], rng)

    def _on_grid(self, levels: npt.NDArray[np.uint8], rng: np.random.Generator | None) -> Float[Tensor, "c h w"]:
        image = Image.fromarray(levels).convert("L" if self.channels == 1 else "RGB")
        return grid_8_bit(image, self.image_size, rng, self._hflip)
