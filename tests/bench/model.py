"""DiS-S/2 (width 368, 25 blocks) on four 32x32 images against the same weights on the published loop.

The rival is the same DiS whose mixers compute as the published code does without its CUDA kernels: channels before
tokens, flips for the way back, the loop over tokens (``peers.PublishedMixer``). A training step is forward, mean
squared error, backward and AdamW. One thread, CPU time.

The rival's training step takes half a minute a block, since its backward goes through a tensor of the full length for
every token. It is therefore measured with the first blocks of the model only (``--train-blocks``, the same number on
both sides, stated in the name; 25 take the rival a quarter of an hour and some 10 GB), once, without a warm-up. All
blocks cost the same but for the long skips, which cost the same on both sides.
"""

import copy
from collections.abc import Callable, Iterator

import torch
from common import Record, Settings, Target, at_least, clock_name, interleaved, no_grad, require_close
from peers import on_published_loop
from torch import Tensor, nn

from dis_cli.models.dis.backbone import DiS
from dis_cli.training.optimizer import make_optimizer

WIDTH, BLOCKS, BATCH = 368, 25, 4
FORWARD_TARGET, TRAIN_TARGET = at_least(8), at_least(60)


def pair(blocks: int, engine: str) -> tuple[DiS, DiS]:
    """The model and its rival, with equal weights."""
    torch.manual_seed(0)
    model = DiS(32, 2, 3, WIDTH, blocks, engine=engine)
    return model, on_published_loop(copy.deepcopy(model))


def train_step(model: nn.Module, x: Tensor, t: Tensor) -> Callable[[], None]:
    """One step on a fixed target; the model's weights move on with every call."""
    optimizer = make_optimizer(model, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0)
    with torch.no_grad():
        target = torch.randn_like(model(x, t))

    def step() -> None:
        (model(x, t) - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(settings: Settings) -> Iterator[Record]:
    """The figures of this subject."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 3, 32, 32, generator=generator)
    t = torch.tensor([0, 250, 500, 999])

    model, rival = pair(BLOCKS, settings.engine)
    with torch.no_grad():
        require_close("DiS-S/2", model(x, t), rival(x, t))
    seconds = interleaved(
        {"model": no_grad(lambda: model(x, t)), "rival": no_grad(lambda: rival(x, t))},
        threads=1,
        rounds=2 if settings.quick else 3,
    )
    yield from _records(f"DiS-S/2, {BLOCKS} blocks, {BATCH} images, forward", seconds, FORWARD_TARGET)

    blocks = settings.train_blocks
    if blocks != BLOCKS:
        model, rival = pair(blocks, settings.engine)
    seconds = interleaved(
        {"model": train_step(model, x, t), "rival": train_step(rival, x, t)}, threads=1, rounds=3, once=["rival"]
    )
    yield from _records(f"DiS-S/2, {blocks} of {BLOCKS} blocks, {BATCH} images, training step", seconds, TRAIN_TARGET)


def _records(name: str, seconds: dict[str, float], target: Target) -> Iterator[Record]:
    yield Record(name, seconds["model"] * 1e3, "ms", clock_name(1))
    yield Record(f"{name}, published loop", seconds["rival"] * 1e3, "ms", clock_name(1))
    yield Record(f"{name}: loop / ours", seconds["rival"] / seconds["model"], "x", clock_name(1), target)
