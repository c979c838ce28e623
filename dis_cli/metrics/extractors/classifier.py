"""Bundled classifiers of handwritten digits as extractors; a score in their features is never called FID."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from dis_cli.errors import MissingResourceError
from dis_cli.metrics.extractors.base import FEATURES, LOGITS, require_uint8, to_unit

WEIGHTS: Final = Path(__file__).parent / "weights"

# Of the images that are looked at together: a bound of the memory for activations, about 70 MB for a layer of MNIST's.
_MAX_PIXELS = 1 << 19


class DigitClassifier:
    """A small network that names handwritten digits; its last hidden layer is the features.

    A subclass says which network, and where its weights are.

    Args:
        weights_path: Other weights of the network; None takes the bundled ones.

    Raises:
        MissingResourceError: The file is missing or holds something else.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    side: ClassVar[int]
    network: ClassVar[type[nn.Module]]
    weights: ClassVar[Path]

    class_names: ClassVar = tuple(str(digit) for digit in range(10))
    sizes: Mapping[str, int] = MappingProxyType({FEATURES: 64, LOGITS: 10})

    def __init__(self, weights_path: Path | None = None) -> None:
        path = weights_path or self.weights
        # Without memory, so that no random weights are drawn only to be replaced.
        with torch.device("meta"):
            network = self.network()
        try:
            data = path.read_bytes()
            network.load_state_dict(load_safetensors(data), assign=True)
        except OSError as error:
            raise MissingResourceError(
                f"Weights of the {self.label} classifier cannot be read: `{path}` ({error.strerror or error})",
                "The bundled ones come with the package: install it again",
            ) from error
        except (SafetensorError, RuntimeError) as error:
            raise MissingResourceError(
                f"`{path}` does not hold the weights of the {self.label} classifier",
                "The bundled ones come with the package: install it again",
            ) from error
        # In float64 the features of an image, once rounded, do not depend on the batch it is in.
        self._network = network.double().requires_grad_(False).eval()
        self.sha256 = hashlib.sha256(data).hexdigest()

    @property
    def preprocessing(self) -> str:
        """What it does with an image first."""
        return f"{self.side}x{self.side} grey, scaled to [-1, 1]"

    def features(self, images: Shaped[Tensor, "b h w c"]) -> tuple[Float[Tensor, "b 64"], Float[Tensor, "b 10"]]:
        """The 64 activations of the last hidden layer, and the logits of the ten classes, float32 on the CPU.

        Args:
            images: uint8 (B, side, side, 1), grey.

        Raises:
            ValueError: When the images are of another type or shape.
        """
        require_uint8(images)
        if images.shape[1:] != (self.side, self.side, 1):
            raise ValueError(f"images must have shape (B, {self.side}, {self.side}, 1), got {tuple(images.shape)}")
        parts = images.cpu().split(max(1, _MAX_PIXELS // self.side**2))
        with torch.no_grad():
            found = [self._network(to_unit(part).double()) for part in parts]
        features, logits = (torch.cat(own).float() for own in zip(*found, strict=True))
        return features, logits

    def outputs(self, images: Shaped[Tensor, "b h w c"]) -> dict[str, Float[Tensor, "b _"]]:
        """Features and logits; see Extractor."""
        features, logits = self.features(images)
        return {FEATURES: features, LOGITS: logits}

    def reduced(self, images: UInt8[Tensor, "n h w c"]) -> UInt8[Tensor, "n s s 1"]:
        """Images of any size and colour as the network takes them, by averaging."""
        return as_grey(images, self.side)


def as_grey(images: UInt8[Tensor, "n h w c"], side: int) -> UInt8[Tensor, "n s s 1"]:
    """Images of any size and colour as grey ones of a side, by averaging; grey ones of that side stay as they are."""
    grey = images.float().mean(dim=-1)
    return F.adaptive_avg_pool2d(grey, (side, side)).round().to(torch.uint8).unsqueeze(-1)
