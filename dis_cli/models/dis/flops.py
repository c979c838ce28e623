"""Parameters and multiply-accumulates of a DiS model in closed form; nothing is built or run. No torch.

Counts are of one forward pass on one image, part by part. Conventions stand side by side (`CONVENTIONS`), because
they differ by an order of magnitude and published figures seldom say which one they are in.

Symbols: C embed_dim, E = expand C, N d_state, R = ceil(C / 16), K d_conv, P patches, L tokens.
"""

from typing import Final

from dis_cli.models.cost import Flops, LayerCost
from dis_cli.models.dis.sizes import Shape

_TIME_MLP_RATIO = 4

CONVENTIONS: Final[dict[str, str]] = {
    "MACs": "multiply-accumulates of every matrix product, convolution and scan, in all directions",
    "FLOPs": "product and sum each count: 2 x MACs",
    "+ elementwise": "MACs and the scan's unfused multiplies: delta A, (delta u) B, delta u and the gate",
    "as published": "MACs that thop sees in the published code, which calls no module inside a mixer",
    "as printed": "what the published test prints as FLOPs: 2 x as published",
}


def count(shape: Shape, num_patches: int | None = None) -> Flops:
    """Parameters and MACs of a DiS.

    The convolution is counted at the L positions that are kept, although libraries compute L + K - 1. The gate counts
    in each direction, and the head takes all L tokens, both as published; here the directions are added before one
    gate, and the 1 or 2 tokens that are no patches leave before the head.

    Args:
        num_patches: Another number of patches than that of its grid, which need not be a square; None is the grid's.

    Returns:
        The counts, as exact integers.
    """
    C, E, N, K, R = shape.embed_dim, shape.inner_dim, shape.d_state, shape.d_conv, shape.dt_rank
    P = shape.num_patches if num_patches is None else num_patches
    L = P + shape.num_extras
    conditional = shape.num_classes > 0
    joins = shape.depth // 2 if shape.skip == "concat" else 0
    scans = shape.depth * shape.num_directions
    modulated = shape.depth if shape.modulated else 0

    # Weights of the linear layers and convolutions, without biases: what one token multiplies with.
    patch_embed = shape.patch_values * C
    time_in = _TIME_MLP_RATIO * C * C
    time_embed = 2 * time_in
    in_proj = 2 * C * E
    conv = E * K
    x_proj = E * (R + 2 * N)
    dt_proj = R * E
    out_proj = E * C
    skip_linear = 2 * C * C
    modulation = 3 * C * C
    ada_ln = 2 * C * C if conditional else 0
    final_linear = C * shape.output_values

    embedding_macs = P * patch_embed + time_embed
    embedding_biases = C + _TIME_MLP_RATIO * C + C
    tables = L * C + ((shape.num_classes + 1) * C if conditional else 0)
    head_macs = ada_ln + L * final_linear
    head_biases = shape.output_values + (2 * C if conditional else 0)
    skip_macs = joins * L * skip_linear
    parts = {
        "embeddings": LayerCost(
            patch_embed + time_embed + embedding_biases + tables, embedding_macs, published_macs=embedding_macs
        ),
        "norms": LayerCost(shape.depth * C + C),
        "in_proj": LayerCost(shape.depth * in_proj, shape.depth * L * in_proj),
        "conv": LayerCost(scans * (conv + E), scans * L * conv),
        "x_proj": LayerCost(scans * x_proj, scans * L * x_proj),
        "dt_proj": LayerCost(scans * (dt_proj + E), scans * L * dt_proj),
        # A and D; the state update, its read-out with C, and D u; delta A, (delta u) B, and delta u.
        "scan": LayerCost(
            scans * (E * N + E), scans * L * (2 * E * N + E), elementwise_macs=scans * L * (2 * E * N + E)
        ),
        "gate": LayerCost(0, elementwise_macs=scans * L * E),
        "out_proj": LayerCost(shape.depth * out_proj, shape.depth * L * out_proj),
        "skip": LayerCost(joins * (skip_linear + C), skip_macs, published_macs=skip_macs),
        # The profiler adds 2 per element for the last norm, which the true count leaves out like all norms.
        "head": LayerCost(final_linear + ada_ln + head_biases, head_macs, published_macs=head_macs + 2 * L * C),
    }
    if modulated:
        # Of the condition, once for an image.
        macs = modulated * modulation
        parts["modulation"] = LayerCost(modulated * (modulation + 3 * C), macs, published_macs=macs)
    return Flops(
        tokens=L,
        parts=parts,
        data_gradient_macs=P * patch_embed + time_in,
        # The gate's backward needs what out_proj gives.
        run_once=frozenset({"embeddings", "head"} if modulated else {"embeddings", "head", "out_proj"}),
        conventions=CONVENTIONS,
    )
