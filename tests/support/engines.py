"""The engines and instruction sets as parameters of tests; those that this machine lacks skip with the reason."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from dis_cli.scan.engines.cpu import kernel
from dis_cli.scan.engines.table import ENGINES


@dataclass(frozen=True)
class Case:
    """What a test runs with.

    Args:
        engine: A name in ``dis_cli.scan.engines.table.ENGINES``.
        dtype: Of the tensors.
        isa: Instruction set of the kernel; None leaves it alone.
        whole_mixer: Whether the kernel runs a mixer as one call, whatever its size; None leaves it to the size.
    """

    engine: str
    dtype: torch.dtype
    isa: str | None = None
    whole_mixer: bool | None = None

    def __str__(self) -> str:
        mixer = {None: "", True: "whole", False: "parts"}[self.whole_mixer]
        return "-".join(part for part in (self.engine, self.isa, mixer, str(self.dtype)[6:]) if part)


PLAIN = [Case(engine, dtype) for engine in ("reference", "torch") for dtype in (torch.float64, torch.float32)]
# In float64 the engine "kernel" stands for plain torch.
DOUBLE_KERNEL = [Case("kernel", torch.float64)]
KERNEL = [Case("kernel", torch.float32, isa) for isa in kernel.ISAS]
# On the CPU only in Triton's interpreter, in a process of its own (unit/test_triton.py).
TRITON = [Case("triton", torch.float32)] if ENGINES["triton"].is_interpreted() else []
MIXERS = [
    *PLAIN,
    *DOUBLE_KERNEL,
    *(Case("kernel", torch.float32, isa, whole) for isa in kernel.ISAS for whole in (True, False)),
    *TRITON,
]
# Those of which each has an implementation of its own to get wrong.
IMPLEMENTATIONS = [*(case for case in PLAIN if case.engine == "torch"), *KERNEL, *TRITON]
SINGLE = [case for case in [*PLAIN, *KERNEL, *TRITON] if case.dtype == torch.float32 and case.engine != "reference"]


def parameters(cases: list[Case]) -> list[Any]:
    return [pytest.param(case, id=str(case), marks=_skip(case)) for case in cases]


def case_fixture(cases: list[Case]) -> Any:
    """A fixture, to be assigned to a module's ``case``, that gives one of these after the other."""

    @pytest.fixture(params=parameters(cases))
    def case(request: pytest.FixtureRequest) -> Iterator[Case]:
        with using(request.param):
            yield request.param

    return case


@contextmanager
def using(case: Case) -> Iterator[None]:
    """The kernel with the case's instruction set, and its way to run a mixer."""
    library = kernel._loaded.library
    with pytest.MonkeyPatch.context() as patch:
        if case.isa is not None:
            assert library is not None
            assert library.dis_use_isa(case.isa.encode()) == 1
        if case.whole_mixer is not None:
            whole = case.whole_mixer
            patch.setattr(kernel, "runs_whole_mixer", lambda xz: whole and len(xz) > 0 and xz.dtype == torch.float32)
        try:
            yield
        finally:
            if library is not None:
                library.dis_use_isa((kernel.isa() or "").encode())


def _skip(case: Case) -> list[pytest.MarkDecorator]:
    reason = kernel.why_not() if case.engine == "kernel" else None
    if reason is None and case.isa is not None and case.isa not in kernel.isas():
        reason = f"this processor does not have {case.isa}"
    return [] if reason is None else [pytest.mark.skip(reason=reason)]
