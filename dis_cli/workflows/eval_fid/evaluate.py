"""Scoring: images from a checkpoint, or existing ones, compared with a reference in the features of a network."""

import contextlib
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

from dis_cli.config.overrides import apply_overrides
from dis_cli.config.presets import load_preset
from dis_cli.config.schema import RunConfig
from dis_cli.events import Event, Finished, Note
from dis_cli.metrics.scores import require_enough
from dis_cli.metrics.table import OF_MODEL
from dis_cli.runtime.device import Process, join_job, pick_device
from dis_cli.version import __version__
from dis_cli.workflows.eval_fid.bounds import parse_bounds
from dis_cli.workflows.eval_fid.denoising import evaluate_denoising
from dis_cli.workflows.eval_fid.images import open_images
from dis_cli.workflows.eval_fid.place import default_path, find_place, short_name, write_result
from dis_cli.workflows.eval_fid.references import DATA, find_reference
from dis_cli.workflows.eval_fid.request import Request, require_places
from dis_cli.workflows.eval_fid.result import extractor_facts, headlines, measurement_facts
from dis_cli.workflows.eval_fid.scored_model import ScoredModel, scored_parts
from dis_cli.workflows.eval_fid.scorer import Scorer, foreign_features, make_scorer, notes_on_images
from dis_cli.workflows.load.identity import require_same_as_run
from dis_cli.workflows.load.model import load_model


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
        process = yield from join_job(place, held, alone=request.dry_run)
        if request.opened is None:
            yield from _evaluate_images(request, process)
            return
        loaded = load_model(request.opened, place, request.preset)
        yield from (Note(message=note, level="warning") for note in loaded.saved.notes)
        if OF_MODEL in loaded.config.evaluate.metrics:
            yield from evaluate_denoising(loaded, request, process)
            return
        model = ScoredModel(loaded, request, process)
        yield from model.notes()
        settings = model.settings(loaded)
        usual = default_path(loaded, model.name_parts(loaded))
        path = process.group.from_leader(
            lambda: find_place(request.out or usual, settings, is_named=request.out is not None)
        )
        settings |= {"result_file": str(path)}
        if request.dry_run:
            yield Finished(result=settings | {"dry_run": True})
            return
        process.group.require_agreement(agreed(settings))
        model.look_at_saved(loaded)
        yield from model.scorer.prepare()
        found = yield from model.score(loaded)
        yield from finish(settings, found, path, model.scorer)


def _evaluate_images(request: Request, process: Process) -> Generator[Event]:
    """Score images that are there."""
    assert request.images is not None
    base = RunConfig() if request.preset is None else load_preset(request.preset)
    config = apply_overrides(base, request.overrides)
    if request.ref == DATA:
        require_same_as_run(request.preset, base, config)
    images = open_images(request.images, config.data.background)
    compared = None if request.ref is None else find_reference(request.ref, config)
    scorer = make_scorer(config, compared, request, process)
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
    path = process.group.from_leader(
        lambda: find_place(request.out or usual, settings, is_named=request.out is not None)
    )
    settings |= {"result_file": str(path)}
    if request.dry_run:
        yield Finished(result=settings | {"dry_run": True})
        return
    process.group.require_agreement(agreed(settings))
    yield from scorer.prepare()
    details: dict[str, object] = {"features": scorer.extractor.name, "device": str(process.device)}
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
            message = f"`{path}` holds other numbers for the same settings, and is kept"
            yield Note(message=message, level="warning")
        yield wrote
    scorer.process.wait_for_leader("all images were processed")
    yield Finished(result=result)


def agreed(settings: Mapping[str, object]) -> dict[str, object]:
    """The facts that must agree on all ranks; the places of their files may differ."""
    return {key: value for key, value in settings.items() if key not in ("command", "compute_precision", "engine")}
