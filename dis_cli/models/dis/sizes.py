"""The named sizes of DiS, and the settings of a model that decide what it costs. No torch."""

from dataclasses import dataclass
from typing import Final

from dis_cli.models.cost import StackShape, require_patches


@dataclass(frozen=True)
class Size:
    """One named size.

    Args:
        embed_dim: Width of a token, in channels.
        depth: Number of blocks, odd: half in, one middle, half out.
    """

    embed_dim: int
    depth: int


# S, B, M, L and H are the published ones. XS (for the bundled digits) and XL are this project's own: no published
# figures belong to them.
SIZES: Final[dict[str, Size]] = {
    "xs": Size(96, 7),
    "s": Size(368, 25),
    "b": Size(768, 25),
    "m": Size(768, 49),
    "l": Size(1024, 49),
    "xl": Size(1152, 65),
    "h": Size(1536, 49),
}


# What the names of the ablations may be; the first of each is published.
SKIPS: Final = ("concat", "add", "none")
DIRECTIONS: Final = ("both", "forward")
CONDITIONINGS: Final = ("tokens", "adaln_zero")
SCAN_ORDERS: Final = ("raster", "column", "alternate")


def columns(scan_order: str, depth: int) -> list[bool]:
    """Which blocks take the patches column by column."""
    return [scan_order == "column" or (scan_order == "alternate" and index % 2 == 1) for index in range(depth)]


@dataclass(frozen=True)
class Shape(StackShape):
    """The settings of a DiS that decide its parameters, operations and memory; names are those of the backbone.

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
        skip: What an out-block does with its skip, one of ``SKIPS``.
        directions: One of ``DIRECTIONS``.
        conditioning: How time and class reach the blocks, one of ``CONDITIONINGS``.
        scan_order: The order of the patches in a scan, one of ``SCAN_ORDERS``; costs nothing that is counted.

    Raises:
        ValueError: ``depth`` is even, ``patch_size`` does not divide ``image_size``, a number is out of range, or a
            name is unknown.
    """

    image_size: int
    patch_size: int
    in_channels: int
    embed_dim: int
    depth: int
    num_classes: int = 0
    learn_sigma: bool = True
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    skip: str = "concat"
    directions: str = "both"
    conditioning: str = "tokens"
    scan_order: str = "raster"

    def __post_init__(self) -> None:
        sizes = (self.image_size, self.patch_size, self.in_channels, self.embed_dim, self.depth)
        if min(*sizes, self.d_state, self.d_conv, self.expand) < 1 or self.num_classes < 0:
            raise ValueError("sizes must be at least 1 and num_classes at least 0")
        if self.depth % 2 == 0:
            raise ValueError(f"depth must be odd (half in, one middle, half out), got {self.depth}")
        require_patches(self.image_size, self.patch_size)
        allowed = {"skip": SKIPS, "directions": DIRECTIONS, "conditioning": CONDITIONINGS, "scan_order": SCAN_ORDERS}
        for name, names in allowed.items():
            if getattr(self, name) not in names:
                raise ValueError(f"{name} must be {' or '.join(map(repr, names))}, got {getattr(self, name)!r}")

    @property
    def modulated(self) -> bool:
        """Whether time and class modulate the blocks, and are no tokens."""
        return self.conditioning == "adaln_zero"

    @property
    def num_directions(self) -> int:
        """Scans in a mixer."""
        return 2 if self.directions == "both" else 1

    @property
    def num_extras(self) -> int:
        """Tokens that are no patches: the time and, in a conditional model, the class; none where they modulate."""
        return 0 if self.modulated else 2 if self.num_classes else 1

    @property
    def num_tokens(self) -> int:
        """Length L of the sequence."""
        return self.num_patches + self.num_extras

    @property
    def inner_dim(self) -> int:
        """Inner width E of a mixer, in channels."""
        return self.expand * self.embed_dim

    @property
    def dt_rank(self) -> int:
        """Rank R of the time step's projection."""
        return -(-self.embed_dim // 16)

    @property
    def size(self) -> str | None:
        """The named size of this width and depth; None when it has no name."""
        return next((name for name, size in SIZES.items() if size == Size(self.embed_dim, self.depth)), None)
