"""Functions of a number that the kernels share, and the loads of numbers along time.

``ASM`` says whether NVIDIA's instructions may be written as such: neither the interpreter nor other GPUs know them.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def reciprocal(x, ASM: tl.constexpr):
    """1 / x; one instruction with a relative error of 1e-7 instead of IEEE's division, which is eight."""
    if ASM:
        result = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        result = 1.0 / x
    return result


@triton.jit
def log1p_unit(e, ASM: tl.constexpr):
    """log(1 + e) for e in [0, 1], as 2 atanh(s) with s = e / (2 + e) <= 1/3 and its series s + s^3 / 3 + ...

    Relative error 3e-7, also where e is tiny, which is where the time steps of a trained model lie. The GPU's own
    logarithm of 1 + e would be off by 1e-5 at e = 0.02.
    """
    s = e * reciprocal(2.0 + e, ASM)
    q = s * s
    p = q * 0.07692308 + 0.09090909
    p = p * q + 0.11111111
    p = p * q + 0.14285715
    p = p * q + 0.2
    p = p * q + 0.33333334
    p = p * q + 1.0
    return 2.0 * s * p


@triton.jit
def softplus(x, ASM: tl.constexpr):
    """log(1 + exp(x)), by an exponential that cannot overflow."""
    e = tl.exp2(-tl.abs(x) * LOG2E)
    return tl.maximum(x, 0.0) + log1p_unit(e, ASM)


@triton.jit
def sigmoid(x, ASM: tl.constexpr):
    """1 / (1 + exp(-x)), the slope of softplus."""
    e = tl.exp2(-tl.abs(x) * LOG2E)
    s = reciprocal(1.0 + e, ASM)
    return tl.where(x >= 0, s, e * s)


@triton.jit
def silu_slope(x, ASM: tl.constexpr):
    """The derivative of SiLU, x sigmoid(x)."""
    s = sigmoid(x, ASM)
    return s + x * s * (1.0 - s)


@triton.jit
def tokens(pointer, row, first, ok, length, COUNT: tl.constexpr):
    """A tuple of COUNT tokens in float32, from token ``first`` on, in scan order; 0 outside of the sequence.

    ``pointer`` is at the channels of the scan's first token and ``row`` the way from a token to the next.
    """
    found = ()
    for i in tl.static_range(COUNT):
        t = first + i
        inside = ok & (t >= 0) & (t < length)
        found = found + (tl.load(pointer + t * row, mask=inside, other=0.0).to(tl.float32),)
    return found


@triton.jit
def steps(delta, shift, SOFTPLUS: tl.constexpr, COUNT: tl.constexpr, ASM: tl.constexpr):
    """The time steps: bias and softplus on a tuple of ``delta``."""
    found = ()
    for i in tl.static_range(COUNT):
        step = delta[i] + shift
        if SOFTPLUS:
            step = softplus(step, ASM)
        found = found + (step,)
    return found


@triton.jit
def products(a, b, COUNT: tl.constexpr):
    """The products of two tuples, one by one."""
    found = ()
    for i in tl.static_range(COUNT):
        found = found + (a[i] * b[i],)
    return found


@triton.jit
def times(pointer, COUNT: tl.constexpr):
    """A tuple of COUNT scalars that lie one after the other, such as one entry of B over time.

    All channels share them: a scalar is in every thread, and two come with one load of eight bytes.
    """
    pairs = pointer.to(tl.pointer_type(tl.int64))
    found = ()
    for i in tl.static_range(COUNT // 2):
        pair = tl.load(pairs + i)
        found = found + (
            pair.to(tl.int32).to(tl.float32, bitcast=True),
            (pair >> 32).to(tl.int32).to(tl.float32, bitcast=True),
        )
    return found
