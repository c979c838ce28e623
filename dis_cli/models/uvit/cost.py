"""Parameters and multiply-accumulates of a U-ViT in closed form; nothing is built or run. No torch.

Source: the layers of arXiv 2209.12152. Attention is counted: of L tokens of width D its two products take 2 L^2 D
multiply-accumulates in a block, on top of 12 L D^2 for the linear layers. Softmax, norms and activations are not.
"""

from dis_cli.models.cost import Flops, LayerCost
from dis_cli.models.uvit.sizes import Shape

_MLP_RATIO = 4


def count(shape: Shape, num_patches: int | None = None) -> Flops:
    """Parameters and MACs of a U-ViT.

    The tokens that are no patches leave before the head, and are not counted there.

    Args:
        num_patches: Another number of patches than that of its grid, which need not be a square; None is the grid's.

    Returns:
        The counts, as exact integers.
    """
    D, layers = shape.embed_dim, shape.depth
    P = shape.num_patches if num_patches is None else num_patches
    L = P + shape.num_extras
    skips = layers // 2
    patch_embed = shape.patch_values * D
    time_in = _MLP_RATIO * D * D if shape.time_mlp else 0
    time_biases = (_MLP_RATIO + 1) * D if shape.time_mlp else 0
    labels = (shape.num_classes + 1) * D if shape.num_classes else 0
    hidden = _MLP_RATIO * D * D
    final = D * shape.output_values
    channels = shape.in_channels * (2 if shape.learn_sigma else 1)
    conv = 9 * channels**2 if shape.final_conv else 0
    conv_biases = channels if shape.final_conv else 0

    def part(weights: int, biases: int, blocks: int = layers) -> LayerCost:
        macs = blocks * L * weights
        return LayerCost(blocks * (weights + biases), macs, published_macs=macs)

    attention = layers * 2 * L * L * D
    embedding_macs = P * patch_embed + 2 * time_in
    head_macs = P * final + P * shape.patch_size**2 * conv
    parts = {
        "embeddings": LayerCost(
            patch_embed + D + 2 * time_in + time_biases + labels + L * D, embedding_macs, published_macs=embedding_macs
        ),
        "norms": LayerCost(layers * 4 * D + 2 * D),
        "skip": part(2 * D * D, D, blocks=skips),
        "qkv": part(3 * D * D, 0),
        "attention": LayerCost(0, attention, published_macs=attention),
        "proj": part(D * D, D),
        "fc1": part(hidden, _MLP_RATIO * D),
        "fc2": part(hidden, D),
        "head": LayerCost(final + shape.output_values + conv + conv_biases, head_macs, published_macs=head_macs),
    }
    return Flops(
        tokens=L,
        parts=parts,
        data_gradient_macs=P * patch_embed + time_in,
        # A block ends in fc2, whose output nothing needs again.
        run_once=frozenset({"embeddings", "head", "fc2"}),
    )
