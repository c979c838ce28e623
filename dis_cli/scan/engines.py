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

from dis_cli.scan import kernel, mamba_engine

ENGINES = ("auto", "kernel", "torch", "reference", "mamba_ssm")


@dataclass(frozen=True)
class Engine:
    """An engine that was chosen.

    Args:
        name: One of ``ENGINES``, never "auto".
        reason: Why this one, as the rest of a sentence.
    """

    name: str
    reason: str


def unavailable(engine: str, device_type: str) -> str | None:
    """Why an engine cannot compute float32 on this kind of device ("cpu", "cuda"); None when it can."""
    if engine == "kernel":
        return kernel.why_not() if device_type == "cpu" else f"it computes on the CPU only, not on {device_type}"
    if engine == "mamba_ssm":
        return mamba_engine.why_not() if device_type == "cuda" else f"it computes on CUDA only, not on {device_type}"
    return None


def choose_engine(requested: str, device_type: str, dtype: torch.dtype = torch.float32) -> Engine:
    """The engine for a device and dtype.

    Args:
        requested: One of ``ENGINES``; "auto" takes the fastest that works.
        device_type: "cpu", "cuda" or another of torch's.
        dtype: Of the scan's input. float64 always uses plain PyTorch, unless the reference is asked for.

    Raises:
        ValueError: The engine is unknown, or cannot compute here.
    """
    if requested not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {requested!r}")
    if requested in ("torch", "reference"):
        return Engine(requested, "it was asked for")
    fastest = "mamba_ssm" if device_type == "cuda" else "kernel"
    reason = unavailable(fastest if requested == "auto" else requested, device_type)
    if requested != "auto" and reason is not None:
        raise ValueError(f"engine {requested!r} cannot be used: {reason}")
    if dtype == torch.float64:
        return Engine("torch", "only plain PyTorch computes in float64")
    if requested != "auto":
        return Engine(requested, "it was asked for")
    if reason is not None:
        return Engine("torch", f"{fastest} cannot be used: {reason}")
    return Engine(fastest, f"the fastest on {device_type}")
