"""The speed of this machine at matrix products, of which training reaches a share."""

import math

import torch

from dis_cli.runtime.precision import best_seconds, cpu_bf16_instructions

# Sides of a square matrix that is large enough to keep a device busy, and not so large that it takes long.
CPU_SIDE, CUDA_SIDE = 1024, {"fp32": 4096, "bf16": 8192}
CPU_ROWS_PER_THREAD = 256
# Without matrix instructions a CPU multiplies bfloat16 a hundred times slower, however many rows there are.
EMULATED_ROWS = 8
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def matrix_flops_per_second(device: torch.device, precision: str, width: int) -> float:
    """This machine's measured matrix speed: floating-point operations per second of a large matrix product.

    A multiplication and an addition count as two. It is measured, with the threads that torch uses now, so that it is
    what matrix products can get here and not what a data sheet says; it differs from one call to the next, and is less
    while something else computes. Takes at most 0.2 s, and leaves torch's random numbers and settings as they are.

    Args:
        precision: "fp32" or "bf16": the numbers that are multiplied.
        width: Of the model, in channels: the matrix is at least this large.

    Raises:
        ValueError: The precision is neither.
    """
    if precision not in DTYPES:
        raise ValueError(f"precision must be 'fp32' or 'bf16', got {precision!r}")
    if device.type == "cuda":
        rows = side = max(width, CUDA_SIDE[precision])
    else:
        emulated = precision == "bf16" and not cpu_bf16_instructions()
        side = max(width, CPU_SIDE)
        rows = EMULATED_ROWS if emulated else CPU_ROWS_PER_THREAD * torch.get_num_threads()
        # The same work whatever the width.
        rows = math.ceil(rows * (CPU_SIDE / side) ** 2)
    # Random, because a processor at its limit of power is faster on numbers whose bits seldom change.
    generator = torch.Generator(device).manual_seed(0)
    left, right = (
        torch.randn(size, side, generator=generator, device=device).to(DTYPES[precision]) for size in (rows, side)
    )

    def multiply() -> None:
        with torch.inference_mode():
            torch.mm(left, right)

    return 2 * rows * side * side / best_seconds({"product": multiply}, device)["product"]
