"""The named sizes of DiS: width and number of blocks."""

from dataclasses import dataclass
from typing import Final


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
