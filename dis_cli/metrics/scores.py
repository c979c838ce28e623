"""From features to numbers: what each metric needs of two sets of images, kept while they stream by."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final, cast

import torch
from torch import Tensor

from dis_cli.errors import DataError, UsageError
from dis_cli.metrics.bootstrap import GroupedMoments, frechet_interval
from dis_cli.metrics.extractors.base import FEATURES, LOGITS, METRICS, SPATIAL, Extractor, score_names
from dis_cli.metrics.frechet import frechet_distance, sample_size_notes
from dis_cli.metrics.images.extraction import UnitOutputs
from dis_cli.metrics.images.sets import ImageSet
from dis_cli.metrics.inception_score import NUM_SPLITS, InceptionScore, Spread
from dis_cli.metrics.kid import SUBSET_SIZE, kernel_distance, subset_size_for
from dis_cli.metrics.precision_recall import (
    NUM_NEIGHBOURS,
    NUM_NEIGHBOURS_DENSITY,
    PrecisionRecall,
    precision_recall,
)
from dis_cli.metrics.statistics import Moments, Statistics, require_finite
from dis_cli.metrics.table import MetricName

NEIGHBOUR_METRICS: Final = ("precision", "recall", "density", "coverage")
# Of these more is better.
HIGHER_IS_BETTER: Final = ("inception_score", *NEIGHBOUR_METRICS, "class_accuracy")
# Those that need every feature vector of both sets, and not sums of them.
_OF_FEATURES: Final = ("kid", *NEIGHBOUR_METRICS)
_FEWEST: Final = {"inception_score": NUM_SPLITS, "fid": 2, "sfid": 2, "kid": 2} | dict.fromkeys(
    NEIGHBOUR_METRICS, max(NUM_NEIGHBOURS, NUM_NEIGHBOURS_DENSITY) + 1
)


@dataclass(frozen=True)
class Needs:
    """What is kept of a set of images.

    Attributes:
        statistics: Mean and covariance of the features.
        spatial: The same of the spatial features.
        score: What the Inception Score is made of.
        features: All feature vectors.
        groups: Statistics of groups of the images, for the bootstrap.
    """

    statistics: bool = False
    spatial: bool = False
    score: bool = False
    features: bool = False
    groups: bool = False

    @property
    def outputs(self) -> set[str]:
        """Which of an extractor's outputs that takes."""
        of_features = {FEATURES} if self.statistics or self.features or self.groups else set[str]()
        return of_features | ({SPATIAL} if self.spatial else set()) | ({LOGITS} if self.score else set())


@dataclass
class Collected:
    """What is known of a set of images; None where it was not asked for.

    Attributes:
        count: How many there are; None when a file of statistics does not say.
        features: All of them, float32, on the CPU.
        groups: For the bootstrap.
        sizes: How many images there are of each height and width.
        remarks: How many were changed when they were read, by what was done.
        sha256: Of the images' content, where it was looked at; else empty.
    """

    count: int | None
    statistics: Statistics | None = None
    spatial: Statistics | None = None
    features: Tensor | None = None
    score: Spread | None = None
    groups: GroupedMoments | None = None
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter[tuple[int, int]])
    remarks: Counter[str] = field(default_factory=Counter[str])
    sha256: str = ""


class Collector:
    """Adds the parts of a set in order; its memory grows with the images only where all features are needed."""

    def __init__(self, needs: Needs, extractor: Extractor, images: ImageSet, device: torch.device) -> None:
        width = extractor.sizes[FEATURES]
        self._images = images
        self._device = device
        self._moments = Moments(width) if needs.statistics else None
        self._spatial = Moments(extractor.sizes[SPATIAL]) if needs.spatial else None
        self._score = InceptionScore(len(images)) if needs.score else None
        self._groups = GroupedMoments(width) if needs.groups else None
        self._features = torch.empty(len(images), width) if needs.features else None
        self._sizes = Counter[tuple[int, int]]()
        self._remarks = Counter[str]()

    def add(self, part: UnitOutputs) -> None:
        """Add the next images.

        Raises:
            DataError: What the extractor gave for one is no number: names it.
        """
        outputs = {name: values.to(self._device) for name, values in part.outputs.items()}
        for values in outputs.values():
            names = _Names(self._images, part.first)
            require_finite(values, part.first, names)
        features = outputs.get(FEATURES)
        if features is not None:
            if self._moments is not None:
                self._moments.update(features)
            if self._groups is not None:
                self._groups.update(features, part.first)
            if self._features is not None:
                self._features[part.first : part.first + len(features)] = features.cpu()
        if self._spatial is not None:
            self._spatial.update(outputs[SPATIAL])
        if self._score is not None:
            self._score.update(outputs[LOGITS], part.first)
        self._sizes += part.sizes
        self._remarks += part.remarks

    def collected(self) -> Collected:
        """What is known of all images."""
        return Collected(
            count=len(self._images),
            statistics=None if self._moments is None else self._moments.statistics(),
            spatial=None if self._spatial is None else self._spatial.statistics(),
            features=self._features,
            score=None if self._score is None else self._score.score(),
            groups=self._groups,
            sizes=self._sizes,
            remarks=self._remarks,
        )


class _Names(Sequence[str]):
    """Names of images from a place on, each made only when it is asked for."""

    def __init__(self, images: ImageSet, first: int) -> None:
        self._images = images
        self._first = first

    def __len__(self) -> int:
        return len(self._images) - self._first

    def __getitem__(self, place: int | slice) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert isinstance(place, int)
        return self._images.image_name(self._first + place)


def choose_metrics(
    asked: Sequence[str], extractor: Extractor, available: Collection[str] = METRICS
) -> tuple[MetricName, ...]:
    """The metrics that are measured, in one order.

    Args:
        asked: Names, or "all" for those that can be had.
        available: Those that what is compared with allows.

    Raises:
        UsageError: One cannot be had, and was asked for by its name.
    """
    lacks = {"sfid": SPATIAL, "inception_score": LOGITS}
    possible = [name for name in METRICS if name not in lacks or lacks[name] in extractor.sizes]
    for name in asked:
        if name != "all" and name not in possible:
            raise UsageError(
                f"{extractor.name} has no {lacks[name]}, which {name} is measured with",
                f"It allows {', '.join(possible)}",
            )
        if name != "all" and name not in available:
            raise UsageError(
                f"{name} needs the features of all images to compare with, and a file of statistics has their mean and "
                f"covariance{'' if name != 'sfid' else ', here without those of the spatial features'}",
                f"Give the images themselves with `--ref`, or take `--metrics {','.join(available)}`",
            )
    everything = "all" in asked
    chosen = [name for name in METRICS if name in asked or (everything and name in possible and name in available)]
    return cast("tuple[MetricName, ...]", tuple(chosen))


def needs_of(metrics: Collection[str], *, interval: bool = False) -> Needs:
    """What scored images are to be asked for; a reference needs the same but for the score and the groups."""
    return Needs(
        statistics="fid" in metrics,
        spatial="sfid" in metrics,
        score="inception_score" in metrics,
        features=any(name in metrics for name in _OF_FEATURES),
        groups=interval and "fid" in metrics,
    )


def require_enough(metrics: Collection[str], count: int, what: str) -> None:
    """Refuse to measure what cannot be of so few images.

    Raises:
        DataError: Names the metric and how many it needs.
    """
    for name in metrics:
        if count < _FEWEST[name]:
            raise DataError(f"{name} needs {_FEWEST[name]} images or more, and there are {count} {what}")


def numbers(
    metrics: Collection[str],
    scored: Collected,
    reference: Collected | None,
    extractor: Extractor,
    device: torch.device,
) -> dict[str, float]:
    """All metrics, under the names that the extractor allows.

    Args:
        metrics: Which of METRICS.
        reference: What they are compared with; None when only the Inception Score is asked for.
        device: Where distances between features are computed.
    """
    names = score_names(extractor)
    found: dict[str, float] = {}
    if reference is not None and "fid" in metrics:
        assert scored.statistics is not None
        assert reference.statistics is not None
        found[names["fid"]] = frechet_distance(scored.statistics, reference.statistics)
    if reference is not None and "sfid" in metrics:
        assert scored.spatial is not None
        assert reference.spatial is not None
        found[names["sfid"]] = frechet_distance(scored.spatial, reference.spatial)
    if scored.score is not None and "inception_score" in metrics:
        found[names["inception_score"]] = scored.score.mean
        found[f"{names['inception_score']}_std"] = scored.score.std
    if reference is not None and scored.features is not None and reference.features is not None:
        if "kid" in metrics:
            kid = kernel_distance(scored.features, reference.features)
            found |= {names["kid"]: kid.mean, f"{names['kid']}_std": kid.std}
        if any(name in metrics for name in NEIGHBOUR_METRICS):
            balls: PrecisionRecall = precision_recall(scored.features, reference.features, device=device)
            found |= {names[name]: value for name, value in asdict(balls).items() if name in metrics}
    return found


def interval_of(scored: Collected, reference: Collected, extractor: Extractor) -> dict[str, object]:
    """The confidence interval of the Frechet distance, under its name."""
    assert scored.groups is not None
    assert reference.statistics is not None
    interval = frechet_interval(scored.groups, reference.statistics)
    return {f"{score_names(extractor)['fid']}_interval": asdict(interval)}


def notes_on(
    scored: Collected, reference: Collected | None, *, metrics: Collection[str] = (), what: str = "scored"
) -> list[str]:
    """What the reader of the numbers should know about the images.

    Args:
        what: What to call the first.
    """
    notes: list[str] = []
    for kind, found in ((what, scored), ("reference", reference)):
        if found is None:
            continue
        notes += [f"{number:,} {kind} images {remark}" for remark, number in found.remarks.items()]
        if len(found.sizes) > 1:
            (height, width), most = found.sizes.most_common(1)[0]
            notes.append(
                f"The {kind} images are of {len(found.sizes):,} sizes, most ({most:,}) of {width}x{height}: each is "
                "resized to what the extractor takes, uncut"
            )
    if "kid" in metrics and scored.features is not None and reference is not None and reference.features is not None:
        size = subset_size_for(len(scored.features), len(reference.features))
        if size < SUBSET_SIZE:
            notes.append(
                f"The kernel distance is over subsets of {size:,} images, nearly all there are: its spread says little "
                f"(papers: {SUBSET_SIZE:,} of many more)"
            )
    if reference is not None and scored.statistics is not None and reference.statistics is not None:
        notes += sample_size_notes(scored.statistics, reference.statistics)
    return notes
