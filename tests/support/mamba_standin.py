"""Stand-ins for mamba-ssm and causal-conv1d that refuse, on a CPU, what the CUDA kernels refuse.

They are stricter than the packages, which silently copy a tensor of the wrong layout: here that is an error. Like the
kernels, they compute in float32, read memory by the strides they look at and no others, and give each gradient the
dtype and layout that the kernels give it.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NAMES = ("mamba_ssm", "causal_conv1d")
INPUT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass
class Calls:
    """What the stand-ins were called with."""

    scan: list[dict[str, Any]] = field(default_factory=list)
    conv: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def no_packages() -> Iterator[None]:
    """Take both packages out of ``sys.modules``, and put back afterwards what was there."""

    def imported() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] in NAMES]

    before = {name: sys.modules.pop(name) for name in imported()}
    try:
        yield
    finally:
        for name in imported():
            del sys.modules[name]
        sys.modules.update(before)


def install(*, says_so: bool = True, works: bool = True) -> Calls:
    """Put the stand-ins into ``sys.modules``; to be used within ``no_packages``.

    Args:
        says_so: Whether mamba-ssm's interface holds its compiled module, or None where it has none.
        works: Whether mamba-ssm has its CUDA part: without it, it imports all the same and raises when it is called.
    """
    calls = Calls()
    add = sys.modules.__setitem__
    for name, function in (
        ("mamba_ssm.ops.selective_scan_interface", _recorded(selective_scan_fn, calls.scan)),
        ("causal_conv1d", _recorded(causal_conv1d_fn, calls.conv)),
    ):
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            add(".".join(parts[:count]), ModuleType(".".join(parts[:count])))
        setattr(sys.modules[name], function.__name__, function)
    interface: Any = sys.modules["mamba_ssm.ops.selective_scan_interface"]
    if says_so:
        interface.selective_scan_cuda = interface if works else None
    if not works:
        interface.selective_scan_fn = _without_cuda
    return calls


def _without_cuda(*args: Any, **kwargs: Any) -> Tensor:
    raise RuntimeError("selective_scan_cuda is not available. Build with MAMBA_KEEP_CUDA_BUILD=TRUE")


def _recorded(function: Callable[..., Tensor], calls: list[dict[str, Any]]) -> Callable[..., Tensor]:
    names = function.__code__.co_varnames[: function.__code__.co_argcount]

    def wrapper(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(dict(zip(names, args, strict=False)) | kwargs)
        return function(*args, **kwargs)

    wrapper.__name__ = function.__name__
    return wrapper


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise RuntimeError(what)


def _require_shape(name: str, tensor: Tensor, *shape: int) -> None:
    _require(tuple(tensor.shape) == shape, f"{name} must have shape {shape}, got {tuple(tensor.shape)}")


def _innermost(name: str, tensor: Tensor) -> None:
    _require(tensor.stride(-1) == 1 or tensor.shape[-1] == 1, f"{name}.stride(-1) must be 1")


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor:
    _require(not return_last_state, "nobody asks for the last state")
    result: Any = _Scan.apply(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return result


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, z, delta_bias, delta_softplus):
        batch, dim, length = u.shape
        states = A.shape[1]
        _require(u.dtype in INPUT_DTYPES, f"u is {u.dtype}")
        _require(A.dtype == torch.float32, f"A is {A.dtype}")
        _require(batch > 0 and length > 0, "an empty CUDA grid")
        _require(states <= 256, "selective_scan only supports state dimension <= 256")
        _require_shape("A", A, dim, states)
        for name, tensor, channels in (("delta", delta, dim), ("z", z, dim), ("B", B, states), ("C", C, states)):
            if tensor is not None:
                _require(tensor.dtype == u.dtype, f"{name} is {tensor.dtype}, u is {u.dtype}")
                _require_shape(name, tensor, batch, channels, length)
                _innermost(name, tensor)
        _innermost("u", u)
        for name, tensor in (("D", D), ("delta_bias", delta_bias)):
            if tensor is not None:
                _require(tensor.dtype == torch.float32, f"{name} is {tensor.dtype}")
                _require_shape(name, tensor, dim)
                _innermost(name, tensor)
        ctx.inputs = (u, delta, A, B, C, D, z, delta_bias)
        ctx.delta_softplus = delta_softplus
        ctx.dtype = u.dtype
        return _scan(*_upcast(ctx.inputs), delta_softplus).to(u.dtype)

    @staticmethod
    def backward(ctx, dout):
        u = ctx.inputs[0]
        _require(dout.dtype == ctx.dtype, f"dout is {dout.dtype}")
        _require_shape("dout", dout, *u.shape)
        inputs = [None if tensor is None else tensor.detach().requires_grad_() for tensor in _upcast(ctx.inputs)]
        with torch.enable_grad():
            out = _scan(*inputs, ctx.delta_softplus)
        present = [tensor for tensor in inputs if tensor is not None]
        found = iter(torch.autograd.grad(out, present, dout.float()))
        grads = [None if tensor is None else next(found).to(tensor.dtype) for tensor in ctx.inputs]
        return (*grads, None)


def _upcast(tensors: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    return [None if tensor is None else tensor.float() for tensor in tensors]


def _scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus) -> Tensor:
    """The recurrence in the packages' layout, (b, d, l) and (b, n, l)."""
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    h = torch.zeros(u.shape[0], *A.shape)
    outputs = []
    for t in range(u.shape[2]):
        h = torch.exp(delta[:, :, t, None] * A) * h + (delta * u)[:, :, t, None] * B[:, None, :, t]
        outputs.append((h * C[:, None, :, t]).sum(-1))
    y = torch.stack(outputs, dim=-1)
    if D is not None:
        y = y + u * D[:, None]
    return y if z is None else y * F.silu(z)


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: None = None,
    initial_states: None = None,
    return_final_states: bool = False,
    final_states_out: None = None,
    activation: str | None = None,
) -> Tensor:
    if activation not in (None, "silu", "swish"):
        raise NotImplementedError("activation must be None, silu, or swish")
    _require(seq_idx is None and initial_states is None and final_states_out is None, "nobody has states")
    _require(not return_final_states, "nobody asks for the last states")
    result: Any = _Conv.apply(x, weight, bias, activation is not None)
    return result


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, silu):
        dim, width = weight.shape
        _require(x.dtype in INPUT_DTYPES, f"x is {x.dtype}")
        _require(weight.dtype in INPUT_DTYPES, f"weight is {weight.dtype}")
        _require(x.ndim == 3 and x.shape[1] == dim, f"x must be (b, {dim}, l), got {tuple(x.shape)}")
        _require(x.numel() > 0, "an empty CUDA grid")
        _require(2 <= width <= 4, "causal_conv1d only supports width between 2 and 4")
        _require(bias is None or (bias.dtype == weight.dtype and bias.stride(-1) == 1), "bias")
        channels_last = _is_channels_last("x", x)
        ctx.inputs = (x, weight, bias)
        ctx.silu = silu
        out = torch.empty_like(x)
        _require(out.stride(1 if channels_last else 2) == 1, f"out has strides {out.stride()}")
        return out.copy_(_conv(_as_read(x, channels_last), weight.float(), bias, silu))

    @staticmethod
    def backward(ctx, dout):
        x, weight, bias = ctx.inputs
        channels_last = _is_channels_last("x", x)
        if dout.stride(1 if channels_last else 2) != 1:
            dout = dout.transpose(1, 2).contiguous().transpose(1, 2) if channels_last else dout.contiguous()
        _check_strides("dout", dout, channels_last)
        inputs = [tensor.detach().float().requires_grad_() for tensor in (_as_read(x, channels_last), weight, bias)]
        with torch.enable_grad():
            out = _conv(*inputs, ctx.silu)
        grads = torch.autograd.grad(out, inputs, _as_read(dout, channels_last).float())
        dx = torch.empty_like(x)
        _require(dx.stride(1 if channels_last else 2) == 1, f"dx has strides {dx.stride()}")
        return dx.copy_(grads[0]), grads[1].to(weight.dtype), grads[2].to(bias.dtype), None


def _is_channels_last(name: str, tensor: Tensor) -> bool:
    _require(tensor.stride(2) == 1 or tensor.stride(1) == 1, f"{name} has strides {tensor.stride()}")
    channels_last = tensor.stride(1) == 1 and tensor.stride(2) > 1
    _check_strides(name, tensor, channels_last)
    return channels_last


def _check_strides(name: str, tensor: Tensor, channels_last: bool) -> None:
    if channels_last:
        _require(tensor.shape[1] % 8 == 0, "causal_conv1d only supports channel dimension divisible by 8 for now")
        _require(
            tensor.stride(2) % 8 == 0 and tensor.stride(0) % 8 == 0,
            f"causal_conv1d with channel last layout requires strides ({name}.stride(0) and {name}.stride(2)) to be "
            "multiples of 8",
        )
    vector = 16 // tensor.element_size()
    if channels_last or tensor.shape[2] % vector == 0:
        _require(tensor.data_ptr() % 16 == 0, f"{name}: misaligned address")
    if not channels_last and tensor.shape[2] % vector == 0:
        rows = [tensor.stride(axis) for axis in (0, 1) if tensor.shape[axis] > 1]
        _require(all(stride % vector == 0 for stride in rows), f"{name}: misaligned address")


def _as_read(tensor: Tensor, channels_last: bool) -> Tensor:
    """What the kernel sees: the innermost stride is taken to be 1, and not looked at."""
    batch, channel, time = tensor.stride()
    strides = (batch, 1, time) if channels_last else (batch, channel, 1)
    return tensor.detach().as_strided(tensor.shape, strides)


def _conv(x: Tensor, weight: Tensor, bias: Tensor, silu: bool) -> Tensor:
    padded = F.pad(x.float(), (weight.shape[1] - 1, 0))
    out = F.conv1d(padded, weight.float()[:, None], bias.float(), groups=weight.shape[0])
    return F.silu(out) if silu else out
