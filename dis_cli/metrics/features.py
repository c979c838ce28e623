"""What a feature extractor is, the bundled classifier of 8x8 digits, and an extractor made of one's own function.

To add one, write a class with the members of Extractor (no base class to inherit) and choose it in
``dis_cli/workflows/extractors.py``.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from dis_cli.errors import MissingResourceError

DIGIT_WEIGHTS = Path(__file__).parent / "weights" / "digits.safetensors"

# The outputs of an extractor, by what they are for: distances; the classes of the Inception Score; sFID.
FEATURES: Final = "features"
LOGITS: Final = "logits"
SPATIAL: Final = "spatial"

# How scores are called that are measured with the published Inception; with anything else their names say what.
METRICS: Final = ("fid", "sfid", "inception_score", "kid", "precision", "recall", "density", "coverage")
_OTHER_NAMES: Final = {
    "fid": "frechet",
    "sfid": "frechet_spatial",
    "inception_score": "classifier_score",
    "kid": "kernel_distance",
}


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
        """What it does with an image first; scores of other preprocessing cannot be compared."""
        ...

    @property
    def sizes(self) -> Mapping[str, int]:
        """The width of each output: FEATURES always, LOGITS and SPATIAL where it has them."""
        ...

    @property
    def label(self) -> str | None:
        """What the names of its scores end with; None for the published Inception alone, whose score is the FID."""
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
    """What each of METRICS is called in results; nothing but the standard FID is called FID, or what comes from it."""
    if extractor.label is None:
        return {metric: metric for metric in METRICS}
    return {metric: f"{_OTHER_NAMES.get(metric, metric)}_{extractor.label}" for metric in METRICS}


def identity(extractor: Extractor) -> dict[str, str]:
    """What has to be equal for two sets of features to be comparable."""
    return {
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
        "preprocessing": extractor.preprocessing,
    }


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

    ``python -m dis_cli.workflows.digit_features`` rebuilds its weights.

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
                "`python -m dis_cli.workflows.digit_features OUT` writes them anew",
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


class FunctionFeatures:
    """An extractor made of a function of one's own, for use from Python.

    Args:
        function: Takes uint8 images (B, H, W, C), gives float features (B, D).
        num_features: D.
        sha256: Of the weights behind it: what tells its scores from those of another version.
        preprocessing: What it does with an image first, in words.
        name: What to call it; None takes ``module:function``.
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
        """What the function gives, as float32; see Extractor.

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
