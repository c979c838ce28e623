"""The model of a family that is nearest to a figure: parameters, operations or seconds. No torch.

Sizes that are tried are those between named ones and beyond: a transformer's width for each of its blocks is between
half the least and twice the most that a named size of its family has. Of all of them the nearest is taken, so that the
result is a function of the figure alone.
"""

import bisect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from dis_cli.models.cost import Flops
from dis_cli.models.families import Family

# Widths are multiples of the first up to the third number, and of the second beyond.
_STEP, _LARGE_STEP, _LARGE = 4, 16, 256
_WIDEST, _DEEPEST = 2048, 80
# A head has 64 channels as published, and there are never less than four.
_HEAD_CHANNELS, _FEWEST_HEADS = 64, 4

_CHANNEL_STEP, _MOST_CHANNELS, _MOST_BLOCKS, _MOST_GROUPS = 4, 512, 6, 32

FIGURES: Final[dict[str, Callable[[Flops], int]]] = {
    "parameters": lambda cost: cost.parameters,
    "macs": lambda cost: cost.macs,
}


def nearest(family: Family, grid: Mapping[str, Any], by: str, target: float) -> dict[str, Any]:
    """The size of the model for these images whose figure is nearest to the target, by ratio; of equal ones the first.

    Args:
        grid: ``image_size``, ``patch_size``, ``in_channels``, ``num_classes`` and ``learn_sigma``.
        by: A key of `FIGURES`.

    Returns:
        Settings of its shape; none of a family without a closed form.
    """
    if family.count is None:
        return {}
    count = family.count

    def figure(size: dict[str, Any]) -> int:
        return FIGURES[by](count(family.shape(**grid, **size), None))

    around: list[dict[str, Any]] = []
    for rising in _candidates(family, grid):
        place = bisect.bisect_left(rising, target, key=figure)
        around += rising[max(0, place - 1) : place + 1]
    return min(around, key=lambda size: abs(math.log(figure(size) / target)), default={})


def _candidates(family: Family, grid: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Sizes by depth, each list of them by rising width and so by rising cost."""
    first = next(iter(family.sizes.values()))
    if hasattr(first, "embed_dim"):
        return _stacks(family.sizes)
    return _levels(grid) if hasattr(first, "multipliers") else iter(())


def _stacks(sizes: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Widths and depths of a stack of blocks, with heads where its named sizes have some."""
    ratios = [size.embed_dim / size.depth for size in sizes.values()]
    narrowest, widest = min(ratios) / 2, max(ratios) * 2
    odd = all(size.depth % 2 for size in sizes.values())
    named = {size.embed_dim: getattr(size, "num_heads", None) for size in sizes.values()}
    widths = [*range(2 * _STEP, _LARGE, _STEP), *range(_LARGE, _WIDEST + 1, _LARGE_STEP)]
    heads: dict[int, dict[str, int]] = {width: {} for width in widths}
    if None not in named.values():
        heads = {width: {"num_heads": named.get(width) or _heads(width)} for width in widths}
    for depth in range(1, _DEEPEST + 1, 2 if odd else 1):
        yield [
            {"embed_dim": width, "depth": depth, **heads[width]}
            for width in widths
            if narrowest <= width / depth <= widest
        ]


def _heads(width: int) -> int:
    """Heads of a width without a name: the divisor that makes them nearest to as wide as published."""
    wanted = max(_FEWEST_HEADS, width / _HEAD_CHANNELS)
    return min((heads for heads in range(1, width + 1) if width % heads == 0), key=lambda heads: abs(heads - wanted))


def _levels(grid: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Channels and blocks of a U-Net with as many levels as its grid allows, at most four, and attention at 16x16."""
    levels = next(count for count in (4, 3, 2, 1) if count == 1 or _halves(grid["image_size"], count))
    common = {
        "multipliers": (1, *[2] * (levels - 1)),
        "attention_levels": tuple(level for level in range(1, levels) if grid["image_size"] >> level == 16),
    }
    for blocks in range(1, _MOST_BLOCKS + 1):
        yield [
            # Groups of at least four channels each.
            {
                "channels": channels,
                "num_blocks": blocks,
                "norm_groups": math.gcd(channels, min(_MOST_GROUPS, 1 << (channels // 4).bit_length() - 1)),
                **common,
            }
            for channels in range(2 * _CHANNEL_STEP, _MOST_CHANNELS + 1, _CHANNEL_STEP)
        ]


def _halves(side: int, levels: int) -> bool:
    return side % (1 << (levels - 1)) == 0 and side >= 4 << (levels - 1)
