"""The CUDA scan and convolution of the packages mamba-ssm and causal-conv1d, each through one function.

They are imported on first use: both load a compiled CUDA library at import, and fail there in many ways on a machine
without one. mamba-ssm sums the gradients of A, B, C, D and delta_bias by atomic additions, so two runs on the same
numbers agree to rounding only.
"""

import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dis_cli.errors import first_line
from dis_cli.scan.engines.reference import selective_scan_reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CONV_TAPS = range(2, 5)
MAX_STATES = 256
# causal_conv1d reads channels in vectors of 16 bytes, and takes only strides that are multiples of this.
CHANNEL_MULTIPLE = 8


class _Packages(NamedTuple):
    selective_scan_fn: Callable[..., Tensor] | None
    causal_conv1d_fn: Callable[..., Tensor] | None
    why_not: str | None


@cache
def _packages() -> _Packages:
    interface = "mamba_ssm.ops.selective_scan_interface"
    scan, scan_problem = _function("mamba-ssm", interface, "selective_scan_fn")
    conv, conv_problem = _function("causal-conv1d", "causal_conv1d", "causal_conv1d_fn")
    if scan_problem is None and _lacks_cuda(interface, "selective_scan_cuda"):
        # Newer versions leave it out unless it is asked for; without _FORCE_BUILD pip takes a wheel without it.
        variables = "MAMBA_KEEP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE"
        scan, scan_problem = None, _without_cuda("mamba-ssm", variables)
    if conv_problem is None and _lacks_cuda("causal_conv1d.causal_conv1d_interface", "causal_conv1d_cuda"):
        conv, conv_problem = None, _without_cuda("causal-conv1d", "CAUSAL_CONV1D_FORCE_BUILD=TRUE")
    problems = [problem for problem in (scan_problem, conv_problem) if problem is not None]
    if any(problem.endswith("is not installed") for problem in problems):
        # Without the flag pip compiles them against a torch of its own choice, and the result does not load.
        problems.append('`MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation "dis-cli[cuda]"` installs them')
    return _Packages(scan, conv, "; ".join(problems) or None)


def _function(package: str, module: str, name: str) -> tuple[Callable[..., Tensor] | None, str | None]:
    """A package's function, or None and why it cannot be had."""
    try:
        function = getattr(import_module(module), name)
        return function, None if function is not None else f"{package} does not import: {name} is None"
    except ModuleNotFoundError as error:
        if error.name == module.partition(".")[0]:
            return None, f"{package} is not installed"
        return None, f"{package} does not import: {error}"
    except Exception as error:  # noqa: BLE001 - what a missing driver or another torch raises is not the packages' choice
        return None, f"{package} does not import: {type(error).__name__}: {first_line(error)}"


def _lacks_cuda(module: str, name: str) -> bool:
    """Whether a package's interface holds None where its compiled module should be: its functions then only raise."""
    loaded = sys.modules.get(module)
    return loaded is not None and hasattr(loaded, name) and getattr(loaded, name) is None


def _without_cuda(package: str, variables: str) -> str:
    return (
        f"{package} was built without its CUDA part; `{variables} pip install --force-reinstall --no-deps "
        f"--no-cache-dir --no-build-isolation {package}` builds it"
    )


def why_not() -> str | None:
    """Why these packages cannot be used; None when they can. The first call imports them."""
    return _packages().why_not


def selective_scan(
    u: Float[Tensor, "b l d"],
    delta: Float[Tensor, "b l d"],
    A: Float[Tensor, "d n"],
    B: Float[Tensor, "b l n"],
    C: Float[Tensor, "b l n"],
    *,
    D: Float[Tensor, " d"] | None,
    z: Float[Tensor, "b l d"] | None,
    delta_bias: Float[Tensor, " d"] | None,
    delta_softplus: bool,
    reverse: bool,
) -> Float[Tensor, "b l d"]:
    """``dis_cli.scan.selective_scan`` by mamba-ssm, differentiable in every tensor.

    The kernel reads u, delta, B, C and z in their common dtype, or in float32 where they differ, and computes in
    float32. It wants time innermost, so each of them is copied once, and once more to be flipped for ``reverse``.

    Args:
        u: Input.
        delta: Time step before bias and softplus.
        A: Diagonal state matrix, negative.
        B: Input projection, per token.
        C: Output projection, per token.
        D: Skip weight; None adds no skip.
        z: Gate before its SiLU; None does not gate.
        delta_bias: Added to ``delta`` before softplus; None adds nothing.
        delta_softplus: Whether ``delta`` goes through softplus.
        reverse: Scan from the last token to the first.

    Returns:
        The result, in the dtype of ``u``.

    Raises:
        ValueError: The packages cannot be used, ``u`` is of another dtype than ``DTYPES``, or there are more than
            ``MAX_STATES`` states.
    """
    _check_dtype("u", u)
    if A.shape[1] > MAX_STATES:
        raise ValueError(f"mamba-ssm scans at most {MAX_STATES} states per channel, got {A.shape[1]}")
    if u.shape[0] == 0:
        # A CUDA grid cannot be empty. The recurrence gives the right shapes, and zeros for the gradients of A and D.
        return selective_scan_reference(
            u, delta, A, B, C, D=D, z=z, delta_bias=delta_bias, delta_softplus=delta_softplus, reverse=reverse
        ).to(u.dtype)
    same = all(tensor is None or tensor.dtype == u.dtype for tensor in (delta, B, C, z))
    dtype = u.dtype if same else torch.float32

    def time_last(sequence: Tensor) -> Tensor:  # (b, l, d) -> (b, d, l)
        sequence = sequence.to(dtype)
        return (sequence.flip(1) if reverse else sequence).transpose(1, 2).contiguous()

    scan = _usable(_packages().selective_scan_fn)
    out = scan(
        time_last(u),
        time_last(delta),
        A.float(),
        time_last(B),
        time_last(C),
        D=None if D is None else D.float(),
        z=None if z is None else time_last(z),
        # The only argument whose stride mamba-ssm demands without seeing to it.
        delta_bias=None if delta_bias is None else delta_bias.float().contiguous(),
        delta_softplus=delta_softplus,
    )
    result = out.transpose(1, 2)
    return (result.flip(1) if reverse else result).to(u.dtype)


def causal_conv_silu(
    x: Float[Tensor, "b l d"],
    weight: Float[Tensor, "d k"],
    bias: Float[Tensor, " d"],
    *,
    reverse: bool,
) -> Float[Tensor, "b l d"]:
    """``dis_cli.scan.causal_conv_silu`` by causal-conv1d, differentiable in every tensor.

    A number of taps that the package has no kernel for is computed by plain torch.

    Args:
        x: Input. Where its channels are contiguous and their number and the other strides are multiples of
            ``CHANNEL_MULTIPLE``, as in half of what ``in_proj`` returns, the kernel reads it in place.
        weight: Taps per channel; the last one meets the token itself.
        bias: Per channel.
        reverse: Look at the tokens that come after instead, as if the sequence were flipped.

    Returns:
        The result, in the dtype of ``x``.

    Raises:
        ValueError: The packages cannot be used, or ``x`` is of another dtype than ``DTYPES``.
    """
    _check_dtype("x", x)
    # A CUDA grid cannot be empty, either.
    if weight.shape[1] not in CONV_TAPS or x.shape[0] == 0:
        return _plain_conv_silu(x, weight, bias, reverse=reverse)
    conv = _usable(_packages().causal_conv1d_fn)
    sequence = x.flip(1) if reverse else x
    channels_last = _channels_last(sequence)
    sequence = sequence.transpose(1, 2)  # (b, d, l)
    if not channels_last and not _time_last(sequence):
        # Not `contiguous()`: of a single token it keeps strides that the package takes for channels last.
        sequence = sequence.clone(memory_format=torch.contiguous_format)
    # The taps may be of any dtype, but both of the same one.
    result = conv(sequence, weight.float(), bias.float(), activation="silu").transpose(1, 2)
    if channels_last and result.requires_grad:
        # The kernel's backward reads gradients as its forward reads x, and the caller decides how they are laid out.
        result.register_hook(_dense)
    return result.flip(1) if reverse else result


def _channels_last(x: Tensor) -> bool:
    """Whether causal_conv1d can read x (b, l, d) as it is.

    It checks the strides, not the address: an offset that breaks the alignment of vectors would be a CUDA error. It
    takes x for (b, d, l) where one token stands for all, by a stride of 0, and the strides of a single token mean
    nothing, neither here nor in its gradient.
    """
    batch_stride, row_stride, channel_stride = x.stride()
    multiples = (x.shape[2], batch_stride, row_stride, x.storage_offset())
    has_rows = x.shape[1] > 1 and row_stride > 0
    return channel_stride == 1 and has_rows and all(number % CHANNEL_MULTIPLE == 0 for number in multiples)


def _time_last(sequence: Tensor) -> bool:
    """Whether causal_conv1d can read a sequence (b, d, l) as it is, and takes it for one."""
    aligned = bool(sequence.storage_offset() % CHANNEL_MULTIPLE == 0)
    return sequence.is_contiguous() and sequence.stride(2) == 1 and aligned


def _dense(gradient: Tensor) -> Tensor:
    return gradient.contiguous()


def _plain_conv_silu(x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool) -> Tensor:
    """The convolution as shifted products: needs no transposes, and cannot be rounded to TF32 as ``F.conv1d`` can."""
    length, taps = x.shape[1], weight.shape[1]
    padding = (0, taps - 1) if reverse else (taps - 1, 0)
    padded = F.pad(x.float(), (0, 0, *padding))
    ordered = weight.float().flip(1) if reverse else weight.float()
    result = bias.float()
    for tap in range(taps):
        result = torch.addcmul(result, padded[:, tap : tap + length], ordered[:, tap])
    return F.silu(result).to(x.dtype)


def _usable(function: Callable[..., Tensor] | None) -> Callable[..., Tensor]:
    if function is None:
        raise ValueError(f"engine 'mamba_ssm' cannot be used: {why_not()}")
    return function


def _check_dtype(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        raise ValueError(f"{name} must be one of {', '.join(map(str, DTYPES))} on this engine, got {tensor.dtype}")
