"""The named sizes of the U-Net, and the settings of a model that decide what it costs. No torch."""

from dataclasses import dataclass
from typing import Final

from dis_cli.models.cost import ModelShape

# The grid of the lowest level is no smaller: 8x8 has two levels.
SMALLEST_SIDE = 4


@dataclass(frozen=True)
class Size:
    """One named size.

    Args:
        channels: Of the first level.
        multipliers: Channels of each level, as multiples of ``channels``; a level has half the side of the one above.
        num_blocks: Residual blocks of a level on the way down; one more on the way up.
        attention_levels: Levels with self-attention, 0 being the full grid; the middle always has it.
        head_channels: Channels of an attention head; None is one head.
        norm_groups: Groups of the group norms.
    """

    channels: int
    multipliers: tuple[int, ...]
    num_blocks: int
    attention_levels: tuple[int, ...]
    head_channels: int | None = None
    norm_groups: int = 32


# Near DDPM++ (arXiv 2011.13456, 62 M) and ADM on 64x64 pixels (arXiv 2105.05233, 296 M); those before are this
# project's own, with as many parameters as DiS-XS on the digits and as DiS-S on CIFAR-10.
SIZES: Final[dict[str, Size]] = {
    "xs": Size(32, (1, 2), 1, (), norm_groups=8),
    "s": Size(128, (1, 3), 2, ()),
    "ddpm++": Size(128, (1, 2, 2, 2), 4, (1,)),
    "adm": Size(192, (1, 2, 3, 4), 3, (1, 2, 3), head_channels=64),
}


@dataclass(frozen=True)
class Shape(ModelShape):
    """The settings of a U-Net that decide its parameters, operations and output; names are those of the backbone.

    Args:
        patch_size: Always 1: it works on the grid's own pixels.

    Raises:
        ValueError: A number is out of range, the levels do not fit the grid, or groups or heads the channels.
    """

    image_size: int
    in_channels: int
    channels: int
    multipliers: tuple[int, ...]
    num_blocks: int
    attention_levels: tuple[int, ...]
    head_channels: int | None = None
    norm_groups: int = 32
    num_classes: int = 0
    learn_sigma: bool = True
    patch_size: int = 1

    def __post_init__(self) -> None:
        numbers = (self.image_size, self.in_channels, self.channels, self.num_blocks, *self.multipliers)
        if min(numbers) < 1 or self.num_classes < 0:
            raise ValueError("sizes must be at least 1 and num_classes at least 0")
        require_fitting(
            image_size=self.image_size,
            patch_size=self.patch_size,
            channels=self.channels,
            multipliers=self.multipliers,
            attention_levels=self.attention_levels,
            head_channels=self.head_channels,
            norm_groups=self.norm_groups,
        )

    @property
    def num_tokens(self) -> int:
        """Pixels of the grid, which stand where other families have tokens."""
        return self.image_size**2

    @property
    def size(self) -> str | None:
        """The named size of these settings; None when it has no name."""
        own = Size(
            self.channels,
            self.multipliers,
            self.num_blocks,
            self.attention_levels,
            self.head_channels,
            self.norm_groups,
        )
        return next((name for name, size in SIZES.items() if size == own), None)

    @property
    def width(self) -> int:
        """Channels of the widest level."""
        return self.channels * max(self.multipliers)

    @property
    def label(self) -> str:
        """Such as ADM; channels, multipliers and blocks where the size has no name."""
        if self.size:
            return self.size.upper()
        return f"{self.channels}x{'.'.join(map(str, self.multipliers))}x{self.num_blocks}"

    @property
    def layers(self) -> str:
        """Depth and width in words."""
        widths = ", ".join(str(self.channels * factor) for factor in self.multipliers)
        return f"{len(self.multipliers)} levels of width {widths}, {self.num_blocks} blocks in each"


def require_fitting(
    *,
    image_size: int,
    patch_size: int,
    channels: int,
    multipliers: tuple[int, ...],
    attention_levels: tuple[int, ...],
    head_channels: int | None,
    norm_groups: int,
) -> None:
    """Refuse settings that no U-Net can have together.

    Raises:
        ValueError: Gives both numbers.
    """
    if patch_size != 1:
        raise ValueError(f"patch_size must be 1 (a U-Net has no patches), got {patch_size}")
    levels = len(multipliers)
    if not levels or multipliers[0] != 1:
        raise ValueError(f"multipliers must begin with 1, the first level's, got {', '.join(map(str, multipliers))}")
    smallest = SMALLEST_SIDE << (levels - 1)
    if levels > 1 and (image_size < smallest or image_size % (1 << (levels - 1))):
        raise ValueError(
            f"{levels} levels (multipliers) need an image_size that is a multiple of {1 << (levels - 1)} and at least "
            f"{smallest}, got image_size {image_size}"
        )
    if wrong := [level for level in attention_levels if not 0 <= level < levels]:
        raise ValueError(f"attention_levels must be below the number of levels, which is {levels}, got {wrong[0]}")
    for level, factor in enumerate(multipliers):
        width = channels * factor
        if width % norm_groups:
            raise ValueError(f"norm_groups {norm_groups} does not divide the {width} channels of level {level}")
        attends = level in attention_levels or level == levels - 1
        if attends and head_channels is not None and width % head_channels:
            raise ValueError(f"head_channels {head_channels} does not divide the {width} channels of level {level}")
