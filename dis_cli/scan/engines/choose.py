"""The choice of the engine that runs the scan and the convolution, with its reason."""

import importlib
from dataclasses import dataclass
from typing import Any

import torch

from dis_cli.scan.engines import proof
from dis_cli.scan.engines.table import AUTO, ENGINES, LAST_RESORT, allowed, preferred

# Imported now: torch.compile cannot trace an import. Packages that may be missing are imported by ``why_not``.
_modules: dict[str, Any] = {engine.module: importlib.import_module(engine.module) for engine in ENGINES.values()}

# Whether compiled code works, by engine and kind of device.
_failures: dict[tuple[str, str], str | None] = {}


@dataclass(frozen=True)
class ChosenEngine:
    """An engine that was chosen.

    Args:
        name: A name in ``ENGINES``, never "auto".
        reason: Why this one, as the rest of a sentence.
    """

    name: str
    reason: str


class SecondChoice(ChosenEngine):
    """One that was chosen because a faster one is installed and does not work, which its user should know."""


def engine_module(name: str) -> Any:
    """The module of an engine: a `dis_cli.scan.contract.EngineModule`."""
    path = ENGINES[name].module
    if path not in _modules:
        _modules[path] = importlib.import_module(path)
    return _modules[path]


def unavailable(name: str, device_type: str) -> str | None:
    """Why an engine cannot compute float32 on this kind of device ("cpu", "cuda"); None when it can."""
    engine = ENGINES[name]
    if engine.computes_on(device_type):
        return engine_module(name).why_not()
    names = {"cpu": "the CPU", "cuda": "CUDA", "xpu": "XPU"}
    devices = " and ".join(names.get(device, device) for device in engine.devices)
    interpreted = f" (in its interpreter it does, with {engine.interpreter}=1)" if engine.interpreter else ""
    return f"it computes on {devices} only, not on {device_type}{interpreted if device_type == 'cpu' else ''}"


def failing(name: str, device: str | torch.device) -> str | None:
    """What goes wrong when an available engine computes; None when nothing does.

    The first call for a kind of device tries it there, in some hundredths of a second, and waits for a GPU.
    """
    key = name, device if isinstance(device, str) else device.type
    # Where operators are compiled or counted nothing is tried: it would be compiled or counted too.
    if not ENGINES[name].compiled or (key not in _failures and not runs_eagerly()):
        return None
    if key not in _failures:
        _failures[key] = proof.failure(engine_module(name), torch.device(device))
    return _failures[key]


def runs_eagerly() -> bool:
    """Whether an operator may be called past torch's dispatcher: nothing compiles, counts, or traces operators.

    The way through the dispatcher and back through a custom operator's autograd takes 0.1 ms a call, a tenth of a small
    model's training step.
    """
    return not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack() == 0  # pyright: ignore


def choose_engine(requested: str, device: str | torch.device, dtype: torch.dtype = torch.float32) -> ChosenEngine:
    """The engine for a device and dtype.

    Args:
        requested: A name in ``ENGINES``; "auto" takes the fastest that works.
        device: "cpu", "cuda" or another of torch's kinds, or one of that kind.
        dtype: Of the scan's input. In float64 plain PyTorch stands in for engines that have none.

    Raises:
        ValueError: The engine is unknown, or cannot compute here.
    """
    device_type = device if isinstance(device, str) else device.type
    if requested != AUTO:
        if requested not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(allowed())}, got {requested!r}")
        reason = unavailable(requested, device_type) or failing(requested, device)
        if reason is not None:
            raise ValueError(f"engine {requested!r} cannot be used: {reason}")
    if dtype == torch.float64 and (requested == AUTO or not ENGINES[requested].float64):
        return ChosenEngine(LAST_RESORT, "only plain PyTorch computes in float64")
    if requested != AUTO:
        return ChosenEngine(requested, "chosen in the settings")
    reasons: list[str] = []
    kind = ChosenEngine
    for name in preferred(device_type):
        reason = engine_module(name).why_not()
        if reason is None and (reason := failing(name, device)) is not None:
            kind = SecondChoice
        if reason is None:
            return kind(name, "; ".join(reasons) or f"the fastest on {device_type}")
        reasons.append(f"{name} cannot be used: {reason}")
    return kind(LAST_RESORT, "; ".join(reasons) or f"it computes on {device_type} too")
