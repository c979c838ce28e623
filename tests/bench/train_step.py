"""A training step of the digits preset (18 tokens, width 96, batch 32): its time on two threads, and its memory.

The step is the whole one of ``train_steps``, in float32: batch, noise, forward, loss, backward, clipping, AdamW,
average. It takes turns with the same step on the plain torch engine, with a DiT of as many parameters on the same data,
loss and optimizer, and with its own matrix products alone. Wall time, since that is what a user waits for.

Its limit is the time of its matrix products plus the floor of its scans by the number of their operations
(``common.scan_floor``: 9 forward and 17 backward), divided by the threads. The products are those of every linear
layer and of the patch embedding: one forward, one for the gradient of the weight, one for the gradient of the input
where that needs one. Products that the step computes a second time in its backward are not in the limit.

The memory is what a step at batch 128 adds to the process's peak beyond weights, gradients, optimizer and average, in a
process of its own: ``python tests/bench/train_step.py --memory`` prints it, in bytes.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator

import torch
from common import (
    EXACT_MEMORY,
    Product,
    Record,
    Settings,
    at_least,
    at_most,
    can_measure_memory,
    clock_name,
    extra_peak,
    interleaved,
    kernel_isa,
    linear_products,
    no_grad,
    peak_gflops,
    run_products,
    scan_floor,
    thread_counts,
)
from peers import parameter_count
from torch import nn

from dis_cli.config.overrides import apply_overrides
from dis_cli.config.presets import load_preset
from dis_cli.config.schema import RunConfig
from dis_cli.data.batches import TrainingSet, training_batches
from dis_cli.events import Step
from dis_cli.models.dis.backbone import DiS
from dis_cli.models.dit.backbone import DiT
from dis_cli.runtime.process_group import ProcessGroup
from dis_cli.training.ema import Ema
from dis_cli.training.loop import train_steps
from dis_cli.training.optimizer import make_optimizer
from dis_cli.training.state import TrainingState
from dis_cli.workflows.build import build_objective, build_source
from dis_cli.workflows.train.build import build_learning_rate

MEMORY_BATCH = 128
TOLERANCE = 0.02
TORCH_TARGET, LIMIT_TARGET, DIT_TARGET = at_least(2.5), at_most(1.5), at_most(1.6)
MEMORY_TARGET = at_most(100)


def digits(batch_size: int | None = None) -> RunConfig:
    """The digits preset in float32, with another batch size where one is given."""
    overrides = [] if batch_size is None else [f"train.batch_size={batch_size}"]
    return apply_overrides(load_preset("dis-xs-digits"), ["train.precision=fp32", *overrides])


def dis(config: RunConfig, engine: str) -> DiS:
    torch.manual_seed(0)
    return DiS(**config.model.model_dump(exclude={"backbone"}), learn_sigma=config.learn_sigma, engine=engine)


def dit(config: RunConfig) -> DiT:
    """A DiT for the same data; as wide as makes its parameters equal."""
    torch.manual_seed(0)
    model = config.model
    return DiT(
        model.image_size,
        model.patch_size,
        model.in_channels,
        embed_dim=92,
        depth=4,
        num_heads=4,
        num_classes=model.num_classes,
        learn_sigma=config.learn_sigma,
    )


def steps(config: RunConfig, model: nn.Module) -> Iterator[Step]:
    """Training of a model on the preset's data with its recipe, a step whenever the next is asked for."""
    train = config.train
    state = TrainingState(
        model=model,
        ema=Ema(model, decay=train.ema_decay, warmup=train.ema_warmup),
        optimizer=make_optimizer(model, lr=train.lr, betas=train.betas, weight_decay=train.weight_decay),
    )
    dataset = TrainingSet(build_source(config), seed=0, num_timesteps=config.diffusion.num_timesteps, num_drop_path=0)
    batches = training_batches(
        dataset, first_step=0, last_step=100_000, batch_size=train.batch_size, accumulation=1, num_workers=0
    )
    return train_steps(
        state,
        batches,
        loss_function=build_objective(config).loss,
        learning_rate=lambda step: build_learning_rate(config, step),
        accumulation=1,
        clip_norm=train.clip_norm,
        device=torch.device("cpu"),
        group=ProcessGroup(),
    )


def products(config: RunConfig, model: DiS) -> list[Product]:
    """The matrix products of a step; the patch embedding is one, over disjoint patches."""
    batch, settings = config.train.batch_size, config.model
    patches = (settings.image_size // settings.patch_size) ** 2

    def rows(layer: str) -> int:
        if layer.startswith(("time_embed", "final_layer.adaLN")):
            return batch
        return batch * (patches if layer.startswith("final_layer") else patches + model.extras)

    values = settings.in_channels * settings.patch_size**2
    patch_embed = Product(batch * patches, values, settings.embed_dim, input_gradient=False)
    return [patch_embed, *linear_products(model, rows, data_facing=["time_embed.0"])]


def scan_elements(config: RunConfig, model: DiS) -> int:
    """Elements of all scans of one forward: both directions of every block."""
    settings = config.model
    per_token = 2 * settings.depth * settings.expand * settings.embed_dim * settings.d_state
    return config.train.batch_size * model.pos_embed.shape[1] * per_token


def measure(settings: Settings) -> Iterator[Record]:
    """The figures of this subject."""
    config, threads = digits(), thread_counts()[-1]
    model, rival = dis(config, settings.engine), dit(config)
    if abs(parameter_count(rival) / parameter_count(model) - 1) > TOLERANCE:
        raise RuntimeError(f"DiT has {parameter_count(rival)} parameters, DiS {parameter_count(model)}")
    loops = {
        "step": steps(config, model),
        "torch": steps(config, dis(config, "torch")),
        "DiT": steps(config, rival),
    }
    contenders = {name: lambda loop=loop: next(loop) for name, loop in loops.items()}
    contenders["products"] = no_grad(run_products(products(config, model), backward=True))
    gflops = peak_gflops()
    seconds = interleaved(contenders, threads=threads, rounds=settings.rounds(41))
    floor = scan_floor(gflops, kernel_isa(settings.engine), backward=True)
    scans = scan_elements(config, model) * floor / threads * 1e-9
    clock, name = clock_name(threads), "digits, training step"
    yield Record("digits: parameters of DiS without positions", parameter_count(model), "")
    yield Record("digits: parameters of DiT without positions", parameter_count(rival), "")
    yield Record(name, seconds["step"] * 1e3, "ms", clock)
    yield Record(f"{name}: its matrix products", seconds["products"] * 1e3, "ms", clock)
    yield Record(f"{name}: floor of its scans", scans * 1e3, "ms", note="by count of operations")
    yield Record(f"{name}: torch engine / step", seconds["torch"] / seconds["step"], "x", clock, TORCH_TARGET)
    limit = seconds["products"] + scans
    yield Record(f"{name}: step / (products + floor)", seconds["step"] / limit, "x", clock, LIMIT_TARGET)
    yield Record(f"{name}: step / step of a DiT", seconds["step"] / seconds["DiT"], "x", clock, DIT_TARGET)
    yield from _memory(settings)


def _memory(settings: Settings) -> Iterator[Record]:
    name = f"digits, training step at batch {MEMORY_BATCH}: extra memory"
    if not can_measure_memory():
        yield Record(name, None, "MB", note="needs Linux's /proc")
        return
    exact, usual = extra_memory(settings.engine, EXACT_MEMORY), extra_memory(settings.engine, {})
    yield Record(name, exact / 1e6, "MB", "peak", MEMORY_TARGET, "all that is freed goes back at once")
    yield Record(f"{name}, usual", usual / 1e6, "MB", "peak", note="glibc keeps what is freed for later")


def extra_memory(engine: str, environment: dict[str, str]) -> int:
    """What ``print_memory`` prints in a process with this environment."""
    command = [sys.executable, __file__, "--memory", "--engine", engine]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment)
    return int(done.stdout)


def print_memory(engine: str) -> None:
    """Print the bytes that a step at ``MEMORY_BATCH`` adds to this process's peak."""
    config = digits(MEMORY_BATCH)
    loop = steps(config, dis(config, engine))
    # The first step makes the optimizer's moments and the libraries' own buffers, which stay.
    next(loop)
    print(extra_peak(lambda: next(loop)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", action="store_true", required=True)
    parser.add_argument("--engine", default="auto")
    print_memory(parser.parse_args().engine)
