"""Telling a model from the names and shapes of its weights: what the families' own rules share. No torch."""

import math
import re
from collections.abc import Mapping, Sequence

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

# A file can claim any number of blocks, and the model is built, if without numbers, to compare the rest.
MOST_BLOCKS = 1000

_SHOWN = 4
_LONGEST_NAME = 80


class NotTheseParameters(ValueError):
    """A model was recognised, and does not have all of these parameters, or only these."""


def dims(found: Shapes, name: str, count: int) -> Shape:
    """The shape of a parameter.

    Raises:
        ValueError: It is missing, or has another number of dimensions, or one that is empty.
    """
    if name not in found:
        raise ValueError(f"`{name}` is missing; it holds {len(found)} tensors: {some_names(list(found))}")
    if len(found[name]) != count or 0 in found[name]:
        raise ValueError(f"`{name}` has shape {found[name]}, expected {count} dimensions")
    return found[name]


def impossible(found: Shapes, name: str, index: int, allowed: str) -> ValueError:
    """The error that a parameter cannot have its size in a dimension."""
    return ValueError(f"`{name}` has {found[name][index]} in dimension {index}, expected {allowed}")


def grid_side(found: Shapes, extras: int = 0) -> int:
    """Patches along one side of the grid, by the rows of the table of positions, ``pos_embed``.

    Args:
        extras: Its rows that are of no patch.

    Raises:
        ValueError: It is missing, or its rows are of no square grid.
    """
    rows = dims(found, "pos_embed", 3)[1]
    side = math.isqrt(max(rows - extras, 0))
    if side == 0 or side**2 + extras != rows:
        raise impossible(found, "pos_embed", 1, "a square number of patches" + (f" + {extras}" if extras else ""))
    return side


def classes_in(found: Shapes, table: str) -> int:
    """Number of classes, by the rows of the table of classes, the last of which is the null class; 0 without a table.

    Raises:
        ValueError: It is no table, or of the null class alone.
    """
    if table not in found:
        return 0
    if (rows := dims(found, table, 2)[0]) == 1:
        raise impossible(found, table, 0, "at least one class + 1")
    return rows - 1


def blocks_in(found: Shapes, group: str) -> int:
    """How many numbered blocks there are of a group, such as ``blocks.0`` and so on.

    Raises:
        ValueError: There are none, or more than any model has.
    """
    pattern = re.compile(rf"{re.escape(group)}\.(\d+)\.")
    count = len({match[1] for name in found if (match := pattern.match(name))})
    if not 1 <= count <= MOST_BLOCKS:
        raise ValueError(f"it has {count} of `{group}`, expected 1 to {MOST_BLOCKS}")
    return count


def output_variance(found: Shapes, name: str, fixed: int) -> bool:
    """Whether a model predicts the variance too, by the rows of its last layer.

    Args:
        name: Of the last layer's weight.
        fixed: Its rows without the variance.

    Raises:
        ValueError: It has neither as many rows nor twice as many.
    """
    rows = found[name][0] if found.get(name) else dims(found, name, 2)[0]
    if rows not in (fixed, 2 * fixed):
        raise impossible(found, name, 0, f"{2 * fixed} (learned variance) or {fixed} (fixed variance)")
    return rows == 2 * fixed


def compare(found: Shapes, expected: Shapes) -> None:
    """Refuse all but the expected parameters.

    Raises:
        NotTheseParameters: Says which are missing, unexpected or of another shape.
    """
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    differing = [
        f"{name} has shape {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    complaints = [
        f"{len(names)} {what}: {some_names(names)}"
        for what, names in (("missing", missing), ("not expected", extra), ("of another shape", differing))
        if names
    ]
    if complaints:
        raise NotTheseParameters("; ".join(complaints))


def some_names(names: Sequence[str]) -> str:
    """The first few names, quoted, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"`{_one_line(name)}`" for name in names[:_SHOWN]) + more


def _one_line(name: str) -> str:
    """A name as a foreign file has it, which can be of any length and hold anything."""
    shown = name if name.isprintable() else ascii(name)[1:-1]
    return shown if len(shown) <= _LONGEST_NAME else f"{shown[:_LONGEST_NAME]}..."
