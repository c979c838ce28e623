"""References of scores: data, a folder, an archive, an array or statistics; measurements of them are kept."""

import json
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import PIL
import torch

from dis_cli.config.schema import RunConfig
from dis_cli.data.source import ImageSource
from dis_cli.errors import UsageError
from dis_cli.events import Event, Started
from dis_cli.metrics.cache import Key, ScoreCache
from dis_cli.metrics.extractors.base import SPATIAL, Extractor, identity
from dis_cli.metrics.images.extraction import UnitOutputs, extract
from dis_cli.metrics.images.npz import may_be_images, open_npz
from dis_cli.metrics.images.sets import FEATURE_BATCH, NpzSet, SourceImages, StoredImages
from dis_cli.metrics.scores import Collected, Collector, Needs
from dis_cli.metrics.statistics import Statistics
from dis_cli.metrics.statistics_file import Reference, read_reference, require_same_extractor
from dis_cli.metrics.table import METRICS
from dis_cli.runtime.device import Process
from dis_cli.workflows.build import build_image_source
from dis_cli.workflows.eval_fid.images import open_images

DATA: Final = "data"

Kind = Literal["data", "images", "statistics"]
Arrays = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class ScoreReference:
    """The reference of a score, found but not yet read.

    Attributes:
        images: The images; None when there are only statistics.
        file: The statistics, in the place of those of ``images``.
        split: Part of the data.
    """

    kind: Kind
    name: str
    images: StoredImages | None
    file: Reference | None = None
    split: str | None = None

    @property
    def available(self) -> tuple[str, ...]:
        """The metrics that can be had with it."""
        lacks = set[str]() if self.images is not None else {"features"}
        if self.file is not None and self.file.spatial is None:
            lacks |= {"spatial"}
        of_images = {name: row for name, row in METRICS.items() if row.needs != "model"}
        return tuple(name for name, row in of_images.items() if row.needs not in lacks or not row.needs_reference)

    @property
    def count(self) -> int | None:
        """The number of its images; None when a file does not say."""
        if self.file is not None:
            return self.file.statistics.count
        return None if self.images is None else len(self.images)

    @property
    def facts(self) -> dict[str, object]:
        """The facts about it, for results."""
        facts: dict[str, object] = {"kind": self.kind, "name": self.name, "n": self.count}
        facts |= {} if self.split is None else {"split": self.split}
        return facts | ({"data": self.file.data, "sha256": self.file.data_sha256} if self.file is not None else {})


def find_reference(ref: str, config: RunConfig) -> ScoreReference:
    """The reference that ``--ref`` names.

    Args:
        ref: "data", or a path.
        config: The data, for "data".

    Raises:
        UsageError: There is no such thing.
        DataError: It is damaged, or empty.
        MismatchError: An npz file holds neither images nor statistics.
    """
    background = config.data.background
    if ref == DATA:
        split = split_of(config)
        source = build_image_source(config, split=split)
        return ScoreReference("data", source.name, SourceImages(source), split=split)
    if config.evaluate.split != "auto":
        raise UsageError(
            f"`--split` selects a part of the run's data, but the reference is `{ref}`",
            "Leave `--split` out, or give `--ref data`",
        )
    path = Path(ref)
    if path.suffix.lower() == ".npz":
        with open_npz(path) as file:
            has_statistics, has_images = "mu" in file.keys, bool(may_be_images(file))
        if has_statistics:
            images = NpzSet(path) if has_images else None
            return ScoreReference("statistics", str(path), images, read_reference(path))
    images = open_images(path, background)
    return ScoreReference("images", images.name, images)


def split_of(config: RunConfig) -> str:
    """The part of the run's data that its images are compared with."""
    return usual_split(config) if config.evaluate.split == "auto" else config.evaluate.split


def usual_split(config: RunConfig) -> str:
    """The part of the run's data that its images are compared with unless another is asked for."""
    return "test" if config.data.source == "digits" else "train"


def reference_images(config: RunConfig) -> ImageSource:
    """The data whose size and classes generated images take after: all digits, or the training images of other data.

    Raises:
        UsageError: The run was trained on latents, and no images were given.
        DataError: They are missing or unreadable.
    """
    return build_image_source(config, split=size_split(config))


def size_split(config: RunConfig) -> str:
    """The part of the data whose size and classes generated images take after."""
    if config.data.source == "digits":
        return "all"
    return "train" if config.evaluate.split == "auto" else config.evaluate.split


def class_labels(source: ImageSource, num_samples: int) -> npt.NDArray[np.int64]:
    """Labels with the source's own class frequencies, whatever the number of samples: its labels, sorted, resampled."""
    positions = (np.arange(num_samples) * len(source)) // num_samples
    return np.sort(source.labels)[positions]


def collect(
    compared: ScoreReference,
    needs: Needs,
    extractor: Extractor,
    process: Process,
) -> Generator[Event, None, Collected | None]:
    """The data of a reference that the metrics need: read, kept from before, or measured now and kept.

    Args:
        compared: The reference.
        needs: Data needed of it; see `reference_needs`.
        extractor: Extractor of its features.
        process: Each of the job has to call this.

    Returns:
        On the leader; None on the others.

    Raises:
        MismatchError: Statistics were made by another extractor.
        DataError: An image cannot be read.
    """
    result = Collected(count=compared.count)
    if compared.file is not None:
        require_same_extractor(compared.file, extractor, Path(compared.name))
        result = replace(result, statistics=compared.file.statistics, spatial=compared.file.spatial)
        needs = replace(needs, statistics=False, spatial=False)
    if compared.images is None or not needs.outputs:
        return result if process.group.is_leader else None
    images = compared.images
    entries = _Entries(images, extractor, process.device)
    missing = process.group.from_leader(lambda: entries.load(needs, result))
    if missing.outputs:
        yield Started(what=f"looking at {images.name}", total=len(images), unit="images")
        collector = Collector(missing, extractor, images, process.device)
        for item in extract(images, extractor, missing.outputs, process.group, process.stop):
            if isinstance(item, UnitOutputs):
                collector.add(item)
            else:
                yield item
        if process.group.is_leader:
            entries.keep(missing, collector.collected(), result)
    return result if process.group.is_leader else None


class _Entries:
    """Earlier measurements of a reference, by its content."""

    def __init__(self, images: StoredImages, extractor: Extractor, device: torch.device) -> None:
        self._images = images
        self._extractor = extractor
        packages = f"torch {torch.__version__}, torch-fidelity {version('torch-fidelity')}, pillow {PIL.__version__}"
        self._computed = f"{device.type}, {packages}, batch {FEATURE_BATCH}"
        self._cache = ScoreCache()
        self._sha256 = ""

    def load(self, needs: Needs, result: Collected) -> Needs:
        """Put into ``result`` what is there; returns what is not."""
        result.sha256 = self._sha256 = self._images.sha256()
        missing = Needs()
        for name in _wanted(needs):
            arrays = self._cache.get(self._key(name))
            if arrays is None:
                missing = replace(missing, **{name: True})
            elif name == "features":
                result.features = torch.from_numpy(arrays["features"])
                _take_seen(arrays, result)
            else:
                count = int(arrays["count"].item())
                setattr(result, name, Statistics(arrays["mean"], arrays["covariance"], count))
                _take_seen(arrays, result)
        return missing

    def keep(self, missing: Needs, found: Collected, result: Collected) -> None:
        """Put what was measured into ``result``, and keep it."""
        seen: Arrays = {"seen": np.frombuffer(_seen_text(found).encode(), np.uint8)}
        for name in _wanted(missing):
            value = getattr(found, name)
            setattr(result, name, value)
            arrays: Arrays = (
                {"features": value.numpy()}
                if name == "features"
                else {"mean": value.mean, "covariance": value.covariance, "count": np.array(value.count)}
            )
            self._cache.put(self._key(name), arrays | seen)
        result.sizes, result.remarks = found.sizes, found.remarks

    def _key(self, name: str) -> Key:
        extractor = self._extractor
        return Key(
            kind=name,
            images_sha256=self._sha256,
            num_images=len(self._images),
            extractor=extractor.name,
            extractor_sha256=extractor.sha256,
            preprocessing=extractor.preprocessing,
            computed=self._computed,
        )


def _wanted(needs: Needs) -> Sequence[Literal["statistics", "spatial", "features"]]:
    return [name for name in ("statistics", "spatial", "features") if getattr(needs, name)]


def _seen_text(found: Collected) -> str:
    return json.dumps({"sizes": [[*size, number] for size, number in found.sizes.items()], "remarks": found.remarks})


def _take_seen(arrays: Arrays, result: Collected) -> None:
    seen = json.loads(arrays["seen"].tobytes())
    result.sizes = Counter({(height, width): number for height, width, number in seen["sizes"]})
    result.remarks = Counter(seen["remarks"])


def reference_file(found: Collected, compared: ScoreReference, extractor: Extractor, sha256: str) -> Reference:
    """A reference as a file of statistics holds it.

    Args:
        found: With the statistics, and the spatial ones where the extractor has them.
        sha256: Of the images' content.
    """
    assert found.statistics is not None
    assert (found.spatial is not None) == (SPATIAL in extractor.sizes)
    return Reference(found.statistics, found.spatial, identity(extractor), compared.name, sha256)
