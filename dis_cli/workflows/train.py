"""Training: open the data, continue or begin the run, take steps, save, stop in order."""

import json
import platform
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import torch

from dis_cli import __version__
from dis_cli.checkpoints.store import checkpoint_bytes, latest_checkpoint, prune, write_checkpoint
from dis_cli.config.presets import dump_toml, read_config
from dis_cli.config.schema import RunConfig
from dis_cli.data.batches import TrainingSet, training_batches
from dis_cli.data.files import FileSource
from dis_cli.data.latents import LatentSource
from dis_cli.data.source import ImageSource
from dis_cli.errors import CheckpointError, Interrupted, MismatchError
from dis_cli.events import Event, Finished, Note, Saved, Started, Step
from dis_cli.runtime.device import pick_device
from dis_cli.runtime.distributed import Part
from dis_cli.runtime.files import atomic_write_text
from dis_cli.runtime.machine import num_cores
from dis_cli.runtime.precision import Precision
from dis_cli.runtime.run_dir import RunDir
from dis_cli.runtime.signals import stop_on_signals
from dis_cli.scan.engines import Engine
from dis_cli.training.loop import train_steps
from dis_cli.training.state import TrainingState
from dis_cli.workflows.build import (
    build_latents,
    build_learning_rate,
    build_loss_function,
    build_source,
    build_training_state,
    choices,
    encodes_first,
    num_loader_workers,
    pick_engine,
    pick_precision,
)
from dis_cli.workflows.check import check_images
from dis_cli.workflows.cost import model_cost
from dis_cli.workflows.encode import EncodeOptions, encode
from dis_cli.workflows.resources import named_vae

# Settings that may change between two starts of a run, because they change nothing that was computed so far. Engines
# differ in rounding only, and a run may move to a machine that lacks the one it began with.
CHANGEABLE = frozenset(
    {
        "name",
        "description",
        "engine",
        "train.steps",
        "train.save_every",
        "train.keep_last",
        "train.log_every",
        "data.path",
        "data.check",
        "data.on_bad",
        "data.download",
        "data.num_workers",
        # The folder may move; that it holds the same VAE is checked by its content.
        "codec.vae",
    }
)
CHANGEABLE_SECTIONS = ("sample.", "evaluate.")

# The share of the time in which the model waits for data that is worth a word, and the least time to judge it by.
_STARVED = 0.2
_SECONDS_OF_PROOF = 30.0


def train(config: RunConfig, out: Path, *, device: str = "auto") -> Iterator[Event]:
    """Train until ``config.train.steps`` steps are taken, continuing a run that is already in ``out``.

    Args:
        config: The run's settings.
        out: The run's folder.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        MismatchError: ``out`` holds a run with other settings or data.
        Interrupted: A signal asked to stop; the current step was saved.
        DisError: The data, the device or the disk do not allow it.
    """
    place = pick_device(device)
    engine = pick_engine(config, place)
    run = RunDir(out)
    config, precision = _settle_precision(run, config, place)
    _check_same_run(run, config)
    source = build_source(config)
    if isinstance(source, FileSource) and config.data.check and not encodes_first(config):
        with stop_on_signals() as stop:
            source = yield from check_images(source, on_bad=config.data.on_bad, num_workers=num_cores(), stop=stop)
    run.create()
    with run.lock():
        run.remove_temporaries()
        atomic_write_text(run.config_path, dump_toml(config))
        if encodes_first(config):
            source = yield from _encoded(config, run, device)
        for event in _train_locked(config, run, source, place, engine, precision):
            run.append_event(event)
            _log(run, event, config.train.log_every)
            yield event


def _encoded(config: RunConfig, run: RunDir, device: str) -> Generator[Event, None, ImageSource]:
    """The latents of the run's images, which are encoded into the run's folder at its first start."""
    options = EncodeOptions(
        image_size=config.pixel_size,
        mirrored=config.data.hflip,
        scale=config.codec.scale,
        background=config.data.background,
        check=config.data.check,
        on_bad=config.data.on_bad,
        device=device,
    )
    events = encode(config.data.path, named_vae(config), run.latents, options, kind=config.data.source, part=Part())
    for event in events:
        if not isinstance(event, Finished):
            yield event
    return build_latents(config, run.latents)


def _train_locked(
    config: RunConfig, run: RunDir, source: ImageSource, device: torch.device, engine: Engine, precision: Precision
) -> Iterator[Event]:
    state = build_training_state(config, device)
    checkpoint, notes = latest_checkpoint(run.checkpoints)
    if checkpoint is None and notes:
        raise CheckpointError(
            f"All checkpoints of `{run.path}` are damaged. {'. '.join(notes)}",
            "Begin a new run with `--out DIR`, or remove the damaged folders to begin this one again",
        )
    # Before anything is appended: a kill may have left half a line, and steps that are about to be done again.
    run.truncate_events(checkpoint.step if checkpoint else 0)
    yield from (Note(message=note, level="warning") for note in notes)
    fingerprint = source.fingerprint
    if checkpoint is not None:
        _check_same_data(run, checkpoint.meta, source, fingerprint)
        state.load(checkpoint.tensors, checkpoint.step)
    last_step = config.train.steps
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    _write_run_json(run, device, parameters, engine, precision)
    yield Started(
        what=f"training {config.name}",
        total=last_step,
        unit="steps",
        first=state.step,
        details={"parameters": parameters, "device": str(device), "images": len(source), "run": str(run.path)},
    )
    yield from choices(engine, precision)
    meta: dict[str, object] = {
        "config": config.model_dump(mode="json"),
        "data_fingerprint": fingerprint,
        "class_names": list(source.class_names),
    }
    if isinstance(source, LatentSource):
        meta["vae"] = asdict(source.settings.vae)
    saved_step = state.step
    loss: float | None = None
    seconds = waited = 0.0
    with stop_on_signals() as stop:
        for step in _steps(config, state, source, device):
            yield step
            loss = step.loss
            seconds, waited = seconds + step.seconds, waited + step.data_seconds
            if state.step % config.train.save_every == 0 or state.step == last_step or stop.requested:
                yield _save(run, state, meta, config.train.keep_last)
                saved_step = state.step
            if stop.requested and state.step < last_step:
                raise Interrupted(
                    f"Stopped at step {state.step} of {last_step}, which is saved",
                    stop.requested,
                    "Run the same command again to continue",
                )
    if state.step > last_step:
        yield Note(message=f"The run is already at step {state.step}, beyond train.steps = {last_step}")
    share = waited / seconds if seconds else 0.0
    if share > _STARVED and seconds > _SECONDS_OF_PROOF:
        message = f"{share:.0%} of the time went by waiting for data: see data.num_workers"
        yield Note(message=message, level="warning")
    yield Finished(
        result={
            "run": str(run.path),
            "step": state.step,
            "loss": loss,
            "data_wait_share": round(share, 4),
            "parameters": parameters,
            "checkpoint": str(run.checkpoints / f"step-{saved_step:08d}"),
        }
    )


def _steps(config: RunConfig, state: TrainingState, source: ImageSource, device: torch.device) -> Iterator[Step]:
    num_drop_path = getattr(state.model, "num_drop_path", 0)
    dataset = TrainingSet(
        source, seed=config.seed, num_timesteps=config.diffusion.num_timesteps, num_drop_path=num_drop_path
    )
    batches = training_batches(
        dataset,
        first_step=state.step,
        last_step=config.train.steps,
        batch_size=config.train.batch_size,
        accumulation=config.train.accumulation,
        num_workers=num_loader_workers(config, device),
        pin_memory=device.type == "cuda",
    )
    return train_steps(
        state,
        batches,
        loss_function=build_loss_function(config),
        learning_rate=lambda step: build_learning_rate(config, step),
        accumulation=config.train.accumulation,
        clip_norm=config.train.clip_norm,
        device=device,
    )


def _save(run: RunDir, state: TrainingState, meta: dict[str, object], keep_last: int) -> Saved:
    path = write_checkpoint(run.checkpoints, state.step, state.tensors(), meta)
    prune(run.checkpoints, keep_last, verified=path)
    return Saved(step=state.step, path=path, size_bytes=checkpoint_bytes(path))


def plan_training(config: RunConfig, out: Path, *, device: str = "auto") -> dict[str, object]:
    """What ``train`` would do, with estimates; reads the data's listing, writes nothing."""
    place = pick_device(device)
    engine = pick_engine(config, place)
    run = RunDir(out)
    config, precision = _settle_precision(run, config, place)
    _check_same_run(run, config)
    source = build_source(config)
    cost = model_cost(config)
    weights = 4 * cost.parameters
    return {
        "run": str(out),
        "images": len(source),
        "steps": config.train.steps,
        "parameters": cost.parameters,
        "macs_per_image": cost.macs,
        # weights, gradients, two moments and the average
        "state_memory_bytes": 5 * weights,
        # weights, average and two moments
        "checkpoint_bytes": 4 * weights,
        "disk_bytes": 4 * weights * (config.train.keep_last + 1),
        "engine": asdict(engine),
        "precision": asdict(precision),
        "config": config.model_dump(mode="json"),
    }


def _recorded_config(run: RunDir) -> RunConfig | None:
    """The settings that a run was begun with; None before its first start."""
    if not run.config_path.exists():
        return None
    config = read_config(run.config_path)
    # Only a run from before there was a choice records none; it computed in float32.
    return _with_precision(config, "fp32") if config.train.precision == "auto" else config


def _settle_precision(run: RunDir, config: RunConfig, device: torch.device) -> tuple[RunConfig, Precision]:
    """``config`` with "auto" resolved, by what the run has recorded or else by this machine, and the reason."""
    recorded = _recorded_config(run)
    if config.train.precision == "auto" and recorded is not None:
        precision = Precision(recorded.train.precision, "the run was begun with it")
    else:
        precision = pick_precision(config.train.precision, config, device)
    return _with_precision(config, precision.name), precision


def _with_precision(config: RunConfig, name: str) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update={"precision": name})})


def _check_same_run(run: RunDir, config: RunConfig) -> None:
    recorded = _recorded_config(run)
    if recorded is None:
        return
    before, now = _flat(recorded), _flat(config)
    changed = [
        key
        for key in now
        if before.get(key) != now[key] and key not in CHANGEABLE and not key.startswith(CHANGEABLE_SECTIONS)
    ]
    if changed:
        lines = "".join(f"\n  {key}: {before.get(key)} there, {now[key]} asked for" for key in changed[:12])
        raise MismatchError(
            f"`{run.path}` holds a run with other settings:{lines}",
            "Choose another folder with `--out DIR`, or continue that run with "
            f"`dis train --preset {run.config_path} --out {run.path}`",
        )


def _check_same_data(run: RunDir, meta: dict[str, object], source: ImageSource, fingerprint: str) -> None:
    before = meta.get("data_fingerprint")
    if before != fingerprint:
        raise MismatchError(
            f"The data {source.name} are not those that `{run.path}` was trained on: "
            f"sha256 {str(before)[:12]} then, {fingerprint[:12]} now",
            "Bring the data back as they were, or begin a new run with `--out DIR`",
        )


def _flat(config: RunConfig) -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in config.model_dump(mode="json").items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": entry for name, entry in value.items()}
        else:
            flat[key] = value
    return flat


def _write_run_json(run: RunDir, device: torch.device, parameters: int, engine: Engine, precision: Precision) -> None:
    facts = {
        "schema": 1,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": sys.argv,
        "dis": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "engine": asdict(engine),
        "precision": asdict(precision),
        "parameters": parameters,
    }
    atomic_write_text(run.run_json, json.dumps(facts, indent=2) + "\n")


def _log(run: RunDir, event: Event, log_every: int) -> None:
    match event:
        case Step() if event.step % log_every == 0 or event.step == 1:
            text = f"step {event.step} loss {event.loss:.5f} lr {event.lr:.3e} {event.images_per_second:.1f} images/s"
        case Started():
            text = f"{event.what}: from step {event.first} to {event.total}, {event.details}"
        case Saved():
            text = f"saved step {event.step} in {event.path}"
        case Note():
            text = f"{event.level}: {event.message}"
        case Finished():
            text = f"finished at step {event.result['step']}"
        case _:
            return
    run.append_log(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")
