"""What all subjects share: interleaved timing, figures with their targets, the machine's facts, memory of a process.

A figure is measured in one process against its contenders, which take turns (A, B, A, B, ...) after a warm-up; what
is compared are the medians of their turns. On one thread the clock is the process's CPU time, which does not count the
time that other programs had the core; on several threads CPU time would add the threads up, so it is wall time there,
and that needs a quiet machine.
"""

import ctypes
import gc
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn

from dis_cli.scan.engines.choose import choose_engine
from dis_cli.scan.engines.cpu import kernel

# Seconds that one turn lasts at least: shorter calls are repeated within it.
SHORTEST_TURN = 0.004

# Seconds from which on the first call of a contender is warm-up enough.
LONG_CALL = 0.5

# Instructions of the units that multiply and add, for a vector of elements (one element is one batch, channel, state
# and token). Forward: delta A; five for the polynomial of exp2; delta u B; the state; the read-out. Backward: these
# nine again, since no states are kept, and eight for the adjoint: its read-in and its recurrence, and the gradients of
# A, B, C, delta (two) and delta u (two).
FORWARD_OPERATIONS = 9
BACKWARD_OPERATIONS = FORWARD_OPERATIONS + 8

# The floor of the forward on AVX-512, in ns an element: nine operations on 16 elements, one a cycle at 3.6 GHz.
AVX512_FORWARD_FLOOR = 0.155


@dataclass(frozen=True)
class Settings:
    """What a run measures.

    Args:
        engine: The engine under test (``dis_cli.scan.engines.choose``).
        quick: Fewer turns and lengths.
        train_blocks: Blocks of the DiS-S/2 whose training step is measured against the published loop.
        run: A run folder of trained digits, whose samples are scored.
    """

    engine: str
    quick: bool = False
    train_blocks: int = 3
    run: Path = Path("runs/demo")

    def rounds(self, wanted: int) -> int:
        """How many turns each contender gets."""
        return max(2, wanted // 3) if self.quick else wanted


@dataclass(frozen=True)
class Target:
    """What a figure should reach; the value depends on the instruction set of the kernel.

    Args:
        sense: ">=" or "<=".
        avx512: The value with AVX-512.
        avx2: The value with AVX2; None takes the same.
    """

    sense: str
    avx512: float
    avx2: float | None = None

    def value(self, isa: str) -> float | None:
        """The value for this instruction set; None where there is none to reach."""
        if isa == "avx512":
            return self.avx512
        if isa == "avx2":
            return self.avx512 if self.avx2 is None else self.avx2
        return None

    def met(self, figure: float, isa: str) -> bool | None:
        """Whether the figure reaches it; None where there is nothing to reach."""
        value = self.value(isa)
        if value is None:
            return None
        return figure >= value if self.sense == ">=" else figure <= value


def at_least(avx512: float, avx2: float | None = None) -> Target:
    return Target(">=", avx512, avx2)


def at_most(avx512: float, avx2: float | None = None) -> Target:
    return Target("<=", avx512, avx2)


@dataclass(frozen=True)
class Record:
    """One line of the table.

    Args:
        name: What was measured.
        value: The figure; None was not measured, and ``note`` says why.
        unit: "x" (times as fast), "ns/el" (nanoseconds an element), "ms", "MB" (10^6 bytes), "%", or "" for a number.
        clock: "CPU, 1 thread", "wall, 2 threads" or "peak" (memory); empty where nothing was timed.
        target: What it should reach.
        note: A remark for the reader.
    """

    name: str
    value: float | None
    unit: str
    clock: str = ""
    target: Target | None = None
    note: str = ""

    def line(self, isa: str) -> str:
        """The record as a line of the table."""
        figure = "not run" if self.value is None else f"{_short(self.value)} {self.unit}"
        target = met = ""
        value = None if self.target is None else self.target.value(isa)
        if self.target is not None and value is not None:
            target = f"{self.target.sense} {_short(value)} {self.unit}"
            if self.value is not None:
                met = "yes" if self.target.met(self.value, isa) else "no"
        return f"{self.name:66} {figure:>14} {target:>12} {met:3}  {self.clock:16} {self.note}".rstrip()

    def facts(self, isa: str) -> dict[str, object]:
        """The record for the JSON file, with the target of this instruction set."""
        result = asdict(self) | {"target": None, "met": None}
        value = None if self.target is None else self.target.value(isa)
        if self.target is not None and value is not None:
            result["target"] = f"{self.target.sense} {value:g}"
            result["met"] = None if self.value is None else self.target.met(self.value, isa)
        return result


def table_head() -> str:
    return f"{'':66} {'figure':>14} {'target':>12} {'met':3}  clock"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def clock_name(threads: int) -> str:
    """The clock of ``interleaved`` for this number of threads, for ``Record.clock``."""
    return "CPU, 1 thread" if threads == 1 else f"wall, {threads} threads"


def interleaved(
    contenders: Mapping[str, Callable[[], object]], *, threads: int, rounds: int, once: Collection[str] = ()
) -> dict[str, float]:
    """Median seconds of one call of each contender, the contenders taking turns.

    Args:
        contenders: What to call, by name. Each is warmed up by two calls, or by one that takes long.
        threads: Threads of torch, and of the kernel, which follows it. 1 takes CPU time, more take wall time.
        rounds: Turns of each contender.
        once: Contenders that take a single turn, in the first round and without a warm-up, because they are slow.
    """
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    repeats = dict.fromkeys(contenders, 1)
    for name, run in contenders.items():
        if name in once:
            continue
        started = clock()
        run()
        if clock() - started < LONG_CALL:
            started = clock()
            run()
            repeats[name] = math.ceil(SHORTEST_TURN / max(clock() - started, 1e-6))
    turns: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()
    for number in range(rounds):
        for name, run in contenders.items():
            if number and name in once:
                continue
            started = clock()
            for _ in range(repeats[name]):
                run()
            turns[name].append((clock() - started) / repeats[name])
    return {name: statistics.median(seconds) for name, seconds in turns.items()}


def no_grad(run: Callable[[], object]) -> Callable[[], object]:
    """``run`` without a graph for the backward."""

    def wrapped() -> object:
        with torch.no_grad():
            return run()

    return wrapped


def require_close(name: str, got: Tensor, wanted: Tensor, tolerance: float = 1e-3) -> None:
    """Refuse to time two things that do not compute the same; relative to the largest value.

    Raises:
        RuntimeError: They differ.
    """
    error = ((got - wanted).abs().max() / wanted.abs().max()).item()
    if not error <= tolerance:
        raise RuntimeError(f"{name}: the contenders differ by {error:.1e} of the largest value")


@dataclass(frozen=True)
class Product:
    """A linear layer in a step: (rows, inputs) by (inputs, outputs).

    Args:
        rows: How many tokens or samples pass through it.
        inputs: Width of what it takes.
        outputs: Width of what it gives.
        input_gradient: Whether its input needs a gradient, as all do but those that see data.
    """

    rows: int
    inputs: int
    outputs: int
    input_gradient: bool = True


def run_products(products: Sequence[Product], *, backward: bool) -> Callable[[], None]:
    """The matrix products of linear layers on random numbers: the layers' own, and the two gradients of each.

    Every product has operands of its own, as in a model, so that none of them is found in the cache from the last one.
    """
    operands = [
        (
            product.input_gradient,
            torch.randn(product.rows, product.inputs),
            torch.randn(product.outputs, product.inputs),
            torch.randn(product.rows, product.outputs),
        )
        for product in products
    ]

    def run() -> None:
        for input_gradient, x, weight, grad in operands:
            torch.mm(x, weight.t())
            if backward:
                torch.mm(grad.t(), x)
                if input_gradient:
                    torch.mm(grad, weight)

    return run


def linear_products(module: nn.Module, rows: Callable[[str], int], data_facing: Collection[str] = ()) -> list[Product]:
    """Every ``nn.Linear`` in a module.

    Args:
        module: Where to look.
        rows: How many rows pass through the layer of this name.
        data_facing: Names of layers whose input needs no gradient.
    """
    return [
        Product(rows(name), layer.in_features, layer.out_features, name not in data_facing)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    ]


def peak_gflops() -> float:
    """The most float32 GFLOP/s that this core was seen to do, in a large matrix product: a lower bound of its FMA rate.

    The best of several, on one thread.
    """
    torch.set_num_threads(1)
    size = 1024
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = math.inf
    for _ in range(12):
        started = time.process_time()
        torch.mm(a, b)
        best = min(best, time.process_time() - started)
    return 2 * size**3 / best / 1e9


def scan_floor(gflops: float, isa: str, *, backward: bool = False) -> float:
    """The least that a scan can take on one core, in ns an element, by the number of its operations.

    A core that does P GFLOP/s in multiply-adds works off P / 2 elements of such an operation a nanosecond, however wide
    its vectors are and however many it starts in a cycle (AVX2: two of 8 elements). A forward of nine operations then
    takes 9 / (P / 2) ns an element, and a backward 17 / (P / 2). Loads, stores and all work per token and channel
    (softplus, the gate) are not in it. P is seen in a matrix product, which comes within some 10 % of what the units
    can do, so that the floor is up to that much too high; of a limit that is mostly matrix products, it is a tenth.
    On AVX-512, the forward's floor is the constant ``AVX512_FORWARD_FLOOR``, and the backward's follows from it.

    Args:
        gflops: P, from ``peak_gflops``.
        isa: The instruction set of the kernel.
        backward: Whether the backward is in it.
    """
    forward = AVX512_FORWARD_FLOOR if isa == "avx512" else FORWARD_OPERATIONS / (gflops / 2)
    return forward * (FORWARD_OPERATIONS + BACKWARD_OPERATIONS) / FORWARD_OPERATIONS if backward else forward


def kernel_isa(engine: str) -> str:
    """The instruction set of the compiled kernel; the name of the engine where it does not run the kernel."""
    chosen = choose_engine(engine, "cpu").name
    return kernel.isa() if chosen == "kernel" else chosen


def other_isas(engine: str) -> list[str]:
    """The instruction sets of the kernel that this CPU can run, without the one in use."""
    if choose_engine(engine, "cpu").name != "kernel":
        return []
    return [isa for isa in kernel.isas() if isa != kernel.isa()]


def cpu_facts() -> tuple[str, list[str]]:
    """Name of the CPU and what instructions it reports, as far as the system tells."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    pairs = [tuple(part.strip() for part in line.split(":", 1)) for line in lines if ":" in line]
    facts = dict(reversed(pairs))
    flags = facts.get("flags", facts.get("Features", ""))
    return facts.get("model name", platform.processor() or platform.machine()), flags.split()


def has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 itself."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(cpu_facts()[1]))


def thread_counts() -> list[int]:
    """One thread, and two where there are two cores."""
    return [1, 2] if cores() > 1 else [1]


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_facts(engine: str) -> dict[str, object]:
    """What a reader needs to compare the figures with others."""
    name, _ = cpu_facts()
    return {
        "cpu": name,
        "machine": platform.machine(),
        "cores": cores(),
        "threads": thread_counts(),
        "isa": kernel_isa(engine),
        "isas": sorted({kernel_isa(engine), *other_isas(engine)}),
        "engine": choose_engine(engine, "cpu").name,
        "bf16_instructions": has_bf16(),
        "float32_gflops_per_core": round(peak_gflops(), 1),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "date": date.today().isoformat(),
        "commit": _commit(),
    }


def _commit() -> str:
    """What is measured: the commit, marked "-dirty" where the package or a measurement differs from it."""
    git = ["git", "-C", str(Path(__file__).parents[2])]
    commit = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=False)
    if commit.returncode:
        return "unknown"
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "dis_cli", "tests/bench/*.py"], check=False)
    return commit.stdout.strip() + ("-dirty" if changed.returncode else "")


# glibc then gives every freed tensor back to the system, and a peak is what was held at once, not what was kept for
# later: read when a process starts.
EXACT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def can_measure_memory() -> bool:
    """Whether the system keeps a peak that can be started anew: Linux."""
    return Path("/proc/self/clear_refs").exists()


def extra_peak(run: Callable[[], object]) -> int:
    """Bytes that a call adds to the memory of this process at its highest, whoever allocates them."""

    def status(key: str) -> int:
        text = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(key))

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS:")
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    run()
    return status("VmHWM:") - before
