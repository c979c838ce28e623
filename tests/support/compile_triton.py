"""A program: what the Triton engine launches at real shapes, compiled without a GPU, and what came of it.

A stand-in for the driver names a target, and a launch stops after compiling, so the kernels are compiled for exactly
what the engine hands them: types, strides, alignment. The machine's code then tells of registers, spills and
instructions for 32 (token, channel) pairs, which is what a warp issues for one token and one channel a thread.
Prints one JSON list; with ``--table``, lines to read.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from dis_cli.scan.contract import ScanInputs
from dis_cli.scan.engines.triton import engine, launch

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
# The table is of all; the tests look at the dtypes named here, since a backward takes ten seconds to compile.
TARGETS = {80: ("bfloat16",), 90: ("float32", "bfloat16"), 100: ("bfloat16",)}
DTYPES = ("float32", "bfloat16")
# DiS-XL/2 at 256 pixels: inner width, states, tokens.
CHANNELS, STATES, LENGTH = 2304, 16, 258

INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*?);")
LABEL = re.compile(r"^(\.L_[x_0-9a-zA-Z]+):")


@dataclass(frozen=True)
class Compiled:
    """A kernel, compiled.

    Args:
        registers: Of a thread.
        spills: Bytes of a thread's numbers that are stored for want of registers.
        spills_inside: Loads and stores of such bytes in innermost loops.
        shared: Bytes of shared memory.
        exchanges: Exchanges between threads in the innermost loops.
        instructions: For 32 (token, channel) pairs; of the scans only.
    """

    kernel: str
    target: int
    dtype: str
    registers: int
    spills: int
    spills_inside: int
    shared: int
    exchanges: int
    instructions: float | None


class _Driver:
    """As much of a driver as a launch asks before it compiles."""

    def __init__(self, target: int) -> None:
        self.target = GPUTarget("cuda", target, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:  # noqa: ARG002 - a launch hands it
        return 0


@contextmanager
def compiling(target: int) -> Iterator[list[tuple[str, Any]]]:
    """Kernels launched here are compiled for the target, and listed instead of run."""
    run, found = JITFunction.run, []

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        found.append((self.__name__, kernel))
        return kernel

    driver.set_active(_Driver(target))
    JITFunction.run = compile_only
    try:
        yield found
    finally:
        JITFunction.run = run


def launch_all(dtype: torch.dtype) -> None:
    """One mixer's and one norm's launches, as the second direction has them: the longest kernels."""
    zeros = torch.zeros
    xz = zeros(2, LENGTH, 2 * CHANNELS, dtype=dtype)
    (u, z), delta = xz.chunk(2, dim=-1), zeros(2, LENGTH, CHANNELS, dtype=dtype)
    B, C = zeros(2, LENGTH, 72 + 2 * STATES).split([72, STATES, STATES], dim=-1)[1:]
    row, A = zeros(CHANNELS), zeros(CHANNELS, STATES)
    inputs = ScanInputs(delta, delta, A, B, C, row, z, row, True, True, A_is_log=True)
    out, ends = engine.scan_forward(inputs, add_to=zeros(2, LENGTH, CHANNELS))
    engine.scan_backward(out, ends, inputs, grad_z=z, add_to_z=True)
    taps = zeros(CHANNELS, 4)
    engine.conv_silu_forward(u, taps, row, reverse=True)
    engine.conv_silu_backward(delta, u, taps, row, reverse=True, grad_x=u, add_to_x=True)
    if dtype == torch.float32:
        stream, weight = zeros(2, LENGTH, CHANNELS // 2), zeros(CHANNELS // 2)
        normed, total, scale = engine.norm_forward(stream, stream, weight, 1e-5)
        engine.norm_backward(normed, stream, total, scale, weight)


def compile_all(target: int, dtypes: tuple[str, ...]) -> list[Compiled]:
    found = []
    for dtype in dtypes:
        with compiling(target) as kernels:
            launch_all(getattr(torch, dtype))
        # A kernel that is launched twice is listed once.
        once = {id(kernel): (name, kernel) for name, kernel in kernels}
        found += [_examine(name, kernel, target, dtype) for name, kernel in once.values()]
    return found


def _examine(name: str, kernel: Any, target: int, dtype: str) -> Compiled:
    registers, spills, opcodes, loops = _code(kernel)
    innermost = [
        (first, last)
        for first, last in loops
        if not any((first, last) != (a, b) and first <= a and b <= last for a, b in loops)
    ]
    inside = [opcode for first, last in innermost for opcode in opcodes[first : last + 1]]
    return Compiled(
        kernel=name,
        target=target,
        dtype=dtype,
        registers=registers,
        spills=spills,
        spills_inside=sum(opcode.startswith(("LDL", "STL")) for opcode in inside),
        shared=kernel.metadata.shared,
        exchanges=sum(opcode.startswith("SHFL") for opcode in inside),
        instructions=_instructions(name, loops),
    )


def _code(kernel: Any) -> tuple[int, int, list[str], list[tuple[int, int]]]:
    """Registers, bytes of spills, names of instructions, and loops: where each begins and branches back to there."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        used, text = (
            subprocess.run([str(TOOLS / tool), option, file.name], capture_output=True, text=True, check=True).stdout
            for tool, option in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    usage = re.search(r"REG:(\d+) STACK:(\d+)", used)
    assert usage is not None, used
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for line in text.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(opcodes)
        elif instruction := INSTRUCTION.match(line):
            opcodes.append(instruction[1])
            to = re.search(r"`\((\.L_[^)]+)\)", instruction[2])
            if instruction[1].startswith("BRA") and to and to[1] in labels:
                loops.append((labels[to[1]], len(opcodes) - 1))
    # A loop that branches back from two places is one.
    last = {first: max(b for a, b in loops if a == first) for first, _ in loops}
    return (
        int(usage[1]),
        int(usage[2]),
        opcodes,
        [(first, end) for first, end in sorted(last.items()) if end - first > 20],
    )


def _instructions(name: str, loops: list[tuple[int, int]]) -> float | None:
    """Instructions for 32 pairs: of the loops over states and over T tokens, each as often as it runs."""
    if not name.startswith("scan"):
        return None

    def turn(inner: tuple[int, int], outer: tuple[int, int]) -> int:
        """T tokens: the outer loop, with the inner one for every state."""
        length = {loop: loop[1] - loop[0] + 1 for loop in (inner, outer)}
        return length[outer] + (STATES - 1) * length[inner]

    def within(outer: tuple[int, int]) -> tuple[int, int]:
        return max((loop for loop in loops if _inside(loop, outer)), key=lambda loop: loop[1] - loop[0])

    numbers = launch.TOKENS * launch.BLOCK / 32
    if name == "scan_forward_kernel":
        outer = max(loops, key=lambda loop: loop[1] - loop[0])
        return turn(within(outer), outer) / numbers
    chunk = max(loops, key=lambda loop: loop[1] - loop[0])
    nested = [loop for loop in loops if loop != chunk and any(_inside(inner, loop) for inner in loops)]
    sweep, back = sorted(nested)[0], sorted(nested)[-1]
    # The last T tokens of a chunk are not swept.
    share = 1 - launch.TOKENS / engine.CHUNK
    return (turn(within(back), back) + share * turn(within(sweep), sweep)) / numbers


def _inside(inner: tuple[int, int], outer: tuple[int, int]) -> bool:
    return inner != outer and outer[0] <= inner[0] and inner[1] <= outer[1]


def main(*options: str) -> None:
    is_table = "--table" in options
    found = [row for target, dtypes in TARGETS.items() for row in compile_all(target, DTYPES if is_table else dtypes)]
    if not is_table:
        sys.stdout.write(json.dumps({"triton": triton.__version__, "kernels": [asdict(row) for row in found]}))
        return
    sys.stdout.write(f"Triton {triton.__version__}; for 32 (token, channel) pairs at {STATES} states\n")
    heads = ("kernel", "target", "dtype", "registers", "spills", "inside", "shared", "exchanges", "instructions")
    sys.stdout.write("{:28}{:>7} {:9}{:>10}{:>7}{:>7}{:>7}{:>10}{:>13}\n".format(*heads))
    for row in found:
        kernel, target, dtype, *numbers, instructions = asdict(row).values()
        line = "{:28}{:>7} {:9}{:>10}{:>7}{:>7}{:>7}{:>10}".format(kernel, f"sm_{target}", dtype, *numbers)
        sys.stdout.write(f"{line}{'' if instructions is None else format(instructions, '13.1f')}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
