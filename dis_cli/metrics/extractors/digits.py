"""The bundled classifier of 8x8 handwritten digits, and how images become what it takes."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from dis_cli.errors import MissingResourceError
from dis_cli.metrics.extractors.base import FEATURES, LOGITS, require_uint8, to_unit

DIGIT_WEIGHTS = Path(__file__).parent / "weights" / "digits.safetensors"


class DigitNetwork(nn.Module):
    """A small convolutional classifier of 8x8 grey digits, 47,978 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 48, 3, padding=1)
        self.conv3 = nn.Conv2d(48, 48, 3, padding=1)
        self.hidden = nn.Linear(48 * 2 * 2, 64)
        self.output = nn.Linear(64, 10)

    def forward(self, x: Float[Tensor, "b 1 8 8"]) -> tuple[Float[Tensor, "b 64"], Float[Tensor, "b 10"]]:
        """The activations of the last hidden layer, and the logits of the ten classes.

        Args:
            x: Images in [-1, 1].
        """
        x = F.gelu(self.conv1(x))
        x = F.max_pool2d(F.gelu(self.conv2(x)), 2)
        x = F.max_pool2d(F.gelu(self.conv3(x)), 2)
        features = F.gelu(self.hidden(x.flatten(1)))
        return features, self.output(features)


class DigitFeatures:
    """The bundled classifier of handwritten digits, for scores of the digits preset; such a score is not an FID.

    ``tests/rebuild/digits_classifier.py`` rebuilds its weights.

    Args:
        weights_path: Other weights of a DigitNetwork; None takes the bundled ones.

    Raises:
        MissingResourceError: The file is missing or holds something else.
    """

    name = "digits-cnn-64"
    label = "digits"
    preprocessing = "8x8 grey, scaled to [-1, 1]"
    sizes: Mapping[str, int] = MappingProxyType({FEATURES: 64, LOGITS: 10})

    def __init__(self, weights_path: Path | None = None) -> None:
        path = weights_path or DIGIT_WEIGHTS
        # Without memory, so that no random weights are drawn only to be replaced.
        with torch.device("meta"):
            network = DigitNetwork()
        try:
            data = path.read_bytes()
            network.load_state_dict(load_safetensors(data), assign=True)
        except OSError as error:
            raise MissingResourceError(
                f"Weights of the digit classifier cannot be read: `{path}` ({error.strerror or error})",
                "The bundled ones come with the package: install it again",
            ) from error
        except (SafetensorError, RuntimeError) as error:
            raise MissingResourceError(
                f"`{path}` does not hold the weights of the digit classifier",
                "The bundled ones come with the package: install it again",
            ) from error
        # In float64 the features of an image, once rounded, do not depend on the batch it is in.
        self._network = network.double().requires_grad_(False).eval()
        self.sha256 = hashlib.sha256(data).hexdigest()

    def features(self, images: Shaped[Tensor, "b h w c"]) -> tuple[Float[Tensor, "b 64"], Float[Tensor, "b 10"]]:
        """The 64 activations of the last hidden layer, and the logits of the ten classes, float32 on the CPU.

        Args:
            images: uint8 (B, 8, 8, 1), grey.

        Raises:
            ValueError: When the images are of another type or shape.
        """
        require_uint8(images)
        if images.shape[1:] != (8, 8, 1):
            raise ValueError(f"images must have shape (B, 8, 8, 1), got {tuple(images.shape)}")
        with torch.no_grad():
            features, logits = self._network(to_unit(images.cpu()).double())
        return features.float(), logits.float()

    def outputs(self, images: Shaped[Tensor, "b h w c"]) -> dict[str, Float[Tensor, "b _"]]:
        """Features and logits; see Extractor."""
        features, logits = self.features(images)
        return {FEATURES: features, LOGITS: logits}


def as_digits(images: UInt8[Tensor, "n h w c"]) -> UInt8[Tensor, "n 8 8 1"]:
    """Images of any size and colour as small grey ones, by averaging; 8x8 grey ones stay as they are."""
    grey = images.float().mean(dim=-1)
    return F.adaptive_avg_pool2d(grey, (8, 8)).round().to(torch.uint8).unsqueeze(-1)
