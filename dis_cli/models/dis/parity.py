"""The check of an engine: its float32 results and gradients against the float64 recurrence."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dis_cli.models.dis.mixer import Mixer
from dis_cli.scan import causal_conv_silu, selective_scan

PARITY_LIMIT = 1e-5
STATES = 16
# Engines have a way of their own for the usual number.
TAPS, WIDE_TAPS = 4, 9
# Batch, tokens, channels: one that no vector width divides, and one that all do.
SHAPES = ((1, 37, 43), (2, 20, 64))


class _Case(NamedTuple):
    inputs: dict[str, Tensor]
    compute: Callable[[dict[str, Tensor], str], Tensor]


def parity_error(engine: str, device: torch.device) -> float:
    """The largest error of an engine's results and gradients, relative to the largest value expected in each tensor.

    The scan runs with all of its options (skip, gate, bias, softplus) and the convolution beside it, both from the
    first token to the last and back; then a whole mixer, where an engine may compute both directions as one.

    Args:
        engine: One that is available for the device, never "auto".
        device: Where it computes; the reference computes on the CPU.

    Returns:
        0 is exact; NaN when a result is not finite. float32 rounding gives about 1e-6.
    """
    worst = 0.0
    cases: list[_Case] = []
    for shape in SHAPES:
        cases.append(_mixer_case(*shape))
        for reverse in (False, True):
            cases.append(_scan_case(*shape, reverse=reverse))
            cases += [_conv_case(*shape, taps, reverse=reverse) for taps in (TAPS, WIDE_TAPS)]
    for case in cases:
        expected = _results(case, torch.float64, torch.device("cpu"), "reference")
        got = _results(case, torch.float32, device, engine)
        for name, tensor in expected.items():
            error = (got[name].double().cpu() - tensor).abs().max() / tensor.abs().max()
            # Unlike max(), it keeps a NaN.
            worst = float(torch.maximum(torch.tensor(worst, dtype=torch.float64), error))
    return worst


def _results(case: _Case, dtype: torch.dtype, device: torch.device, engine: str) -> dict[str, Tensor]:
    inputs = {
        name: tensor.detach().to(device, dtype, copy=True).requires_grad_() for name, tensor in case.inputs.items()
    }
    out = case.compute(inputs, engine)
    grad = _random(1, *out.shape).to(device, dtype)
    grads = torch.autograd.grad(out, list(inputs.values()), grad)
    return {"out": out.detach()} | {f"grad_{name}": tensor for name, tensor in zip(inputs, grads, strict=True)}


def _scan_case(batch: int, length: int, channels: int, *, reverse: bool) -> _Case:
    sequence, state = (batch, length, channels), (batch, length, STATES)
    inputs = {
        "u": _random(2, *sequence),
        "delta": _random(3, *sequence),
        "A": -torch.arange(1.0, STATES + 1).repeat(channels, 1),
        "B": _random(4, *state),
        "C": _random(5, *state),
        "D": _random(6, channels),
        "z": _random(7, *sequence),
        # Time steps about as long as those a model starts with.
        "delta_bias": _random(8, channels) - 3,
    }

    def compute(inputs: dict[str, Tensor], engine: str) -> Tensor:
        return selective_scan(**inputs, delta_softplus=True, reverse=reverse, engine=engine)

    return _Case(inputs, compute)


def _conv_case(batch: int, length: int, channels: int, taps: int, *, reverse: bool) -> _Case:
    inputs = {
        "x": _random(2, batch, length, channels),
        "weight": _random(3, channels, taps),
        "bias": _random(4, channels),
    }

    def compute(inputs: dict[str, Tensor], engine: str) -> Tensor:
        return causal_conv_silu(**inputs, reverse=reverse, engine=engine)

    return _Case(inputs, compute)


def _mixer_case(batch: int, length: int, channels: int) -> _Case:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mixer = Mixer(channels, STATES, TAPS)
        mixer.reset_parameters()
    weights = {name: parameter.detach() for name, parameter in mixer.named_parameters()}

    def compute(inputs: dict[str, Tensor], engine: str) -> Tensor:
        mixer.engine = engine
        own = {name: tensor for name, tensor in inputs.items() if name in weights}
        return torch.func.functional_call(mixer, own, inputs["tokens"])

    return _Case({"tokens": _random(2, batch, length, channels)} | weights, compute)


def _random(seed: int, *shape: int) -> Tensor:
    """Standard normal float32 numbers that depend on the seed and shape alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
