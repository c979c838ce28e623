"""Scoring: images from a checkpoint, or images that are there, compared with others in the features of a network."""

import contextlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from dis_cli.config.overrides import apply_overrides
from dis_cli.config.presets import load_preset
from dis_cli.config.schema import RunConfig
from dis_cli.data.source import ImageSource
from dis_cli.events import Event, Finished, Note
from dis_cli.metrics.digit_scores import DigitScores
from dis_cli.metrics.extractors.base import Extractor
from dis_cli.metrics.extractors.digits import DigitFeatures
from dis_cli.metrics.images.sets import SourceImages
from dis_cli.metrics.scores import require_enough
from dis_cli.runtime.device import pick_device
from dis_cli.runtime.process_group import ProcessGroup, join_process_group, meet
from dis_cli.runtime.signals import StopRequest, stop_on_signals
from dis_cli.version import __version__
from dis_cli.workflows.build import build_codec, build_image_source, choices, pick_precision
from dis_cli.workflows.eval_fid.bounds import parse_bounds
from dis_cli.workflows.eval_fid.images import GeneratedImages, generated_unit_size, open_images
from dis_cli.workflows.eval_fid.place import (
    default_path,
    find_place,
    how_generated,
    how_scored,
    require_place,
    short_name,
    write_result,
)
from dis_cli.workflows.eval_fid.references import DATA, ScoreReference, find_reference
from dis_cli.workflows.eval_fid.result import (
    conditions,
    extractor_facts,
    headlines,
    joined,
    measurement_facts,
)
from dis_cli.workflows.eval_fid.save_scored import SavedImages
from dis_cli.workflows.eval_fid.scorer import Scorer, foreign_features, make_scorer, notes_on_images
from dis_cli.workflows.load.identity import require_same_as_run, require_same_images, require_there
from dis_cli.workflows.load.model import LoadedModel, load_model
from dis_cli.workflows.sample.facts import choose_form

# How many images are generated when neither the user nor the reference says: as many as papers take.
USUAL_SAMPLES: Final = 50_000


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be scored, and how.

    Attributes:
        checkpoint: Run folder, checkpoint folder, exported file or folder, or published ``.pt`` file; or None.
        images: A folder, archive or npz file of images, in its place.
        ref: What they are compared with: "data" (that of the run or preset), or a path; None is the data of a
            checkpoint.
        inception: The weights of Inception; None takes those in torch's cache where they are needed.
        extractor: One of the caller's own, such as `FunctionFeatures`, in the place of those that settings name.
        overrides: ``KEY=VALUE`` on the checkpoint's or preset's settings, such as ``evaluate.num_samples=10000``.
        preset: The preset that the checkpoint must belong to, or whose data images are compared with.
        step: The checkpoint of a run folder to take instead of its newest sound one.
        out: The result file; None puts it into the run's ``evaluations``.
        device: "auto", "cpu", "cuda" or "cuda:N".
        interval: Give a confidence interval of the Frechet distance, by the bootstrap.
        repeat: Draw so many times as many images, each time with the next seeds.
        save_images: Where to keep generated images: a folder, or a file that ends in .npz or .zip.
        fail_above: Bounds, such as "fid=5", or "5" of the first metric.
    """

    checkpoint: Path | None = None
    images: Path | None = None
    ref: str | None = None
    inception: Path | None = None
    extractor: Extractor | None = None
    overrides: Sequence[str] = ()
    preset: str | None = None
    step: int | None = None
    out: Path | None = None
    device: str = "auto"
    interval: bool = False
    repeat: int = 1
    save_images: Path | None = None
    fail_above: Sequence[str] = ()
    command: str = ""
    dry_run: bool = False


def evaluate(request: Request) -> Iterator[Event]:
    """Measure how near images are to others, and write down all that the numbers depend on.

    Generated digits are scored by the bundled classifier ("frechet_digits", never called FID), with the accuracy of the
    classes asked for, beside the same numbers of real test images and of simple baselines. Under `torchrun` every
    process calls this, and looks at a share of the images.

    Raises:
        UsageError: The request contradicts itself, or a metric cannot be had.
        MissingResourceError: Weights are not there.
        Interrupted: A signal asked to stop.
        DisError: The checkpoint, the images, the device or the disk do not allow it.
    """
    require_places(request)
    place = pick_device(request.device)
    with contextlib.ExitStack() as held:
        group, stop = yield from work_together(request, place, held)
        if request.checkpoint is None:
            yield from _evaluate_images(request, place, group, stop)
            return
        loaded = load_model(request.checkpoint, place, request.overrides, request.preset, request.step)
        yield from (Note(message=note, level="warning") for note in loaded.notes)
        model = ScoredModel(loaded, request, place, group, stop)
        yield from model.notes()
        settings = model.settings(loaded)
        usual = default_path(loaded, model.name_parts(loaded))
        path = group.from_leader(lambda: find_place(request.out or usual, settings, is_named=request.out is not None))
        settings |= {"result_file": str(path)}
        if request.dry_run:
            yield Finished(result=settings | {"dry_run": True})
            return
        group.require_agreement(agreed(settings))
        model.look_at_saved(loaded)
        yield from model.scorer.prepare()
        found = yield from model.score(loaded)
        yield from finish(settings, found, path, model.scorer)


def require_places(request: Request) -> None:
    """Refuse paths that results cannot be written to, before anything is read.

    Raises:
        UsageError: Something else is there, or a name says something else than what would be written.
        StorageError: The operating system does not allow it.
    """
    if request.out is not None:
        require_place(request.out)
    if request.save_images is not None:
        choose_form(None, request.save_images, None, option="--save-images")


def work_together(
    request: Request, device: torch.device, held: contextlib.ExitStack
) -> Generator[Event, None, tuple[ProcessGroup, StopRequest]]:
    """All ranks, until ``held`` is left; a process that only looks needs no others."""
    stop = held.enter_context(stop_on_signals())
    meeting = None if request.dry_run else (yield from meet(stop))
    group = held.enter_context(join_process_group(device, meeting)) if meeting else ProcessGroup()
    return group, stop


class ScoredModel:
    """A model whose images are scored, with settings that may change from one time to the next."""

    def __init__(
        self, loaded: LoadedModel, request: Request, device: torch.device, group: ProcessGroup, stop: StopRequest
    ) -> None:
        config = loaded.config
        self._request = request
        self._device = device
        self._ref = request.ref or DATA
        if self._ref == DATA:
            require_there(config, loaded.saved_config, loaded.path)
        compared = find_reference(self._ref, config)
        if self._ref == DATA:
            require_same_images(config, loaded.images_fingerprint, loaded.path)
        self.scorer = _scorer_of(request, config, compared, device, group, stop)
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
        self.labels = self._labels(config)
        self._precision = group.from_leader(lambda: pick_precision(config.sample.precision, config, device))
        require_enough(self.scorer.metrics, self.num_samples, "to be scored")
        self._knows_digits = (
            isinstance(self.scorer.extractor, DigitFeatures)
            and self._ref == DATA
            and config.data.source == "digits"
            and compared.split == "test"
        )

    def notes(self) -> list[Note]:
        """What the user should know before."""
        return [Note(message=note, level="warning") for note in self.scorer.told]

    def name_parts(self, loaded: LoadedModel) -> tuple[str, ...]:
        """What a result depends on beside the weights, for its name."""
        how = how_generated(loaded.config, loaded.average.name_parts, self._precision.name)
        return (self.scorer.extractor.name, *how, *self.scored_parts(loaded.config))

    def scored_parts(self, config: RunConfig) -> tuple[str, ...]:
        """What of it is about the scoring."""
        repeat = () if self._request.repeat == 1 else (f"repeat-{self._request.repeat}",)
        return (*scored_parts(config, self.scorer, self.num_samples, self._usual_samples), *repeat)

    def settings(self, loaded: LoadedModel) -> dict[str, object]:
        """All that the numbers depend on."""
        scorer, config, request = self.scorer, loaded.config, self._request
        first = config.evaluate.seed
        return {
            "schema": 1,
            "dis": __version__,
            "checkpoint": str(loaded.path),
            "checkpoint_sha256": loaded.sha256,
            "step": loaded.step,
            "ema_decay": loaded.average.decay,
            **conditions(config, scorer.extractor, self._source, loaded.engine, self.num_samples),
            "seeds": f"{first}-{first + self.num_samples * request.repeat - 1}",
            "repeat": request.repeat,
            "classes": None if self.labels is None else ("as in the data" if self._source else "equally often"),
            "precision": asdict(self._precision),
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
        codec = build_codec(config, self._device, loaded.vae)
        if self._knows_digits and scorer.group.is_leader and scorer.digits is None:
            assert isinstance(scorer.extractor, DigitFeatures)
            scorer.digits = DigitScores(scorer.extractor, config.pixel_size)
        unit_size = scorer.group.from_leader(
            lambda: generated_unit_size(
                loaded.model,
                config,
                self._device,
                num_images=self.num_samples,
                num_ranks=scorer.group.world_size,
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
        if self._request.save_images is None or not self.scorer.group.is_leader:
            return None
        return SavedImages(self._request.save_images, loaded, seeds, self.labels, self._precision)

    def _labels(self, config: RunConfig) -> npt.NDArray[np.int64] | None:
        num_classes = config.model.num_classes
        if not num_classes:
            return None
        if self._source is not None:
            return class_labels(self._source, self.num_samples)
        return np.arange(self.num_samples, dtype=np.int64) * num_classes // self.num_samples


def scored_parts(config: RunConfig, scorer: Scorer, num_samples: int, usual_samples: int) -> tuple[str, ...]:
    """How images are scored, for the name of a result."""
    counts = {"num_samples": num_samples, "usual_samples": usual_samples}
    parts = how_scored(config, scorer.extractor, scorer.metrics, scorer.compared, **counts)
    return (*parts, *(("interval",) if scorer.interval else ()))


def _scorer_of(
    request: Request,
    config: RunConfig,
    compared: ScoreReference | None,
    device: torch.device,
    group: ProcessGroup,
    stop: StopRequest,
) -> Scorer:
    return make_scorer(
        config,
        compared,
        inception=request.inception,
        extractor=request.extractor,
        device=device,
        group=group,
        stop=stop,
        interval=request.interval,
    )


def _evaluate_images(
    request: Request, device: torch.device, group: ProcessGroup, stop: StopRequest
) -> Generator[Event]:
    """Score images that are there."""
    assert request.images is not None
    base = RunConfig() if request.preset is None else load_preset(request.preset)
    config = apply_overrides(base, request.overrides)
    if request.ref == DATA:
        require_same_as_run(request.preset, base, config)
    images = open_images(request.images, config.data.background)
    compared = None if request.ref is None else find_reference(request.ref, config)
    scorer = _scorer_of(request, config, compared, device, group, stop)
    scorer.told += [note for note in notes_on_images(images) if note not in scorer.told]
    scorer.told += foreign_features(scorer.extractor, config) if request.preset is not None else []
    yield from (Note(message=note, level="warning") for note in scorer.told)
    require_enough(scorer.metrics, len(images), "to be scored")
    bounds = parse_bounds(request.fail_above, scorer.metrics, scorer.extractor)
    settings: dict[str, object] = {
        "schema": 1,
        "dis": __version__,
        "images": images.name,
        "num_samples": len(images),
        **extractor_facts(scorer.extractor),
        **measurement_facts(scorer, len(images)),
        "bounds": bounds,
        "command": request.command,
    }
    scored = scored_parts(config, scorer, len(images), len(images))
    data = (short_name(compared.name),) if compared is not None and compared.kind == DATA else ()
    name = "_".join([short_name(str(request.images)), scorer.extractor.name, *data, *scored])
    usual = Path("evaluations") / f"{name}.json"
    path = group.from_leader(lambda: find_place(request.out or usual, settings, is_named=request.out is not None))
    settings |= {"result_file": str(path)}
    if request.dry_run:
        yield Finished(result=settings | {"dry_run": True})
        return
    group.require_agreement(agreed(settings))
    yield from scorer.prepare()
    details: dict[str, object] = {"features": scorer.extractor.name, "device": str(device)}
    found = yield from scorer.score(images, details=details)
    yield from finish(settings, found, path, scorer)


def finish(
    settings: dict[str, object], found: dict[str, object] | None, path: Path, scorer: Scorer
) -> Generator[Event]:
    """Tell and write the result, on the leader; the others wait for it."""
    result = dict(settings)
    if found is not None:
        yield from headlines({key: value for key, value in found.items() if isinstance(value, float)}, scorer.extractor)
        result |= {"notes": scorer.told} | found
        wrote = write_result(path, result)
        if wrote.path != path:
            message = f"`{path}` holds other numbers of the same settings, and stays as it is"
            yield Note(message=message, level="warning")
        yield wrote
    scorer.group.wait_for_leader(scorer.stop, "all images were looked at")
    yield Finished(result=result)


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


def agreed(settings: Mapping[str, object]) -> dict[str, object]:
    """What all ranks must have the same; where their files lie may differ."""
    return {key: value for key, value in settings.items() if key not in ("command", "precision", "engine")}
