"""The causal convolution with SiLU against torch's convolution, on (batch, length, channels), as a mixer has it.

At the usual 4 taps, and at more, which a model may have; those have no target.

torch's convolution wants channels before tokens, so its time contains the transposition there and the one back; both
contenders take and give contiguous tensors. Timed are the forward without a graph, and the forward with its backward
for a given gradient of the result, on one thread.
"""

import itertools
from collections.abc import Callable, Iterator

import torch
from common import Record, Settings, at_least, clock_name, interleaved, no_grad, require_close
from peers import conv_silu_by_transposes
from torch import Tensor

from dis_cli.scan import causal_conv_silu

SHAPES = ((1, 257, 768), (1, 1026, 1536))
TAPS = 4
WIDE_TAPS = (9, 17, 33)
TARGET = at_least(6)


def contenders(shape: tuple[int, int, int], taps: int, engine: str) -> dict[str, dict[str, Callable[[], object]]]:
    """What to call, by what is done and by who does it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).requires_grad_()
    weight = torch.randn(shape[2], taps, generator=generator).requires_grad_()
    bias = torch.randn(shape[2], generator=generator).requires_grad_()
    grad = torch.randn(shape, generator=generator)
    leaves = (x, weight, bias)

    def ours() -> Tensor:
        return causal_conv_silu(*leaves, engine=engine)

    def theirs() -> Tensor:
        return conv_silu_by_transposes(*leaves)

    require_close("conv", ours().detach(), theirs().detach())
    return {
        "forward": {"ours": no_grad(ours), "torch": no_grad(theirs)},
        "forward+backward": {
            "ours": lambda: torch.autograd.grad(ours(), leaves, grad),
            "torch": lambda: torch.autograd.grad(theirs(), leaves, grad),
        },
    }


def measure(settings: Settings) -> Iterator[Record]:
    """The figures of this subject."""
    for shape, taps in itertools.product(SHAPES, (TAPS, *WIDE_TAPS)):
        size = "x".join(map(str, shape)) + ("" if taps == TAPS else f", {taps} taps")
        for what, runs in contenders(shape, taps, settings.engine).items():
            seconds = interleaved(runs, threads=1, rounds=settings.rounds(25))
            yield Record(f"conv + SiLU, {size}, {what}", seconds["ours"] * 1e3, "ms", clock_name(1))
            ratio, target = seconds["torch"] / seconds["ours"], TARGET if taps == TAPS else None
            yield Record(f"conv + SiLU, {size}, {what}: torch / ours", ratio, "x", clock_name(1), target)
