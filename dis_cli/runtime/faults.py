"""Injected faults for tests: named points that the work passes, which do nothing by themselves."""

from collections.abc import Callable
from typing import Any

Injector = Callable[..., None]

_injector: Injector | None = None


def reach(point: str, step: int, **what: Any) -> None:
    """Say that the work is at ``point`` of ``step``.

    Args:
        point: Its name: "gradients", before they are looked at; "saving", before a checkpoint is written; "saved",
            when it has its name.
        step: The optimizer step, counted from 1.
    """
    if _injector is not None:
        _injector(point, step, **what)


def inject(injector: Injector | None) -> None:
    """Call ``injector(point, step, **what)`` at every point from now on; None stops it."""
    global _injector
    _injector = injector
