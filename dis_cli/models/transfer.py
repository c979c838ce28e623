"""Weights of one model taken over by another of the same family, as far as they fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# The class table of each family, one row a class and perhaps one for none; and the positions, (1, extras + patches, d).
_CLASS_TABLES = (
    "label_emb.embedding_table.weight",
    "y_embedder.embedding_table.weight",
    "label_emb.weight",
    "class_embedding.weight",
)
_POSITIONS = "pos_embed"
TABLES = frozenset({*_CLASS_TABLES, _POSITIONS})


@dataclass(frozen=True)
class Transferred:
    """Weights of a new model, and where they come from.

    Attributes:
        weights: By name, of the new model's shapes.
        copied: Names of tensors that were taken over whole.
        changed: What became of those that were taken over in part or interpolated, a phrase each.
        drawn: Names of tensors that are as they were drawn.
    """

    weights: dict[str, Tensor]
    copied: tuple[str, ...]
    changed: tuple[str, ...]
    drawn: tuple[str, ...]


def transfer(
    drawn: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    *,
    patches: tuple[int, int],
    classes: tuple[Sequence[str], Sequence[str]],
) -> Transferred:
    """Take over what fits.

    A tensor of the same name and shape is copied. Positions of another grid are interpolated bicubically; those of
    extra tokens (time, class) are copied where there are as many. A row of the class table is that of the class of the
    same name, and the last row that of no class; without names the whole table is taken, or none of it.

    Args:
        drawn: The new model's weights before.
        given: The other model's.
        patches: Patches in a sequence of the new model and of the other one; both are squares.
        classes: The names of the classes of both.
    """
    weights = {name: tensor.clone() for name, tensor in drawn.items()}
    copied, changed, left = [], [], []
    for name, tensor in weights.items():
        other = given.get(name)
        if name in _CLASS_TABLES and other is not None and other.shape[1:] == tensor.shape[1:]:
            new, old = classes
            if tuple(new) == tuple(old) and other.shape == tensor.shape:
                tensor.copy_(other)
                copied.append(name)
                continue
            rows = _class_rows(new, old, len(tensor), len(other))
            for to, source in rows:
                tensor[to] = other[source]
            if rows:
                named = sum(to < len(new) for to, _ in rows)
                changed.append(f"{name}: {named} of {len(new)} classes by name")
            else:
                left.append(name)
        elif other is not None and other.shape == tensor.shape:
            tensor.copy_(other)
            copied.append(name)
        elif name == _POSITIONS and other is not None and _are_alike(tensor, other, patches):
            weights[name] = _positions(tensor, other, patches)
            sides = [round(count**0.5) for count in patches]
            changed.append(f"{name}: interpolated from {sides[1]}x{sides[1]} to {sides[0]}x{sides[0]} patches")
        else:
            left.append(name)
    return Transferred(weights, tuple(copied), tuple(changed), tuple(left))


def _class_rows(new: Sequence[str], old: Sequence[str], num_new: int, num_old: int) -> list[tuple[int, int]]:
    """Rows of the new class table that are rows of the old one: by names, and the last for no class."""
    places = {name: place for place, name in enumerate(old)}
    rows = [(to, places[name]) for to, name in enumerate(new) if name in places]
    if num_new == len(new) + 1 and num_old == len(old) + 1 and old:
        rows.append((num_new - 1, num_old - 1))
    return rows


def _are_alike(tensor: Tensor, other: Tensor, patches: tuple[int, int]) -> bool:
    extras = [len_ - count for len_, count in zip((tensor.shape[1], other.shape[1]), patches, strict=True)]
    return tensor.shape[2] == other.shape[2] and min(extras) >= 0


def _positions(tensor: Tensor, other: Tensor, patches: tuple[int, int]) -> Tensor:
    new, old = patches
    extras, other_extras = tensor.shape[1] - new, other.shape[1] - old
    sides = [round(count**0.5) for count in patches]
    grid = other[:, other_extras:].reshape(1, sides[1], sides[1], -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid.double(), size=(sides[0], sides[0]), mode="bicubic", align_corners=False)
    of_patches = grid.permute(0, 2, 3, 1).reshape(1, new, -1).to(tensor.dtype)
    of_extras = other[:, :other_extras] if extras == other_extras else tensor[:, :extras]
    return torch.cat([of_extras, of_patches], dim=1)
