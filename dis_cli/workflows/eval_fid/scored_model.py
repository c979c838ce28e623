"""A model whose images are scored."""

from collections.abc import Generator
from dataclasses import asdict
from typing import Final

import numpy as np
import numpy.typing as npt

from dis_cli.config.schema import RunConfig
from dis_cli.events import Event, Note
from dis_cli.metrics.images.sets import SourceImages
from dis_cli.metrics.scores import require_enough
from dis_cli.runtime.device import Process
from dis_cli.version import __version__
from dis_cli.workflows.build import build_codec, choices, pick_precision
from dis_cli.workflows.eval_fid.bounds import parse_bounds
from dis_cli.workflows.eval_fid.digits import compared_digits
from dis_cli.workflows.eval_fid.images import GeneratedImages, generated_unit_size
from dis_cli.workflows.eval_fid.place import how_generated, how_scored
from dis_cli.workflows.eval_fid.references import DATA, class_labels, find_reference, reference_images
from dis_cli.workflows.eval_fid.request import Request
from dis_cli.workflows.eval_fid.result import conditions, joined, measurement_facts
from dis_cli.workflows.eval_fid.save_scored import SavedImages
from dis_cli.workflows.eval_fid.scorer import Scorer, foreign_features, make_scorer
from dis_cli.workflows.load.identity import require_same_images, require_there
from dis_cli.workflows.load.model import LoadedModel

# How many images are generated when neither the user nor the reference says: as many as papers take.
USUAL_SAMPLES: Final = 50_000


class ScoredModel:
    """A model whose images are scored, with settings that may change from one time to the next."""

    def __init__(self, loaded: LoadedModel, request: Request, process: Process) -> None:
        config = loaded.config
        self._request = request
        self._device = process.device
        self._ref = request.ref or DATA
        if self._ref == DATA:
            require_there(config, loaded.saved.config, loaded.saved.path)
        compared = find_reference(self._ref, config)
        if self._ref == DATA:
            require_same_images(config, loaded.saved.images_fingerprint, loaded.saved.path)
        self.scorer = make_scorer(config, compared, request, process)
        self.scorer.told += foreign_features(self.scorer.extractor, config)
        # The classes of the data, as often as they are in it; of another reference nothing is known.
        self._source = None
        if isinstance(compared.images, SourceImages):
            is_digits = config.data.source == "digits"
            self._source = reference_images(config) if is_digits else compared.images.source
        count = len(self._source) if self._source is not None else compared.count or USUAL_SAMPLES
        self._usual_samples = count
        self.num_samples = config.evaluate.num_samples or count
        self.bounds = parse_bounds(request.fail_above, self.scorer.metrics, self.scorer.extractor)
        self._digits = compared_digits(self.scorer.extractor, compared, config, loaded.saved.class_names)
        self.labels = self._labels(config)
        self._precision = process.group.from_leader(
            lambda: pick_precision(config.sample.precision, config, process.device)
        )
        require_enough(self.scorer.metrics, self.num_samples, "to be scored")

    def notes(self) -> list[Note]:
        """Notes for the user before the work."""
        return [Note(message=note, level="warning") for note in self.scorer.told]

    def name_parts(self, loaded: LoadedModel) -> tuple[str, ...]:
        """The conditions of a result beside the weights, for its name."""
        how = how_generated(loaded.config, loaded.saved.average.name_parts, self._precision.name)
        return (self.scorer.extractor.name, *how, *self.scored_parts(loaded.config))

    def scored_parts(self, config: RunConfig) -> tuple[str, ...]:
        """The conditions among these that are about the scoring."""
        repeat = () if self._request.repeat == 1 else (f"repeat-{self._request.repeat}",)
        return (*scored_parts(config, self.scorer, self.num_samples, self._usual_samples), *repeat)

    def settings(self, loaded: LoadedModel) -> dict[str, object]:
        """All that the numbers depend on."""
        scorer, config, request = self.scorer, loaded.config, self._request
        first = config.evaluate.seed
        return {
            "schema": 1,
            "dis": __version__,
            "checkpoint": str(loaded.saved.path),
            "checkpoint_sha256": loaded.saved.sha256,
            "step": loaded.saved.step,
            "ema_decay": loaded.saved.average.decay,
            **conditions(config, scorer.extractor, self._source, loaded.engine, self.num_samples),
            "seeds": f"{first}-{first + self.num_samples * request.repeat - 1}",
            "repeat": request.repeat,
            "classes": None if self.labels is None else self._classes(),
            "compute_precision": asdict(self._precision),
            **measurement_facts(scorer, self.num_samples),
            "bounds": self.bounds,
            "command": request.command,
        }

    def look_at_saved(self, loaded: LoadedModel) -> None:
        """Find out before the work whether the images can be kept where they are to be.

        Raises:
            UsageError: Something else is there.
        """
        first = loaded.config.evaluate.seed
        self._saved_images(loaded, range(first, first + self.num_samples))

    def score(self, loaded: LoadedModel) -> Generator[Event, None, dict[str, object] | None]:
        """Generate and score, as often as asked for; the result on the leader, None on other ranks."""
        request, config, scorer = self._request, loaded.config, self.scorer
        codec = build_codec(config, self._device, loaded.saved.vae)
        if self._digits is not None and scorer.process.group.is_leader and scorer.digits is None:
            scorer.digits = self._digits.scores()
        unit_size = scorer.process.group.from_leader(
            lambda: generated_unit_size(
                loaded.model,
                config,
                self._device,
                num_images=self.num_samples,
                num_ranks=scorer.process.group.world_size,
            )
        )
        yield from choices(loaded.engine, self._precision)
        details: dict[str, object] = {"sampler": config.sample.sampler, "steps": config.sample.steps}
        details |= {"guidance": f"{config.sample.cfg_scale:g}", "device": str(self._device)}
        rounds: list[dict[str, object] | None] = []
        for number in range(request.repeat):
            first = config.evaluate.seed + number * self.num_samples
            images = GeneratedImages(
                model=loaded.model,
                codec=codec,
                config=config,
                seeds=range(first, first + self.num_samples),
                labels=self.labels,
                device=self._device,
                precision=self._precision.name,
                unit_size=unit_size,
            )
            saved = self._saved_images(loaded, images.seeds)
            if saved is not None:
                saved.begin()
            found = yield from scorer.score(
                images,
                details=details | ({"draw": f"{number + 1} of {request.repeat}"} if request.repeat > 1 else {}),
                labels=self.labels,
                keep_images=request.save_images is not None,
                save=None if saved is None else saved.add,
            )
            if saved is not None:
                yield saved.write()
            rounds.append(found)
        results = [found for found in rounds if found is not None]
        return joined(results) if results else None

    def _saved_images(self, loaded: LoadedModel, seeds: range) -> SavedImages | None:
        if self._request.save_images is None or not self.scorer.process.group.is_leader:
            return None
        return SavedImages(self._request.save_images, loaded, seeds, self.labels, self._precision)

    def _classes(self) -> str:
        """How often each class is asked for."""
        if self._source is not None:
            return "as in the data"
        return "equally often" if self._digits is None else "as in the reference"

    def _labels(self, config: RunConfig) -> npt.NDArray[np.int64] | None:
        num_classes = config.model.num_classes
        if not num_classes:
            return None
        source = self._source or (self._digits and self._digits.reference)
        if source is not None:
            return class_labels(source, self.num_samples)
        return np.arange(self.num_samples, dtype=np.int64) * num_classes // self.num_samples


def scored_parts(config: RunConfig, scorer: Scorer, num_samples: int, usual_samples: int) -> tuple[str, ...]:
    """The way images are scored, for the name of a result."""
    counts = {"num_samples": num_samples, "usual_samples": usual_samples}
    parts = how_scored(config, scorer.extractor, scorer.metrics, scorer.compared, **counts)
    return (*parts, *(("interval",) if scorer.interval else ()))
