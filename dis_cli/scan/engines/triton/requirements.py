"""Requirements of this engine, found without importing Triton, which takes 0.13 s."""

import os
import re
import shutil
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

from dis_cli.scan.engines.table import ENGINES

# torch's wheels for GPUs of other makers bring Triton under another name.
PACKAGES = ("triton", "pytorch-triton", "triton-rocm", "pytorch-triton-rocm", "triton-xpu", "pytorch-triton-xpu")
# The versions that the kernels are known to compile with. Older ones lack tuples in loops. A newer one is tried, since
# an engine has to compute something small before it is trusted.
OLDEST, NEWEST_PROVEN = (3, 3), (3, 8)


def missing() -> str | None:
    """What is not installed, as a reason why the engine cannot be used; None when all is."""
    if find_spec("triton") is None:
        return "Triton is not installed; it comes with torch's builds for GPUs on Linux (`pip install triton`)"
    found = _version()
    if found is not None and tuple(int(part) for part in re.findall(r"\d+", found)[:2]) < OLDEST:
        proven = " to ".join(".".join(map(str, version)) for version in (OLDEST, NEWEST_PROVEN))
        return f"it needs Triton {proven} (or newer, untried), and Triton {found} is installed"
    return None if ENGINES["triton"].is_interpreted() else _no_compiler()


def no_gpu() -> str | None:
    """That there is no GPU; None where torch sees one, or none is needed."""
    if ENGINES["triton"].is_interpreted() or torch.cuda.is_available() or torch.xpu.is_available():
        return None
    return "torch sees no GPU"


def _version() -> str | None:
    for package in PACKAGES:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def _no_compiler() -> str | None:
    """At the first launch Triton compiles a small helper in C, against Python's headers (its ``runtime/build.py``)."""
    compilers = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    # CC may carry options.
    if not any(shutil.which(compiler.split()[0]) for compiler in compilers):
        return (
            f"Triton needs a C compiler at its first launch, and finds no {' or '.join(compilers)}: install one "
            "(Debian: `apt install gcc`), or name it in the environment variable CC"
        )
    headers = Path(sysconfig.get_paths()["include"])
    if not (headers / "Python.h").exists():
        return (
            f"Triton needs Python's headers at its first launch, and {headers} has no Python.h: install them "
            "(Debian: `apt install python3-dev`)"
        )
    return None
