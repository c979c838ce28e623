"""torch.compile takes a whole model as one graph, and computes what eager torch computes, gradients too."""

import shutil
from pathlib import Path

import pytest
import torch
from support.processes import TESTS, python
from support.tiny import TINY

from dis_cli.config.overrides import apply_overrides
from dis_cli.config.presets import load_preset
from dis_cli.models import DiS
from dis_cli.runtime.process_group import ProcessGroup
from dis_cli.scan.engines.cpu import kernel
from dis_cli.workflows.train import build as build_training

PROGRAM = str(TESTS / "support" / "compile_model.py")
ENGINES = ["torch"] if kernel.why_not() else ["torch", "kernel"]


@pytest.mark.parametrize(
    ("backend", "mode"),
    [
        pytest.param("aot_eager", "eval", marks=pytest.mark.long),
        ("eager", "train"),
        ("eager", "checkpointed"),
        pytest.param("aot_eager", "ablated", marks=pytest.mark.long),
    ],
)
def test_the_graph_of_forward_and_backward(backend: str, mode: str) -> None:
    process = python(PROGRAM, backend, "3", mode, *ENGINES)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ENGINES


@pytest.mark.long
def test_inductor(tmp_path: Path) -> None:
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("inductor needs a C++ compiler")
    process = python(PROGRAM, "inductor", "1", "checkpointed", ENGINES[-1], TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ENGINES[-1:]


def test_a_missing_compiler_is_told_before_the_first_step(tmp_path: Path) -> None:
    environment = {"CXX": str(tmp_path / "no-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    run = tmp_path / "run"
    process = python("-m", "dis_cli", "train", "--out", str(run), *TINY, "train.compile=true", **environment)
    assert process.returncode == 2, process.stderr
    assert "error: `train.compile`: got true, but torch cannot compile on this machine" in process.stderr
    assert "hint: Install a C++ compiler" in process.stderr
    assert "Traceback" not in process.stderr
    assert "step 1 " not in process.stderr


@pytest.mark.parametrize("wanted", [False, True])
def test_the_setting_decides(wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[DiS] = []
    monkeypatch.setattr(build_training, "require_compiler", lambda _: None)
    monkeypatch.setattr(DiS, "compile", lambda model: compiled.append(model))
    overrides = ["model.embed_dim=16", "model.depth=1", f"train.compile={str(wanted).lower()}"]
    config = apply_overrides(load_preset("dis-xs-digits"), overrides)
    state = build_training.build_training_state(config, torch.device("cpu"), ProcessGroup())
    assert compiled == ([state.model] if wanted else [])
