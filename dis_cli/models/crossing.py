"""From how many patches on one model takes fewer operations than another. No torch."""

from collections.abc import Callable

# Where the search for the number of patches begins: a grid of 4096 x 4096 patches.
_MOST_PATCHES = 1 << 24


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
