"""Everything between a mixer's in_proj and out_proj, both directions, as one operator.

One because of the backward: it keeps only its input, the small projections and the states between chunks, and computes
the convolution and the time step again. Gradients of both directions are added up where they are made, without copies
of x, z, B, C or delta.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from dis_cli.scan.contract import Direction, ScanInputs, compute_dtype
from dis_cli.scan.engines.choose import engine_module, runs_eagerly
from dis_cli.scan.ops import conv_flops, scan_flops


def bidirectional_scan(
    xz: Float[Tensor, "b l e2"], forward: Direction, backward: Direction, *, engine: str
) -> Float[Tensor, "b l e"]:
    """The sum of the scans in both directions, gated by the z that they share.

    In each direction ``u = SiLU(conv(x))``, ``[dt, B, C] = x_proj u``, ``delta = dt_proj dt`` and a scan; the result is
    the sum of the scans times ``SiLU(z)``.

    Args:
        xz: What is scanned and the gate, side by side. In bfloat16 the two projections are too; the rest computes in
            float32.
        forward: Parameters of the scan in the order of the tokens.
        backward: Parameters of the scan from the last token to the first.
        engine: One that has forwards and backwards, such as "torch" (``dis_cli.scan.contract.EngineModule``).
    """
    if runs_eagerly():
        return _Eager.apply(xz, *forward, *backward, engine)  # pyright: ignore[reportReturnType]
    result, *_ = torch.ops.dis.bidirectional_scan(xz, *forward, *backward, engine)
    return result


class _Eager(torch.autograd.Function):
    """The operator without torch's dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        result, *kept = _forward(*inputs)
        ctx.save_for_backward(*kept, *inputs[:-1])
        ctx.engine = inputs[-1]
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable  # its type hides the argument's name
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return *_backward(grads[0], *ctx.saved_tensors, ctx.engine), None


# The operators take tensors one by one: lists of them cost torch more time than a small mixer's products.
_NAMES = [*Direction._fields, *(f"{name}_b" for name in Direction._fields)]
_PARAMETERS = ", ".join(f"Tensor {name}" for name in _NAMES)
_KEPT = ", ".join(f"Tensor {name}" for name in ("projected", "ends", "projected_b", "ends_b"))


def _tensors(count: int) -> str:
    return ", ".join(["Tensor"] * count)


def _directions(parameters: Sequence[Tensor]) -> tuple[Direction, Direction]:
    half = len(Direction._fields)
    return Direction(*parameters[:half]), Direction(*parameters[half:])


def _runs_whole(module: Any, xz: Tensor) -> bool:
    return hasattr(module, "mixer_forward") and module.runs_whole_mixer(xz)


def _forward(xz: Tensor, *parameters_and_engine: Any) -> tuple[Tensor, ...]:
    """The result; and for the backward, of each direction, [dt, B, C] (b, l, r + 2 n) and the states kept."""
    if torch.is_autocast_enabled(xz.device.type):
        # The dtype of xz says what the projections compute in; everything else stays in float32.
        with torch.autocast(xz.device.type, enabled=False):
            return _forward(xz, *parameters_and_engine)
    *parameters, engine = parameters_and_engine
    directions = _directions(parameters)
    module = engine_module(engine)
    if _runs_whole(module, xz):
        return module.mixer_forward(xz, *directions)
    x, z = _compute(xz).chunk(2, dim=-1)
    y: Tensor | None = None
    kept: list[Tensor] = []
    for direction, reverse in zip(directions, (False, True), strict=True):
        u = module.conv_silu_forward(x, direction.conv_weight, direction.conv_bias, reverse=reverse)
        projected = _linear(u, direction.x_proj, xz.dtype)
        # The gate comes with the second direction, once the first is added.
        inputs = _scan_inputs(direction, u, projected, z if reverse else None, xz.dtype, reverse=reverse)
        y, ends = module.scan_forward(inputs, add_to=y)
        kept += [projected, ends]
    assert y is not None
    return y.to(xz.dtype), *kept


_op = torch.library.custom_op(
    "dis::bidirectional_scan",
    _forward,
    mutates_args=(),
    schema=f"(Tensor xz, {_PARAMETERS}, str engine) -> ({_tensors(5)})",
)


@_op.register_fake
def _(xz, *parameters_and_engine):  # pyright: ignore
    *parameters, engine = parameters_and_engine
    direction, _ = _directions(parameters)
    batch, length, width = xz.shape
    states, inner = direction.A_log.shape[1], width // 2
    compute = compute_dtype(xz)
    kept = (batch, length, direction.x_proj.shape[0]), engine_module(engine).ends_shape(batch, length, inner, states)
    return xz.new_empty(batch, length, inner), *(xz.new_empty(shape, dtype=compute) for shape in kept * 2)


def _backward(grad: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Gradients of xz and of the parameters, in the order of ``Direction``, forward then backward."""
    *kept, xz = rest[:5]
    *parameters, engine = rest[5:]
    directions = _directions(parameters)
    module = engine_module(engine)
    if _runs_whole(module, xz):
        return module.mixer_backward(grad, kept, xz, *directions)
    grad_xz = torch.empty_like(xz, dtype=compute_dtype(xz), memory_format=torch.contiguous_format)
    gradients: list[Tensor] = []
    for index, direction in enumerate(directions):
        gradients += _direction_gradients(grad, kept[2 * index : 2 * index + 2], xz, grad_xz, direction, index, module)
    return grad_xz.to(xz.dtype), *gradients


def _direction_gradients(
    grad: Tensor,
    kept: Sequence[Tensor],
    xz: Tensor,
    grad_xz: Tensor,
    direction: Direction,
    index: int,
    module: Any,
) -> Direction:
    """Gradients of one direction's parameters; writes that of xz, or adds to it in the second direction.

    A function of its own, so that what it works with is freed before the other direction begins.
    """
    dtype, second = xz.dtype, index == 1
    x, z = _compute(xz).chunk(2, dim=-1)
    grad_x, grad_z = grad_xz.chunk(2, dim=-1)
    projected, ends = kept
    rank, states = direction.dt_proj.shape[1], direction.A_log.shape[1]
    u = module.conv_silu_forward(x, direction.conv_weight, direction.conv_bias, reverse=second)
    inputs = _scan_inputs(direction, u, projected, z, dtype, reverse=second)
    grad_projected = torch.empty_like(projected)
    grad_dt, grad_B, grad_C = grad_projected.split([rank, states, states], dim=-1)
    scan = module.scan_backward(
        _compute(grad), ends, inputs, grad_B=grad_B, grad_C=grad_C, grad_z=grad_z, add_to_z=second
    )
    # The transposed copy is small, and narrow products are up to four times faster this way round.
    grad_dt.copy_(_linear(scan.delta, direction.dt_proj.t().contiguous(), dtype))
    grad_u = _add_linear(scan.u, grad_projected, direction.x_proj.t(), dtype)
    _, grad_weight, grad_bias = module.conv_silu_backward(
        grad_u, x, direction.conv_weight, direction.conv_bias, reverse=second, grad_x=grad_x, add_to_x=second
    )
    return Direction(
        conv_weight=grad_weight,
        conv_bias=grad_bias,
        x_proj=_weight_gradient(grad_projected, u, dtype),
        dt_proj=_weight_gradient(projected[..., :rank], scan.delta, dtype).t().contiguous(),
        dt_bias=scan.delta_bias,
        A_log=scan.A,
        D=scan.D,
    )


_backward_op = torch.library.custom_op(
    "dis::bidirectional_scan_backward",
    _backward,
    mutates_args=(),
    schema=f"(Tensor grad, {_KEPT}, Tensor xz, {_PARAMETERS}, str engine) -> ({_tensors(1 + len(_NAMES))})",
)


@_backward_op.register_fake
def _(grad, *rest):  # noqa: ARG001 # pyright: ignore
    return tuple(tensor.new_empty(tensor.shape) for tensor in rest[4:-1])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.engine = inputs
    ctx.save_for_backward(*output[1:], *tensors)


def _autograd(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Any, ...]:
    return *torch.ops.dis.bidirectional_scan_backward(grad, *ctx.saved_tensors, ctx.engine), None


_op.register_autograd(_autograd, setup_context=_setup)


def _scan_inputs(
    direction: Direction, u: Tensor, projected: Tensor, z: Tensor | None, dtype: torch.dtype, *, reverse: bool
) -> ScanInputs:
    rank, states = direction.dt_proj.shape[1], direction.A_log.shape[1]
    dt, B, C = projected.split([rank, states, states], dim=-1)
    delta = _linear(dt, direction.dt_proj, dtype)
    return ScanInputs(
        u,
        delta,
        direction.A_log,
        B,
        C,
        direction.D,
        z,
        direction.dt_bias,
        delta_softplus=True,
        reverse=reverse,
        A_is_log=True,
    )


def _compute(tensor: Tensor) -> Tensor:
    return tensor.to(compute_dtype(tensor))


def _linear(values: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """``values`` times the transpose of ``weight``, multiplied in ``dtype``, in the dtype of ``values``."""
    return _compute(values.to(dtype) @ weight.to(dtype).t())


def _add_linear(total: Tensor, values: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """``total`` plus ``_linear``; in place where it is one dtype."""
    if values.dtype != dtype:
        return total + _linear(values, weight, dtype)
    total.view(-1, total.shape[-1]).addmm_(values.flatten(0, 1), weight.t())
    return total


def _weight_gradient(grad_output: Tensor, layer_input: Tensor, dtype: torch.dtype) -> Tensor:
    """Gradient of a linear layer's weight (out, in), summed over batch and tokens."""
    return _compute(grad_output.flatten(0, 1).to(dtype).t() @ layer_input.flatten(0, 1).to(dtype))


def _flops(xz_shape: Sequence[int], *parameters: Sequence[int]) -> int:
    batch, length, width = xz_shape
    shapes = dict(zip(_NAMES, parameters, strict=True))
    inner, states, taps = width // 2, shapes["A_log"][1], shapes["conv_weight"][1]
    weights = math.prod(shapes["x_proj"]) + math.prod(shapes["dt_proj"])
    scan = scan_flops(batch, length, inner, states) + conv_flops(batch, length, inner, taps)
    return 2 * (2 * batch * length * weights + scan)


@register_flop_formula(torch.ops.dis.bidirectional_scan)
def _(*shapes_and_engine, **__) -> int:  # pyright: ignore
    return _flops(*shapes_and_engine[: 1 + len(_NAMES)])


@register_flop_formula(torch.ops.dis.bidirectional_scan_backward)
def _(*shapes_and_engine, **__) -> int:  # pyright: ignore
    return 2 * _flops(*shapes_and_engine[5 : 6 + len(_NAMES)])
