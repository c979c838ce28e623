"""The choice of a feature extractor, and a check that its weights are here. No torch until it is built."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dis_cli.errors import MissingResourceError, UsageError
from dis_cli.metrics.extractors.locate import find_inception, locate_clip, locate_dinov2, locate_inception

if TYPE_CHECKING:
    import torch

    from dis_cli.metrics.extractors.base import Extractor

Name = Literal["inception", "digits", "mnist", "clip", "dinov2"]


@dataclass(frozen=True)
class Features:
    """An extractor whose weights are on this machine.

    Attributes:
        weights: The file, when it is Inception's.
    """

    name: Name
    weights: Path | None = None


def choose_features(requested: Literal["auto"] | Name, source: str, inception: Path | None = None) -> Features:
    """The extractor that settings ask for.

    Args:
        requested: "auto" or the name of one.
        source: The name of the data source, by which "auto" decides.
        inception: A file of Inception's weights; None takes those in torch's cache where they are needed.

    Raises:
        UsageError: Weights of Inception are given for another extractor.
        MissingResourceError: Its weights are not here, or damaged.
    """
    name = requested
    if name == "auto":
        name = "digits" if source == "digits" and inception is None else "inception"
    if inception is not None and name != "inception":
        raise UsageError(
            f"`{inception}` holds weights of Inception, but the features are those of {name}",
            "Give one of `--inception` and `--features`",
        )
    match name:
        case "inception":
            return Features(name, locate_inception(inception))
        case "clip":
            locate_clip()
        case "dinov2":
            locate_dinov2()
        case "digits" | "mnist":
            pass
    return Features(name)


def lacks_inception(requested: Literal["auto"] | Name, source: str, inception: Path | None) -> bool:
    """Whether the features would be Inception's by themselves, and its weights are not on this machine.

    Args:
        requested: As of `choose_features`.
        source: As there.
        inception: A file that is named counts as there: what is wrong with it is told.
    """
    return requested == "auto" and source != "digits" and inception is None and find_inception(None) is None


def download_if_absent(inception: Path | None) -> None:
    """Fetch the weights of Inception into torch's cache unless they are there or named.

    Raises:
        MissingResourceError: They cannot be fetched.
        StorageError: The cache cannot be written.
    """
    if find_inception(inception) is None:
        from dis_cli.metrics.extractors.download import download_inception

        download_inception()


def build_extractor(features: Features, device: "torch.device") -> "Extractor":
    """The extractor, ready to look.

    Raises:
        MissingResourceError: Its weights are damaged.
        RefusedError: They hold more than weights.
    """
    match features.name:
        case "digits":
            from dis_cli.metrics.extractors.digits import DigitFeatures

            return DigitFeatures()
        case "mnist":
            from dis_cli.metrics.extractors.mnist import MnistFeatures

            return MnistFeatures()
        case "inception":
            from dis_cli.metrics.extractors.inception import InceptionFeatures

            if features.weights is None:
                raise MissingResourceError("Inception has no weights")
            return InceptionFeatures(features.weights, device=device)
        case "clip":
            from dis_cli.metrics.extractors.fidelity import clip_features

            return clip_features(device)
        case "dinov2":
            from dis_cli.metrics.extractors.fidelity import dinov2_features

            return dinov2_features(device)
