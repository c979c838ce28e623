"""DiS against transformers with as many parameters, from 256 to 16,384 tokens, at batch 1 and a width near 384.

Rivals: the program's own DiT and U-ViT. Both have MLPs of four times the width and torch's fused attention, and all are
unconditional with the time as input. Parameters agree within ``TOLERANCE`` and are counted without the table of
positions, whose size is the image's and which costs one sum a token. The modulations of a DiT, a third of its blocks'
parameters, cost no time at batch 1, so that it has fewer layers to run.

Figures are rival time / DiS time on one thread in CPU time: above 1, DiS is faster. A training step is forward, mean
squared error, backward and AdamW. At 16,384 tokens the rivals take a single turn. The growth exponent is the slope of
log time over log tokens, fitted to all lengths: 1 is linear.
"""

import functools
import math
from collections.abc import Iterator

import torch
from common import Record, Settings, Target, at_least, at_most, clock_name, interleaved, no_grad
from model import train_step
from peers import parameter_count
from torch import nn

from dis_cli.models.dis.backbone import DiS
from dis_cli.models.dit.backbone import DiT
from dis_cli.models.uvit.backbone import UViT

WIDTH, BLOCKS, PATCH, CHANNELS = 384, 7, 2, 4
TOLERANCE = 0.02
TOKENS = (256, 1024, 4096, 16384)
TRAIN_TOKENS = (256, 1024)
TARGETS = {256: at_least(0.85), 1024: at_least(1.05), 4096: at_least(1.8)}
GROWTH_TARGET = at_most(1.1)
ROUNDS = {256: 15, 1024: 7, 4096: 3, 16384: 2}


def models(tokens: int, engine: str) -> dict[str, nn.Module]:
    """The contenders for a grid of so many patches.

    Raises:
        RuntimeError: Their parameters do not agree.
    """
    torch.manual_seed(0)
    size = math.isqrt(tokens) * PATCH
    result = {
        "DiS": DiS(size, PATCH, CHANNELS, WIDTH, BLOCKS, learn_sigma=False, engine=engine),
        "DiT": DiT(size, PATCH, CHANNELS, 400, 3, num_heads=5, learn_sigma=False),
        "U-ViT": UViT(size, PATCH, CHANNELS, 384, 5, num_heads=6, learn_sigma=False),
    }
    own = parameter_count(result["DiS"])
    for name, model in result.items():
        if abs(parameter_count(model) / own - 1) > TOLERANCE:
            raise RuntimeError(f"{name} has {parameter_count(model)} parameters, DiS {own}")
    return result


def measure(settings: Settings) -> Iterator[Record]:
    """The figures of this subject."""
    own: dict[int, float] = {}
    for name, model in models(TOKENS[0], settings.engine).items():
        yield Record(f"{name}: parameters without positions", parameter_count(model), "")
    for tokens in TOKENS[:-1] if settings.quick else TOKENS:
        contenders = models(tokens, settings.engine)
        size = math.isqrt(tokens) * PATCH
        x, t = torch.randn(1, CHANNELS, size, size), torch.tensor([500])
        seconds = interleaved(
            {name: no_grad(functools.partial(model, x, t)) for name, model in contenders.items()},
            threads=1,
            rounds=settings.rounds(ROUNDS[tokens]),
            once=[name for name in contenders if name != "DiS"] if tokens == TOKENS[-1] else [],
        )
        own[tokens] = seconds["DiS"]
        yield from _records(f"{tokens} tokens, forward", seconds, TARGETS.get(tokens))
        if tokens in TRAIN_TOKENS:
            steps = {name: train_step(model, x, t) for name, model in contenders.items()}
            seconds = interleaved(steps, threads=1, rounds=settings.rounds(ROUNDS[tokens]))
            yield from _records(f"{tokens} tokens, training step", seconds, None)
    slope = growth(own)
    yield Record(f"DiS: growth exponent, {TOKENS[0]} to {max(own)} tokens", slope, "", clock_name(1), GROWTH_TARGET)


def growth(seconds: dict[int, float]) -> float:
    """Slope of the least-squares line through log time over log tokens."""
    x = [math.log(tokens) for tokens in seconds]
    y = [math.log(value) for value in seconds.values()]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def _records(what: str, seconds: dict[str, float], target: Target | None) -> Iterator[Record]:
    yield Record(f"DiS, {what}", seconds["DiS"] * 1e3, "ms", clock_name(1))
    for name, value in seconds.items():
        if name != "DiS":
            aimed = target if name == "DiT" else None
            yield Record(f"{what}: {name} / DiS", value / seconds["DiS"], "x", clock_name(1), aimed)
