"""The precision of the linear layers: float32, or bfloat16 where that is faster.

Only matrix products change: parameters, residual stream, scan, statistics of norms, loss and optimizer stay float32.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

# Below this, rounding to 8 bits costs more than the time it saves.
WORTHWHILE_SPEEDUP = 1.2
MEASURED_ROWS = 256
MEASURED_SECONDS = 0.05
MIN_ROUNDS = 3

# What torch calls the processor's matrix instructions for bfloat16: AVX-512, AMX, NEON and SVE.
_CPU_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16")


@dataclass(frozen=True)
class Precision:
    """The numbers that were chosen for the linear layers.

    Args:
        name: "fp32" or "bf16".
        reason: Why, as the rest of a sentence.
    """

    name: str
    reason: str


def choose_precision(requested: str, device: torch.device, width: int) -> Precision:
    """The precision for a device; "auto" takes bfloat16 where the hardware has it and, on a CPU, where it pays.

    Args:
        requested: "auto", "fp32" or "bf16".
        width: Of a token, in channels: the size of layer that is timed on a CPU, in about 50 ms.

    Raises:
        ValueError: The precision is unknown.
    """
    if requested != "auto":
        _check_name(requested)
        return Precision(requested, "chosen in the settings")
    if device.type == "cuda":
        with torch.cuda.device(device):
            # Emulation works on every GPU, and is slower than float32.
            supported = torch.cuda.is_bf16_supported(including_emulation=False)
        if supported:
            return Precision("bf16", "the GPU has bfloat16 matrix instructions")
        return Precision("fp32", "the GPU has no bfloat16 matrix instructions")
    if device.type != "cpu":
        return Precision("fp32", f"bfloat16 is untested on {device.type}")
    if not cpu_bf16_instructions():
        return Precision("fp32", "the processor has no bfloat16 matrix instructions")
    seconds = linear_seconds(width, device)
    speedup = seconds["fp32"] / seconds["bf16"]
    name = "bf16" if speedup >= WORTHWHILE_SPEEDUP else "fp32"
    return Precision(
        name,
        f"bf16 runs layers of width {width} at {speedup:.2f}x the speed of fp32 here (threshold {WORTHWHILE_SPEEDUP}x)",
    )


def cpu_bf16_instructions() -> list[str]:
    """The processor's matrix instructions for bfloat16, as torch names them; empty when it has none."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is None:
        # Older versions of PyTorch say it one by one, and on x86 only.
        asked = {"avx512_bf16": "_is_avx512_bf16_supported", "amx_bf16": "_is_amx_tile_supported"}
        return [name for name, function in asked.items() if getattr(torch.cpu, function, lambda: False)()]
    found = capabilities()
    return [name for name in _CPU_INSTRUCTIONS if found.get(name)]


def linear_seconds(width: int, device: torch.device) -> dict[str, float]:
    """Seconds of one forward of a linear layer (width to width, 256 rows) in "fp32" and "bf16".

    The cast of what enters the layer is part of its time, as in the model.
    """
    rows, weight = torch.ones(MEASURED_ROWS, width, device=device), torch.ones(width, width, device=device)

    def forward(name: str) -> None:
        with torch.inference_mode(), linear_precision(name, device.type):
            F.linear(rows, weight)

    return best_seconds({name: functools.partial(forward, name) for name in ("fp32", "bf16")}, device)


def best_seconds(work: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """The shortest time that each piece of work took, in seconds, within about 50 ms for all of them.

    They are timed in turn, so that whatever else the machine does meets all of them.

    Args:
        work: By name; each is called at least three times, the first time to build what later calls reuse.
        device: Device of the calls, waited for at the end of each call.
    """
    best = dict.fromkeys(work, float("inf"))
    rounds, end = 0, 0.0
    while rounds < MIN_ROUNDS or time.perf_counter() < end:
        for name, function in work.items():
            started = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best[name] = min(best[name], time.perf_counter() - started)
        rounds += 1
        if rounds == 1:
            end = time.perf_counter() + MEASURED_SECONDS
    return best


@contextlib.contextmanager
def linear_precision(name: str, device_type: str) -> Generator[None, None, None]:
    """Linear layers called in this block compute in this precision; the parameters stay what they are.

    "fp32" enters nothing at all, so that results are those of plain calls in every bit. With "bf16" a model's output
    may be bfloat16: cast it before anything is summed.

    Args:
        name: "fp32" or "bf16".
        device_type: Of the model: "cpu" or "cuda".

    Raises:
        ValueError: The precision is neither; "auto" is to be resolved by `choose_precision`.
    """
    _check_name(name)
    if name == "fp32":
        yield
        return
    with torch.autocast(device_type, dtype=torch.bfloat16):
        yield


def _check_name(name: str) -> None:
    if name not in ("fp32", "bf16"):
        raise ValueError(f"precision must be 'fp32' or 'bf16', got {name!r}")
