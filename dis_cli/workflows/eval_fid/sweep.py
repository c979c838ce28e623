"""A model scored at every point of a grid of sampling settings: one table, one picture, the best point marked."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dis_cli.config.schema import RunConfig
from dis_cli.config.sweep import Axis, Point, check_points, points_of
from dis_cli.events import Event, Finished, Note, Wrote
from dis_cli.metrics.extractors.base import score_names
from dis_cli.metrics.table import DIGIT_SCORES, METRICS
from dis_cli.pictures.plot import Curve, curves_png
from dis_cli.runtime.device import join_job, pick_device
from dis_cli.runtime.files import atomic_write_bytes
from dis_cli.runtime.machine import cache_folder
from dis_cli.workflows.eval_fid.evaluate import agreed
from dis_cli.workflows.eval_fid.place import default_path, find_place, listed_values, points_there, write_result
from dis_cli.workflows.eval_fid.request import Request, require_places
from dis_cli.workflows.eval_fid.result import headlines
from dis_cli.workflows.eval_fid.scored_model import ScoredModel
from dis_cli.workflows.load.model import LoadedModel, load_model


def sweep(request: Request, axes: Sequence[Axis]) -> Iterator[Event]:
    """Score a model at all combinations of some settings, with one set of features of the reference.

    The result file is written after every point, so that one that is stopped leaves what it has. Beside it stands the
    picture, with the ending ".png".

    Args:
        axes: Settings that vary; at least one.

    Raises:
        UsageError: A point cannot run.
        DisError: As for `evaluate`.
    """
    assert request.opened is not None
    require_places(request)
    place = pick_device(request.device)
    points = points_of(axes)
    with contextlib.ExitStack() as held:
        process = yield from join_job(place, held, alone=request.dry_run)
        loaded = load_model(request.opened, place, request.preset)
        yield from (Note(message=note, level="warning") for note in loaded.saved.notes)
        asked = loaded.saved.asked_config
        check_points(asked, points)
        model = ScoredModel(loaded, request, process)
        yield from model.notes()
        usual = default_path(loaded, _name_parts(model, loaded, axes))
        first = model.scorer.metrics[0]
        judged = score_names(model.scorer.extractor)[first]
        # What varies is said by each point.
        varies = {"sample"} | ({"ema_decay"} if "sample.ema" in {axis.key for axis in axes} else set())
        result = {key: value for key, value in model.settings(loaded).items() if key not in varies}
        result |= {"fixed": _fixed(asked, axes), "axes": {axis.name: list(axis.values) for axis in axes}}
        result |= {"judged_by": judged, "plot": ""}
        path = process.group.from_leader(
            lambda: find_place(request.out or usual, result, is_named=request.out is not None)
        )
        picture = path.with_suffix(".png")
        result |= {"result_file": str(path), "plot": str(picture), "points": []}
        if request.dry_run:
            yield Finished(result=result | {"dry_run": True, "num_points": len(points)})
            return
        process.group.require_agreement(agreed(result))
        yield from model.scorer.prepare()
        # Until there are more, the points that a sweep that was stopped has left stay.
        num_there = points_there(path)
        rows: list[dict[str, Any]] = []
        best = 0
        for number, point in enumerate(points, start=1):
            loaded = _at(loaded, request, point)
            told = ", ".join(f"{name} {value}" for name, value in point.values.items())
            yield Note(message=f"point {number} of {len(points)}: {told}")
            found = yield from model.score(loaded)
            if found is None:
                continue
            scores = {name: value for name, value in found.items() if isinstance(value, float)}
            yield from headlines(scores, model.scorer.extractor)
            sample = loaded.config.sample.model_dump(mode="json")
            rows.append({"settings": point.values, "sample": sample, "ema_decay": loaded.saved.average.decay} | found)
            best = best_of([row[judged] for row in rows], higher=METRICS[first].higher_is_better)
            result |= {"points": rows, "best": best, "notes": model.scorer.told}
            if number < min(num_there, len(points)):
                continue
            wrote = write_result(path, result)
            path, picture = wrote.path, wrote.path.with_suffix(".png")
            if number == len(points):
                yield wrote
        if rows:
            atomic_write_bytes(picture, sweep_png(axes, rows, judged, best))
            yield Wrote(what="plot", path=picture)
        process.wait_for_leader("all points are done")
        yield Finished(result=result)


def best_of(values: Sequence[float], *, higher: bool) -> int:
    """The place of the best value."""
    return values.index(max(values) if higher else min(values))


def sweep_png(axes: Sequence[Axis], rows: Sequence[Mapping[str, Any]], judged: str, best: int) -> bytes:
    """The picture: the axis of most values from left to right, a line for each combination of the others.

    Args:
        rows: The points, with their "settings" and scores.
        judged: The score that is drawn.
        best: The place of the best point.
    """
    along = max(axes, key=lambda axis: len(axis.values))
    curves: dict[str, list[tuple[int, float]]] = {}
    marked = (0.0, 0.0)
    for place, row in enumerate(rows):
        settings: dict[str, str] = row["settings"]
        name = ", ".join(f"{key} {value}" for key, value in settings.items() if key != along.name)
        point = (along.values.index(settings[along.name]), row[judged])
        curves.setdefault(name, []).append(point)
        if place == best:
            marked = point
    told = ", ".join(f"{name} {value}" for name, value in rows[best]["settings"].items())
    level = rows[best].get("floor") if judged in DIGIT_SCORES else None
    return curves_png(
        [Curve(name, tuple(points), color) for color, (name, points) in enumerate(curves.items())],
        cache=cache_folder() / "matplotlib",
        ticks=along.values,
        title=f"Best: {told} ({judged} {rows[best][judged]:.4g})",
        x_label=along.name,
        y_label=judged,
        best=marked,
        level=None if level is None else ("real images", level),
    )


def _at(loaded: LoadedModel, request: Request, point: Point) -> LoadedModel:
    """The model with the settings of a point; read anew where these name other weights."""
    config = loaded.config_with(point.overrides)
    if config.sample.ema != loaded.config.sample.ema:
        assert request.opened is not None
        device = next(loaded.model.parameters()).device
        return load_model(request.opened.asking(point.overrides), device, request.preset)
    return replace(loaded, config=config)


def _name_parts(model: ScoredModel, loaded: LoadedModel, axes: Sequence[Axis]) -> Sequence[str]:
    """The name of a sweep's result, after that of its model."""
    keys, sample = {axis.key for axis in axes}, loaded.config.sample
    parts = [model.scorer.extractor.name, "sweep", *(listed_values(axis.name, axis.values) for axis in axes)]
    if "sample.sampler" not in keys:
        sampler = sample.sampler.replace("+", "p")
        parts.append(sampler if "sample.steps" in keys else f"{sampler}-{sample.steps}")
    parts += [] if "sample.cfg_scale" in keys or sample.cfg_scale == 1 else [f"cfg-{sample.cfg_scale:g}"]
    parts += [] if "sample.ema" in keys else loaded.saved.average.name_parts
    return [*parts, *model.scored_parts(loaded.config)]


def _fixed(asked: RunConfig, axes: Sequence[Axis]) -> dict[str, object]:
    """The settings of all points."""
    keys = {axis.key for axis in axes}
    # With another sampler come its own steps.
    keys |= {"sample.steps"} if "sample.sampler" in keys else set()
    return {key: value for key, value in asked.sample.model_dump(mode="json").items() if f"sample.{key}" not in keys}
