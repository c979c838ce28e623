"""The kernel under AddressSanitizer: no access outside of what was allocated, nothing read before it is written."""

import shutil
import subprocess
from pathlib import Path

import pytest
from support.processes import TESTS, python

import dis_cli.scan.engines.cpu
from dis_cli.scan.engines.cpu import kernel

pytestmark = pytest.mark.slow

PROGRAM = str(TESTS / "support" / "exercise_kernel.py")
SOURCE = Path(dis_cli.scan.engines.cpu.__file__).with_name("csrc") / "kernel.cpp"


def runtime(name: str) -> str:
    """The file of a library that comes with the compiler."""
    found = subprocess.run(
        ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(found).is_absolute():
        pytest.skip(f"the compiler has no {name}")
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With it, Python loads a kernel whose memory is watched, and fresh memory is full of NaN."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    if not SOURCE.exists():
        pytest.skip("the kernel's source is not installed")
    # The C++ runtime too: the sanitizer looks for its functions when it starts, before Python loads torch.
    preloaded = [runtime("libasan.so"), runtime("libstdc++.so.6")]
    library = tmp_path_factory.mktemp("sanitizer") / "kernel.so"
    options = ["-std=c++17", "-fno-math-errno", "-Wno-psabi", "-shared", "-fPIC", "-O1", "-g1", "-fsanitize=address"]
    subprocess.run(["g++", *options, str(SOURCE), "-o", str(library)], check=True)
    return {
        "DIS_KERNEL_LIBRARY": str(library),
        "LD_PRELOAD": " ".join(preloaded),
        "ASAN_OPTIONS": "detect_leaks=0:malloc_fill_byte=255:max_malloc_fill_size=1000000000",
    }


@pytest.mark.long
def test_memory_is_used_as_it_should_be(environment) -> None:
    process = python(PROGRAM, "sizes", "threads", **environment)
    assert process.returncode == 0, process.stderr[:5000]
    # Those of this processor; where no kernel is installed there is nothing to ask, and the baseline is always there.
    assert process.stdout.split() == kernel.isas() or (kernel.why_not() and "baseline" in process.stdout.split())


def test_an_overflow_would_be_noticed(environment) -> None:
    process = python(PROGRAM, "overflow", **environment)
    assert process.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in process.stderr
    assert "WRITE of size" in process.stderr
    assert process.stdout == ""
