"""Reading the arrays recorded from the published code, and comparing with them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

DATA = Path(__file__).parents[1] / "oracle" / "data"

# What the project promises against the recorded arrays.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


def load(name: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The arrays of a file; floating ones as ``dtype`` when given."""
    tensors = load_file(DATA / f"{name}.safetensors")
    if dtype is None:
        return tensors
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}


def metadata(name: str) -> dict[str, Any]:
    with safe_open(DATA / f"{name}.safetensors", "pt") as file:
        return json.loads(file.metadata()["config"])


def group(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under ``prefix/``, without it."""
    return {key.removeprefix(f"{prefix}/"): value for key, value in tensors.items() if key.startswith(f"{prefix}/")}


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected magnitude."""
    assert got.shape == expected.shape, (got.shape, expected.shape)
    difference = (got.detach().double() - expected.detach().double()).abs().max()
    return float(difference / expected.detach().double().abs().max().clamp(min=1e-300))


def assert_matches(got: Tensor, expected: Tensor, dtype: torch.dtype, what: str = "") -> None:
    error = relative_error(got, expected)
    assert error <= TOLERANCE[dtype], f"{what}: relative error {error:.2e} exceeds {TOLERANCE[dtype]:.0e}"
