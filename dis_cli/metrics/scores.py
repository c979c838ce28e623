"""From features to numbers: the needs of each metric, collected while two sets of images stream by."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from dis_cli.dotted import load
from dis_cli.errors import DataError, UsageError
from dis_cli.metrics.bootstrap import GroupedMoments, frechet_interval
from dis_cli.metrics.extractors.base import FEATURES, LOGITS, SPATIAL, Extractor, score_names
from dis_cli.metrics.frechet import sample_size_notes
from dis_cli.metrics.images.extraction import UnitOutputs
from dis_cli.metrics.images.sets import ImageSet
from dis_cli.metrics.inception_score import Spread
from dis_cli.metrics.statistics import Moments, Statistics, require_finite
from dis_cli.metrics.table import METRICS, without_reference


@dataclass(frozen=True)
class Needs:
    """The data kept of a set of images.

    Attributes:
        statistics: Mean and covariance of the features.
        spatial: The same of the spatial features.
        sums: The metrics that add up the logits as they come.
        features: All feature vectors.
        groups: Statistics of groups of the images, for the bootstrap.
    """

    statistics: bool = False
    spatial: bool = False
    sums: tuple[str, ...] = ()
    features: bool = False
    groups: bool = False

    @property
    def outputs(self) -> set[str]:
        """The extractor's outputs that this takes."""
        of_features = {FEATURES} if self.statistics or self.features or self.groups else set[str]()
        return of_features | ({SPATIAL} if self.spatial else set()) | ({LOGITS} if self.sums else set())


@dataclass
class Collected:
    """The data of a set of images; None where they were not asked for.

    Attributes:
        count: Their number; None when a file of statistics does not say.
        features: All of them, float32, on the CPU.
        sums: The metrics of the logits.
        groups: For the bootstrap.
        sizes: Number of images of each height and width.
        remarks: Number of images changed on reading, by the change.
        sha256: Of the images' content, where it was looked at; else empty.
    """

    count: int | None
    statistics: Statistics | None = None
    spatial: Statistics | None = None
    features: Tensor | None = None
    sums: dict[str, float | Spread] = field(default_factory=dict[str, float | Spread])
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
        self._sums = {name: load(METRICS[name].compute)(len(images)) for name in needs.sums}
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
        for sums in self._sums.values():
            sums.update(outputs[LOGITS], part.first)
        self._sizes += part.sizes
        self._remarks += part.remarks

    def collected(self) -> Collected:
        """The data of all images."""
        return Collected(
            count=len(self._images),
            statistics=None if self._moments is None else self._moments.statistics(),
            spatial=None if self._spatial is None else self._spatial.statistics(),
            features=self._features,
            sums={name: sums.score() for name, sums in self._sums.items()},
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
    asked: Sequence[str], extractor: Extractor, available: Collection[str] | None = None
) -> tuple[str, ...]:
    """The metrics that are measured, in one order.

    Args:
        asked: Names, or "all" for those that can be had.
        extractor: Whose outputs there are.
        available: Those that what is compared with allows; None when there is nothing.

    Raises:
        UsageError: One cannot be had, and was asked for by its name.
    """
    available = without_reference() if available is None else available
    possible = [name for name, row in METRICS.items() if row.output in extractor.sizes]
    for name in asked:
        if name != "all" and METRICS[name].needs == "model":
            raise UsageError(
                f"{name} is of a model and held-out images, not of images that are scored",
                f"Try `dis eval-fid --ckpt RUN --metrics {name}`",
            )
        if name != "all" and name not in possible:
            raise UsageError(
                f"{extractor.name} has no {METRICS[name].output} output, which {name} needs",
                f"It allows {', '.join(possible)}",
            )
        if name != "all" and name not in available:
            spatial = ", here without those of the spatial features" if METRICS[name].needs == "spatial" else ""
            raise UsageError(
                f"{name} needs the features of all images to compare with, but a file of statistics has only their "
                f"mean and covariance{spatial}",
                f"Give the images themselves with `--ref`, or take `--metrics {','.join(available)}`",
            )
    everything = [name for name in possible if name in available] if "all" in asked else []
    return tuple(name for name in METRICS if name in asked or name in everything)


def needs_of(metrics: Collection[str], *, interval: bool = False) -> Needs:
    """The data needed of scored images."""
    kept = {METRICS[name].needs for name in metrics}
    return Needs(
        statistics="statistics" in kept,
        spatial="spatial" in kept,
        sums=tuple(name for name in metrics if METRICS[name].needs == "logits"),
        features="features" in kept,
        groups=interval and "fid" in metrics,
    )


def reference_needs(metrics: Collection[str]) -> Needs:
    """The data needed of the reference images."""
    return needs_of([name for name in metrics if METRICS[name].needs_reference])


def require_enough(metrics: Collection[str], count: int, what: str) -> None:
    """Refuse to measure what cannot be of so few images.

    Raises:
        DataError: Names the metric and how many it needs.
    """
    for name in metrics:
        if count < METRICS[name].fewest:
            raise DataError(f"{name} needs {METRICS[name].fewest} images or more, but there are {count} {what}")


def numbers(
    metrics: Collection[str],
    scored: Collected,
    reference: Collected | None,
    extractor: Extractor,
    device: torch.device,
) -> dict[str, float]:
    """All metrics, under the names that the extractor allows.

    Args:
        metrics: Names in METRICS.
        scored: The images that are scored.
        reference: The images to compare with; None when no metric needs it.
        extractor: The extractor of both.
        device: Device of distances between features.
    """
    names = score_names(extractor)
    computed: dict[str, Any] = {}
    found: dict[str, float] = {}
    for metric in metrics:
        row, name = METRICS[metric], names[metric]
        place = f"{row.compute} of {row.needs}"
        if place not in computed:
            of_device = {"device": device} if row.on_device else {}
            computed[place] = (
                scored.sums[metric]
                if row.needs == "logits"
                else load(row.compute)(*_kept(metric, scored, reference), **of_device)
            )
        match computed[place]:
            case Spread(mean, std):
                found |= {name: mean, f"{name}_std": std}
            case float() | int() as value:
                found[name] = float(value)
            case several:
                found[name] = getattr(several, metric)
    return found


def _kept(metric: str, scored: Collected, reference: Collected | None) -> list[Any]:
    """The inputs of a metric, from the scored images and from the reference."""
    row = METRICS[metric]
    kept = [getattr(each, row.needs) for each in ([scored, reference] if row.needs_reference else [scored])]
    assert None not in kept
    return kept


def interval_of(scored: Collected, reference: Collected, extractor: Extractor) -> dict[str, object]:
    """The confidence interval of the Frechet distance, under its name."""
    assert scored.groups is not None
    assert reference.statistics is not None
    interval = frechet_interval(scored.groups, reference.statistics)
    return {f"{score_names(extractor)['fid']}_interval": asdict(interval)}


def notes_on(
    scored: Collected, reference: Collected | None, *, metrics: Collection[str] = (), what: str = "scored"
) -> list[str]:
    """Notes on the images, for readers of the numbers.

    Args:
        what: Noun for the first.
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
                "resized to the extractor's input, without cropping"
            )
    for name in metrics:
        if (place := METRICS[name].notes) is not None:
            notes += load(place)(*_kept(name, scored, reference))
    if reference is not None and scored.statistics is not None and reference.statistics is not None:
        notes += sample_size_notes(scored.statistics, reference.statistics)
    return notes
