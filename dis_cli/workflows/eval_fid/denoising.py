"""Losses of a checkpoint on held-out images: nothing is generated, and no network looks at images."""

import platform
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path

import torch

from dis_cli.data.held_out import spread_places, unaugmented
from dis_cli.data.images.files import FileSource
from dis_cli.data.images.verify import check_images
from dis_cli.data.latents.format import MANIFEST
from dis_cli.data.source import ImageSource
from dis_cli.errors import Interrupted, UsageError
from dis_cli.events import Event, Finished, Note, Started
from dis_cli.metrics.table import EPSILON_ERROR, OF_MODEL
from dis_cli.runs.folder import RunDir
from dis_cli.runtime.device import Process
from dis_cli.runtime.machine import num_cores
from dis_cli.version import __version__
from dis_cli.workflows.build import (
    build_image_source,
    build_latents,
    build_objective,
    build_source,
    build_timestep_draw,
    encodes_first,
    pick_precision,
    with_precision,
)
from dis_cli.workflows.eval_fid.bounds import read_bounds
from dis_cli.workflows.eval_fid.place import default_path, find_place, write_result
from dis_cli.workflows.eval_fid.request import Request
from dis_cli.workflows.held_out import conditions_of, grids, held_out, measure
from dis_cli.workflows.load.identity import require_same_images, require_there
from dis_cli.workflows.load.model import LoadedModel

# Images at most, unless more are asked for.
_USUAL_IMAGES = 10_000


def evaluate_denoising(loaded: LoadedModel, request: Request, process: Process) -> Generator[Event]:
    """Measure a model's losses on the held-out images of its run, or, where there are none, on its training images.

    Raises:
        UsageError: The request asks for something that is about generated images.
        MismatchError: The data are not those of the run.
        Interrupted: A signal asked to stop.
        DisError: The data, the device or the disk do not allow it.
    """
    _require_sense(request)
    config, saved = loaded.config, loaded.saved
    require_there(config, saved.config, saved.path)
    require_same_images(config, saved.images_fingerprint, saved.path)
    data = yield from _data(loaded, process)
    found = held_out(config, data, saved.vae, process.device)
    source = grids(config, unaugmented(data), saved.vae, process.device) if found is None else found
    if found is None:
        message = "There are no held-out images (data.validation is none): the losses are those on training images"
        yield Note(message=message, level="warning")
    usual = min(len(source), _USUAL_IMAGES)
    places = spread_places(len(source), config.evaluate.num_samples or usual)
    precision = process.group.from_leader(lambda: pick_precision(config.sample.precision, config, process.device))
    settings: dict[str, object] = {
        "schema": 1,
        "dis": __version__,
        "checkpoint": str(saved.path),
        "checkpoint_sha256": saved.sha256,
        "step": saved.step,
        **conditions_of(source, len(places), saved.average.decay),
        "trained_on": found is None,
        "metrics": [OF_MODEL],
        "seed": config.seed,
        "diffusion": config.diffusion.model_dump(mode="json"),
        "engine": asdict(loaded.engine),
        "compute_precision": asdict(precision),
        "versions": {"torch": str(torch.__version__), "python": platform.python_version()},
        "bounds": read_bounds(request.fail_above, (OF_MODEL, EPSILON_ERROR), {}),
        "command": request.command,
    }
    path = process.group.from_leader(lambda: _place(loaded, request, settings, len(places), usual, precision.name))
    settings |= {"result_file": str(path)}
    if request.dry_run:
        yield Finished(result=settings | {"dry_run": True})
        return
    details: dict[str, object] = {"device": str(process.device), "data": source.name}
    yield Started(what="measuring losses", total=len(places), unit="held-out images", details=details)
    objective = build_objective(with_precision(config, precision.name))
    losses = yield from measure(
        loaded.model,
        source,
        places,
        objective,
        seed=config.seed,
        draw_timestep=build_timestep_draw(config),
        process=process,
    )
    if isinstance(losses, int):
        raise Interrupted("Stopped: nothing was written", losses, "Run the same command again")
    result = dict(settings)
    if losses is not None:
        yield from losses.metrics(None, {})
        result |= losses.result
        yield write_result(path, result)
    process.wait_for_leader("all images were looked at")
    yield Finished(result=result)


def _require_sense(request: Request) -> None:
    given = {
        "--ref": request.ref,
        "--interval": request.interval,
        "--repeat": request.repeat > 1,
        "--save-images": request.save_images,
    }
    if names := [name for name, value in given.items() if value]:
        raise UsageError(
            f"{', '.join(names)} is about generated images, and {OF_MODEL} is measured without any",
            "Leave it out; data.validation says which images are held out",
        )


def _data(loaded: LoadedModel, process: Process) -> Generator[Event, None, ImageSource]:
    """What the model was trained on, as far as it is there: of a run that encoded its images the latents."""
    config, run = loaded.config, loaded.saved.run_folder
    if config.data.source == "latents":
        return build_source(config)
    if encodes_first(config) and run is not None and (RunDir(run).latents / MANIFEST).is_file():
        return build_latents(config, RunDir(run).latents)
    source = build_image_source(config, split="train")
    if config.data.on_bad == "skip" and isinstance(source, FileSource):
        # The images that were left out of training are no held-out ones either.
        source = yield from check_images(source, on_bad="skip", num_workers=num_cores(), stop=process.stop)
    return source


def _place(
    loaded: LoadedModel, request: Request, settings: dict[str, object], count: int, usual: int, precision: str
) -> Path:
    parts = ["denoising-loss", *loaded.saved.average.name_parts]
    parts += [] if precision == "fp32" else [precision]
    parts += [] if count == usual else [f"n-{count}"]
    return find_place(request.out or default_path(loaded, parts), settings, is_named=request.out is not None)
