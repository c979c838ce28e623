"""The Inception network that FID is defined with (Heusel et al., 2017), from a file of its published weights."""

import hashlib
import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dis_cli.errors import MissingResourceError, RefusedError
from dis_cli.metrics.extractors.base import FEATURES, LOGITS, SPATIAL, to_colours
from dis_cli.metrics.extractors.locate import INCEPTION_HINT, INCEPTION_SHA256
from dis_cli.runtime.untrusted import check_torch_file, refused_pickle

# The published file has 95.6 MB.
MAX_INCEPTION_BYTES = 100 << 20
# sFID takes the first channels of a map of 17x17 pixels (Nash et al., 2021).
SPATIAL_CHANNELS = 7


class InceptionFeatures:
    """Inception's 2048 pool features, unbiased logits of 1008 classes, and the 2023 spatial features of sFID.

    The graph and its resizing to 299x299 are torch-fidelity's, equal to the original TensorFlow ones. The spatial
    features are those of ADM's evaluator, ``mixed_6/conv``: what the 1x1 convolution of block Mixed_6d gives after its
    ReLU, pixel by pixel with the channels last.

    Args:
        weights_path: ``pt_inception-2015-12-05-6726825d.pth``.

    Attributes:
        published: Whether the file is the published one, by its sha256; with any other, scores cannot be compared with
            those of papers, and none is called FID.

    Raises:
        MissingResourceError: The file is missing or holds something else.
        RefusedError: It holds more than weights.
    """

    name = "inception-v3-2048"
    preprocessing = "TensorFlow 1 bilinear to 299x299, scaled to [-1, 1)"
    sizes: Mapping[str, int] = MappingProxyType({FEATURES: 2048, LOGITS: 1008, SPATIAL: 17 * 17 * SPATIAL_CHANNELS})

    def __init__(self, weights_path: Path, *, device: torch.device | str = "cpu") -> None:
        try:
            data = _read(weights_path)
            self.sha256 = hashlib.sha256(data).hexdigest()
            check_torch_file(weights_path, io.BytesIO(data), INCEPTION_HINT)
            # torch-fidelity itself would run any code that the file contains; this refuses such a file.
            torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            # imported here because torchvision takes a second to load
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

            # It gets the bytes that were looked at, whatever the file holds by now.
            file: Any = io.BytesIO(data)
            network = FeatureExtractorInceptionV3(
                self.name, ["2048", "logits_unbiased"], feature_extractor_weights_path=file
            )
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
        self.published = self.sha256 == INCEPTION_SHA256
        self.label = None if self.published else "inception"
        self._device = torch.device(device)
        self._network = network.to(self._device)
        self._spatial: Tensor | None = None
        network.Mixed_6d.register_forward_hook(self._keep_spatial)

    def outputs(self, images: Shaped[Tensor, "b h w c"]) -> dict[str, Float[Tensor, "b _"]]:
        """All three outputs, float32, on the network's device; see Extractor.

        Args:
            images: uint8 (B, H, W, 3) of any size, or (B, H, W, 1), whose grey is used for all three colours.

        Raises:
            ValueError: When the images are of another type or shape.
        """
        colours = to_colours(images).to(self._device)
        # TF32 would move a feature by a thousandth.
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            features, logits = self._network(colours)
        spatial, self._spatial = self._spatial, None
        assert spatial is not None
        return {FEATURES: features, LOGITS: logits, SPATIAL: spatial}

    def _keep_spatial(self, _module: object, _inputs: object, output: Tensor) -> None:
        # The 1x1 convolution is the first of the four branches that the block joins.
        self._spatial = output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)


def _read(path: Path) -> bytes:
    size = path.stat().st_size
    if size > MAX_INCEPTION_BYTES:
        raise RefusedError(
            f"`{path}` was refused: it has {size:,} bytes, Inception weights at most {MAX_INCEPTION_BYTES:,}",
            INCEPTION_HINT,
        )
    return path.read_bytes()
