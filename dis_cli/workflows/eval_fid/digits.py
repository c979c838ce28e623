"""The real handwritten digits beside which generated ones are scored."""

from collections.abc import Sequence
from dataclasses import dataclass

from dis_cli.config.schema import RunConfig
from dis_cli.data.images.files import FileSource
from dis_cli.data.published.digits import DigitsSource
from dis_cli.data.source import ImageSource
from dis_cli.metrics.digit_scores import DigitScores, digits_of
from dis_cli.metrics.extractors.base import Extractor
from dis_cli.metrics.extractors.classifier import DigitClassifier
from dis_cli.metrics.extractors.digits import DigitFeatures
from dis_cli.metrics.images.sets import FileImages, SourceImages
from dis_cli.workflows.build import build_image_source
from dis_cli.workflows.eval_fid.references import ScoreReference


@dataclass(frozen=True)
class RealDigits:
    """Digits of the classes that a bundled classifier knows.

    Attributes:
        reference: What generated digits are compared with.
        train: What the model was trained on; None when that is the reference, or not there.
    """

    extractor: DigitClassifier
    reference: ImageSource
    train: ImageSource | None

    def scores(self) -> DigitScores:
        """What generated digits are scored by; measures the real ones."""
        side = self.extractor.side
        train = None if self.train is None else digits_of(self.train, side)
        return DigitScores(self.extractor, digits_of(self.reference, side), train)


def real_digits(extractor: Extractor, reference: ImageSource, train: ImageSource | None) -> RealDigits | None:
    """The digits that a classifier was trained for; None of other images, or with another extractor.

    Args:
        train: The training images; left out where they are the reference.
    """
    if not isinstance(extractor, DigitClassifier) or tuple(reference.class_names) != extractor.class_names:
        return None
    # Each classifier scores the digits that it is of.
    if isinstance(reference, DigitsSource) != isinstance(extractor, DigitFeatures):
        return None
    is_same = train is not None and train.fingerprint == reference.fingerprint
    return RealDigits(extractor, reference, None if is_same else train)


def compared_digits(
    extractor: Extractor, compared: ScoreReference, config: RunConfig, class_names: Sequence[str]
) -> RealDigits | None:
    """The digits that a model is compared with, and those of its run.

    Args:
        class_names: Of the model; empty when unknown.
    """
    images = compared.images
    # Of all digits some were trained on, which makes them no reference.
    if not isinstance(extractor, DigitClassifier) or (config.data.source == "digits" and compared.split != "test"):
        return None
    if tuple(class_names) not in ((), extractor.class_names):
        return None
    match images:
        case SourceImages():
            reference = images.source
        case FileImages():
            size, channels = config.pixel_size, config.pixel_channels
            reference = FileSource(images.files, image_size=size, channels=channels, background=config.data.background)
        case _:
            return None
    data = config.data
    is_there = data.source != "latents" and (data.path is None or data.path.exists()) and compared.split != "train"
    return real_digits(extractor, reference, build_image_source(config, split="train") if is_there else None)
