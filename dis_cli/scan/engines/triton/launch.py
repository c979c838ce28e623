# A launch takes other arguments than the definition of its kernel.
# pyright: basic, reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
"""Launches of the kernels on tensors, with block sizes that are the same for every input.

Grids have one axis, whose limit is 2^31 - 1: the others end at 65535, fewer than a large batch has programs.
"""

from functools import cache

import torch
import triton
from torch import Tensor
from triton.runtime import driver

from dis_cli.scan.contract import ScanGradients, ScanInputs, compute_dtype
from dis_cli.scan.engines.table import ENGINES
from dis_cli.scan.engines.triton.arithmetic import LN2, LOG2E
from dis_cli.scan.engines.triton.convolution import activation_gradient_kernel, convolution_kernel
from dis_cli.scan.engines.triton.engine import CHUNK, ends_shape
from dis_cli.scan.engines.triton.norm import norm_backward_kernel, norm_forward_kernel
from dis_cli.scan.engines.triton.scan_backward import scan_backward_kernel
from dis_cli.scan.engines.triton.scan_forward import scan_forward_kernel
from dis_cli.scan.engines.triton.states import pack_kernel, sum_kernel

# Two channels for each of a warp's threads: each number of B and C takes one load for both.
BLOCK = 64
# Tokens in registers. More than eight, with two channels, are more than a thread has registers for.
TOKENS = 8
CONV_TOKENS = 16
# Of the kernels that turn B and C round.
TIMES, STATES = 32, 16
# What one program of the norm's backward sums.
NORM_ROWS = 16


@cache
def _speaks_ptx() -> bool:
    """Whether a kernel may hold NVIDIA's instructions."""
    return not ENGINES["triton"].is_interpreted() and driver.active.get_current_target().backend == "cuda"


def _rows(tensor: Tensor) -> Tensor:
    """With contiguous channels and a sample within the reach of 32 bits; most are so already and are not copied."""
    near = tensor.shape[1] * abs(tensor.stride(1)) < 2**31
    return tensor if tensor.stride(2) == 1 and near else tensor.contiguous()


def _strides(*sequences: Tensor | None) -> list[int]:
    return [0 if tensor is None else tensor.stride(axis) for tensor in sequences for axis in (0, 1)]


def _parameter(tensor: Tensor) -> Tensor:
    return tensor.float().contiguous()


class _Scan:
    """What both directions of a scan's computation are launched with."""

    def __init__(self, inputs: ScanInputs) -> None:
        self.inputs = inputs._replace(
            u=_rows(inputs.u),
            delta=_rows(inputs.delta),
            D=None if inputs.D is None else _parameter(inputs.D),
            z=None if inputs.z is None else _rows(inputs.z),
            delta_bias=None if inputs.delta_bias is None else _parameter(inputs.delta_bias),
        )
        self.batch, self.length, self.channels = inputs.u.shape
        self.states = inputs.A.shape[1]
        self.groups = triton.cdiv(self.channels, BLOCK)
        self.programs = self.batch * self.groups
        self.padded = triton.cdiv(self.length, 2 * TOKENS) * 2 * TOKENS
        self.A2 = self._exponents()
        self.BC = self._pack()

    def new(self, *shape: int) -> Tensor:
        return self.inputs.u.new_empty(shape, dtype=torch.float32)

    def like(self, tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, memory_format=torch.contiguous_format)

    def given(self, tensor: Tensor | None) -> Tensor:
        """A tensor, or one that a kernel is handed and does not touch."""
        return self.A2 if tensor is None or tensor.numel() == 0 else tensor

    def _exponents(self) -> Tensor:
        """log2(e) A as (n, d): the kernels raise 2 to it."""
        A, out = self.inputs.A.float().t(), self.new(self.states, self.channels)
        if self.inputs.A_is_log:
            return torch.exp(A, out=out).mul_(-LOG2E.value)
        return torch.mul(A, LOG2E.value, out=out)

    def state_grid(self) -> dict[str, int]:
        """Programs along states and times, of the kernels that turn B and C round."""
        return {"programs_n": triton.cdiv(self.states, STATES), "programs_t": triton.cdiv(self.padded, TIMES)}

    def _pack(self) -> Tensor:
        B, C, BC = _rows(self.inputs.B), _rows(self.inputs.C), self.new(self.batch, 2 * self.states, self.padded)
        along = self.state_grid()
        if grid := self.batch * along["programs_n"] * along["programs_t"]:
            pack_kernel[(grid,)](
                B,
                C,
                BC,
                *_strides(B, C),
                self.length,
                self.states,
                self.padded,
                **along,
                TIMES=TIMES,
                STATES=STATES,
                REVERSE=self.inputs.reverse,
                num_warps=1,
            )
        return BC

    def sum_states(self, parts: Tensor, grad_B: Tensor, grad_C: Tensor) -> None:
        along = self.state_grid()
        sum_kernel[(self.batch * along["programs_n"] * along["programs_t"],)](
            parts,
            grad_B,
            grad_C,
            *_strides(grad_B, grad_C),
            self.batch,
            self.length,
            self.states,
            self.padded,
            self.groups,
            **along,
            TIMES=TIMES,
            STATES=STATES,
            T=TOKENS,
            REVERSE=self.inputs.reverse,
            num_warps=1,
        )

    def sizes(self) -> tuple[int, ...]:
        return self.length, self.channels, self.states, self.padded, self.groups

    def flags(self) -> dict[str, bool | int]:
        return {
            "BLOCK": BLOCK,
            "T": TOKENS,
            "CHUNK": CHUNK,
            "REVERSE": self.inputs.reverse,
            "SOFTPLUS": self.inputs.delta_softplus,
            "HAS_D": self.inputs.D is not None,
            "HAS_Z": self.inputs.z is not None,
            "HAS_BIAS": self.inputs.delta_bias is not None,
            "EVEN": self.channels % BLOCK == 0,
            "ASM": _speaks_ptx(),
            "num_warps": 1,
        }


def scan_forward(inputs: ScanInputs, *, add_to: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``dis_cli.scan.contract.EngineModule.scan_forward``."""
    with torch.cuda.device_of(inputs.u):
        scan = _Scan(inputs)
        u, delta, z = scan.inputs.u, scan.inputs.delta, scan.inputs.z
        # A sum that is not gated yet goes on in float32.
        dtype = compute_dtype(u) if z is None else u.dtype
        out = add_to if add_to is not None and add_to.dtype == dtype else u.new_empty(u.shape, dtype=dtype)
        ends = scan.new(*ends_shape(*u.shape, scan.states))
        if u.numel():
            scan_forward_kernel[(scan.programs,)](
                u,
                delta,
                scan.A2,
                scan.BC,
                scan.given(scan.inputs.D),
                scan.given(z),
                scan.given(scan.inputs.delta_bias),
                scan.given(add_to),
                out,
                scan.given(ends),
                scan.new(scan.programs, scan.states, BLOCK),
                *_strides(u, delta, z, add_to, out),
                *scan.sizes(),
                ADD=add_to is not None,
                **scan.flags(),
            )
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
    """``dis_cli.scan.contract.EngineModule.scan_backward``."""
    with torch.cuda.device_of(inputs.u):
        scan = _Scan(inputs)
        u, delta, z = scan.inputs.u, scan.inputs.delta, scan.inputs.z
        grad = _rows(grad)
        grad_u, grad_delta = scan.like(u), scan.like(delta)
        grad_B = scan.like(inputs.B) if grad_B is None else grad_B
        grad_C = scan.like(inputs.C) if grad_C is None else grad_C
        grad_z = scan.like(z) if grad_z is None and z is not None else grad_z
        part_A = scan.new(scan.batch, scan.states, scan.channels)
        part_D, part_bias = scan.new(scan.batch, scan.channels), scan.new(scan.batch, scan.channels)
        if u.numel():
            parts = scan.new(scan.groups, scan.batch, scan.states, scan.padded // TOKENS, 2, TOKENS)
            scan_backward_kernel[(scan.programs,)](
                grad,
                u,
                delta,
                scan.A2,
                scan.BC,
                scan.given(scan.inputs.D),
                scan.given(z),
                scan.given(scan.inputs.delta_bias),
                scan.given(ends),
                grad_u,
                grad_delta,
                scan.given(grad_z),
                parts,
                part_A,
                part_D,
                part_bias,
                scan.new(scan.programs, 1 + CHUNK // TOKENS, scan.states, BLOCK),
                *_strides(grad, u, delta, z, grad_u, grad_delta, grad_z),
                scan.batch,
                *scan.sizes(),
                ADD_Z=add_to_z,
                **scan.flags(),
            )
            scan.sum_states(parts, grad_B, grad_C)
        else:
            for part in (part_A, part_D, part_bias):
                part.zero_()
        grad_A = part_A.sum(0)
        if inputs.A_is_log:
            grad_A *= scan.A2 * LN2.value
        return ScanGradients(
            grad_u,
            grad_delta,
            grad_A.t().contiguous().to(inputs.A.dtype),
            grad_B,
            grad_C,
            None if inputs.D is None else part_D.sum(0).to(inputs.D.dtype),
            grad_z,
            None if inputs.delta_bias is None else part_bias.sum(0).to(inputs.delta_bias.dtype),
        )


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, *, reverse: bool, add: bool) -> None:
    """Writes the convolution to ``out``, or adds it; without a bias there is no SiLU."""
    batch, length, channels = x.shape
    groups, tiles = triton.cdiv(channels, BLOCK), triton.cdiv(length, CONV_TOKENS)
    convolution_kernel[(batch * groups * tiles,)](
        x,
        weight,
        weight if bias is None else bias,
        out,
        *_strides(x, out),
        length,
        channels,
        groups,
        tiles,
        K=weight.shape[1],
        BLOCK=BLOCK,
        T=CONV_TOKENS,
        REVERSE=reverse,
        ACTIVATE=bias is not None,
        ADD=add,
        EVEN=channels % BLOCK == 0,
        ASM=_speaks_ptx(),
        num_warps=1,
    )


def conv_silu_forward(x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool) -> Tensor:
    """``dis_cli.scan.contract.EngineModule.conv_silu_forward``."""
    with torch.cuda.device_of(x):
        out = x.new_empty(x.shape)
        if x.numel():
            _convolve(_rows(x), _parameter(weight), _parameter(bias), out, reverse=reverse, add=False)
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
    """``dis_cli.scan.contract.EngineModule.conv_silu_backward``."""
    with torch.cuda.device_of(x):
        grad_x = x.new_empty(x.shape) if grad_x is None else grad_x
        if not x.numel():
            return grad_x, torch.zeros_like(weight), torch.zeros_like(bias)
        batch, length, channels = x.shape
        x, grad, taps = _rows(x), _rows(grad), _parameter(weight)
        groups = triton.cdiv(channels, BLOCK)
        before = torch.empty_like(grad, memory_format=torch.contiguous_format)
        part_weight = x.new_empty(batch, taps.shape[1], channels, dtype=torch.float32)
        part_bias = x.new_empty(batch, channels, dtype=torch.float32)
        activation_gradient_kernel[(batch * groups,)](
            grad,
            x,
            taps,
            _parameter(bias),
            before,
            part_weight,
            part_bias,
            *_strides(grad, x, before),
            length,
            channels,
            groups,
            K=taps.shape[1],
            BLOCK=BLOCK,
            T=CONV_TOKENS,
            REVERSE=reverse,
            EVEN=channels % BLOCK == 0,
            ASM=_speaks_ptx(),
            num_warps=1,
        )
        _convolve(before, taps, None, grad_x, reverse=not reverse, add=add_to_x)
        grad_weight = part_weight.sum(0).t().contiguous()
        return grad_x, grad_weight.to(weight.dtype), part_bias.sum(0).to(bias.dtype)


def _norm_block(width: int) -> dict[str, int]:
    """A row as one block; 256 numbers for a warp, and at most 16 warps."""
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 256))}


def norm_forward(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``dis_cli.scan.contract.EngineModule.norm_forward``."""
    with torch.cuda.device_of(hidden):
        hidden = hidden.contiguous()
        normed, total, scale = (
            hidden.new_empty(shape, dtype=torch.float32) for shape in (hidden.shape, hidden.shape, hidden.shape[:-1])
        )
        if hidden.numel():
            norm_forward_kernel[(scale.numel(),)](
                hidden,
                hidden if residual is None else residual.contiguous(),
                _parameter(weight),
                normed,
                total,
                scale,
                hidden.shape[-1],
                epsilon,
                HAS_RESIDUAL=residual is not None,
                **_norm_block(hidden.shape[-1]),
            )
        return normed, total, scale


def norm_backward(
    grad_normed: Tensor, grad_total: Tensor | None, total: Tensor, scale: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """``dis_cli.scan.contract.EngineModule.norm_backward``."""
    with torch.cuda.device_of(total):
        grad = torch.empty_like(total)
        programs = triton.cdiv(scale.numel(), NORM_ROWS)
        part_weight = total.new_empty(programs, weight.numel())
        if total.numel():
            norm_backward_kernel[(programs,)](
                grad_normed.contiguous(),
                total if grad_total is None else grad_total.contiguous(),
                total.contiguous(),
                scale.contiguous(),
                _parameter(weight),
                grad,
                part_weight,
                scale.numel(),
                weight.numel(),
                ROWS=NORM_ROWS,
                HAS_TOTAL=grad_total is not None,
                **_norm_block(weight.numel()),
            )
        return grad, part_weight.sum(0).to(weight.dtype)
