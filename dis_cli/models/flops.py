"""Parameters and multiply-accumulates of a DiS model in closed form; nothing is built or run.

A multiply-accumulate (MAC) is one product and one sum, so FLOPs = 2 MAC. All figures are of one forward pass on one
image. Two counts stand side by side:

- true: every matrix product, every convolution and the selective scan, in both directions;
- published: what the reference's profiler script reports. It counts modules that are *called*, and the fused path
  never calls the sub-modules of a mixer, so no in-projection, convolution, scan or out-projection is in it. Its
  "FLOPs" are twice its MACs.

Symbols: C embed_dim, E = expand C, N d_state, R = ceil(C / 16), K d_conv, P patches, L tokens, p patch_size.
"""

from dataclasses import dataclass

_DIRECTIONS = 2
_TIME_MLP_RATIO = 4
_DT_RANK_DIVISOR = 16


@dataclass(frozen=True)
class Flops:
    """What one model costs: parameters, and MACs of one forward pass on one image.

    Args:
        parameters: Number of trainable parameters; a DiS has no other state.
        tokens: Length of the sequence: patches, the time token and, in a conditional model, the label token.
        macs_by_part: True MACs of each kind of layer, summed over the blocks, in the order of the data flow.
        elementwise_macs: Multiplications of the scan that a fused kernel hides: delta A, (delta u) B, delta u and the
            gate. Exponentials, softplus and SiLU are not counted anywhere.
        published_macs: MACs by the published convention.
    """

    parameters: int
    tokens: int
    macs_by_part: dict[str, int]
    elementwise_macs: int
    published_macs: int

    @property
    def macs(self) -> int:
        """True MACs."""
        return sum(self.macs_by_part.values())

    @property
    def macs_with_elementwise(self) -> int:
        """True MACs and the scan's elementwise multiplications."""
        return self.macs + self.elementwise_macs

    @property
    def flops(self) -> int:
        """True FLOPs, 2 per MAC."""
        return 2 * self.macs

    @property
    def published_flops(self) -> int:
        """The number that the published profiler script prints, 2 per MAC that it sees."""
        return 2 * self.published_macs

    @property
    def true_over_published(self) -> float:
        """How many times the published convention's count the true one is."""
        return self.macs / self.published_macs


def count(
    image_size: int,
    patch_size: int,
    in_channels: int,
    embed_dim: int,
    depth: int,
    num_classes: int = 0,
    learn_sigma: bool = True,
    d_state: int = 16,
    d_conv: int = 4,
    expand: int = 2,
) -> Flops:
    """Parameters and MACs of the DiS with these settings.

    The convolution is counted at the L positions that are kept, although libraries compute L + K - 1.

    Args:
        image_size: Side of the square grid the model sees, in its own pixels (latent pixels with a VAE).
        patch_size: Side of a patch, in grid pixels; divides ``image_size``.
        in_channels: Channels of the grid.
        embed_dim: Width C of a token, in channels.
        depth: Number of blocks, odd.
        num_classes: Number of classes; 0 is an unconditional model.
        learn_sigma: Whether the model also predicts the variance, with as many output channels again.
        d_state: State size N of the scan, per channel.
        d_conv: Taps K of the causal convolution, in tokens.
        expand: Inner width E of a mixer, as a multiple of ``embed_dim``.

    Returns:
        The counts, as exact integers.

    Raises:
        ValueError: ``depth`` is even, ``patch_size`` does not divide ``image_size``, or a number is out of range.
    """
    if min(image_size, patch_size, in_channels, embed_dim, depth, d_state, d_conv, expand) < 1 or num_classes < 0:
        raise ValueError("sizes must be at least 1 and num_classes at least 0")
    if depth % 2 == 0:
        raise ValueError(f"depth must be odd (half in, one middle, half out), got {depth}")
    if image_size % patch_size:
        raise ValueError(f"patch_size {patch_size} does not divide image_size {image_size}")

    C, N, K = embed_dim, d_state, d_conv
    E = expand * C
    R = -(-C // _DT_RANK_DIVISOR)
    P = (image_size // patch_size) ** 2
    L = P + (2 if num_classes else 1)
    num_skips = depth // 2
    patch_values = patch_size**2 * in_channels
    output_values = patch_values * (2 if learn_sigma else 1)

    # Weights of the linear layers and convolutions, without biases: what one token multiplies with.
    patch_embed = patch_values * C
    time_embed = 2 * _TIME_MLP_RATIO * C * C
    in_proj = 2 * C * E
    conv1d = E * K
    x_proj = E * (R + 2 * N)
    dt_proj = R * E
    out_proj = E * C
    skip_linear = 2 * C * C
    final_linear = C * output_values
    ada_ln = 2 * C * C if num_classes else 0

    direction = (conv1d + E) + x_proj + (dt_proj + E) + E * N + E
    block = in_proj + _DIRECTIONS * direction + out_proj + C
    parameters = (
        L * C
        + (patch_embed + C)
        + (time_embed + _TIME_MLP_RATIO * C + C)
        + ((num_classes + 1) * C if num_classes else 0)
        + depth * block
        + num_skips * (skip_linear + C)
        + C
        + (final_linear + output_values)
        + (ada_ln + 2 * C if num_classes else 0)
    )

    scans = depth * _DIRECTIONS
    macs_by_part = {
        "patch_embed": P * patch_embed,
        "time_embed": time_embed,
        "in_proj": depth * L * in_proj,
        "conv1d": scans * L * conv1d,
        "x_proj": scans * L * x_proj,
        "dt_proj": scans * L * dt_proj,
        # The state update, its read-out with C, and D u.
        "scan": scans * L * (2 * E * N + E),
        "out_proj": depth * L * out_proj,
        "skip_linear": num_skips * L * skip_linear,
        "adaLN_modulation": ada_ln,
        "final_layer": L * final_linear,
    }
    seen_by_profiler = ("patch_embed", "time_embed", "skip_linear", "adaLN_modulation", "final_layer")
    # The profiler adds 2 per element for the final layer norm, which the true count leaves out like all norms.
    published_macs = sum(macs_by_part[part] for part in seen_by_profiler) + 2 * L * C
    return Flops(
        parameters=parameters,
        tokens=L,
        macs_by_part=macs_by_part,
        elementwise_macs=scans * L * (2 * E * N + 2 * E),
        published_macs=published_macs,
    )
