"""The Triton engine without a GPU: interpreted, compiled for GPUs that are not here, and where it is absent.

Each in a process of its own: Triton decides when a kernel is defined whether it will be interpreted, and a driver is
chosen once.
"""

import json
import re
import sysconfig
from importlib import metadata, util
from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import TESTS, python

from dis_cli.scan.engines.choose import choose_engine, unavailable
from dis_cli.scan.engines.table import ENGINES, preferred
from dis_cli.scan.engines.triton import engine, requirements

# The compiler that the budgets hold for; `dev` in pyproject.toml installs it.
COMPILER = "3.8.0"
# Instructions for 32 (token, channel) pairs at 16 states, by target.
BUDGETS = {
    "scan_forward_kernel": {80: 165, 90: 165, 100: 165},
    "scan_backward_kernel": {80: 560, 90: 540, 100: 490},
}
COMPILED = [(80, "bfloat16"), (90, "float32"), (90, "bfloat16"), (100, "bfloat16")]


def installed() -> str | None:
    return metadata.version("triton") if util.find_spec("triton") else None


needs_triton = pytest.mark.skipif(installed() is None, reason="Triton is not installed")


@needs_triton
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("which", ["not long", pytest.param("long", marks=pytest.mark.long)])
def test_in_the_interpreter(which, tally) -> None:
    options = ("-m", which, "-q", "-n", "0", "-p", "no:cacheprovider", "--no-header")
    process = python("-m", "pytest", *options, str(TESTS / "interpreter"), TRITON_INTERPRET="1")
    assert process.returncode == 0, process.stdout[-5000:] + process.stderr[-2000:]
    passed = re.search(r"(\d+) passed", process.stdout)
    assert passed is not None
    tally("tests passed in Triton's interpreter", passed[1])


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What became of each kernel that a mixer launches, for all targets."""
    if installed() != COMPILER:
        pytest.skip(f"the budgets hold for Triton {COMPILER}, and {installed() or 'none'} is installed")
    cache = tmp_path_factory.mktemp("triton")
    process = python(str(TESTS / "support" / "compile_triton.py"), TRITON_CACHE_DIR=str(cache), TRITON_INTERPRET="0")
    assert process.returncode == 0, process.stderr[-5000:]
    return json.loads(process.stdout)["kernels"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kernels_keep_to_their_budgets(compiled, tally) -> None:
    scans = [row for row in compiled if row["kernel"] in BUDGETS]
    assert sorted((row["target"], row["dtype"]) for row in scans) == sorted(2 * COMPILED)
    for row in scans:
        assert 100 < row["instructions"] <= BUDGETS[row["kernel"]][row["target"]], row
        assert row["spills_inside"] == row["shared"] == 0, row
        # Gradients of B and C over a warp: 16 exchanges for 8 tokens and one state.
        assert row["exchanges"] == (16 if row["kernel"] == "scan_backward_kernel" else 0), row
    counts = {
        f"{row['kernel']} {row['dtype']}": format(row["instructions"], ".1f") for row in scans if row["target"] == 90
    }
    tally("instructions for 32 pairs on sm_90", counts)

    kinds = {row["kernel"] for row in compiled}
    expected = {"pack_kernel", "sum_kernel", "convolution_kernel", "activation_gradient_kernel"}
    assert kinds == {*BUDGETS, *expected, "norm_forward_kernel", "norm_backward_kernel"}
    for row in compiled:
        if row["kernel"] == "scan_forward_kernel" or row["kernel"].startswith("norm"):
            assert row["spills"] == 0, row
        if row["kernel"] in ("convolution_kernel", "activation_gradient_kernel"):
            assert row["shared"] == row["spills_inside"] == 0, row
            # Once for a program, if at all.
            assert row["spills"] <= 16, row


def test_its_place() -> None:
    assert preferred("cuda") == ["mamba_ssm", "triton"]
    assert "triton" not in preferred("cpu")
    reason = unavailable("triton", "cpu")
    assert (
        reason == "it computes on CUDA and XPU only, not on cpu (in its interpreter it does, with TRITON_INTERPRET=1)"
    )
    with pytest.raises(ValueError, match="engine 'triton' cannot be used: it computes on CUDA and XPU only"):
        choose_engine("triton", "cpu")


def test_the_interpreter_is_for_those_who_ask(monkeypatch) -> None:
    for value, interpreted in (("1", True), ("true", True), ("0", False), ("", False)):
        monkeypatch.setenv("TRITON_INTERPRET", value)
        assert ENGINES["triton"].computes_on("cpu") == interpreted
        assert "triton" not in preferred("cpu")
    assert not ENGINES["torch"].is_interpreted()


def test_no_gpu_is_told(monkeypatch) -> None:
    monkeypatch.setattr(engine, "_missing", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    assert engine.why_not() == unavailable("triton", "cuda") == "torch sees no GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert engine.why_not() is None
    monkeypatch.setattr(engine, "_missing", "Triton is not installed")
    assert engine.why_not() == "Triton is not installed"


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As if a machine had all that the engine needs; the folder is where programs and headers are looked for."""
    for name in ("gcc", "clang-19"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "Python.h").write_text("")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(sysconfig, "get_paths", lambda *_, **__: {"include": str(tmp_path)})
    monkeypatch.setattr(requirements, "find_spec", lambda _: True)
    monkeypatch.setattr(requirements, "version", lambda _: "3.6.0")
    assert requirements.missing() is None
    return tmp_path


def test_no_triton(complete, monkeypatch) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda _: None)
    assert "Triton is not installed" in str(requirements.missing())


@pytest.mark.parametrize(("version", "works"), [("3.2.0", False), ("2.9", False), ("3.3.0+git1", True), ("4.0", True)])
def test_the_version(version, works, complete, monkeypatch) -> None:
    monkeypatch.setattr(requirements, "version", lambda _: version)
    reason = requirements.missing()
    assert (reason is None) == works
    assert works or reason == f"it needs Triton 3.3 to 3.8 (or newer, untried), and Triton {version} is installed"


def test_no_compiler(complete, monkeypatch) -> None:
    monkeypatch.setenv("CC", "clang-19 -O2")
    assert requirements.missing() is None
    monkeypatch.setenv("CC", "absent")
    assert "finds no absent" in str(requirements.missing())
    monkeypatch.delenv("CC")
    (complete / "gcc").unlink()
    assert "finds no gcc or clang: install one (Debian: `apt install gcc`)" in str(requirements.missing())


def test_no_headers(complete, monkeypatch) -> None:
    (complete / "Python.h").unlink()
    reason = str(requirements.missing())
    assert f"{complete} has no Python.h" in reason
    assert "apt install python3-dev" in reason
    # The interpreter compiles nothing.
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert requirements.missing() is None


def test_no_triton_is_imported_before_it_computes() -> None:
    code = (
        "import sys, dis_cli.scan.engines.choose as c; c.choose_engine('auto', 'cpu'); print('triton' in sys.modules)"
    )
    assert python("-c", code).stdout == "False\n"
