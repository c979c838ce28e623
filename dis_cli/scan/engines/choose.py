"""Which implementation runs the scan and the convolution, and why.

=========== ==========================================================================================
kernel      the compiled CPU kernel: float32 on the CPU
torch       plain PyTorch with hand-written backwards: any device, any dtype
mamba_ssm   the packages mamba-ssm and causal-conv1d: CUDA
reference   the recurrence token by token, differentiated by autograd: slow, for comparison
=========== ==========================================================================================
"""

from dataclasses import dataclass

import torch

from dis_cli.scan.engines import mamba_engine, proof
from dis_cli.scan.engines.cpu import kernel

ENGINES = ("auto", "kernel", "torch", "reference", "mamba_ssm")

# What "auto" tries by kind of device, the fastest first; plain PyTorch, which computes everywhere, is the last resort.
_PREFERRED = {"cuda": ("mamba_ssm",), "cpu": ("kernel",)}
_OTHERWISE = ("kernel",)

# Compiled code is not taken on trust: whether it works, by engine and kind of device.
_PROVEN = ("kernel", "mamba_ssm")
_failures: dict[tuple[str, str], str | None] = {}


@dataclass(frozen=True)
class Engine:
    """An engine that was chosen.

    Args:
        name: One of ``ENGINES``, never "auto".
        reason: Why this one, as the rest of a sentence.
    """

    name: str
    reason: str


class SecondChoice(Engine):
    """One that was chosen because a faster one is installed and does not work, which its user should know."""


def unavailable(engine: str, device_type: str) -> str | None:
    """Why an engine cannot compute float32 on this kind of device ("cpu", "cuda"); None when it can."""
    if engine == "kernel":
        return kernel.why_not() if device_type == "cpu" else f"it computes on the CPU only, not on {device_type}"
    if engine == "mamba_ssm":
        return mamba_engine.why_not() if device_type == "cuda" else f"it computes on CUDA only, not on {device_type}"
    return None


def failing(engine: str, device: str | torch.device) -> str | None:
    """What goes wrong when an available engine computes; None when nothing does.

    The first call for a kind of device tries it there, in some hundredths of a second, and waits for a GPU.
    """
    key = engine, device if isinstance(device, str) else device.type
    # Where operators are compiled or counted nothing is tried: it would be compiled or counted too.
    if engine not in _PROVEN or (key not in _failures and not runs_eagerly()):
        return None
    if key not in _failures:
        _failures[key] = proof.failure(engine, torch.device(device))
    return _failures[key]


def runs_eagerly() -> bool:
    """Whether an operator may be called past torch's dispatcher: nothing compiles, counts, or traces operators.

    The way through the dispatcher and back through a custom operator's autograd takes 0.1 ms a call, a tenth of a small
    model's training step.
    """
    return not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack() == 0  # pyright: ignore


def choose_engine(requested: str, device: str | torch.device, dtype: torch.dtype = torch.float32) -> Engine:
    """The engine for a device and dtype.

    Args:
        requested: One of ``ENGINES``; "auto" takes the fastest that works.
        device: "cpu", "cuda" or another of torch's kinds, or one of that kind.
        dtype: Of the scan's input. float64 always uses plain PyTorch, unless the reference is asked for.

    Raises:
        ValueError: The engine is unknown, or cannot compute here.
    """
    if requested not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {requested!r}")
    if requested in ("torch", "reference"):
        return Engine(requested, "it was asked for")
    device_type = device if isinstance(device, str) else device.type
    if requested != "auto":
        reason = unavailable(requested, device_type) or failing(requested, device)
        if reason is not None:
            raise ValueError(f"engine {requested!r} cannot be used: {reason}")
    if dtype == torch.float64:
        return Engine("torch", "only plain PyTorch computes in float64")
    if requested != "auto":
        return Engine(requested, "it was asked for")
    reasons: list[str] = []
    kind = Engine
    for name in _PREFERRED.get(device_type, _OTHERWISE):
        reason = unavailable(name, device_type)
        if reason is None and (reason := failing(name, device)) is not None:
            kind = SecondChoice
        if reason is None:
            return kind(name, "; ".join(reasons) or f"the fastest on {device_type}")
        reasons.append(f"{name} cannot be used: {reason}")
    return kind("torch", "; ".join(reasons))
