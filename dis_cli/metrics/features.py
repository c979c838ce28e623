"""Feature extractors for scores: a bundled classifier of 8x8 digits, and Inception from the user's own file.

An extractor has ``name`` and ``sha256`` (of its weights), which say what a score was measured with, ``num_features``,
and ``features``. To add one, write a class with these and choose it in ``dis_cli/workflows/evaluate.py``.
"""

import hashlib
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from dis_cli.errors import MissingResourceError, RefusedError
from dis_cli.metrics.locate import INCEPTION_FILE, INCEPTION_HINT
from dis_cli.runtime.untrusted import check_torch_file, refused_pickle

DIGIT_WEIGHTS = Path(__file__).parent / "weights" / "digits.safetensors"
# The published file has 95.6 MB.
MAX_INCEPTION_BYTES = 100 << 20


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
    num_features = 64

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
        _require_uint8(images)
        if images.shape[1:] != (8, 8, 1):
            raise ValueError(f"images must have shape (B, 8, 8, 1), got {tuple(images.shape)}")
        with torch.no_grad():
            features, logits = self._network(to_unit(images.cpu()).double())
        return features.float(), logits.float()


class InceptionFeatures:
    """The 2048 pool features of the Inception network that FID is defined with (Heusel et al., 2017).

    The graph and its resizing to 299x299 are torch-fidelity's, equal to the original TensorFlow ones. Nothing is
    ever downloaded.

    Args:
        weights_path: ``pt_inception-2015-12-05-6726825d.pth``.
        device: Where the network runs.

    Attributes:
        published: Whether the file is the published one, whose sha256 begins with the digits in its name; with any
            other, scores cannot be compared with those of papers.

    Raises:
        MissingResourceError: The file is missing or holds something else.
        RefusedError: It holds more than weights.
    """

    name = "inception-v3-2048"
    num_features = 2048

    def __init__(self, weights_path: Path, *, device: torch.device | str = "cpu") -> None:
        try:
            data = _read_inception(weights_path)
            check_torch_file(weights_path, io.BytesIO(data), INCEPTION_HINT)
            # torch-fidelity itself would run any code that the file contains; this refuses such a file.
            torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            # imported here because torchvision takes a second to load
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

            # It gets the bytes that were looked at, whatever the file holds by now.
            file: Any = io.BytesIO(data)
            network = FeatureExtractorInceptionV3(self.name, ["2048"], feature_extractor_weights_path=file)
        except pickle.UnpicklingError as error:
            raise refused_pickle(weights_path, "PyTorch's loader of weights refuses it") from error
        except (
            zipfile.BadZipFile,
            RuntimeError,
            EOFError,
            ValueError,
            TypeError,
            AttributeError,
            LookupError,
        ) as error:
            raise MissingResourceError(
                f"`{weights_path}` does not hold the Inception weights that FID is defined with", INCEPTION_HINT
            ) from error
        except OSError as error:
            raise MissingResourceError(
                f"Inception weights cannot be read: `{weights_path}` ({error.strerror or error})", INCEPTION_HINT
            ) from error
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.published = self.sha256.startswith(INCEPTION_FILE.removesuffix(".pth").rpartition("-")[2])
        self._device = torch.device(device)
        self._network = network.to(self._device)

    def features(self, images: Shaped[Tensor, "b h w c"]) -> Float[Tensor, "b 2048"]:
        """The pool features, float32 on the CPU.

        Args:
            images: uint8 (B, H, W, 3) of any size, or (B, H, W, 1), whose grey is used for all three colours.

        Raises:
            ValueError: When the images are of another type or shape.
        """
        _require_uint8(images)
        if images.shape[3] not in (1, 3):
            raise ValueError(f"images must have 1 or 3 channels, got shape {tuple(images.shape)}")
        colours = images.permute(0, 3, 1, 2).expand(-1, 3, -1, -1).to(self._device)
        # TF32 would move a feature by a thousandth.
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            (features,) = self._network(colours)
        return features.cpu()


def _read_inception(path: Path) -> bytes:
    size = path.stat().st_size
    if size > MAX_INCEPTION_BYTES:
        raise RefusedError(
            f"`{path}` was refused: it has {size:,} bytes, Inception weights at most {MAX_INCEPTION_BYTES:,}",
            INCEPTION_HINT,
        )
    return path.read_bytes()


def to_unit(images: Shaped[Tensor, "b h w c"]) -> Float[Tensor, "b c h w"]:
    """8-bit images, channels last, as float32 in [-1, 1], channels first."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def _require_uint8(images: Tensor) -> None:
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8, got {images.dtype}")
    if images.ndim != 4:
        raise ValueError(f"images must have shape (B, H, W, C), got {tuple(images.shape)}")
