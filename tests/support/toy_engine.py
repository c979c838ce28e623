"""Another engine, as small as one can be: the recurrence, which autograd differentiates; it counts its calls."""

from collections import Counter
from typing import Any

import pytest
from torch import Tensor

from dis_cli.config.settings import settings
from dis_cli.scan.engines import reference
from dis_cli.scan.engines.choose import _failures
from dis_cli.scan.engines.table import ENGINES, Engine

calls: Counter[str] = Counter()
# Why it cannot be used, and what its scan is multiplied with.
missing: str | None = None
factor = 1.0


def why_not() -> str | None:
    return missing


def selective_scan(*tensors: Tensor, **options: Any) -> Tensor:
    calls["scan"] += 1
    return factor * reference.selective_scan(*tensors, **options)


def causal_conv_silu(*tensors: Tensor, reverse: bool) -> Tensor:
    calls["conv"] += 1
    return reference.causal_conv_silu(*tensors, reverse=reverse)


def add_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its row, for the time of a test."""
    row = Engine("support.toy_engine", devices=("cpu",), preference=2, compiled=True)
    monkeypatch.setitem(ENGINES, "toy", row)
    # What was found out of it, and what the settings say of the engines, was kept.
    forget()


def forget() -> None:
    calls.clear()
    _failures.pop(("toy", "cpu"), None)
    settings.cache_clear()
