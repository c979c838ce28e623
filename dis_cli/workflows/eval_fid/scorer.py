"""The fixed part of scoring several sets of images: the extractor, the metrics and the reference."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dis_cli.config.schema import RunConfig
from dis_cli.data.images.verify import layout_notes
from dis_cli.data.published.digits import DigitsSource
from dis_cli.data.source import ImageSource
from dis_cli.errors import UsageError
from dis_cli.events import Event, Note, Started
from dis_cli.metrics.digit_scores import DigitScores
from dis_cli.metrics.extractors.base import Extractor
from dis_cli.metrics.extractors.choose import build_extractor, choose_features
from dis_cli.metrics.extractors.classifier import DigitClassifier
from dis_cli.metrics.extractors.digits import DigitFeatures
from dis_cli.metrics.extractors.inception import InceptionFeatures
from dis_cli.metrics.images.extraction import UnitOutputs, extract, look
from dis_cli.metrics.images.sets import FileImages, ImageSet, SourceImages, TensorImages
from dis_cli.metrics.scores import (
    Collected,
    Collector,
    choose_metrics,
    interval_of,
    needs_of,
    notes_on,
    numbers,
    reference_needs,
    require_enough,
)
from dis_cli.metrics.statistics_file import require_same_extractor
from dis_cli.metrics.table import METRICS
from dis_cli.runtime.device import Process
from dis_cli.workflows.eval_fid.digits import real_digits
from dis_cli.workflows.eval_fid.references import ScoreReference, collect
from dis_cli.workflows.eval_fid.request import Request

T = TypeVar("T")


@dataclass
class Scorer:
    """Scores any number of image sets; every method has to be called by all ranks together.

    Attributes:
        extractor: Extractor of their features.
        metrics: Names of the metrics.
        compared: Reference; None when no metric needs it.
        process: The process that runs the extractor.
        interval: Whether to give the confidence interval of the Frechet distance.
        digits: Scores of digits, on the leader, when generated ones are scored.
        told: The notes that the user was given already.
    """

    extractor: Extractor
    metrics: tuple[str, ...]
    compared: ScoreReference | None
    process: Process
    interval: bool = False
    digits: DigitScores | None = None
    told: list[str] = field(default_factory=list[str])
    _reference: Collected | None = None

    def prepare(self) -> Generator[Event]:
        """Look at what the images are compared with, once."""
        if self.compared is not None:
            self._reference = yield from collect(
                self.compared, reference_needs(self.metrics), self.extractor, self.process
            )

    def score(
        self,
        images: ImageSet,
        *,
        details: Mapping[str, object],
        labels: npt.NDArray[np.int64] | None = None,
        keep_images: bool = False,
        save: Callable[[int, Tensor], None] | None = None,
    ) -> Generator[Event, None, dict[str, object] | None]:
        """All that is measured of a set of images.

        Args:
            labels: The class asked for of each.
            keep_images: Whether the leader gets the images themselves.
            save: Called on the leader with the place of the first of some images, and these.

        Returns:
            Numbers and intervals by their names, on the leader; None on the others.
        """
        yield Started(what="scoring", total=len(images), unit="images", details=dict(details))
        needs = needs_of(self.metrics, interval=self.interval)
        with_digits = self.process.group.from_leader(lambda: self.digits is not None)
        collector = Collector(needs, self.extractor, images, self.process.device)
        small: list[Tensor] = []
        for item in extract(
            images,
            self.extractor,
            needs.outputs,
            self.process.group,
            self.process.stop,
            keep_images=keep_images or with_digits,
        ):
            if not isinstance(item, UnitOutputs):
                yield item
                continue
            collector.add(item)
            if item.images is not None and self.digits is not None:
                small.append(self.digits.reduced(item.images))
            if item.images is not None and save is not None:
                save(item.first, item.images)
        if not self.process.group.is_leader:
            return None
        scored = collector.collected()
        found: dict[str, object] = dict(
            numbers(self.metrics, scored, self._reference, self.extractor, self.process.device)
        )
        if self.digits is not None:
            report = self.digits.score(torch.cat(small), labels)
            found = report | {name: value for name, value in found.items() if name not in report}
        if self._reference is not None and self._reference.sha256:
            found["reference_sha256"] = self._reference.sha256
        if self.interval and self._reference is not None:
            found |= interval_of(scored, self._reference, self.extractor)
        yield from self._tell(notes_on(scored, self._reference, metrics=self.metrics))
        return found

    def _tell(self, notes: Sequence[str]) -> Generator[Event]:
        for note in notes:
            if note not in self.told:
                self.told.append(note)
                yield Note(message=note, level="warning")


def make_scorer(config: RunConfig, compared: ScoreReference | None, request: Request, process: Process) -> Scorer:
    """A scorer of what a configuration asks for.

    Args:
        config: Its ``evaluate`` section.
        compared: Reference, or None.
        request: May name the extractor, or the weights of Inception, and ask for a confidence interval.
        process: The process that runs it.

    Raises:
        UsageError: A metric cannot be had with this extractor or reference.
        MismatchError: The statistics to compare with were made by another extractor.
        MissingResourceError: Weights are not there.
    """
    own = request.extractor or make_extractor(config, request.inception, process.device)
    metrics = choose_metrics(config.evaluate.metrics, own, compared and compared.available)
    if request.interval and "fid" not in metrics:
        raise UsageError(
            "`--interval` needs the Frechet distance, which is not among the metrics", "Add fid to --metrics"
        )
    scorer = Scorer(own, metrics, compared, process, request.interval)
    if isinstance(own, InceptionFeatures) and not own.published:
        scorer.told.append(
            "These are not the published Inception weights: scores are not called FID, and cannot be compared with "
            "those in papers"
        )
    if compared is not None and compared.file is not None:
        note = require_same_extractor(compared.file, own, Path(compared.name))
        scorer.told += [] if note is None else [note]
    if compared is not None and compared.images is not None:
        scorer.told += notes_on_images(compared.images)
    if compared is not None:
        of_both = [name for name in metrics if METRICS[name].needs_reference]
        of_features = [name for name in of_both if METRICS[name].needs == "features"]
        if compared.count is not None:
            require_enough([name for name in of_both if name not in of_features], compared.count, "to compare with")
        if compared.images is not None:
            require_enough(of_features, len(compared.images), "to compare with")
    return scorer


def notes_on_images(images: ImageSet) -> list[str]:
    """Notes on images that are files: those that are left out."""
    match images:
        case FileImages():
            notes = layout_notes(images.files, checked=False)
        case SourceImages():
            notes = layout_notes(images.source, checked=False)
        case _:
            notes = []
    return [note.message for note in notes]


def make_extractor(config: RunConfig, inception: Path | None, device: torch.device) -> Extractor:
    """The feature extractor for the images of a run.

    Raises:
        MissingResourceError: Its weights are needed and not there.
    """
    return build_extractor(
        choose_features(config.evaluate.features, config.data.source, inception or config.evaluate.inception), device
    )


def score(
    generated: Tensor,
    labels: npt.NDArray[np.int64] | None,
    source: ImageSource,
    extractor: Extractor,
    metrics: Sequence[str] = ("fid",),
) -> dict[str, float]:
    """All that is measured of images in memory, by this process alone.

    Args:
        generated: (n, h, w, c) 8-bit images.
        labels: The class asked for of each; None when there are none.
        metrics: Names of the metrics; see `choose_metrics`.
    """
    compared = compared_with(source, extractor)
    assert isinstance(compared.images, SourceImages)
    is_digits = isinstance(source, DigitsSource)
    real = real_digits(
        extractor, compared.images.source, DigitsSource(image_size=source.image_size) if is_digits else source
    )
    digits = None if real is None else real.scores()
    chosen = choose_metrics(metrics, extractor, compared.available)
    device = next(iter(look(extractor, list(generated[:1])).values())).device
    scorer = Scorer(extractor, chosen, compared, Process(device), digits=digits)
    _result_of(scorer.prepare())
    found = _result_of(scorer.score(TensorImages(generated), details={}, labels=labels))
    assert found is not None
    return {name: value for name, value in found.items() if isinstance(value, float)}


def compared_with(source: ImageSource, extractor: Extractor, split: str | None = None) -> ScoreReference:
    """Data as what images are compared with: of digits the test images, where their classifier looks.

    Args:
        split: Part of the data; None when that is not to be told.
    """
    if isinstance(extractor, DigitFeatures) and isinstance(source, DigitsSource):
        split, source = "test", DigitsSource("test", image_size=source.image_size, channels=source.channels)
    return ScoreReference("data", source.name, SourceImages(source), split=split)


def foreign_features(extractor: Extractor, config: RunConfig) -> list[str]:
    """A warning when a classifier of digits is used on other data."""
    is_own = (
        config.data.source == "digits" if isinstance(extractor, DigitFeatures) else config.model.num_classes in (0, 10)
    )
    if not isinstance(extractor, DigitClassifier) or is_own or config.data.source == "latents":
        return []
    return [
        "The features are those of a classifier of handwritten digits, and the data are others: its scores say little "
        "about them (`--features inception` is the usual choice)"
    ]


def _result_of(work: Generator[Event, None, T]) -> T:
    """The result of a workflow; its events are not shown."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value
