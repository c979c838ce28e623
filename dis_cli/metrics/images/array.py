"""Arrays of images: the layouts and types that are read, and names for those that are not.

Read are sets of images, (N, H, W, C), (N, C, H, W) or grey (N, H, W), with C = 1 or 3, of any type of whole numbers
whose values are 0 to 255. Everything else is refused by what it is, since a guess would be wrong without a word: 0 to 1
or -1 to 1 as levels is black, and (3, H, W) is one image or three.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Shaped, UInt8

from dis_cli.errors import MismatchError

_CHANNELS = (1, 3)
_AXES_HINT = "Save uint8 (N, H, W, 3), or (N, H, W, 1) for grey: `np.savez('images.npz', images)`"
_ALPHA_HINT = "Leave alpha out with `images[..., :3]`, or save PNG files, whose transparency is laid on a background"


class Layout(NamedTuple):
    """The order of an array's axes as images.

    Attributes:
        shape: (N, H, W, C) of the images.
        axes: "NHWC", "NCHW" or "NHW", in the order of the array.
    """

    shape: tuple[int, int, int, int]
    axes: str

    def channels_last(self, block: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "b h w c"]:
        """Some of the array's images with channels last."""
        match self.axes:
            case "NCHW":
                return block.transpose(0, 2, 3, 1)
            case "NHW":
                return block[..., None]
            case _:
                return block


def layout_of(shape: tuple[int, ...], refuse: Callable[[str, str], MismatchError]) -> Layout:
    """The layout of an array of images.

    Args:
        refuse: Makes the error of what is wrong with it, and a hint.

    Raises:
        MismatchError: It is of no layout that is read, or may be of several.
    """
    match shape:
        case _, first, _, last if first in _CHANNELS and last in _CHANNELS:
            raise refuse(
                f"it is (N, H, W, {last}) or (N, {first}, H, W), and either way its images are of one or three pixels",
                "Save larger images, channels last",
            )
        case n, h, w, c if c in _CHANNELS:
            return Layout((n, h, w, c), "NHWC")
        case _, c, _, 4 if c not in _CHANNELS:
            raise refuse("it has 4 channels, and images have 1 or 3", _ALPHA_HINT)
        case _, c, _, 4:
            raise refuse(
                f"it is (N, H, W, 4) or (N, {c}, H, W)", "Save channels last: `images.transpose(0, 2, 3, 1)` moves them"
            )
        case n, c, h, w if c in _CHANNELS:
            return Layout((n, h, w, c), "NCHW")
        case _, 4, _, _:
            raise refuse(
                "it has 4 channels, and images have 1 or 3",
                "Latents are no images; leave alpha out with `images[:, :3]`",
            )
        case _, _, c if 1 <= c <= 4:
            raise refuse("it is one image (H, W, C), and a set has four axes", "Save `images[None]`")
        case (2 | 3 | 4) as n, _, _:
            raise refuse(
                f"it is one image ({n}, H, W), or {n} grey ones",
                "Save `images.transpose(1, 2, 0)[None]` for one image, `images[..., None]` for grey ones",
            )
        case n, h, w:
            return Layout((n, h, w, 1), "NHW")
        case _:
            raise refuse("a set of images has the axes (N, H, W, C), with C = 1 or 3", _AXES_HINT)


class Range(NamedTuple):
    """Between which values an array lies; NaN when one of them is."""

    lowest: float
    highest: float

    @classmethod
    def of(cls, block: npt.NDArray[np.generic]) -> "Range":
        """Of some of its values."""
        return cls(float(block.min()), float(block.max()))

    def joined(self, other: "Range") -> "Range":
        """Of both."""
        return Range(float(np.minimum(self.lowest, other.lowest)), float(np.maximum(self.highest, other.highest)))


def require_levels(dtype: np.dtype, values: Range, refuse: Callable[[str, str], MismatchError]) -> None:
    """Make sure that the values of an array are grey levels from 0 to 255.

    Args:
        refuse: Makes the error of what is wrong with them, and a hint.

    Raises:
        MismatchError: They are not, or may be something else.
    """
    low, high = values
    whole = dtype.kind in "iu"
    if whole and low >= 0 and high <= 255 and (high != 1 or dtype == np.uint8):
        return
    raise refuse(
        f"its values are {low:g} to {high:g}, and levels are whole numbers from 0 to 255", _hint(low, high, whole)
    )


def require_numbers(dtype: np.dtype, refuse: Callable[[str, str], MismatchError]) -> None:
    """Make sure that an array holds real numbers, whose range can be measured.

    Raises:
        MismatchError: It does not.
    """
    if dtype.kind == "b":
        raise refuse("levels are whole numbers from 0 to 255", "Save `images.astype('uint8') * 255`")
    if dtype.kind not in "iuf":
        raise refuse("levels are whole numbers from 0 to 255", _AXES_HINT)


def _hint(low: float, high: float, whole: bool) -> str:
    if math.isnan(low):
        return "NaN is no level: look for what made it"
    if low >= 0 and high <= 1:
        return "Save `(images * 255).round().astype('uint8')`"
    if not whole and low >= -1 and high <= 1:
        return "Save `((images + 1) * 127.5).round().astype('uint8')`"
    if low >= 0 and high <= 255:
        return "Save `images.round().astype('uint8')` if 255 is white"
    if whole and low >= 0 and high <= 65535:
        return "Save `(images / 257).round().astype('uint8')` if 65535 is white"
    return "Scale them so that 0 is black and 255 is white, and save them as uint8"


def as_levels(block: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Values that ``require_levels`` let pass, as bytes in order that may be written to."""
    return np.array(block, dtype=np.uint8, order="C")
