"""The memory of a DiS in training and in sampling, in closed form; nothing is built or run. No torch.

Activations are the tensors that autograd keeps from a forward for its backward, with the compiled kernel's operators:
a mixer keeps its input [x, z], the small projections [dt, B, C] and the states between chunks of tokens, and computes
everything else again.

Symbols: C embed_dim, E = expand C, N d_state, R = ceil(C / 16), P patches, L tokens; a, the bytes of a number in a
linear layer: 4 in fp32 and 2 in bf16. Parameters, residual stream and scan are float32 in both.
"""

from dis_cli.models.cost import Memory
from dis_cli.models.dis.flops import count
from dis_cli.models.dis.sizes import Shape

# Tokens between two states that the compiled kernel keeps (CHUNK in scan/engines/cpu/csrc/kernel.cpp).
KERNEL_CHUNK = 32

_FLOAT, _INDEX = 4, 8
_BYTES = {"fp32": 4, "bf16": 2}
_TIME_MLP_RATIO = 4
# What makes a modulation's rows many in sampling (models/embed.py).
_WHOLE_ROWS = 64


def estimate_memory(shape: Shape, *, batch: int, precision: str, guided: bool = False) -> Memory:
    """Bytes for training and sampling with this many images at a time.

    Args:
        batch: Images in a training forward, and images generated at a time.
        precision: "fp32" or "bf16": the numbers of the linear layers.
        guided: Whether sampling evaluates every image twice at once (classifier-free guidance).

    Raises:
        ValueError: The precision is neither.
    """
    if precision not in _BYTES:
        raise ValueError(f"precision must be 'fp32' or 'bf16', got {precision!r}")
    weights = _FLOAT * count(shape).parameters
    joins = shape.depth // 2 if shape.skip == "concat" else 0
    blocks = shape.depth * _block(shape, batch, precision) + joins * _skip(shape, batch, precision)
    again = _block(shape, batch, precision) + (_skip(shape, batch, precision) if joins else 0)
    C, E = shape.embed_dim, shape.inner_dim
    # Of the blocks, and of the two layers that see data, whose weights no backward needs.
    first = shape.patch_values * C + _TIME_MLP_RATIO * C * C
    modulation = 3 * C * C if shape.modulated else 0
    rounded = _casts(precision, shape.depth * (3 * C * E + modulation) + joins * 2 * C * C + first)
    return Memory(
        weights=weights,
        gradients=weights,
        optimizer=2 * weights,
        ema=weights,
        activations=_head(shape, batch, precision) + blocks,
        checkpointed_activations=kept_with_checkpointing(shape, batch=batch, precision=precision) + max(again, rounded),
        sampling_work=_sampling(shape, batch * (2 if guided else 1), precision),
    )


def kept_with_checkpointing(shape: Shape, *, batch: int, precision: str) -> int:
    """Bytes that a training forward keeps with gradient checkpointing, before any block is computed again."""
    return _head(shape, batch, precision) + _block_inputs(shape, batch, precision)


def peak_width(shape: Shape) -> int:
    """Numbers that a forward holds for a token at its peak: the skips, and a mixer's inner tensors."""
    # An inner tensor is ``expand`` wide: x and z, u and delta and y of each direction.
    skips, inner = 0 if shape.skip == "none" else shape.depth // 2, 2 + 3 * shape.num_directions
    return shape.embed_dim * (skips + 4 + inner * shape.expand)


def _casts(precision: str, weights: int) -> int:
    """Rounded copies of a layer's weights, which a backward needs; in fp32 the weights themselves serve."""
    return weights * _BYTES[precision] if precision == "bf16" else 0


def _states_kept(shape: Shape) -> int:
    """Numbers in the states between chunks, of one direction and image."""
    return max(0, -(-shape.num_tokens // KERNEL_CHUNK) - 1) * shape.d_state * shape.inner_dim


def _block(shape: Shape, batch: int, precision: str) -> int:
    """A block without its skip: norm (the sum, 1 / rms), in_proj's input, [x, z], [dt, B, C], states, y."""
    C, E, L, a = shape.embed_dim, shape.inner_dim, shape.num_tokens, _BYTES[precision]
    linear = L * (C + 2 * E + E)
    scan = shape.num_directions * (L * (shape.dt_rank + 2 * shape.d_state) + _states_kept(shape))
    kept = batch * (a * linear + _FLOAT * (L * (C + 1) + scan)) + _casts(precision, 2 * C * E + E * C)
    return kept + (_modulation(shape, batch, precision) if shape.modulated else 0)


def _modulation(shape: Shape, batch: int, precision: str) -> int:
    """The condition after its SiLU, shift, scale and gate, 1 + scale; the norm, and what is gated."""
    C, L, a = shape.embed_dim, shape.num_tokens, _BYTES[precision]
    return batch * (a * (C + 3 * C + C + L * C) + _FLOAT * L * C) + _casts(precision, 3 * C * C)


def _skip(shape: Shape, batch: int, precision: str) -> int:
    """The hidden state and the skip, side by side."""
    C = shape.embed_dim
    return batch * _BYTES[precision] * shape.num_tokens * 2 * C + _casts(precision, 2 * C * C)


def _block_inputs(shape: Shape, batch: int, precision: str) -> int:
    """What enters the blocks: a hidden state each, of which the first are the tokens, and after it the stream.

    A skip is the hidden state of another block, and costs nothing of its own.
    """
    numbers = batch * shape.num_tokens * shape.embed_dim
    later = shape.depth - 1
    return numbers * (_FLOAT + later * (_BYTES[precision] + _FLOAT))


def _head(shape: Shape, batch: int, precision: str) -> int:
    """Everything but the blocks: patches and time going in, both last norms, modulation and projection."""
    C, P, L, a = shape.embed_dim, shape.num_patches, shape.num_tokens, _BYTES[precision]
    linear = P * shape.patch_values + C + 2 * _TIME_MLP_RATIO * C + P * C
    # The sum with its 1 / rms, its norm, and the layer norm's mean and 1 / deviation.
    numbers = L * (C + 1) + L * C + 2 * P
    weights = _TIME_MLP_RATIO * C * C + C * shape.output_values
    total = batch * (a * linear + _FLOAT * numbers)
    if shape.num_classes:
        # The condition before and after its SiLU, 1 + scale, what is scaled, and which class it was.
        total += batch * (a * 2 * C + _FLOAT * (C + P * C) + _INDEX)
        weights += 2 * C * C
    elif shape.modulated:
        # The condition, which is the time alone.
        total += batch * a * C
    return total + _casts(precision, weights)


def _sampling(shape: Shape, batch: int, precision: str) -> int:
    """In the first out-block, whose skips are all still there, while its mixer scans in its last direction."""
    C, E, L, a = shape.embed_dim, shape.inner_dim, shape.num_tokens, _BYTES[precision]
    skips = 0 if shape.skip == "none" else shape.depth // 2
    # Skips, the patches' tokens and the hidden state; the stream before and after the sum, its norm.
    hidden = a * (skips + 2) * C + _FLOAT * 3 * C
    # [x, z], y, and u and delta of each direction; in bf16 also [x, z] in float32, and delta before it is.
    inner = 1 + 2 * shape.num_directions
    mixer = a * 2 * E + _FLOAT * inner * E + (_FLOAT * 2 * E + a * E if precision == "bf16" else 0)
    scan = shape.num_directions * L * (shape.dt_rank + 2 * shape.d_state) + _states_kept(shape)
    rows = -(-batch // _WHOLE_ROWS) * _WHOLE_ROWS if shape.modulated else 0
    return batch * (L * (hidden + mixer) + _FLOAT * scan) + a * rows * 3 * C
