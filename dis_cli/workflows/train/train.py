"""Training: open the data, continue or begin the run, take steps, save, look at the model, stop in order."""

import contextlib
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch

from dis_cli.checkpoints.background import CheckpointWriter
from dis_cli.checkpoints.store import finish_replacements
from dis_cli.config.presets import dump_toml
from dis_cli.config.schema import RunConfig
from dis_cli.data.held_out import first_look
from dis_cli.data.images.files import FileSource
from dis_cli.data.images.verify import check_images, layout_notes
from dis_cli.data.latents.source import LatentSource
from dis_cli.errors import DisError, Interrupted
from dis_cli.events import Event, Finished, Note, Started, Stopped, Wrote
from dis_cli.runs.folder import RunDir
from dis_cli.runs.record import Recorder, write_run_json
from dis_cli.runs.trackers import open_trackers
from dis_cli.runtime.device import join_job, pick_device, require_compiler
from dis_cli.runtime.distributed import WorkShare
from dis_cli.runtime.files import atomic_write_text
from dis_cli.runtime.machine import num_cores
from dis_cli.runtime.peak import matrix_flops_per_second
from dis_cli.runtime.precision import Precision
from dis_cli.runtime.process_group import ProcessGroup
from dis_cli.runtime.signals import StopRequest
from dis_cli.training.parallel import whole
from dis_cli.training.state import TrainingState
from dis_cli.version import __version__
from dis_cli.workflows.build import build_latents, build_source, choices, encodes_first, pick_engine
from dis_cli.workflows.cost import model_cost, model_shape
from dis_cli.workflows.encode_latents import EncodeOptions, Encoding, run_encoding
from dis_cli.workflows.held_out import share_of, trained_on
from dis_cli.workflows.load.averages import choose_average
from dis_cli.workflows.load.identity import identity_of, with_absolute_paths
from dis_cli.workflows.load.mismatch import check_weights
from dis_cli.workflows.preflight import named_vae
from dis_cli.workflows.train.branch import Branch
from dis_cli.workflows.train.build import build_training_state
from dis_cli.workflows.train.init import Init
from dis_cli.workflows.train.resume import (
    LastState,
    check_same_data,
    check_same_run,
    counts_of,
    flat_settings,
    notes_on_start,
    read_last_state,
    require_begun,
    require_trainable,
    settle_precision,
)
from dis_cli.workflows.train.shares import require_equal_shares
from dis_cli.workflows.train.steps import Job, Steps
from dis_cli.workflows.train.watch import Watcher

_UNTRAINED = "nothing was trained"


def train(
    config: RunConfig,
    out: Path,
    *,
    device: str = "auto",
    fresh: bool = False,
    origin: Init | Branch | None = None,
    is_locked: bool = False,
    stop: StopRequest | None = None,
) -> Iterator[Event]:
    """Train until ``config.train.steps`` steps are taken, continuing a run that is already in ``out``.

    Under `torchrun` every process calls this, and all of them train one model; only the leader writes.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        fresh: Start over; what ``out`` holds is moved into its ``earlier-N``.
        origin: The model or state that a new run begins with; ``config`` has its settings.
        is_locked: Whether the caller holds the lock of ``out`` already, on the leader.
        stop: The caller's note of signals; None notes them here.

    Raises:
        MismatchError: ``out`` holds a run with other settings or data, or the processes do not agree.
        Interrupted: A signal asked to stop; the current step was saved.
        DisError: The data, the device or the disk do not allow it.
    """
    began = time.monotonic()
    place = pick_device(device)
    engine = pick_engine(config, place)
    config = with_absolute_paths(config)
    run = RunDir(out)
    with contextlib.ExitStack() as held:
        process = yield from join_job(place, held, stop=stop)
        group, stop = process.group, process.stop
        process.obey(_UNTRAINED)
        # Before the leader decides anything for all.
        versions = {"dis": __version__, "torch": str(torch.__version__)}
        group.require_agreement({**versions, **flat_settings(config)})
        if group.is_leader and not is_locked:
            held.enter_context(run.lock())
        # From here to `_begun` all is looked at that a start can be refused for, and nothing is written.
        last = read_last_state(run) if group.is_leader and not fresh else LastState()
        config, precision = group.from_leader(lambda: _checked(last, run, config, group, place, origin))
        source = origin.open_data(config) if isinstance(origin, Branch) else build_source(config)
        encoding = _encoding(config, run, device) if encodes_first(config) else None
        is_checked = encoding is None or not encoding.is_begun
        files = source if isinstance(source, FileSource) and config.data.check and is_checked else None
        if group.is_leader and encoding is None:
            yield from layout_notes(source, checked=config.data.check)
        if files is not None and group.is_leader:
            source = yield from check_images(files, on_bad=config.data.on_bad, num_workers=num_cores(), stop=stop)
        process.wait_for_leader(_UNTRAINED)
        if files is not None and not group.is_leader and config.data.on_bad == "skip":
            # What the leader found is in the cache of checked images.
            source = yield from check_images(files, on_bad="skip", num_workers=num_cores(), stop=stop)
        identity = identity_of(source)
        group.require_agreement({"data": identity["data_fingerprint"]})
        check_same_data(run, last, source, identity)
        if isinstance(origin, Branch):
            origin.check_data(config, source, identity)
        if config.train.compile:
            require_compiler(place)
        vae = source.settings.vae if isinstance(source, LatentSource) else None
        watcher = Watcher(config.settled(), run, process, engine, source.class_names, vae)
        watcher.prepare(source)
        # A run begins when all ranks can take part.
        process.obey(_UNTRAINED)
        job = Job(config, run, process, engine, precision, source, identity, began)
        yield from _trained(job, last, encoding, watcher, origin, fresh=fresh)


def _checked(
    last: LastState,
    run: RunDir,
    config: RunConfig,
    group: ProcessGroup,
    device: torch.device,
    origin: Init | Branch | None,
) -> tuple[RunConfig, Precision]:
    """The settings that all ranks train with, once the leader has found nothing wrong with them."""
    if origin is None:
        require_begun(run, last)
    else:
        origin.check(run, last, config)
    # An average that is not kept could not be sampled from in the end.
    choose_average(config, config.sample.ema)
    require_equal_shares(config, group)
    config, precision = settled(last, run, config, device)
    if last.checkpoint is not None:
        check_weights(last.checkpoint.path, last.checkpoint.tensors["model"], config)
    return config, precision


def settled(last: LastState, run: RunDir, config: RunConfig, device: torch.device) -> tuple[RunConfig, Precision]:
    """The settings that a run begins or continues with, and why its precision is what it is.

    Raises:
        MismatchError: The run in the folder has others, or cannot be continued.
    """
    config, precision = settle_precision(last.recorded, config, device)
    if last.recorded is not None:
        check_same_run(run, last.recorded, config)
    require_trainable(last)
    return config, precision


def _encoding(config: RunConfig, run: RunDir, device: str) -> Encoding:
    """The encoding of the run's images, done by all ranks at its first start; nothing is encoded yet."""
    options = EncodeOptions(
        image_size=config.pixel_size,
        mirrored=config.data.hflip,
        scale=config.codec.scale,
        background=config.data.background,
        check=config.data.check,
        on_bad=config.data.on_bad,
        device=device,
    )
    return Encoding.prepare(config.data.path, named_vae(config), run.latents, options, kind=config.data.source)


def _trained(
    job: Job, last: LastState, encoding: Encoding | None, watcher: Watcher, given: Init | Branch | None, *, fresh: bool
) -> Iterator[Event]:
    """Begin or continue the run and train; on the leader what happens is written down."""
    notes = notes_on_start(job.run, last, job.config)
    origin = given if job.process.group.from_leader(lambda: last.checkpoint is None) else None
    first = last.step if origin is None else origin.step
    lineage = last.meta.get("lineage") if origin is None else origin.lineage(job.config)
    recorder = (yield from _begun(job, first, lineage, fresh=fresh)) if job.process.group.is_leader else None
    state = None
    try:
        for note in notes:
            yield from _recorded(recorder, Note(message=note, level="warning"))
        if encoding is not None:
            job = yield from _encoded(job, encoding)
            watcher.hold_out(job.source)
        state = _restored(job, last)
        meta = _meta(job) | ({} if lineage is None else {"lineage": lineage})
        if origin is not None:
            for event in origin.begin(job, state, meta):
                yield from _recorded(recorder, event)
        for event in _events(job, state, meta, watcher):
            if recorder is not None and job.config.train.report and isinstance(event, Finished):
                yield from _reported(recorder, job.run)
            yield from _recorded(recorder, event)
            if recorder is not None and job.config.train.report and _is_score(event):
                yield from _reported(recorder, job.run)
    except (Exception, KeyboardInterrupt) as error:
        if recorder is not None:
            stopped = _stopped(first if state is None else state.step, job.process.group.cause_of(error) or error)
            with contextlib.suppress(DisError):
                yield from recorder.record(stopped)
        raise
    finally:
        if recorder is not None:
            recorder.close()


def _is_score(event: Event) -> bool:
    return isinstance(event, Wrote) and event.what == "result"


def _reported(recorder: Recorder, run: RunDir) -> Iterator[Event]:
    """Write the run's page; what hinders it does not end the training."""
    # Imported late: it draws.
    from dis_cli.workflows.run_page import write_run_page

    try:
        event = Wrote(what="report", path=write_run_page(run.path, str(run.path)))
    except DisError as error:
        event = Note(message=f"The report was not written: {error.message}", level="warning")
    yield from recorder.record(event)


def _recorded(recorder: Recorder | None, event: Event) -> Iterator[Event]:
    return iter((event,)) if recorder is None else recorder.record(event)


def _begun(job: Job, step: int, lineage: object, *, fresh: bool) -> Generator[Event, None, Recorder]:
    """Change the run's folder for the first time: all has been found that this start needs."""
    config, run = job.config, job.run
    # What was there stays a run folder of its own.
    aside = run.set_aside() if fresh else None
    try:
        settings = config.model_dump(mode="json")
        trackers = open_trackers(config.train.trackers, run, config=settings, first_step=step)
    except BaseException:
        if aside is not None:
            run.put_back(aside)
        raise
    recorder = Recorder(run, log_every=config.train.log_every, trackers=trackers)
    try:
        run.create()
        run.remove_temporaries()
        finish_replacements(run.checkpoints)
        # A kill may have left half a line, and steps that are about to be done again.
        run.truncate_events(step)
        cost = model_cost(config)
        group, device = job.process.group, job.process.device
        write_run_json(run, config, device, group, cost.parameters, job.engine, job.precision, lineage)
        atomic_write_text(run.config_path, dump_toml(config))
        if aside is not None:
            yield Note(message=f"Starting over; the earlier run is in {aside}")
    except BaseException:
        recorder.close()
        raise
    return recorder


def _stopped(step: int, error: BaseException) -> Stopped:
    reason = "signal" if isinstance(error, Interrupted | KeyboardInterrupt) else "error"
    message = error.message if isinstance(error, DisError) else f"{type(error).__name__}: {error}".rstrip(": ")
    return Stopped(step=step, reason=reason, message=message)


def _encoded(job: Job, encoding: Encoding) -> Generator[Event, None, Job]:
    """The job with the latents of its images, which all ranks encode into the run's folder at its first start."""
    for event in run_encoding(encoding, WorkShare(job.process.group.rank, job.process.group.world_size)):
        if not isinstance(event, Finished):
            yield event
    # Training needs the memory of the VAE.
    del encoding.codec
    source = first_look(build_latents(job.config, job.run.latents), job.config.data.max_images)
    identity = identity_of(source)
    job.process.group.require_agreement({"data": identity["data_fingerprint"]})
    return replace(job, source=source, identity=identity)


def _restored(job: Job, last: LastState) -> TrainingState:
    """The state after the last checkpoint, which the leader has read."""
    state = build_training_state(job.config, job.process.device, job.process.group)
    checkpoint = last.take()
    counts = job.process.group.from_leader(lambda: counts_of(checkpoint, job.config) if checkpoint else None)
    if counts is not None:
        state.load(checkpoint.tensors if checkpoint else None, job.process.group)
        state.step, state.num_skipped, state.images = counts
    return state


def _meta(job: Job) -> dict[str, object]:
    """What is saved beside the weights."""
    meta: dict[str, object] = {
        "config": job.config.model_dump(mode="json"),
        **job.identity,
        "class_names": list(job.source.class_names),
    }
    if isinstance(job.source, LatentSource):
        meta["vae"] = asdict(job.source.settings.vae)
    if (held := share_of(job.config, job.source)) is not None:
        # Which they are follows from the data and the seed; this says whether it was so.
        meta["held_out"] = {"images": len(held), "sha256": held.fingerprint}
    return meta


def _events(job: Job, state: TrainingState, meta: dict[str, object], watcher: Watcher) -> Iterator[Event]:
    config, group, last_step = job.config, job.process.group, job.config.train.steps
    cost = model_cost(config)
    details: dict[str, object] = {
        "parameters": cost.parameters,
        "device": str(job.process.device),
        "images": len(trained_on(config, job.source)),
    }
    details |= {"processes": group.world_size} if group.world_size > 1 else {}
    yield Started(
        what=f"training {config.name}",
        total=last_step,
        unit="steps",
        first=state.step,
        details=details | {"run": str(job.run.path)},
    )
    yield from choices(job.engine, job.precision)
    watcher.recall(state.step)
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
            "preview": max(map(str, job.run.samples.glob("preview-*")), default=None),
            "data_wait_share": round(steps.data_wait_share, 4),
            "parameters": cost.parameters,
            "checkpoint": str(job.run.checkpoint(steps.saved_step)),
        }
    )


def _is_kept(config: RunConfig, watcher: Watcher, step: int) -> bool:
    """True if a checkpoint outlives the newer ones."""
    every = config.train.keep_every
    return (every is not None and step % every == 0) or watcher.is_best(step)


def _peak_flops(job: Job) -> float:
    """The matrix speed of all ranks together, in floating-point operations a second."""
    peak = matrix_flops_per_second(job.process.device, job.precision.name, model_shape(job.config).width)
    return job.process.group.sum([peak])[0]
