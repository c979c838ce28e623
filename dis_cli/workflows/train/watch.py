"""Previews and scores of a model during training, of its averaged weights, made by all ranks together."""

import json
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from dis_cli.config.schema import RunConfig
from dis_cli.data.held_out import spread_places
from dis_cli.data.latents.format import VaeRecord
from dis_cli.data.source import ImageSource
from dis_cli.errors import UsageError
from dis_cli.events import Event, Note, Progress, Wrote
from dis_cli.metrics.extractors.base import Extractor
from dis_cli.metrics.scores import choose_metrics
from dis_cli.metrics.table import EPSILON_ERROR, METRICS, OF_MODEL, judges, scores_in_results
from dis_cli.models.backbone import Backbone
from dis_cli.pictures.grid import class_grid, preview_labels
from dis_cli.runs.folder import RunDir, read_events
from dis_cli.runtime.device import Process
from dis_cli.runtime.files import atomic_write_bytes, place_for
from dis_cli.scan.engines.choose import ChosenEngine
from dis_cli.training.state import TrainingState
from dis_cli.version import __version__
from dis_cli.workflows.build import (
    Codec,
    build_codec,
    build_model,
    build_objective,
    build_timestep_draw,
    pick_precision,
)
from dis_cli.workflows.eval_fid.place import how_generated, how_scored, write_result
from dis_cli.workflows.eval_fid.references import ScoreReference, class_labels, reference_images, size_split
from dis_cli.workflows.eval_fid.result import conditions, headlines
from dis_cli.workflows.eval_fid.scorer import compared_with, foreign_features, make_extractor, score
from dis_cli.workflows.held_out import conditions_of, held_out, measure
from dis_cli.workflows.load.averages import choose_average
from dis_cli.workflows.sample.generate import generate


@dataclass(frozen=True)
class Best:
    """The best score of a run so far.

    Attributes:
        step: The optimizer step whose weights it is of.
    """

    metric: str
    value: float
    step: int

    def is_beaten_by(self, value: float) -> bool:
        """True if another score of this metric is better."""
        higher = scores_in_results()[self.metric].higher_is_better
        return value > self.value if higher else value < self.value


@dataclass
class Watcher:
    """Generates from the averaged weights, a share on every rank; the leader draws and scores.

    Every method has to be called by all ranks together.

    Attributes:
        config: Its ``sample``, ``evaluate`` and ``train`` sections say how.
        run: Run that gets the results.
        engine: Engine of the scan.
        class_names: One name a class.
        vae: The VAE that the model's latents are of, when known.
        bests: The best score so far of each metric and conditions, on the leader: others cannot be compared. That of
            the conditions that were met last is last.
    """

    config: RunConfig
    run: RunDir
    process: Process
    engine: ChosenEngine
    class_names: Sequence[str]
    vae: VaeRecord | None
    bests: dict[str, Best] = field(default_factory=dict[str, Best])
    _model: Backbone | None = None
    _codec: Codec | None = None
    _source: ImageSource | None = None
    _held_out: ImageSource | None = None
    _extractor: Extractor | None = None
    _scored: bool = False
    _known: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])

    def prepare(self, data: ImageSource) -> None:
        """Find all that is needed, before anything of the run is changed.

        Args:
            data: What the run is trained on, or, where that is still to be made, the images.

        Raises:
            UsageError: What makes a checkpoint the best is not measured.
            DisError: The VAE, the images to compare with or the weights of Inception are not there.
        """
        train = self.config.train
        if train.preview_every or train.evaluate_every:
            self._codec = build_codec(self.config, self.process.device, self.vae)
        if train.evaluate_every:
            measured = self.config.evaluate.metrics
            if OF_MODEL in measured:
                raise UsageError(
                    f"`train.evaluate_every`: got {train.evaluate_every}, and evaluate.metrics is {OF_MODEL}, which is "
                    "of held-out images and not of generated ones",
                    "Set train.validate_every in its place",
                )
            if (
                train.best_metric != OF_MODEL
                and train.best_metric in METRICS
                and not {train.best_metric, "all"} & {*measured}
            ):
                raise UsageError(
                    f"`train.best_metric`: got `{train.best_metric}`, and evaluate.metrics is {', '.join(measured)}",
                    f"Add `evaluate.metrics={','.join((*measured, train.best_metric))}`",
                )
            self._source = reference_images(self.config)
            if self.process.group.is_leader:
                self._extractor = make_extractor(self.config, None, self.process.device)
        if train.best_metric == OF_MODEL and not train.validate_every:
            raise UsageError(
                f"`train.best_metric`: got `{OF_MODEL}`, which is measured every train.validate_every steps: none",
                "Set train.validate_every too",
            )
        self.hold_out(data)

    def hold_out(self, data: ImageSource) -> None:
        """Find the held-out images.

        Args:
            data: As for `prepare`.
        """
        if self.config.train.validate_every:
            self._held_out = held_out(self.config, data, self.vae, self.process.device)

    def recall(self, last_step: int) -> None:
        """Find out what was done before this start.

        Args:
            last_step: The step that training continues from.
        """
        if self.process.group.is_leader:
            for record in read_events(self.run.events_path):
                step = record.get("step")
                if not isinstance(step, int) or step > last_step:
                    continue
                if record["event"] == "metric":
                    self._known.add((record["name"], step))
                    self._consider(record["name"], record["value"], step, record.get("conditions", {}))
                elif record["event"] == "wrote":
                    # The result is written after its metrics are told: before that, a score is not complete.
                    self._known.add(("score" if record["what"] == "result" else record["what"], step))

    def look(self, state: TrainingState) -> Generator[Event, None, int | None]:
        """The picture and the score that are due at this step, unless an earlier start has made them.

        Returns:
            None, or on all ranks the signal that one of them received meanwhile; what was under way is made by the
            next start.
        """
        train, step = self.config.train, state.step
        intervals = (
            (EPSILON_ERROR, train.validate_every),
            ("preview", train.preview_every),
            ("score", train.evaluate_every),
        )
        due = [name for name, every in intervals if every is not None and step > 0 and step % every == 0]
        if not due:
            return None
        made = self.process.group.from_leader(lambda: self._known)
        wanted = [name for name in due if (name, step) not in made]
        if wanted:
            self._load(state)
        for name in wanted:
            make = {EPSILON_ERROR: self._validate, "preview": self._preview, "score": self._evaluate}[name]
            signal_number = yield from make(step)
            if signal_number is not None:
                return signal_number
            self._known.add((name, step))
        return None

    @property
    def best(self) -> Best | None:
        """The best of the scores of the conditions that the last one has."""
        return next(reversed(self.bests.values()), None)

    def is_best(self, step: int) -> bool:
        """True if the checkpoint of a step has the best score of its conditions, these or earlier ones."""
        return any(best.step == step for best in self.bests.values())

    def is_due(self, step: int) -> bool:
        """True if a score is due at this step."""
        train = self.config.train
        every = [train.evaluate_every, train.validate_every if train.best_metric == OF_MODEL else None]
        return any(step % steps == 0 for steps in every if steps is not None)

    def _load(self, state: TrainingState) -> None:
        if self._model is None:
            self._model = build_model(self.config).to(self.process.device).eval().requires_grad_(False)
        parameters = dict(self._model.named_parameters())
        for name, values in state.whole_average(self.config.sample.ema).items():
            parameters[name].copy_(values)

    def _validate(self, step: int) -> Generator[Event, None, int | None]:
        assert self._model is not None
        assert self._held_out is not None
        config, count = self.config, len(self._held_out)
        places = spread_places(count, config.train.validate_images or count)
        objective = build_objective(config)
        losses = yield from measure(
            self._model,
            self._held_out,
            places,
            objective,
            seed=config.seed,
            draw_timestep=build_timestep_draw(config),
            process=self.process,
        )
        if losses is None or isinstance(losses, int):
            return losses
        decay = config.train.ema_decay if config.sample.ema is None else config.sample.ema
        for metric in losses.metrics(step, conditions_of(self._held_out, len(places), decay)):
            if (metric.name, step) not in self._known:
                self._consider(metric.name, metric.value, step, metric.conditions)
                yield metric
        return None

    def _preview(self, step: int) -> Generator[Event, None, int | None]:
        count, num_classes = self.config.train.preview_images, self.config.model.num_classes
        labels = preview_labels(count, num_classes) if num_classes else None
        images = yield from self._images(range(count if labels is None else len(labels)), labels)
        if isinstance(images, int):
            return images
        if images is not None:
            picture = class_grid(list(images), labels, self.class_names)
            path = place_for(self.run.samples / f"preview-{step:08d}.png", picture)
            atomic_write_bytes(path, picture)
            yield Wrote(what="preview", path=path, step=step)
        return None

    def _evaluate(self, step: int) -> Generator[Event, None, int | None]:
        config = self.config
        assert self._source is not None
        count = config.evaluate.num_samples or len(self._source)
        labels = class_labels(self._source, count) if config.model.num_classes else None
        seeds = range(config.evaluate.seed, config.evaluate.seed + count)
        images = yield from self._images(seeds, None if labels is None else labels.tolist())
        if images is None or isinstance(images, int):
            return images
        assert self._extractor is not None
        metrics = score(torch.from_numpy(images), labels, self._source, self._extractor, config.evaluate.metrics)
        compared = compared_with(self._source, self._extractor, size_split(config))
        result: dict[str, object] = {
            "schema": 1,
            "dis": __version__,
            "step": step,
            "ema_decay": config.train.ema_decay if config.sample.ema is None else config.sample.ema,
            **conditions(config, self._extractor, self._source, self.engine, count),
            "reference": compared.facts,
        }
        for metric in headlines(metrics, self._extractor, step, result):
            self._consider(metric.name, metric.value, step, metric.conditions)
            if (metric.name, step) not in self._known:
                yield metric
        for note in foreign_features(self._extractor, config) if not self._scored else ():
            yield Note(message=note, level="warning")
        self._scored = True
        path = self.run.evaluations / ("_".join(self._name_parts(step, count, self._extractor, compared)) + ".json")
        yield replace(write_result(path, result | {"result_file": str(path)} | metrics), step=step)
        return None

    def _name_parts(self, step: int, count: int, extractor: Extractor, compared: ScoreReference) -> Sequence[str]:
        config = self.config
        assert self._source is not None
        average = choose_average(config, config.sample.ema).name_parts
        how = how_generated(config, average, pick_precision(config.sample.precision, config, self.process.device).name)
        metrics = choose_metrics(config.evaluate.metrics, extractor, compared.available)
        usual = len(self._source)
        scored = how_scored(config, extractor, metrics, compared, num_samples=count, usual_samples=usual)
        return [f"step-{step:08d}", extractor.name, *how, *scored]

    def _images(
        self, seeds: range, labels: Sequence[int] | None
    ) -> Generator[Event, None, npt.NDArray[np.uint8] | int | None]:
        """Generate one image a seed; returns them on the leader, (n, h, w, c) 8-bit, and None elsewhere.

        When a rank received a signal before its images were done, all return its number instead.
        """
        assert self._model is not None
        assert self._codec is not None
        group = self.process.group
        mine = range(group.rank * len(seeds) // group.world_size, (group.rank + 1) * len(seeds) // group.world_size)
        precision = pick_precision(self.config.sample.precision, self.config, self.process.device)
        parts: list[npt.NDArray[np.uint8]] = []
        received = 0
        batches = generate(
            self._model,
            self._codec,
            self.config,
            seeds=[seeds[index] for index in mine],
            classes=None if labels is None else [labels[index] for index in mine],
            device=self.process.device,
            precision=precision.name,
        )
        for batch in batches:
            yield Progress(done=batch.num_done, total=len(mine), unit="images")
            if batch.images is not None:
                parts.append(batch.images.numpy())
            elif self.process.stop.requested is not None:
                received = self.process.stop.requested
                break
        signal_number = int(group.maximum([received])[0])
        if signal_number:
            return signal_number
        gathered = group.gather(parts)
        return None if gathered is None else np.concatenate([part for own in gathered for part in own])

    def _consider(self, name: str, value: float | None, step: int, met: Mapping[str, object]) -> None:
        # What is no number is written down as null, and beats nothing.
        if value is None or not math.isfinite(value):
            return
        if name not in judges(self.config.train.best_metric):
            return
        key = json.dumps([name, met], sort_keys=True)
        best = self.bests.pop(key, None)
        self.bests[key] = Best(name, value, step) if best is None or best.is_beaten_by(value) else best
