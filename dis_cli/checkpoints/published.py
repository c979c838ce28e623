"""Reading the checkpoints that the published DiS training code wrote.

Such a file is ``torch.save`` of a dictionary with the keys ``model``, ``ema``, ``opt`` and ``args``, the last an
``argparse.Namespace``; a bare state dict is taken too. Nothing in the file is executed, its records are checked
against their CRC-32, and the model's settings are told from the names and shapes of the weights alone.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dis_cli.checkpoints.torch_file import DAMAGED_HINT, FOREIGN_HINT, read_torch_file
from dis_cli.errors import CheckpointError, MismatchError, RefusedError

_PREFIX = "module."
_SHOWN = 4
_LONGEST_NAME = 80
_MEANING = {"ema": "moving average (`ema`)", "model": "weights as they were trained (`model`)"}

Shape = tuple[int, ...]
Source = Literal["ema", "model"]


@dataclass(frozen=True)
class ReferenceCheckpoint:
    """A published checkpoint.

    Args:
        model_kwargs: Settings of the backbone, as its constructor takes them: image_size, patch_size, in_channels,
            embed_dim, depth, num_classes, learn_sigma, d_state, d_conv, expand.
        state_dict: The backbone's weights, float32 on the CPU, under its own parameter names.
        source: Which weights these are: the moving average, or those that were trained.
        held: Which there are in the file, first the one that is read unless another is asked for.
    """

    model_kwargs: dict[str, Any]
    state_dict: dict[str, Tensor]
    source: Source
    held: tuple[Source, ...]


def read_reference(path: Path, source: Source | None = None) -> ReferenceCheckpoint:
    """Read a published ``.pt`` checkpoint.

    Args:
        path: The file.
        source: As in `parse_reference`.

    Raises:
        CheckpointError: The file is missing or damaged, or its weights are NaN or infinite.
        MismatchError: It is sound but not of a DiS model, and says what is missing, unexpected or of another shape; or
            does not hold the weights asked for.
        RefusedError: It holds more than weights and plain settings: names it.
    """
    return parse_reference(path, read_torch_file(path), source)


def parse_reference(path: Path, content: object, source: Source | None = None) -> ReferenceCheckpoint:
    """The published checkpoint in what a file holds.

    Args:
        path: The file, to be named.
        content: What `read_torch_file` has found in it.
        source: Which of its weights; None takes the moving average if there is one. A bare state dict counts as
            weights that were trained.

    Raises:
        CheckpointError, MismatchError, RefusedError: As in `read_reference`.
    """
    if not isinstance(content, dict):
        raise MismatchError(f"`{path}` holds a {type(content).__name__}, not a dictionary of weights", FOREIGN_HINT)
    sources: tuple[Source, ...] = ("ema", "model")
    groups: dict[Source, object] = {name: content[name] for name in sources if isinstance(content.get(name), dict)}
    groups = groups or {"model": content}
    held = tuple(groups)
    source = held[0] if source is None else source
    if source not in groups:
        raise MismatchError(
            f"`{path}` holds no {_MEANING[source]}, only {_MEANING[held[0]]}",
            "Without a choice (sample.ema=none) what there is is taken",
        )
    state = _weights(path, groups[source])
    kwargs = infer_model_kwargs(path, {name: tuple(tensor.shape) for name, tensor in state.items()})
    state = own_copies(state)
    check_finite(path, state)
    return ReferenceCheckpoint(model_kwargs=kwargs, state_dict=state, source=source, held=held)


def own_copies(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mapped weights in memory of their own and in float32, in which they are used."""
    layout = torch.contiguous_format
    return {name: tensor.to(torch.float32, copy=True, memory_format=layout) for name, tensor in weights.items()}


def check_finite(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights that no training can have meant.

    Raises:
        CheckpointError: Some are NaN or infinite: names them.
    """
    if broken := [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())]:
        raise CheckpointError(f"`{path}` holds weights that are NaN or infinite: {_some(broken)}", DAMAGED_HINT)


def parameter_shapes(
    *,
    image_size: int,
    patch_size: int,
    in_channels: int,
    embed_dim: int,
    depth: int,
    num_classes: int,
    learn_sigma: bool,
    d_state: int,
    d_conv: int,
    expand: int,
) -> dict[str, Shape]:
    """Name and shape of every parameter of the published model, whose arguments these are; ``depth`` is odd."""
    inner, rank = expand * embed_dim, math.ceil(embed_dim / 16)
    tokens = (image_size // patch_size) ** 2 + (2 if num_classes else 1)
    out_rows = patch_size**2 * in_channels * (2 if learn_sigma else 1)
    mixer: dict[str, Shape] = {"in_proj.weight": (2 * inner, embed_dim), "out_proj.weight": (embed_dim, inner)}
    for direction in ("", "_b"):
        mixer |= {
            f"A{direction}_log": (inner, d_state),
            f"D{direction}": (inner,),
            f"conv1d{direction}.weight": (inner, 1, d_conv),
            f"conv1d{direction}.bias": (inner,),
            f"x_proj{direction}.weight": (rank + 2 * d_state, inner),
            f"dt_proj{direction}.weight": (inner, rank),
            f"dt_proj{direction}.bias": (inner,),
        }
    shapes: dict[str, Shape] = {
        "pos_embed": (1, tokens, embed_dim),
        "patch_embed.proj.weight": (embed_dim, in_channels, patch_size, patch_size),
        "patch_embed.proj.bias": (embed_dim,),
        "time_embed.0.weight": (4 * embed_dim, embed_dim),
        "time_embed.0.bias": (4 * embed_dim,),
        "time_embed.2.weight": (embed_dim, 4 * embed_dim),
        "time_embed.2.bias": (embed_dim,),
        "norm_f.weight": (embed_dim,),
        "final_layer.linear.weight": (out_rows, embed_dim),
        "final_layer.linear.bias": (out_rows,),
    }
    if num_classes:
        shapes |= {
            "label_emb.embedding_table.weight": (num_classes + 1, embed_dim),
            "final_layer.adaLN_modulation.1.weight": (2 * embed_dim, embed_dim),
            "final_layer.adaLN_modulation.1.bias": (2 * embed_dim,),
        }
    in_blocks = [f"in_blocks.{index}" for index in range(depth // 2)]
    out_blocks = [f"out_blocks.{index}" for index in range(depth // 2)]
    for block in (*in_blocks, "mid_block", *out_blocks):
        shapes[f"{block}.norm.weight"] = (embed_dim,)
        shapes |= {f"{block}.mixer.{name}": shape for name, shape in mixer.items()}
    for block in out_blocks:
        shapes[f"{block}.skip_linear.weight"] = (embed_dim, 2 * embed_dim)
        shapes[f"{block}.skip_linear.bias"] = (embed_dim,)
    return shapes


def infer_model_kwargs(path: Path, found: dict[str, Shape]) -> dict[str, Any]:
    """The settings of the model that has parameters of these names and shapes.

    Args:
        path: Where they are from, for errors.
        found: Parameter name -> shape.

    Raises:
        MismatchError: They are not, or not all, or not only, the parameters of a DiS model.
    """

    def foreign(what: str) -> MismatchError:
        return MismatchError(f"`{path}` does not hold a DiS model: {what}", FOREIGN_HINT)

    def dims(name: str, count: int) -> Shape:
        if name not in found:
            raise foreign(f"`{name}` is missing; it holds {len(found)} tensors: {_some(list(found))}")
        if len(found[name]) != count or 0 in found[name]:
            raise foreign(f"`{name}` has shape {found[name]}, expected {count} dimensions")
        return found[name]

    def impossible(name: str, index: int, allowed: str) -> MismatchError:
        return foreign(f"`{name}` has {found[name][index]} in dimension {index}, expected {allowed}")

    embed_dim, in_channels, patch_size, _ = dims("patch_embed.proj.weight", 4)
    has_labels = "label_emb.embedding_table.weight" in found
    num_classes = dims("label_emb.embedding_table.weight", 2)[0] - 1 if has_labels else 0
    extras = 2 if has_labels else 1
    side = math.isqrt(max(dims("pos_embed", 3)[1] - extras, 0))
    if side == 0 or side**2 + extras != found["pos_embed"][1]:
        raise impossible("pos_embed", 1, f"a square number of patches + {extras}")
    if has_labels and num_classes == 0:
        raise impossible("label_emb.embedding_table.weight", 0, "at least one class + 1")
    fixed_rows = patch_size**2 * in_channels
    rows = dims("final_layer.linear.weight", 2)[0]
    if rows not in (fixed_rows, 2 * fixed_rows):
        raise impossible(
            "final_layer.linear.weight", 0, f"{2 * fixed_rows} (learned variance) or {fixed_rows} (fixed variance)"
        )
    inner, d_state = dims("mid_block.mixer.A_log", 2)
    if inner % embed_dim:
        raise impossible("mid_block.mixer.A_log", 0, f"a multiple of embed_dim, which is {embed_dim}")
    blocks = {match[0] for name in found if (match := re.match(r"(in|out)_blocks\.\d+\.", name))}
    half = max(sum(block.startswith(group) for block in blocks) for group in ("in", "out"))
    kwargs: dict[str, Any] = {
        "image_size": side * patch_size,
        "patch_size": patch_size,
        "in_channels": in_channels,
        "embed_dim": embed_dim,
        "depth": 2 * half + 1,
        "num_classes": num_classes,
        "learn_sigma": rows == 2 * fixed_rows,
        "d_state": d_state,
        "d_conv": dims("mid_block.mixer.conv1d.weight", 3)[2],
        "expand": inner // embed_dim,
    }
    _compare(path, found, parameter_shapes(**kwargs))
    return kwargs


def _weights(path: Path, raw: object) -> dict[str, Tensor]:
    """The dictionary of floating-point tensors in ``raw``, without the prefix of a wrapped model."""
    if not isinstance(raw, dict) or not raw:
        raise MismatchError(f"`{path}` holds no weights", FOREIGN_HINT)
    state: dict[str, Tensor] = {}
    for key, value in raw.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or not value.is_floating_point():
            kind = f"{value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
            keys = _some([str(key) for key in raw])
            raise MismatchError(
                f"`{path}` does not hold weights alone: {_some([str(key)])} is of type {kind}; its keys are {keys}",
                "A published checkpoint has the keys model, ema, opt and args, or is a bare state dict",
            )
        name = str(key).removeprefix(_PREFIX)
        if name in state:
            raise MismatchError(
                f"`{path}` holds {_some([name])} twice, with and without the prefix `{_PREFIX}`", FOREIGN_HINT
            )
        state[name] = value
    # A tensor with stride 0 can claim any size; copying it would take memory that the file does not have.
    if sum(tensor.nbytes for tensor in state.values()) > path.stat().st_size:
        raise RefusedError(f"`{path}` was refused: its weights are larger than the file", FOREIGN_HINT)
    return state


def _compare(path: Path, found: dict[str, Shape], expected: dict[str, Shape]) -> None:
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    differing = [
        f"{name} has shape {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    complaints = [
        f"{len(names)} {what}: {_some(names)}"
        for what, names in (("missing", missing), ("not expected", extra), ("of another shape", differing))
        if names
    ]
    if complaints:
        raise MismatchError(f"`{path}` does not hold a DiS model: {'; '.join(complaints)}", FOREIGN_HINT)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"`{_one_line(name)}`" for name in names[:_SHOWN]) + more


def _one_line(name: str) -> str:
    """A name as a foreign file has it, which can be of any length and hold anything."""
    shown = name if name.isprintable() else ascii(name)[1:-1]
    return shown if len(shown) <= _LONGEST_NAME else f"{shown[:_LONGEST_NAME]}..."
