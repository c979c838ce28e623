"""The compiled CPU kernel (``csrc/``): loading it, and its functions on tensors. No autograd here.

The library is an optional part of the installation: without a C++ compiler the package installs all the same, and
``why_not`` says so. Environment: ``DIS_KERNEL_ISA`` (baseline, avx2, avx512) takes another instruction set than the
widest that the processor has, for measurements; ``DIS_KERNEL_LIBRARY`` another library file, for debugging.
"""

import ctypes
import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dis_cli.paths import expand_home
from dis_cli.scan.contract import Direction, ScanGradients, ScanInputs
from dis_cli.scan.engines.cpu.kernel_args import ConvArgs, DirectionArgs, MixerArgs, NormArgs, ScanArgs, abi

ISAS = ("avx512", "avx2", "baseline")

# A mixer runs as one call where a sample's u has at most this many elements (its intermediates then stay in the
# second-level cache), and where there are samples for several threads.
MIXER_ELEMENTS = 1 << 14
MIXER_BATCH = 4


# An editable installation keeps its library when the sources change; called with other arguments, it would crash.
_STALE = "its library was built from other sources; install again: pip install -e . (or pip install .)"


class _Loaded(NamedTuple):
    library: ctypes.CDLL | None
    isa: str
    why_not: str | None
    chunk: int = 0


def _load() -> _Loaded:
    spec = find_spec("dis_cli.scan.engines.cpu._kernel")
    path = expand_home(os.environ.get("DIS_KERNEL_LIBRARY", "")) or (spec.origin if spec else None)
    if path is None:
        return _Loaded(None, "", "it was not built, which takes a C++ compiler (g++ or clang++) at installation")
    try:
        library = ctypes.CDLL(path)
        library.dis_abi.restype = ctypes.c_int64
        if library.dis_abi() != abi():
            return _Loaded(None, "", _STALE)
        library.dis_use_isa.argtypes = [ctypes.c_char_p]
        library.dis_use_parallel.argtypes = [ctypes.c_void_p]
        library.dis_chunk.restype = ctypes.c_int64
        for name in ("scan", "conv", "mixer", "norm"):
            for function in (getattr(library, f"dis_{name}_forward"), getattr(library, f"dis_{name}_backward")):
                function.argtypes, function.restype = [ctypes.c_void_p], None
    except AttributeError:
        return _Loaded(None, "", _STALE)
    except OSError as error:
        return _Loaded(None, "", f"its library does not load: {error}")
    asked = os.environ.get("DIS_KERNEL_ISA")
    if asked is not None and asked not in ISAS:
        return _Loaded(None, "", f"DIS_KERNEL_ISA is {asked!r}; allowed are {', '.join(ISAS)}")
    isa = next((isa for isa in ([asked] if asked else ISAS) if library.dis_use_isa(isa.encode())), None)
    if isa is None:
        return _Loaded(None, "", f"DIS_KERNEL_ISA is {asked!r}, which this processor does not have")
    # torch has loaded its OpenMP runtime by now. Its threads are used, so that there is one pool in the process.
    try:
        gomp_parallel = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        gomp_parallel = None
    if gomp_parallel is not None:
        library.dis_use_parallel(ctypes.cast(gomp_parallel, ctypes.c_void_p))
    return _Loaded(library, isa, None, library.dis_chunk())


_loaded = _load()


def why_not() -> str | None:
    """Why the kernel cannot be used; None when it can."""
    return _loaded.why_not


def isa() -> str | None:
    """The instruction set in use, one of ``ISAS``; None without a kernel."""
    return _loaded.isa or None


def isas() -> list[str]:
    """The instruction sets that this processor has and the kernel is compiled for."""
    library = _loaded.library
    if library is None:
        return []
    found = [name for name in ISAS if library.dis_use_isa(name.encode())]
    library.dis_use_isa(_loaded.isa.encode())
    return found


def ends_shape(batch: int, length: int, channels: int, states: int) -> tuple[int, ...]:
    """Shape of the states between chunks that ``scan_forward`` keeps for ``scan_backward``."""
    return batch, max(0, -(-length // _loaded.chunk) - 1), states, channels


def scan_forward(inputs: ScanInputs, *, add_to: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The scan, in float32.

    Args:
        inputs: float32 on the CPU; sequences may have any strides but need contiguous channels to not be copied.
        add_to: Added to the result before the gate, and overwritten with the result.

    Returns:
        The result (b, l, d), and the states between chunks for ``scan_backward``.
    """
    inputs = _readable(inputs)
    batch, length, channels = inputs.u.shape
    out = inputs.u.new_empty(inputs.u.shape) if add_to is None else add_to
    ends = inputs.u.new_empty(ends_shape(batch, length, channels, inputs.A.shape[1]))
    _call("dis_scan_forward", _scan_args(inputs, ends, accumulate_out=add_to is not None, out=_sequence(out)))
    return out, ends


def scan_backward(
    grad: Tensor,
    ends: Tensor,
    inputs: ScanInputs,
    *,
    grad_B: Tensor | None = None,
    grad_C: Tensor | None = None,
    grad_z: Tensor | None = None,
    add_to_z: bool = False,
) -> ScanGradients:
    """Gradients of all inputs."""
    inputs, grad = _readable(inputs), _rows(grad)
    gradients = ScanGradients(
        u=inputs.u.new_empty(inputs.u.shape),
        delta=inputs.u.new_empty(inputs.u.shape),
        A=inputs.A.new_empty(inputs.A.shape),
        B=inputs.B.new_empty(inputs.B.shape) if grad_B is None else grad_B,
        C=inputs.C.new_empty(inputs.C.shape) if grad_C is None else grad_C,
        D=None if inputs.D is None else inputs.D.new_empty(inputs.D.shape),
        z=None if inputs.z is None else inputs.z.new_empty(inputs.z.shape) if grad_z is None else grad_z,
        delta_bias=None if inputs.delta_bias is None else inputs.delta_bias.new_empty(inputs.delta_bias.shape),
    )
    arguments = _scan_args(
        inputs,
        ends,
        accumulate_z=add_to_z,
        grad_out=_sequence(grad),
        grad_u=_sequence(gradients.u),
        grad_delta=_sequence(gradients.delta),
        grad_B=_sequence(gradients.B),
        grad_C=_sequence(gradients.C),
        grad_z=_sequence(gradients.z),
        grad_A=gradients.A.data_ptr(),
        grad_D=_pointer(gradients.D),
        grad_bias=_pointer(gradients.delta_bias),
    )
    _call("dis_scan_backward", arguments)
    return gradients


def conv_silu_forward(x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool) -> Tensor:
    """The convolution with SiLU: x (b, l, d), weight (d, k), bias (d)."""
    x, weight, bias = _rows(x), weight.contiguous(), bias.contiguous()
    out = x.new_empty(x.shape)
    _call("dis_conv_forward", _conv_args(x, weight, bias, reverse, out=_sequence(out)))
    return out


def conv_silu_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    reverse: bool,
    grad_x: Tensor | None = None,
    add_to_x: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``x``, ``weight`` and ``bias``; that of ``x`` is written, or added, to ``grad_x`` where given."""
    x, weight, bias, grad = _rows(x), weight.contiguous(), bias.contiguous(), _rows(grad)
    grad_x = x.new_empty(x.shape) if grad_x is None else grad_x
    grad_weight, grad_bias = weight.new_empty(weight.shape), bias.new_empty(bias.shape)
    arguments = _conv_args(
        x,
        weight,
        bias,
        reverse,
        accumulate_x=add_to_x,
        grad_out=_sequence(grad),
        grad_x=_sequence(grad_x),
        grad_weight=grad_weight.data_ptr(),
        grad_bias=grad_bias.data_ptr(),
    )
    _call("dis_conv_backward", arguments)
    return grad_x, grad_weight, grad_bias


def runs_whole_mixer(xz: Tensor) -> bool:
    """Whether ``mixer_forward`` is the faster way for this input (b, l, 2 e), rather than one operation at a time."""
    batch, length, width = xz.shape
    return xz.dtype == torch.float32 and batch >= MIXER_BATCH and length * width // 2 <= MIXER_ELEMENTS


def mixer_forward(xz: Tensor, *directions: Direction) -> tuple[Tensor, ...]:
    """One or both directions of a mixer, from in_proj's result (b, l, 2 e) to out_proj's input (b, l, e).

    Returns:
        The result; and for ``mixer_backward``, of each direction, [dt, B, C] (b, l, r + 2 n) and the states between
        chunks.
    """
    xz, directions = _rows(xz), tuple(map(_contiguous, directions))
    batch, length, width = xz.shape
    rows, states = directions[0].x_proj.shape[0], directions[0].A_log.shape[1]
    shapes = (batch, length, rows), ends_shape(batch, length, width // 2, states)
    kept = [xz.new_empty(shape) for shape in shapes * len(directions)]
    out = xz.new_empty(batch, length, width // 2)
    _call("dis_mixer_forward", _mixer_args(xz, directions, kept, out=_sequence(out)))
    return out, *kept


def mixer_backward(grad: Tensor, kept: Sequence[Tensor], xz: Tensor, *directions: Direction) -> tuple[Tensor, ...]:
    """Gradients of xz and of the parameters of the directions."""
    grad, xz, directions = _rows(grad), _rows(xz), tuple(map(_contiguous, directions))
    grad_xz = torch.empty_like(xz, memory_format=torch.contiguous_format)
    parameters = [tensor for direction in directions for tensor in direction]
    gradients = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in parameters]
    arguments = _mixer_args(
        xz,
        directions,
        kept,
        gradients,
        grad_out=_sequence(grad),
        grad_xz=_sequence(grad_xz),
    )
    _call("dis_mixer_backward", arguments)
    return grad_xz, *gradients


def _mixer_args(
    xz: Tensor,
    directions: Sequence[Direction],
    kept: Sequence[Tensor],
    gradients: Sequence[Tensor] = (),
    **more: Any,
) -> MixerArgs:
    batch, length, width = xz.shape
    share = len(Direction._fields)
    structs = [
        DirectionArgs(
            *(tensor.data_ptr() for tensor in direction),
            kept[2 * d + 1].data_ptr() if kept[2 * d + 1].numel() else None,
            _sequence(kept[2 * d]),
            *(tensor.data_ptr() for tensor in gradients[share * d : share * (d + 1)]),
        )
        for d, direction in enumerate(directions)
    ]
    direction = directions[0]
    return MixerArgs(
        batch,
        length,
        width // 2,
        direction.A_log.shape[1],
        direction.conv_weight.shape[1],
        direction.dt_proj.shape[1],
        torch.get_num_threads(),
        len(structs),
        xz=_sequence(xz),
        directions=tuple(structs),
        **more,
    )


def norm_forward(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """RMS norm of ``hidden + residual`` (b, l, d); that sum; and 1 / rms (b, l)."""
    hidden, weight = hidden.contiguous(), weight.contiguous()
    residual = None if residual is None else residual.contiguous()
    normed, total, scale = (hidden.new_empty(shape) for shape in (hidden.shape, hidden.shape, hidden.shape[:-1]))
    arguments = _norm_args(
        weight,
        total,
        scale,
        hidden=hidden.data_ptr(),
        residual=_pointer(residual),
        normed=normed.data_ptr(),
        epsilon=epsilon,
    )
    _call("dis_norm_forward", arguments)
    return normed, total, scale


def norm_backward(
    grad_normed: Tensor, grad_total: Tensor | None, total: Tensor, scale: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of ``hidden`` (and ``residual``), and of ``weight``, from those of the norm and of the sum."""
    grad_normed, weight = grad_normed.contiguous(), weight.contiguous()
    grad_total = None if grad_total is None else grad_total.contiguous()
    grad_hidden, grad_weight = total.new_empty(total.shape), weight.new_empty(weight.shape)
    arguments = _norm_args(
        weight,
        total,
        scale,
        grad_normed=grad_normed.data_ptr(),
        grad_total=_pointer(grad_total),
        grad_hidden=grad_hidden.data_ptr(),
        grad_weight=grad_weight.data_ptr(),
    )
    _call("dis_norm_backward", arguments)
    return grad_hidden, grad_weight


def _norm_args(weight: Tensor, total: Tensor, scale: Tensor, **more: Any) -> NormArgs:
    return NormArgs(
        scale.numel(),
        weight.numel(),
        torch.get_num_threads(),
        weight=weight.data_ptr(),
        total=total.data_ptr(),
        scale=scale.data_ptr(),
        **more,
    )


def _readable(inputs: ScanInputs) -> ScanInputs:
    """With contiguous channels, whatever the other strides; most inputs are so already and are not copied."""
    return inputs._replace(
        u=_rows(inputs.u),
        delta=_rows(inputs.delta),
        A=inputs.A.contiguous(),
        B=_rows(inputs.B),
        C=_rows(inputs.C),
        D=None if inputs.D is None else inputs.D.contiguous(),
        z=None if inputs.z is None else _rows(inputs.z),
        delta_bias=None if inputs.delta_bias is None else inputs.delta_bias.contiguous(),
    )


# A copy made for a call has to live until the call returns: the functions above hold it in a name of their own.


def _contiguous(direction: Direction) -> Direction:
    return Direction(*(tensor.contiguous() for tensor in direction))


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _sequence(tensor: Tensor | None) -> tuple[int | None, int, int]:
    return (None, 0, 0) if tensor is None else (tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _scan_args(inputs: ScanInputs, ends: Tensor, **more: Any) -> ScanArgs:
    return ScanArgs(
        *inputs.u.shape,
        inputs.A.shape[1],
        torch.get_num_threads(),
        inputs.reverse,
        inputs.delta_softplus,
        inputs.A_is_log,
        u=_sequence(inputs.u),
        delta=_sequence(inputs.delta),
        B=_sequence(inputs.B),
        C=_sequence(inputs.C),
        z=_sequence(inputs.z),
        A=inputs.A.data_ptr(),
        D=_pointer(inputs.D),
        delta_bias=_pointer(inputs.delta_bias),
        ends=ends.data_ptr() if ends.numel() else None,
        **more,
    )


def _conv_args(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool, **more: Any) -> ConvArgs:
    return ConvArgs(
        *x.shape,
        weight.shape[1],
        torch.get_num_threads(),
        reverse,
        x=_sequence(x),
        weight=weight.data_ptr(),
        bias=bias.data_ptr(),
        **more,
    )


def _call(name: str, arguments: ctypes.Structure) -> None:
    getattr(_loaded.library, name)(ctypes.byref(arguments))
