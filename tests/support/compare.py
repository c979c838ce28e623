"""A function's results and gradients against those of its reference, on the same numbers."""

from collections.abc import Callable
from typing import Any

import torch
from support.oracle import assert_matches
from torch import Tensor

from dis_cli.scan import causal_conv_silu, selective_scan
from dis_cli.scan.engines.reference import causal_conv_silu_reference, selective_scan_reference

Tensors = dict[str, Tensor | None]

# (batch, length, channels, states): widths and lengths around the vectors' and the chunks' of all implementations.
SCAN_SIZES = [
    (1, 1, 1, 1),
    (2, 2, 3, 2),
    (3, 31, 7, 3),
    (1, 32, 8, 5),
    (2, 33, 9, 8),
    (1, 66, 15, 16),
    (2, 257, 17, 17),
    (3, 33, 31, 64),
    (1, 32, 33, 1),
    (2, 66, 69, 3),
    (5, 2, 69, 16),
    (33, 1, 131, 2),
]

# (batch, length, channels, taps)
CONV_SIZES = [
    (1, 1, 1, 1),
    (2, 3, 3, 2),
    (1, 2, 7, 7),
    (2, 31, 8, 3),
    (2, 32, 9, 4),
    (1, 33, 15, 5),
    (2, 66, 17, 4),
    (1, 3, 31, 4),
    (2, 70, 33, 7),
    (1, 257, 69, 4),
    (1, 100, 3, 40),
    (2, 130, 19, 9),
    (1, 40, 5, 17),
    (2, 230, 18, 33),
    (1, 20, 3, 33),
    (33, 1, 131, 4),
]


def scan_inputs(b: int, length: int, d: int, n: int, *, spread: float = 12.0) -> dict[str, Tensor]:
    """Inputs of a scan in float64 that float32 holds exactly; with the default ``spread``, delta passes 20."""
    generator = torch.Generator().manual_seed(b + 10 * length + 100 * d + 1000 * n)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).double()

    return {
        "u": normal(b, length, d),
        "delta": (normal(b, length, d) * spread).float().double(),
        "A": (-normal(d, n).abs() - 0.1).float().double(),
        "B": normal(b, length, n),
        "C": normal(b, length, n),
        "D": normal(d),
        "z": normal(b, length, d),
        "delta_bias": normal(d),
    }


def conv_inputs(b: int, length: int, d: int, taps: int) -> dict[str, Tensor]:
    """Inputs of a convolution in float64 that float32 holds exactly."""
    generator = torch.Generator().manual_seed(b + 10 * length + 100 * d + 1000 * taps)
    shapes = {"x": (b, length, d), "weight": (d, taps), "bias": (d,)}
    return {name: torch.randn(shape, generator=generator).double() for name, shape in shapes.items()}


def cast(tensors: Any, dtype: torch.dtype) -> Any:
    """In another dtype, with the same strides."""

    def one(tensor: Tensor) -> Tensor:
        result = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype)
        # Of memory that several elements share, each is written with the same value.
        result.as_strided((_extent(tensor),), (1,)).copy_(tensor.as_strided((_extent(tensor),), (1,)))
        return result

    return {name: None if tensor is None else one(tensor) for name, tensor in tensors.items()}


def _extent(tensor: Tensor) -> int:
    if tensor.numel() == 0:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def output_weights(out: Tensor) -> Tensor:
    """What the outputs are multiplied with before they are summed to a loss."""
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)


def results(
    function: Callable[..., Tensor],
    tensors: Tensors,
    grad_out: Callable[[Tensor], Tensor] = output_weights,
    **flags: Any,
) -> dict[str, Tensor]:
    """The output, as "out", and the gradient of each tensor."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items() if tensor is not None}
    out = function(**{name: leaves.get(name) for name in tensors}, **flags)
    gradients = torch.autograd.grad(out, list(leaves.values()), grad_out(out.detach()))
    return {"out": out.detach(), **dict(zip(leaves, gradients, strict=True))}


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype) -> None:
    assert set(got) == set(expected)
    for name, tensor in got.items():
        assert tensor.dtype == dtype, name
        if expected[name].numel():
            assert_matches(tensor, expected[name], dtype, name)
        else:
            assert tensor.shape == expected[name].shape, name


def check_scan(
    tensors: Tensors, case: Any, grad_out: Callable[[Tensor], Tensor] = output_weights, **flags: Any
) -> None:
    """``selective_scan`` in the case's dtype and engine, against the reference in float64."""
    got = results(selective_scan, cast(tensors, case.dtype), grad_out, engine=case.engine, **flags)
    assert_same(got, results(selective_scan_reference, tensors, grad_out, **flags), case.dtype)


def check_conv(
    tensors: Tensors, case: Any, grad_out: Callable[[Tensor], Tensor] = output_weights, **flags: Any
) -> None:
    """``causal_conv_silu`` likewise."""
    got = results(causal_conv_silu, cast(tensors, case.dtype), grad_out, engine=case.engine, **flags)
    assert_same(got, results(causal_conv_silu_reference, tensors, grad_out, **flags), case.dtype)
