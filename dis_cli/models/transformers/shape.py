"""The settings that a DiT and a U-ViT have in common: width, depth and heads. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from dis_cli.models.cost import StackShape, require_patches


@dataclass(frozen=True)
class Size:
    """One named size of a transformer.

    Args:
        embed_dim: Width of a token, in channels.
        depth: Number of blocks.
        num_heads: Attention heads of a block.
    """

    embed_dim: int
    depth: int
    num_heads: int


def heads_of(embed_dim: int, num_heads: int | None, sizes: Mapping[str, Size]) -> int:
    """The attention heads of a width.

    Args:
        num_heads: As asked for; None takes those of the named size of this width.

    Raises:
        ValueError: They do not divide the width, or the width is that of no named size.
    """
    if num_heads is None:
        named = {size.embed_dim: size.num_heads for size in sizes.values()}
        if embed_dim not in named:
            raise ValueError(
                f"embed_dim {embed_dim} is the width of no named size ({', '.join(map(str, named))}), so that its "
                "attention heads are not known: set model.num_heads"
            )
        return named[embed_dim]
    if num_heads < 1 or embed_dim % num_heads:
        raise ValueError(f"num_heads {num_heads} does not divide embed_dim {embed_dim}")
    return num_heads


class TransformerShape(StackShape):
    """What is the same of the shapes of both.

    Attributes:
        num_heads: Attention heads of a block; None takes those of the named size of this width.
    """

    num_heads: int | None

    def settle(self, sizes: Mapping[str, Size]) -> None:
        """Check the numbers, and put the heads of the named width in place of None; of a frozen dataclass.

        Raises:
            ValueError: A number is out of range, the patches do not fit the grid or the heads the width.
        """
        numbers = (self.image_size, self.patch_size, self.in_channels, self.embed_dim, self.depth)
        if min(numbers) < 1 or self.num_classes < 0:
            raise ValueError("sizes must be at least 1 and num_classes at least 0")
        require_patches(self.image_size, self.patch_size)
        object.__setattr__(self, "num_heads", heads_of(self.embed_dim, self.num_heads, sizes))

    def size_in(self, sizes: Mapping[str, Size]) -> str | None:
        """The named size of this width, depth and heads; None when it has no name."""
        own = (self.embed_dim, self.depth, self.num_heads)
        return next((name for name, size in sizes.items() if (size.embed_dim, size.depth, size.num_heads) == own), None)
