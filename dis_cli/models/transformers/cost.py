"""What DiT and U-ViT cost, counted from their published layers, to set DiS beside them. No torch.

DiT: arXiv 2212.09748 (table 1; adaLN-Zero blocks). U-ViT: arXiv 2209.12152 (table 1). Attention is counted: of L tokens
of width D its two products take 2 L^2 D multiply-accumulates in a layer, on top of 12 L D^2 for the linear layers. The
softmax is not counted, nor are norms and activations, as for DiS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from dis_cli.models.cost import ModelShape
from dis_cli.models.dis.sizes import Size

# Width and number of layers. Heads do not change the count.
DIT: Final[dict[str, Size]] = {"s": Size(384, 12), "b": Size(768, 12), "l": Size(1024, 24), "xl": Size(1152, 28)}
UVIT: Final[dict[str, Size]] = {"s": Size(512, 13), "m": Size(768, 17), "l": Size(1024, 21), "h": Size(1152, 29)}

_MLP_RATIO = 4
_DIT_SINUSOIDS = 256

# Where the search for the number of patches begins: a grid of 4096 x 4096 patches.
_MOST_PATCHES = 1 << 24


@dataclass(frozen=True)
class PeerCost:
    """What a transformer costs.

    Args:
        parameters: All but tables of positions that are not trained.
        tokens: Length of the sequence.
        macs: MACs of one forward on one image.
        attention_macs: The part of them that grows with the square of the tokens.
    """

    parameters: int
    tokens: int
    macs: int
    attention_macs: int


def count_dit(size: Size, grid: ModelShape, num_patches: int | None = None) -> PeerCost:
    """Parameters and MACs of a DiT.

    Args:
        size: Its width and layers.
        grid: Whose grid, patch size, classes and predicted variance it has; the rest is not looked at.
        num_patches: Another number of patches than the grid's.
    """
    D, layers = size.embed_dim, size.depth
    L = grid.num_patches if num_patches is None else num_patches
    patch_embed = grid.patch_values * D
    time_embed = _DIT_SINUSOIDS * D + D * D
    labels = (grid.num_classes + 1) * D if grid.num_classes else 0
    modulation = 6 * D * D
    linear = (4 + 2 * _MLP_RATIO) * D * D
    attention = layers * 2 * L * L * D
    final = D * grid.output_values
    parameters = (
        (patch_embed + D)
        + (time_embed + 2 * D)
        + labels
        # Biases: qkv 3 D, proj D, MLP 4 D and D.
        + layers * (linear + 9 * D + modulation + 6 * D)
        + (final + grid.output_values)
        + (2 * D * D + 2 * D)
    )
    macs = L * patch_embed + time_embed + layers * (L * linear + modulation) + attention + L * final + 2 * D * D
    return PeerCost(parameters, L, macs, attention)


def count_uvit(size: Size, grid: ModelShape, num_patches: int | None = None) -> PeerCost:
    """Parameters and MACs of a U-ViT, with the last 3x3 convolution that it has on pixels and not on latents.

    Args:
        size: Its width and layers, odd.
        grid: Whose grid (of pixels when it has 3 channels), patch size and classes it has; it predicts no variance.
            The rest is not looked at.
        num_patches: Another number of patches than the grid's.
    """
    D, layers = size.embed_dim, size.depth
    P = grid.num_patches if num_patches is None else num_patches
    L = P + (2 if grid.num_classes else 1)
    skips = layers // 2
    patch_embed = grid.patch_values * D
    labels = (grid.num_classes + 1) * D if grid.num_classes else 0
    linear = (4 + 2 * _MLP_RATIO) * D * D
    skip = 2 * D * D
    attention = layers * 2 * L * L * D
    final = D * grid.patch_values
    is_pixel = grid.in_channels == 3
    last = 9 * grid.in_channels**2 if is_pixel else 0
    parameters = (
        (patch_embed + D)
        + labels
        + L * D
        # Biases: proj D, MLP 4 D and D; the two norms 4 D. qkv has none.
        + layers * (linear + 6 * D + 4 * D)
        + skips * (skip + D)
        + 2 * D
        + (final + grid.patch_values)
        + (last + grid.in_channels if is_pixel else 0)
    )
    # All tokens go through the last linear layer, as published.
    macs = P * patch_embed + layers * L * linear + attention + skips * L * skip + L * final
    return PeerCost(parameters, L, macs + P * grid.patch_size**2 * last, attention)


def cheaper_from(ours: Callable[[int], int], theirs: Callable[[int], int]) -> int | None:
    """The number of patches from which on we take fewer MACs than a peer; None when even the largest grid does not.

    Args:
        ours: MACs for a number of patches, linear in it.
        theirs: Likewise, with a term in its square.
    """
    above = _MOST_PATCHES
    if ours(above) >= theirs(above):
        return None
    below = above // 2
    while below and ours(below) < theirs(below):
        above, below = below, below // 2
    # Cheaper at `above` and not at `below`.
    while above - below > 1:
        middle = (above + below) // 2
        above, below = (middle, below) if ours(middle) < theirs(middle) else (above, middle)
    return above
