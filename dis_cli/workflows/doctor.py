"""The report of `dis doctor`: the capabilities of this machine, and a check that it computes correctly."""

import functools
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from dis_cli.config.schema import RunConfig
from dis_cli.errors import first_line
from dis_cli.events import Event, Finished, Note
from dis_cli.models.dis.parity import PARITY_LIMIT, parity_error
from dis_cli.runtime import machine, openmp
from dis_cli.runtime.device import pick_device
from dis_cli.runtime.precision import best_seconds, choose_precision, cpu_bf16_instructions
from dis_cli.scan.engines.choose import choose_engine, unavailable
from dis_cli.scan.engines.cpu import kernel
from dis_cli.scan.engines.table import ENGINES
from dis_cli.version import __version__
from dis_cli.workflows.cost import model_shape

OPTIONAL_PACKAGES = ("mamba-ssm", "causal-conv1d", "diffusers", "torch-fidelity", "torchvision")
MIN_FREE_DISK_BYTES = 1_000_000_000
# Side of the square matrices that are multiplied: a millisecond or two in float32 on two cores, or on a large GPU.
MATMUL_SIDES = {"cpu": 384, "cuda": 4096}
# What the program uses and some builds of PyTorch lack, as module path and attribute.
_NEEDED = ("nn.RMSNorm", "library.custom_op", "autocast", "ops.aten.silu_backward", "optim.AdamW")


def diagnose(*, device: str | None = None) -> Iterator[Event]:
    """Look at the machine and try every engine; the last event's result is the report.

    Whether all is well stands in its "healthy"; what is not, in "problems". An engine that is absent is no problem.

    Args:
        device: The one device to look at, as `pick_device` reads it; None looks at all.

    Raises:
        UsageError: There is no such device.
    """
    places = _devices() if device is None else [pick_device(device)]
    problems = [f"PyTorch {torch.__version__} lacks torch.{name}" for name in _NEEDED if not _has(name)]
    warnings: list[str] = []
    devices: dict[str, object] = {}
    engines: dict[str, object] = {}
    for place in places:
        try:
            devices[str(place)] = _describe(place)
        # A GPU that this build of PyTorch has no code for fails at its first product, with a plain RuntimeError.
        except Exception as exception:  # noqa: BLE001
            problems.append(f"{place}: {_raised(exception)}")
            continue
        checked = {name: _check_engine(name, place) for name in ENGINES}
        problems += [f"engine {name} on {place}: {problem}" for name, (_, problem) in checked.items() if problem]
        engines[str(place)] = {name: facts for name, (facts, _) in checked.items()}
    free_disk = shutil.disk_usage(Path.cwd()).free
    if free_disk < MIN_FREE_DISK_BYTES:
        warnings.append(f"Less than 1 GB is free on the disk of {Path.cwd()}: {free_disk:,} bytes")
    yield from (Note(message=warning, level="warning") for warning in warnings)
    memory = machine.memory()
    yield Finished(
        result={
            "healthy": not problems,
            "problems": problems,
            "warnings": warnings,
            "dis": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "packages": {name: machine.package_version(name) for name in OPTIONAL_PACKAGES},
            "platform": platform.platform(),
            "cpu": {
                "name": machine.cpu_name(),
                "num_cores": machine.num_cores(),
                "num_torch_threads": torch.get_num_threads(),
                "threads_wait": asdict(openmp.waiting()),
                "torch_capability": torch.backends.cpu.get_cpu_capability(),
                "bf16_instructions": cpu_bf16_instructions(),
            },
            "total_memory_bytes": memory.total_bytes,
            "free_memory_bytes": memory.free_bytes,
            "free_disk_bytes": free_disk,
            "kernel": {"isa": kernel.isa(), "why_not": kernel.why_not()},
            "devices": devices,
            "engines": engines,
            "parity_limit": PARITY_LIMIT,
        }
    )


def matmul_gflops_per_second(device: torch.device) -> dict[str, float]:
    """Billions of floating-point operations per second of a square matrix product, in "fp32" and "bf16"."""
    side = MATMUL_SIDES[device.type]
    work = {
        name: functools.partial(torch.mm, matrix, matrix)
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
        for matrix in (torch.ones(side, side, dtype=dtype, device=device),)
    }
    return {name: 2e-9 * side**3 / seconds for name, seconds in best_seconds(work, device).items()}


def _devices() -> list[torch.device]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.device("cpu"), *(torch.device("cuda", index) for index in range(count))]


def _describe(device: torch.device) -> dict[str, object]:
    memory = machine.memory(device)
    return {
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else machine.cpu_name(),
        "total_memory_bytes": memory.total_bytes,
        "free_memory_bytes": memory.free_bytes,
        "engine": asdict(choose_engine("auto", device)),
        "precision": asdict(choose_precision("auto", device, model_shape(RunConfig()).width)),
        "matmul_gflops_per_second": matmul_gflops_per_second(device),
    }


def _check_engine(name: str, device: torch.device) -> tuple[dict[str, object], str | None]:
    """The availability of an engine, its error, and its problem (None when it has none)."""
    reason = unavailable(name, device.type)
    if reason is not None:
        return {"available": False, "reason": reason, "parity_error": None}, None
    try:
        error = parity_error(name, device)
    # Whatever an engine raises, compiled or not, is what this command is there to tell.
    except Exception as exception:  # noqa: BLE001
        problem = _raised(exception)
        return {"available": True, "reason": problem, "parity_error": None}, problem
    # Not `error > limit`: a NaN is wrong, too.
    problem = None if error <= PARITY_LIMIT else f"its error is {error:.2g}, above {PARITY_LIMIT:g}"
    return {"available": True, "reason": problem, "parity_error": error}, problem


def _raised(exception: Exception) -> str:
    return f"it raises {type(exception).__name__}: {first_line(exception)}"


def _has(path: str) -> bool:
    found: object = torch
    for name in path.split("."):
        if not hasattr(found, name):
            return False
        found = getattr(found, name)
    return True
