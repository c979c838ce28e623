"""The plan of a training run, with estimates of memory, disk and time; nothing is written."""

import time
from dataclasses import asdict
from pathlib import Path

import torch

from dis_cli.config.schema import RunConfig
from dis_cli.data.images.verify import layout_notes
from dis_cli.diffusion.batch import TrainingBatch
from dis_cli.runs.folder import RunDir
from dis_cli.runtime.device import pick_device
from dis_cli.runtime.peak import matrix_flops_per_second
from dis_cli.training.optimizer import make_optimizer
from dis_cli.workflows.build import build_model, build_objective, build_source, pick_engine, with_precision
from dis_cli.workflows.cost import model_cost, model_shape
from dis_cli.workflows.held_out import trained_on
from dis_cli.workflows.load.identity import identity_of, with_absolute_paths
from dis_cli.workflows.train.branch import Branch
from dis_cli.workflows.train.init import Init
from dis_cli.workflows.train.resume import LastState, check_same_data, notes_on_start, read_last_state
from dis_cli.workflows.train.train import settled

# Seconds that may go by: a step whose matrix products alone take longer is not timed.
_MOST_SECONDS = 10.0
_TURNS = 3


def plan_training(
    config: RunConfig, out: Path, *, device: str = "auto", fresh: bool = False, origin: Init | Branch | None = None
) -> dict[str, object]:
    """The plan of ``train``, with estimates and warnings; reads the data's listing, writes nothing."""
    place = pick_device(device)
    engine = pick_engine(config, place)
    config = with_absolute_paths(config)
    run = RunDir(out)
    last = LastState() if fresh else read_last_state(run, ())
    if origin is not None:
        origin.check(run, last, config)
    config, precision = settled(last, run, config, place)
    source = origin.open_data(config) if isinstance(origin, Branch) else build_source(config)
    if config.data.on_bad == "stop":
        # Which images are bad, and left out, is not known without reading them.
        check_same_data(run, last, source, identity_of(source))
        if isinstance(origin, Branch):
            origin.check_data(config, source, identity_of(source))
    cost = model_cost(config)
    weights = 4 * cost.parameters
    averages = 1 + len(config.train.ema_more)
    seconds = step_seconds(config, place, precision.name)
    first = last.step if last.checkpoint is not None or origin is None else origin.step
    return {
        "run": str(out),
        "warnings": notes_on_start(run, last, config),
        "images": len(trained_on(config, source)),
        "notes": [note.message for note in layout_notes(source, checked=False)],
        "steps": config.train.steps,
        "parameters": cost.parameters,
        "macs_per_image": cost.macs,
        # weights, gradients, two moments and the averages
        "state_memory_bytes": (4 + averages) * weights,
        # weights, averages and two moments
        "checkpoint_bytes": (3 + averages) * weights,
        "disk_bytes": (3 + averages) * weights * (config.train.keep_last + 1),
        "seconds_per_step": seconds,
        "seconds": None if seconds is None else seconds * (config.train.steps - first),
        "engine": asdict(engine),
        "precision": asdict(precision),
        "config": config.model_dump(mode="json"),
    }


def step_seconds(config: RunConfig, device: torch.device, precision: str) -> float | None:
    """Seconds of a training step, without loading its images, on one process; None where it takes too long to time.

    It is that of a part of the batch on random images, the shorter of two after one that is not counted, times the
    parts.
    """
    part = config.train.batch_size // config.train.accumulation
    peak = matrix_flops_per_second(device, precision, model_shape(config).width)
    images = min(part, int(_MOST_SECONDS / _TURNS * peak / (2 * model_cost(config).training_macs)))
    if images < 1:
        return None
    model = build_model(config).to(device).train()
    optimizer = make_optimizer(model, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0)
    objective = build_objective(with_precision(config, precision))
    batch = _batch(config, images, getattr(model, "num_drop_path", 0)).to(device)
    turns: list[float] = []
    for _ in range(_TURNS):
        started = time.perf_counter()
        objective.loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        turns.append(time.perf_counter() - started)
    return min(turns[1:]) * config.train.batch_size / images


def _batch(config: RunConfig, images: int, num_drop_path: int) -> TrainingBatch:
    model = config.model
    grid = torch.rand(images, model.in_channels, model.image_size, model.image_size) * 2 - 1
    labels = torch.arange(images) % max(model.num_classes, 1)
    t = torch.arange(images) * config.diffusion.num_timesteps // images
    draws = torch.ones(images)
    return TrainingBatch(grid, labels, t, torch.randn_like(grid), draws, draws.expand(num_drop_path, images))
