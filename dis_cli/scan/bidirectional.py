"""The core of a mixer, from in_proj to out_proj, in both directions or one, as one operator.

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
from dis_cli.scan.engines.table import ENGINES
from dis_cli.scan.ops import conv_flops, scan_flops


def bidirectional_scan(
    xz: Float[Tensor, "b l e2"], forward: Direction, backward: Direction | None, *, engine: str
) -> Float[Tensor, "b l e"]:
    """The sum of the scans in both directions, gated by the z that they share; or of the forward one alone.

    In each direction ``u = SiLU(conv(x))``, ``[dt, B, C] = x_proj u``, ``delta = dt_proj dt`` and a scan; the result is
    the sum of the scans times ``SiLU(z)``.

    Args:
        xz: What is scanned and the gate, side by side. In bfloat16 the two projections are too, and sequences where
            the engine reads them; the rest computes in float32.
        forward: Parameters of the scan in the order of the tokens.
        backward: Parameters of the scan from the last token to the first; None for a mixer without it.
        engine: One that has forwards and backwards, such as "torch" (``dis_cli.scan.contract.EngineModule``).
    """
    parameters = (*forward, *(backward or ()))
    if runs_eagerly():
        return _Eager.apply(xz, *parameters, engine)  # pyright: ignore[reportReturnType]
    operator = torch.ops.dis.forward_scan if backward is None else torch.ops.dis.bidirectional_scan
    result, *_ = operator(xz, *parameters, engine)
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


def _directions(parameters: Sequence[Tensor]) -> list[Direction]:
    share = len(Direction._fields)
    return [Direction(*parameters[at : at + share]) for at in range(0, len(parameters), share)]


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
    kept_in = _sequence_dtype(xz, engine)
    x, z = xz.to(kept_in).chunk(2, dim=-1)
    y: Tensor | None = None
    kept: list[Tensor] = []
    for index, direction in enumerate(directions):
        reverse, last = index == 1, index == len(directions) - 1
        u = module.conv_silu_forward(x, direction.conv_weight, direction.conv_bias, reverse=reverse)
        projected = _linear(u, direction.x_proj, xz.dtype)
        # The gate comes with the last direction, once the first is added.
        delta = _time_step(direction, projected, xz.dtype).to(kept_in)
        inputs = _scan_inputs(direction, u, delta, projected, z if last else None, reverse=reverse)
        y, ends = module.scan_forward(inputs, add_to=y)
        kept += [projected, ends]
    assert y is not None
    return y.to(xz.dtype), *kept


def _fake_forward(xz: Tensor, *parameters_and_engine: Any) -> tuple[Tensor, ...]:
    *parameters, engine = parameters_and_engine
    directions = _directions(parameters)
    batch, length, width = xz.shape
    states, inner = directions[0].A_log.shape[1], width // 2
    shape = batch, length, directions[0].x_proj.shape[0]
    kept = (shape, engine_module(engine).ends_shape(batch, length, inner, states)) * len(directions)
    compute = compute_dtype(xz)
    return xz.new_empty(batch, length, inner), *(xz.new_empty(shape, dtype=compute) for shape in kept)


def _backward(grad: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Gradients of xz and of the parameters, in the order of ``Direction``, forward then backward."""
    count = _count_of(rest)
    *kept, xz = rest[: 2 * count + 1]
    *parameters, engine = rest[2 * count + 1 :]
    directions = _directions(parameters)
    module = engine_module(engine)
    if _runs_whole(module, xz):
        return module.mixer_backward(grad, kept, xz, *directions)
    kept_in = _sequence_dtype(xz, engine)
    grad_xz = torch.empty_like(xz, dtype=kept_in, memory_format=torch.contiguous_format)
    gradients: list[Tensor] = []
    for index, direction in enumerate(directions):
        of_direction = kept[2 * index : 2 * index + 2]
        gradients += _direction_gradients(grad.to(kept_in), of_direction, xz, grad_xz, direction, index, module)
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
    dtype, kept_in, second = xz.dtype, grad_xz.dtype, index == 1
    x, z = xz.to(kept_in).chunk(2, dim=-1)
    grad_x, grad_z = grad_xz.chunk(2, dim=-1)
    projected, ends = kept
    rank, states = direction.dt_proj.shape[1], direction.A_log.shape[1]
    u = module.conv_silu_forward(x, direction.conv_weight, direction.conv_bias, reverse=second)
    delta = _time_step(direction, projected, dtype).to(kept_in)
    inputs = _scan_inputs(direction, u, delta, projected, z, reverse=second)
    grad_projected = torch.empty_like(projected)
    grad_dt, grad_B, grad_C = grad_projected.split([rank, states, states], dim=-1)
    scan = module.scan_backward(grad, ends, inputs, grad_B=grad_B, grad_C=grad_C, grad_z=grad_z, add_to_z=second)
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


def _count_of(rest: Sequence[Any]) -> int:
    """How many directions the arguments of a backward are of: two tensors kept and the parameters for each."""
    return (len(rest) - 2) // (2 + len(Direction._fields))


def _fake_backward(_grad: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in rest[2 * _count_of(rest) : -1])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.engine = inputs
    ctx.save_for_backward(*output[1:], *tensors)


def _sequence_dtype(xz: Tensor, engine: str) -> torch.dtype:
    """Dtype that sequences are kept in: the engine reads and writes them so, whatever it computes in."""
    return xz.dtype if xz.dtype == torch.bfloat16 and ENGINES[engine].bfloat16 else compute_dtype(xz)


def _time_step(direction: Direction, projected: Tensor, dtype: torch.dtype) -> Tensor:
    """``dt_proj dt``, multiplied in ``dtype`` and left in it."""
    dt = projected[..., : direction.dt_proj.shape[1]]
    return dt.to(dtype) @ direction.dt_proj.to(dtype).t()


def _scan_inputs(
    direction: Direction, u: Tensor, delta: Tensor, projected: Tensor, z: Tensor | None, *, reverse: bool
) -> ScanInputs:
    rank, states = direction.dt_proj.shape[1], direction.A_log.shape[1]
    _, B, C = projected.split([rank, states, states], dim=-1)
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
    """``total`` plus ``_linear``; in place where the product is of its dtype."""
    if total.dtype != dtype:
        return total + _linear(values, weight, dtype)
    total.view(-1, total.shape[-1]).addmm_(values.flatten(0, 1).to(dtype), weight.t().to(dtype))
    return total


def _weight_gradient(grad_output: Tensor, layer_input: Tensor, dtype: torch.dtype) -> Tensor:
    """Gradient of a linear layer's weight (out, in), summed over batch and tokens."""
    return _compute(grad_output.flatten(0, 1).to(dtype).t() @ layer_input.flatten(0, 1).to(dtype))


def _flops(xz_shape: Sequence[int], *parameters: Sequence[int]) -> int:
    batch, length, width = xz_shape
    shapes = dict(zip(Direction._fields, parameters, strict=False))
    inner, states, taps = width // 2, shapes["A_log"][1], shapes["conv_weight"][1]
    weights = math.prod(shapes["x_proj"]) + math.prod(shapes["dt_proj"])
    scan = scan_flops(batch, length, inner, states) + conv_flops(batch, length, inner, taps)
    return len(parameters) // len(Direction._fields) * (2 * batch * length * weights + scan)


def _define(name: str, count: int) -> None:
    """The operator of mixers with this many directions, and that of its backward."""
    # They take tensors one by one: lists of them cost torch more time than a small mixer's products.
    directions = ("", "_b")[:count]
    kept = ", ".join(f"Tensor projected{end}, Tensor ends{end}" for end in directions)
    parameters = ", ".join(f"Tensor {field}{end}" for end in directions for field in Direction._fields)
    results, gradients = (
        ", ".join(["Tensor"] * number) for number in (1 + 2 * count, 1 + len(Direction._fields) * count)
    )
    op = torch.library.custom_op(
        f"dis::{name}",
        _forward,
        mutates_args=(),
        schema=f"(Tensor xz, {parameters}, str engine) -> ({results})",
    )
    op.register_fake(_fake_forward)
    backward_op = torch.library.custom_op(
        f"dis::{name}_backward",
        _backward,
        mutates_args=(),
        schema=f"(Tensor grad, {kept}, Tensor xz, {parameters}, str engine) -> ({gradients})",
    )
    backward_op.register_fake(_fake_backward)
    backward = getattr(torch.ops.dis, f"{name}_backward")

    def autograd(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Any, ...]:
        return *backward(grad, *ctx.saved_tensors, ctx.engine), None

    op.register_autograd(autograd, setup_context=_setup)

    @register_flop_formula(getattr(torch.ops.dis, name))
    def _(*shapes_and_engine: Any, **__: Any) -> int:
        return _flops(*shapes_and_engine[:-1])

    @register_flop_formula(backward)
    def _(*shapes_and_engine: Any, **__: Any) -> int:
        return 2 * _flops(*shapes_and_engine[1 + 2 * count : -1])


_define("bidirectional_scan", 2)
_define("forward_scan", 1)
