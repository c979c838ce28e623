"""The contract of a feature extractor, and an extractor made of one's own function.

To add one, write a class with the members of Extractor (no base class to inherit) and choose it in
``choose.py``.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from dis_cli.metrics.table import METRICS, result_name

# The outputs of an extractor, by what they are for: distances; the classes of the Inception Score; sFID.
FEATURES: Final = "features"
LOGITS: Final = "logits"
SPATIAL: Final = "spatial"


@runtime_checkable
class Extractor(Protocol):
    """Turns images into the vectors that scores are measured with."""

    @property
    def name(self) -> str:
        """The network and its width."""
        ...

    @property
    def sha256(self) -> str:
        """Of its weights, 64 hexadecimal digits."""
        ...

    @property
    def preprocessing(self) -> str:
        """The preprocessing of an image; scores of other preprocessing cannot be compared."""
        ...

    @property
    def sizes(self) -> Mapping[str, int]:
        """The width of each output: FEATURES always, LOGITS and SPATIAL where it has them."""
        ...

    @property
    def label(self) -> str | None:
        """The ending of its scores' names; None for the published Inception alone, whose score is the FID."""
        ...

    def outputs(self, images: Shaped[Tensor, "b h w c"]) -> dict[str, Float[Tensor, "b _"]]:
        """All outputs of one pass, float32, on the extractor's device.

        Args:
            images: 8-bit images, channels last.

        Raises:
            ValueError: The images are of a type or shape that it does not take.
        """
        ...


def score_names(extractor: Extractor) -> dict[str, str]:
    """The name of each metric of images in results."""
    return {metric: result_name(metric, extractor.label) for metric, row in METRICS.items() if row.needs != "model"}


def identity(extractor: Extractor) -> dict[str, str]:
    """The facts that must be equal for two sets of features to be comparable."""
    return {
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
        "preprocessing": extractor.preprocessing,
    }


class FunctionFeatures:
    """An extractor made of a function of one's own, for use from Python.

    Args:
        function: Takes uint8 images (B, H, W, C), gives float features (B, D).
        num_features: D.
        sha256: Of the weights behind it: what tells its scores from those of another version.
        preprocessing: Preprocessing of an image, in words.
        name: Its name; None takes ``module:function``.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        *,
        num_features: int,
        sha256: str,
        preprocessing: str = "its own",
        name: str | None = None,
    ) -> None:
        self.name = name or f"{function.__module__}:{function.__qualname__}"
        self.label = re.sub(r"\W+", "_", self.name)
        self.sha256 = sha256
        self.preprocessing = preprocessing
        self.sizes: Mapping[str, int] = {FEATURES: num_features}
        self._function = function

    def outputs(self, images: Shaped[Tensor, "b h w c"]) -> dict[str, Float[Tensor, "b _"]]:
        """The function's outputs as float32; see Extractor.

        Raises:
            ValueError: It gives another shape.
        """
        require_uint8(images)
        with torch.no_grad():
            features = self._function(images).float()
        wanted = (len(images), self.sizes[FEATURES])
        if features.shape != wanted:
            raise ValueError(f"features of {self.name} must have shape {wanted}, got {tuple(features.shape)}")
        return {FEATURES: features}


def to_unit(images: Shaped[Tensor, "b h w c"]) -> Float[Tensor, "b c h w"]:
    """8-bit images, channels last, as float32 in [-1, 1], channels first."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_colours(images: Shaped[Tensor, "b h w c"]) -> UInt8[Tensor, "b 3 h w"]:
    """8-bit images, channels last, as colours with channels first: the one channel of grey ones is taken for all three.

    Raises:
        ValueError: The images are of another type or shape.
    """
    require_uint8(images)
    if images.shape[3] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, got shape {tuple(images.shape)}")
    return images.permute(0, 3, 1, 2).expand(-1, 3, -1, -1)


def require_uint8(images: Tensor) -> None:
    """Refuse what are no 8-bit images, channels last, with a ValueError."""
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8, got {images.dtype}")
    if images.ndim != 4:
        raise ValueError(f"images must have shape (B, H, W, C), got {tuple(images.shape)}")
