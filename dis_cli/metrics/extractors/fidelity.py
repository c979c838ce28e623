"""CLIP and DINOv2 as feature extractors, through torch-fidelity, when their weights are in torch's cache."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dis_cli.metrics.extractors.base import FEATURES, to_colours
from dis_cli.metrics.extractors.locate import CLIP_MODEL, DINOV2_MODEL, locate_clip, locate_dinov2

if TYPE_CHECKING:
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase


class FidelityFeatures:
    """A network of torch-fidelity's that gives one kind of features; no score measured with it is an FID.

    Args:
        network: The network, made with one feature.
        sha256: Of its weights.
        label: Ending of its scores' names.
    """

    def __init__(
        self,
        network: "FeatureExtractorBase",
        *,
        sha256: str,
        label: str,
        preprocessing: str,
        device: torch.device | str = "cpu",
    ) -> None:
        self.sha256 = sha256
        self.label = label
        self.preprocessing = preprocessing
        self._device = torch.device(device)
        self._network = network.to(self._device)
        width = self._features(torch.zeros(1, 32, 32, 3, dtype=torch.uint8)).shape[1]
        self.name = f"{network.get_name()}-{width}"
        self.sizes: Mapping[str, int] = {FEATURES: width}

    def outputs(self, images: Shaped[Tensor, "b h w c"]) -> dict[str, Float[Tensor, "b _"]]:
        """The features, float32, on the network's device; see Extractor.

        Args:
            images: uint8 (B, H, W, 3) of any size, or (B, H, W, 1), whose grey is used for all three colours.

        Raises:
            ValueError: When the images are of another type or shape.
        """
        return {FEATURES: self._features(images)}

    def _features(self, images: Tensor) -> Tensor:
        colours = to_colours(images).to(self._device)
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            (features,) = self._network(colours)
        return features


def clip_features(device: torch.device | str = "cpu") -> FidelityFeatures:
    """The image embedding of CLIP ViT-B/32.

    Raises:
        MissingResourceError: Its weights are not in torch's cache, or damaged.
    """
    weights = locate_clip()
    # OpenAI's file is TorchScript, which is read only when it is known to be theirs.
    sha256 = weights.require_hash()
    from torch_fidelity.feature_extractor_clip import FeatureExtractorCLIP

    network = FeatureExtractorCLIP(CLIP_MODEL, ["clip"], feature_extractor_weights_path=str(weights.path))
    return FidelityFeatures(
        network,
        sha256=sha256,
        label="clip",
        preprocessing="TensorFlow 1 bilinear to the network's side, CLIP's mean and deviation",
        device=device,
    )


def dinov2_features(device: torch.device | str = "cpu") -> FidelityFeatures:
    """The class token of DINOv2 ViT-L/14, as in the Frechet distances of Stein et al. (2023).

    torch.hub loads the network's code from torch's cache, and may ask GitHub for the name of its branch.

    Raises:
        MissingResourceError: Its weights or its code are not in torch's cache.
    """
    sha256 = locate_dinov2().require_hash()
    from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = FeatureExtractorDinoV2(DINOV2_MODEL, ["dinov2"])
    return FidelityFeatures(
        network,
        sha256=sha256,
        label="dinov2",
        preprocessing="TensorFlow 1 bilinear to 224x224, ImageNet's mean and deviation",
        device=device,
    )
