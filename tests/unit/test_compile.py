"""torch.compile takes a whole model as one graph, and computes what eager torch computes, gradients too."""

import shutil
from pathlib import Path

import pytest
from support.processes import TESTS, python

from dis_cli.scan import kernel

PROGRAM = str(TESTS / "support" / "compile_model.py")
ENGINES = ["torch"] if kernel.why_not() else ["torch", "kernel"]


def test_the_graph_of_forward_and_backward() -> None:
    process = python(PROGRAM, "aot_eager", "3", *ENGINES)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ENGINES


@pytest.mark.slow
def test_inductor(tmp_path: Path) -> None:
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("inductor needs a C++ compiler")
    process = python(PROGRAM, "inductor", "1", ENGINES[-1], TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ENGINES[-1:]
