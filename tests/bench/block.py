"""A block (residual, norm, mixer) at 1,024 tokens against the least that it could take.

The limit is the time of its matrix products alone (same shapes, random numbers, no sums or activations between them,
taking turns with the block) plus the floor of its two scans by the number of their operations (``common.scan_floor``),
divided by the threads. Convolution, norm, softplus, gate and all memory traffic outside the products are not in the
limit: they are what the block can lose. Forward without a graph, batch 1, on one thread in CPU time and on two in wall
time. The bfloat16 figure is the same block under ``torch.autocast``, which converts the weights in every call.
"""

from collections.abc import Iterator

import torch
from common import (
    Record,
    Settings,
    at_least,
    clock_name,
    has_bf16,
    interleaved,
    kernel_isa,
    linear_products,
    no_grad,
    peak_gflops,
    run_products,
    scan_floor,
    thread_counts,
)

from dis_cli.models.dis.backbone import Block

TOKENS, STATES, DIRECTIONS = 1024, 16, 2
TARGETS = {768: at_least(80), 384: at_least(70)}
BF16_TARGET = at_least(1.4)


def measure(settings: Settings) -> Iterator[Record]:
    """The figures of this subject."""
    gflops = peak_gflops()
    floor = scan_floor(gflops, kernel_isa(settings.engine))
    yield Record("matrix product of 1024 x 1024, GFLOP/s", gflops, "", clock_name(1), note="best of 12")
    yield Record("floor of the scan, forward", floor, "ns/el", note="by count of operations")
    for width, target in TARGETS.items():
        torch.manual_seed(0)
        block = Block(width, skip=False, d_state=STATES, d_conv=4, expand=2, engine=settings.engine).eval()
        block.mixer.reset_parameters()
        hidden, residual = torch.randn(1, TOKENS, width), torch.randn(1, TOKENS, width)
        products = run_products(linear_products(block, lambda _: TOKENS), backward=False)
        elements = DIRECTIONS * block.mixer.D.numel() * STATES * TOKENS

        def in_bf16(block: Block = block, hidden: torch.Tensor = hidden, residual: torch.Tensor = residual) -> object:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return block(hidden, residual)

        for threads in thread_counts():
            seconds = interleaved(
                {
                    "block": no_grad(lambda block=block, h=hidden, r=residual: block(h, r)),
                    "products": no_grad(products),
                    "bf16": no_grad(in_bf16),
                },
                threads=threads,
                rounds=settings.rounds(15),
            )
            clock = clock_name(threads)
            limit = seconds["products"] + elements * floor / threads * 1e-9
            name = f"block of width {width}, {TOKENS} tokens, {threads} thread{'s' if threads > 1 else ''}"
            yield Record(name, seconds["block"] * 1e3, "ms", clock)
            yield Record(f"{name}: its products", seconds["products"] * 1e3, "ms", clock)
            yield Record(f"{name}: limit / block", limit / seconds["block"] * 100, "%", clock, target)
            note = "" if has_bf16() else "this CPU has no bfloat16 instructions"
            ratio = seconds["block"] / seconds["bf16"]
            yield Record(f"{name}: float32 / bfloat16", ratio, "x", clock, BF16_TARGET, note)
