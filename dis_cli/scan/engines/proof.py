"""The trial of an engine: one tiny forward and backward, before a run is trusted to it.

A package may import and then lack the code for this GPU, or be built for another torch; that shows when it is called.
`dis doctor` measures the error of an engine; this only tells one that works from one that does not.
"""

from typing import Any

import torch
from torch import Tensor

from dis_cli.errors import first_line
from dis_cli.scan.contract import ScanInputs
from dis_cli.scan.engines import reference

# Far above float32's rounding and TF32's, far below what a wrong kernel does.
_TOLERANCE = 0.02
_BATCH, _LENGTH, _CHANNELS, _STATES, _TAPS = 2, 5, 8, 4, 4


def failure(engine: Any, device: torch.device) -> str | None:
    """What goes wrong when an engine computes a scan, a convolution and their gradients; None when nothing does.

    No random number is drawn.

    Args:
        engine: The module of one that is available on the device (``dis_cli.scan.contract.EngineModule``).
        device: Where it computes; it is waited for.
    """
    # Whoever asks may be sampling, under autocast, or in a block whose saved tensors gradient checkpointing counts.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is),
    ):
        try:
            found = _results(engine, device)
        except Exception as error:  # noqa: BLE001 - compiled code raises what it likes
            return f"it fails at its first computation: {type(error).__name__}: {first_line(error)}"
        expected = _results(reference, torch.device("cpu"))
    for got, wanted in zip(found, expected, strict=True):
        # Not `error > limit`: a NaN is wrong, too.
        if not (got - wanted).abs().max() <= _TOLERANCE * wanted.abs().max():
            return "it computes something else than the recurrence"
    return None


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _results(engine: Any, device: torch.device) -> list[Tensor]:
    """The scan, the convolution and their gradients, on the CPU."""

    def values(*shape: int, phase: float) -> Tensor:
        count = int(torch.Size(shape).numel())
        wave = torch.sin(torch.arange(count, dtype=torch.float32, device="cpu") * 0.7 + phase)
        return wave.view(shape).to(device).requires_grad_()

    sequence, state = (_BATCH, _LENGTH, _CHANNELS), (_BATCH, _LENGTH, _STATES)
    u, delta, z = (values(*sequence, phase=phase) for phase in (0.0, 1.0, 2.0))
    A = (values(_CHANNELS, _STATES, phase=3.0).detach() - 1.5).requires_grad_()
    B, C = (values(*state, phase=phase) for phase in (4.0, 5.0))
    D, delta_bias, conv_bias = (values(_CHANNELS, phase=phase) for phase in (6.0, 7.0, 8.0))
    taps = values(_CHANNELS, _TAPS, phase=9.0)
    conv_inputs = [u, taps, conv_bias]
    if hasattr(engine, "scan_forward"):
        # Past autograd and torch's dispatcher, as the model calls it: the way through a custom operator imports torch's
        # compiler, which takes seconds.
        with torch.no_grad():
            inputs = ScanInputs(u, delta, A, B, C, D, z, delta_bias, True, False)
            scanned, ends = engine.scan_forward(inputs)
            scan_gradients = engine.scan_backward(2 * scanned, ends, inputs)
            convolved = engine.conv_silu_forward(*conv_inputs, reverse=False)
            conv_gradients = engine.conv_silu_backward(2 * convolved, *conv_inputs, reverse=False)
    else:
        scanned = engine.selective_scan(
            u, delta, A, B, C, D=D, z=z, delta_bias=delta_bias, delta_softplus=True, reverse=False
        )
        convolved = engine.causal_conv_silu(*conv_inputs, reverse=False)
        scan_gradients = torch.autograd.grad((scanned * scanned).sum(), [u, delta, A, B, C, D, z, delta_bias])
        conv_gradients = torch.autograd.grad((convolved * convolved).sum(), conv_inputs)
    found = (scanned, convolved, *scan_gradients, *conv_gradients)
    return [tensor.detach().float().cpu() for tensor in found if tensor is not None]
