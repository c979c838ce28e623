"""Telling a model from the names and shapes of its weights: what the families' own rules share. No torch."""

from collections.abc import Mapping, Sequence

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

_SHOWN = 4
_LONGEST_NAME = 80


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


def compare(found: Shapes, expected: Shapes) -> None:
    """Refuse all but the expected parameters.

    Raises:
        ValueError: Says which are missing, unexpected or of another shape.
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
        raise ValueError("; ".join(complaints))


def some_names(names: Sequence[str]) -> str:
    """The first few names, quoted, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"`{_one_line(name)}`" for name in names[:_SHOWN]) + more


def _one_line(name: str) -> str:
    """A name as a foreign file has it, which can be of any length and hold anything."""
    shown = name if name.isprintable() else ascii(name)[1:-1]
    return shown if len(shown) <= _LONGEST_NAME else f"{shown[:_LONGEST_NAME]}..."
