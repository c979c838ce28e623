"""Facts about this machine and what is installed on it. Nothing here imports torch."""

import contextlib
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dis_cli.paths import home_path

if TYPE_CHECKING:
    import torch


class Memory(NamedTuple):
    """The computer's main memory, or a GPU's.

    Args:
        total_bytes: All of it; None when the system does not say.
        free_bytes: Memory that programs can get without swapping, with caches that can be given up; None likewise.
    """

    total_bytes: int | None
    free_bytes: int | None


def cpu_name() -> str:
    """The processor's model, as the system names it."""
    for line in _lines(Path("/proc/cpuinfo")):
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def cache_folder() -> Path:
    """The folder of results that can be made again: DIS_CACHE_DIR, else the user's, such as ``~/.cache/dis``."""
    # Imported here: only this needs it.
    import platformdirs

    return home_path(os.environ.get("DIS_CACHE_DIR") or platformdirs.user_cache_dir("dis"))


def num_cores() -> int:
    """Logical cores that this process may use, which can be fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def memory(device: "torch.device | None" = None) -> Memory:
    """Size of a device's memory, or of the main memory, and how much of it is free."""
    if device is not None and device.type == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info(device)
        return Memory(total, free)
    found = {key: value for key, _, value in (line.partition(":") for line in _lines(Path("/proc/meminfo")))}
    if {"MemTotal", "MemAvailable"} <= found.keys():
        total, free = (int(found[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
        return Memory(total, free)
    try:
        return Memory(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None)
    except (ValueError, OSError):
        return Memory(None, None)


def memory_in_use(device: "torch.device") -> int | None:
    """Bytes that the work holds: the most that a GPU has held for it, or what this process holds; None if unknown."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_reserved(device)
    return resident_bytes()


def resident_bytes() -> int | None:
    """The main memory held by this process, in bytes; None when unknown."""
    with contextlib.suppress(OSError, AttributeError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def package_version(name: str) -> str | None:
    """The installed version of a distribution, without importing it; None when it is not installed."""
    # Imported late, as everything that the live line does not need.
    import importlib.metadata

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
