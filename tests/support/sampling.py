"""Samples of a tiny model, and what a result holds."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from support.tiny import dis


def command(run: Path, out: Path, *arguments: object) -> list[object]:
    return ["sample", "--ckpt", run, "--out", out, "-q", "--sampler", "ddim", "--steps", 2, *arguments]


def sampled(run: Path, out: Path, *arguments: object) -> Path:
    """The result of a command that must do it."""
    assert dis(*command(run, out, *arguments)) == 0
    return out


def content(out: Path) -> dict[str, bytes]:
    """Every byte of a folder or a file."""
    paths = [path for path in sorted(out.rglob("*")) if path.is_file()] if out.is_dir() else [out]
    return {path.name if path != out else out.suffix: path.read_bytes() for path in paths}


def record(out: Path) -> dict[str, Any]:
    """What ``samples.json`` says."""
    if out.is_dir():
        return json.loads((out / "samples.json").read_text())
    with zipfile.ZipFile(out) as archive:
        return json.loads(archive.read("samples.json"))


def arrays(out: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Images and classes of an npz."""
    with np.load(out) as data:
        return data["arr_0"], data.get("arr_1")


def beside(out: Path) -> list[str]:
    """What stands beside a result, which should be nothing."""
    return sorted(path.name for path in out.parent.iterdir() if path != out)
