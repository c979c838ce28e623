"""Training: open the data, continue or begin the run, take steps, save, look at the model, stop in order."""

import contextlib
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from dis_cli import __version__
from dis_cli.checkpoints.background import CheckpointWriter
from dis_cli.checkpoints.store import finish_replacements, latest_checkpoint
from dis_cli.config.presets import dump_toml
from dis_cli.config.schema import RunConfig
from dis_cli.data.files import FileSource
from dis_cli.data.latents import LatentSource
from dis_cli.data.source import ImageSource
from dis_cli.errors import CheckpointError, ConfigError, DisError, Interrupted, MismatchError
from dis_cli.events import Event, Finished, Note, Started, Stopped
from dis_cli.runtime.device import pick_device
from dis_cli.runtime.distributed import Part
from dis_cli.runtime.files import atomic_write_text
from dis_cli.runtime.machine import num_cores
from dis_cli.runtime.peak import matrix_flops_per_second
from dis_cli.runtime.precision import Precision
from dis_cli.runtime.process_group import ProcessGroup, join_process_group, meet
from dis_cli.runtime.run_dir import RunDir
from dis_cli.runtime.signals import StopRequest, stop_on_signals
from dis_cli.training.parallel import whole
from dis_cli.training.state import TrainingState
from dis_cli.workflows.averages import choose_average
from dis_cli.workflows.build import (
    build_latents,
    build_source,
    choices,
    encodes_first,
    pick_engine,
)
from dis_cli.workflows.build_training import build_training_state
from dis_cli.workflows.check import check_images
from dis_cli.workflows.cost import model_cost
from dis_cli.workflows.encode import EncodeOptions, encode
from dis_cli.workflows.mismatch import check_weights
from dis_cli.workflows.record import Recorder, write_run_json
from dis_cli.workflows.resources import named_vae
from dis_cli.workflows.same_run import (
    check_same_data,
    check_same_run,
    flat_settings,
    recorded_config,
    settle_precision,
)
from dis_cli.workflows.steps import Job, Steps
from dis_cli.workflows.trackers import open_trackers
from dis_cli.workflows.watch import Watcher

_UNTRAINED = "nothing was trained"


def train(
    config: RunConfig,
    out: Path,
    *,
    device: str = "auto",
    fresh: bool = False,
    is_locked: bool = False,
    stop: StopRequest | None = None,
) -> Iterator[Event]:
    """Train until ``config.train.steps`` steps are taken, continuing a run that is already in ``out``.

    Under `torchrun` every process calls this, and all of them train one model; only the leader writes.

    Args:
        config: The run's settings.
        out: The run's folder.
        device: "auto", "cpu", "cuda" or "cuda:N".
        fresh: Start over; what ``out`` holds is moved into its ``earlier-N``.
        is_locked: Whether the caller holds the lock of ``out`` already, on the leader.
        stop: Where the caller notes signals already; None notes them here.

    Raises:
        MismatchError: ``out`` holds a run with other settings or data, or the processes do not agree.
        Interrupted: A signal asked to stop; the current step was saved.
        DisError: The data, the device or the disk do not allow it.
    """
    began = time.monotonic()
    place = pick_device(device)
    engine = pick_engine(config, place)
    run = RunDir(out)
    with contextlib.ExitStack() as held:
        stop = stop or held.enter_context(stop_on_signals())
        meeting = yield from meet(stop)
        group = held.enter_context(join_process_group(place, meeting))
        group.obey(stop, _UNTRAINED)
        # Before the leader decides anything for all.
        versions = {"dis": __version__, "torch": str(torch.__version__)}
        group.require_agreement({**versions, **flat_settings(config)})
        if group.is_leader and not is_locked:
            held.enter_context(run.lock())
        config, precision = group.from_leader(lambda: _checked(run, config, group, place, fresh=fresh))
        source = build_source(config)
        files = source if isinstance(source, FileSource) and config.data.check and not encodes_first(config) else None
        if files is not None and group.is_leader:
            source = yield from check_images(files, on_bad=config.data.on_bad, num_workers=num_cores(), stop=stop)
        group.wait_for_leader(stop, _UNTRAINED)
        # A run begins when all ranks can take part.
        group.obey(stop, _UNTRAINED)
        if group.is_leader:
            if fresh:
                # Only now that all has been found that a new run needs.
                yield from _set_aside(run)
            run.create()
            run.remove_temporaries()
            finish_replacements(run.checkpoints)
            atomic_write_text(run.config_path, dump_toml(config))
        if files is not None and not group.is_leader and config.data.on_bad == "skip":
            # What the leader found is in the cache of checked images.
            source = yield from check_images(files, on_bad="skip", num_workers=num_cores(), stop=stop)
        if encodes_first(config):
            source = yield from _encoded(config, run, group, device)
        group.require_agreement({"data": source.fingerprint})
        yield from _train(Job(config, run, group, place, engine, precision, source, stop, began))


def _checked(
    run: RunDir, config: RunConfig, group: ProcessGroup, device: torch.device, *, fresh: bool
) -> tuple[RunConfig, Precision]:
    """The settings that all ranks train with, once the leader has found nothing wrong with them."""
    # An average that is not kept could not be sampled from in the end.
    choose_average(config, config.sample.ema)
    _require_equal_shares(config, group)
    return _settled(run, config, device, fresh=fresh)


def _require_equal_shares(config: RunConfig, group: ProcessGroup) -> None:
    """Refuse a batch that cannot be dealt out: the batch stays what it is, whatever the number of processes."""
    parts = config.train.accumulation * group.world_size
    batch = config.train.batch_size
    if batch % parts:
        raise ConfigError(
            f"`train.batch_size`: got {batch}, which cannot be dealt out equally to {group.world_size} processes in "
            f"{config.train.accumulation} parts each (train.accumulation)",
            f"Set train.batch_size={max(batch // parts, 1) * parts}, or start another number of processes",
        )


def _settled(run: RunDir, config: RunConfig, device: torch.device, *, fresh: bool) -> tuple[RunConfig, Precision]:
    recorded = None if fresh else recorded_config(run)
    config, precision = settle_precision(recorded, config, device)
    if recorded is not None:
        check_same_run(run, recorded, config)
    return config, precision


def _set_aside(run: RunDir) -> Iterator[Event]:
    """Make room for a run that starts over; what was there stays a run folder of its own."""
    folder = run.set_aside()
    if folder is not None:
        yield Note(message=f"Starting over; what was there before is in {folder}")


def _encoded(config: RunConfig, run: RunDir, group: ProcessGroup, device: str) -> Generator[Event, None, ImageSource]:
    """The latents of the run's images, which all ranks encode into the run's folder at its first start."""
    options = EncodeOptions(
        image_size=config.pixel_size,
        mirrored=config.data.hflip,
        scale=config.codec.scale,
        background=config.data.background,
        check=config.data.check,
        on_bad=config.data.on_bad,
        device=device,
    )
    part = Part(group.rank, group.world_size)
    events = encode(config.data.path, named_vae(config), run.latents, options, kind=config.data.source, part=part)
    for event in events:
        if not isinstance(event, Finished):
            yield event
    return build_latents(config, run.latents)


def _train(job: Job) -> Iterator[Event]:
    """Train, and on the leader write down what happens."""
    state = build_training_state(job.config, job.device, job.group)
    notes, meta = _restore(job, state)
    if not job.group.is_leader:
        yield from _events(job, state, meta)
        return
    # Before anything is appended: a kill may have left half a line, and steps that are about to be done again.
    job.run.truncate_events(state.step)
    settings = job.config.model_dump(mode="json")
    trackers = open_trackers(job.config.train.trackers, job.run, config=settings, first_step=state.step)
    recorder = Recorder(job.run, log_every=job.config.train.log_every, trackers=trackers)
    try:
        for note in notes:
            yield from recorder.record(Note(message=note, level="warning"))
        for event in _events(job, state, meta):
            yield from recorder.record(event)
    except (Exception, KeyboardInterrupt) as error:
        with contextlib.suppress(DisError):
            yield from recorder.record(_stopped(state.step, job.group.cause_of(error) or error))
        raise
    finally:
        recorder.close()


def _stopped(step: int, error: BaseException) -> Stopped:
    reason = "signal" if isinstance(error, Interrupted | KeyboardInterrupt) else "error"
    message = error.message if isinstance(error, DisError) else f"{type(error).__name__}: {error}".rstrip(": ")
    return Stopped(step=step, reason=reason, message=message)


def _restore(job: Job, state: TrainingState) -> tuple[list[str], dict[str, object]]:
    """Continue from the newest sound checkpoint, which the leader reads; returns what is to be said and saved."""
    checkpoint, notes = latest_checkpoint(job.run.checkpoints) if job.group.is_leader else (None, [])
    if checkpoint is None and notes:
        raise CheckpointError(
            f"All checkpoints of `{job.run.path}` are damaged. {'. '.join(notes)}",
            "Begin a new run with `--out DIR`, start this one over with `--fresh`, or remove the damaged folders",
        )
    if checkpoint is not None and "optimizer" not in checkpoint.tensors:
        raise MismatchError(
            f"`{checkpoint.path}` holds weights only, and not what the optimizer needs to go on",
            "It was imported: it can be sampled and scored. Train in another folder with `--out DIR`",
        )
    if checkpoint is not None:
        check_weights(checkpoint.path, checkpoint.tensors["model"], job.config)
        check_same_data(job.run, checkpoint.meta, job.source)
    step, num_skipped = job.group.from_leader(
        lambda: (checkpoint.step, int(checkpoint.meta.get("num_skipped", 0))) if checkpoint else (None, 0)
    )
    if step is not None:
        state.load(checkpoint.tensors if checkpoint else None, job.group)
        state.step, state.num_skipped = step, num_skipped
    meta: dict[str, object] = {
        "config": job.config.model_dump(mode="json"),
        "data_fingerprint": job.source.fingerprint,
        "class_names": list(job.source.class_names),
    }
    if isinstance(job.source, LatentSource):
        meta["vae"] = asdict(job.source.settings.vae)
    return notes, meta


def _events(job: Job, state: TrainingState, meta: dict[str, object]) -> Iterator[Event]:
    config, group, last_step = job.config, job.group, job.config.train.steps
    cost = model_cost(config)
    if group.is_leader:
        write_run_json(job.run, job.device, group, cost.parameters, job.engine, job.precision)
    details: dict[str, object] = {"parameters": cost.parameters, "device": str(job.device), "images": len(job.source)}
    details |= {"processes": group.world_size} if group.world_size > 1 else {}
    yield Started(
        what=f"training {config.name}",
        total=last_step,
        unit="steps",
        first=state.step,
        details=details | {"run": str(job.run.path)},
    )
    yield from choices(job.engine, job.precision)
    vae = job.source.settings.vae if isinstance(job.source, LatentSource) else None
    watcher = Watcher(config.settled(), job.run, group, job.device, job.engine, job.source.class_names, vae, job.stop)
    watcher.prepare(state.step)
    writer = CheckpointWriter(
        job.run.checkpoints,
        keep_last=config.train.keep_last,
        keep=lambda step: _is_kept(config, watcher, step),
        whole=whole,
        writes=group.is_leader,
    )
    steps = Steps(job, state, meta, watcher, writer, peak_flops=_peak_flops(job), macs=cost.macs)
    with contextlib.closing(writer):
        yield from steps.events()
    if state.step > last_step:
        yield Note(message=f"The run is already at step {state.step}, beyond train.steps = {last_step}")
    yield from steps.remarks()
    best = watcher.best
    yield Finished(
        result={
            "run": str(job.run.path),
            "step": state.step,
            "steps": last_step,
            "complete": state.step >= last_step,
            "loss": steps.loss,
            "skipped": state.num_skipped,
            "best": best and asdict(best) | {"checkpoint": str(job.run.checkpoint(best.step))},
            "data_wait_share": round(steps.data_wait_share, 4),
            "parameters": cost.parameters,
            "checkpoint": str(job.run.checkpoint(steps.saved_step)),
        }
    )


def _is_kept(config: RunConfig, watcher: Watcher, step: int) -> bool:
    """Whether a checkpoint outlives the newer ones."""
    every = config.train.keep_every
    return (every is not None and step % every == 0) or (watcher.best is not None and watcher.best.step == step)


def _peak_flops(job: Job) -> float:
    """The matrix speed of all ranks together, in floating-point operations a second."""
    peak = matrix_flops_per_second(job.device, job.precision.name, job.config.model.embed_dim)
    return job.group.sum([peak])[0]


def plan_training(config: RunConfig, out: Path, *, device: str = "auto", fresh: bool = False) -> dict[str, object]:
    """What ``train`` would do, with estimates; reads the data's listing, writes nothing."""
    place = pick_device(device)
    engine = pick_engine(config, place)
    run = RunDir(out)
    config, precision = _settled(run, config, place, fresh=fresh)
    source = build_source(config)
    cost = model_cost(config)
    weights = 4 * cost.parameters
    averages = 1 + len(config.train.ema_more)
    return {
        "run": str(out),
        "images": len(source),
        "steps": config.train.steps,
        "parameters": cost.parameters,
        "macs_per_image": cost.macs,
        # weights, gradients, two moments and the averages
        "state_memory_bytes": (4 + averages) * weights,
        # weights, averages and two moments
        "checkpoint_bytes": (3 + averages) * weights,
        "disk_bytes": (3 + averages) * weights * (config.train.keep_last + 1),
        "engine": asdict(engine),
        "precision": asdict(precision),
        "config": config.model_dump(mode="json"),
    }
