"""Parameters and multiply-accumulates of a DiT in closed form; nothing is built or run. No torch.

Source: the layers of arXiv 2212.09748. Attention is counted: of L tokens of width D its two products take 2 L^2 D
multiply-accumulates in a block, on top of 12 L D^2 for the linear layers. Softmax, norms and activations are not.
"""

from dis_cli.models.cost import Flops, LayerCost
from dis_cli.models.dit.sizes import Shape

SINUSOIDS = 256

_MLP_RATIO = 4


def count(shape: Shape, num_patches: int | None = None) -> Flops:
    """Parameters and MACs of a DiT.

    Args:
        num_patches: Another number of patches than that of its grid, which need not be a square; None is the grid's.

    Returns:
        The counts, as exact integers; the parameters with the table of fixed positions, as published.
    """
    D, layers = shape.embed_dim, shape.depth
    L = shape.num_patches if num_patches is None else num_patches
    patch_embed = shape.patch_values * D
    time_embed = SINUSOIDS * D + D * D
    labels = (shape.num_classes + 1) * D if shape.num_classes else 0
    hidden = _MLP_RATIO * D * D
    modulation = 6 * D * D
    final, final_modulation = D * shape.output_values, 2 * D * D

    def part(weights: int, biases: int, rows: int = L) -> LayerCost:
        macs = layers * rows * weights
        return LayerCost(layers * (weights + biases), macs, published_macs=macs)

    attention = layers * 2 * L * L * D
    embedding_macs = L * patch_embed + time_embed
    head_macs = L * final + final_modulation
    parts = {
        "embeddings": LayerCost(
            patch_embed + D + time_embed + 2 * D + labels + L * D, embedding_macs, published_macs=embedding_macs
        ),
        # One row an image, whatever the number of tokens.
        "modulation": part(modulation, 6 * D, rows=1),
        "qkv": part(3 * D * D, 3 * D),
        "attention": LayerCost(0, attention, published_macs=attention),
        "proj": part(D * D, D),
        "fc1": part(hidden, _MLP_RATIO * D),
        "fc2": part(hidden, D),
        "head": LayerCost(final + shape.output_values + final_modulation + 2 * D, head_macs, published_macs=head_macs),
    }
    return Flops(
        tokens=L,
        parts=parts,
        data_gradient_macs=L * patch_embed + SINUSOIDS * D,
        run_once=frozenset({"embeddings", "head"}),
    )
