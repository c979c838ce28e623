"""The objects of a training run, built of its configuration: state, learning rate, loaders."""

import torch

from dis_cli.config.schema import RunConfig
from dis_cli.runtime.device import require_compiler
from dis_cli.runtime.distributed import local_world_size
from dis_cli.runtime.machine import num_cores
from dis_cli.runtime.process_group import ProcessGroup
from dis_cli.training.ema import Ema
from dis_cli.training.lr import learning_rate
from dis_cli.training.optimizer import make_optimizer
from dis_cli.training.parallel import replicate, shard
from dis_cli.training.state import TrainingState
from dis_cli.workflows.build import build_model


def build_training_state(config: RunConfig, device: torch.device, group: ProcessGroup) -> TrainingState:
    """The state before the first step, on every rank of a group.

    Raises:
        ConfigError: The model is to be compiled, and torch cannot compile on this machine.
    """
    train = config.train
    model = build_model(config).to(device)
    model.gradient_checkpointing = train.gradient_checkpointing
    if train.compile:
        require_compiler(device)
        # In place, so that parameters keep their names.
        model.compile()
    module: torch.nn.Module = model
    if group.world_size > 1 and train.sharding == "fsdp":
        shard(model)
    elif group.world_size > 1:
        module = replicate(model)
    optimizer = make_optimizer(model, lr=train.lr, betas=train.betas, weight_decay=train.weight_decay)
    ema, *more = (Ema(model, decay=decay, warmup=train.ema_warmup) for decay in (train.ema_decay, *train.ema_more))
    return TrainingState(model, ema, optimizer, tuple(more), module)


def build_learning_rate(config: RunConfig, step: int) -> float:
    """The learning rate of a step, counted from 0."""
    train = config.train
    return learning_rate(
        step,
        peak=train.lr,
        warmup_steps=train.warmup_steps,
        total_steps=train.steps,
        schedule=train.lr_schedule,
        min_ratio=train.min_lr_ratio,
        decay_fraction=train.decay_fraction,
        warmup_start=train.warmup_start,
    )


def max_skipped(config: RunConfig) -> int:
    """The number of updates that may be skipped because the loss or a gradient is not finite."""
    policy, _, count = config.train.on_nonfinite.partition(":")
    return int(count) if policy == "skip" else 0


def num_loader_workers(config: RunConfig, device: torch.device) -> int:
    """Loader processes of a run, "auto" decided by the machine.

    On a CPU the model already uses every core, and a loader beside it only makes its threads wait for each other (see
    ``loader`` in tests/bench): none. Beside a GPU the cores are free: one each for all but this process, up to 8, of
    those that fall to this rank.
    """
    if config.data.num_workers != "auto":
        return config.data.num_workers
    return 0 if device.type == "cpu" else max(1, min(8, num_cores() // local_world_size() - 1))
