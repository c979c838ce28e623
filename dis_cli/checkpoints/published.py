"""Reading the checkpoints that the published DiS training code wrote.

Such a file is ``torch.save`` of a dictionary with the keys ``model``, ``ema``, ``opt`` and ``args``, the last an
``argparse.Namespace``; a bare state dict is taken too. Nothing in the file is executed, its records are checked
against their CRC-32, and the model's settings are told from the names and shapes of the weights alone.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dis_cli.checkpoints.torch_file import DAMAGED_HINT, FOREIGN_HINT, read_torch_file
from dis_cli.errors import CheckpointError, MismatchError, RefusedError
from dis_cli.models.families import FAMILIES
from dis_cli.models.recognize import NotTheseParameters, Shapes, some_names

_PREFIX = "module."
_MEANING = {"ema": "moving average (`ema`)", "model": "weights as they were trained (`model`)"}

Source = Literal["ema", "model"]


@dataclass(frozen=True)
class ReferenceCheckpoint:
    """A published checkpoint.

    Args:
        backbone: Backbone of the model; a key of `FAMILIES`.
        model_kwargs: The settings that decide what it computes, as its network takes them.
        state_dict: The backbone's weights, float32 on the CPU, under its own parameter names.
        source: Kind of weights: the moving average, or those that were trained.
        held: Kinds in the file, first the one that is read unless another is asked for.
    """

    backbone: str
    model_kwargs: dict[str, Any]
    state_dict: dict[str, Tensor]
    source: Source
    held: tuple[Source, ...]


def read_reference(path: Path, source: Source | None = None) -> ReferenceCheckpoint:
    """Read a published ``.pt`` checkpoint.

    Raises:
        CheckpointError: The file is missing or damaged, or its weights are NaN or infinite.
        MismatchError: It is sound but of no model, and says what is missing, unexpected or of another shape; or
            does not hold the weights asked for.
        RefusedError: It holds more than weights and plain settings: names it.
    """
    return parse_reference(path, read_torch_file(path), source)


def parse_reference(path: Path, content: object, source: Source | None = None) -> ReferenceCheckpoint:
    """The published checkpoint in what a file holds.

    Args:
        content: Its content, from `read_torch_file`.
        source: Choice among its weights; None takes the moving average if there is one. A bare state dict counts as
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
    backbone, kwargs = recognize(path, shapes_of(state))
    state = own_copies(state)
    check_finite(path, state)
    return ReferenceCheckpoint(backbone=backbone, model_kwargs=kwargs, state_dict=state, source=source, held=held)


def shapes_of(weights: Mapping[str, Tensor]) -> Shapes:
    """Name and shape of each."""
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


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
        raise CheckpointError(f"`{path}` holds weights that are NaN or infinite: {some_names(broken)}", DAMAGED_HINT)


def recognize(
    path: Path, found: Shapes, backbone: str | None = None, saved: Mapping[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """The backbone of weights of these names and shapes, and its settings that decide them.

    Args:
        path: Origin, for errors.
        found: Parameter name -> shape.
        backbone: Expected backbone; None takes any.
        saved: The settings of that backbone that came with them, for those that weights do not tell.

    Raises:
        MismatchError: They are not, or not all, or not only, the parameters of such a model.
    """
    reasons: list[str] = []
    for name in FAMILIES if backbone is None else [backbone]:
        try:
            return name, FAMILIES[name].settings_of(found, saved)
        except NotTheseParameters as error:
            # No other family has the parameters that this one is told by.
            reasons = [f"{FAMILIES[name].title} model: {error}"]
            break
        except ValueError as error:
            reasons.append(f"{FAMILIES[name].title} model: {error}")
    if backbone is not None:
        with contextlib.suppress(MismatchError):
            other, _ = recognize(path, found)
            reasons = [f"{FAMILIES[backbone].title} model: these are weights of a {FAMILIES[other].title}"]
    raise MismatchError(f"`{path}` does not hold a {'; nor a '.join(reasons)}", FOREIGN_HINT)


def _weights(path: Path, raw: object) -> dict[str, Tensor]:
    """The dictionary of floating-point tensors in ``raw``, without the prefix of a wrapped model."""
    if not isinstance(raw, dict) or not raw:
        raise MismatchError(f"`{path}` holds no weights", FOREIGN_HINT)
    state: dict[str, Tensor] = {}
    for key, value in raw.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or not value.is_floating_point():
            kind = f"{value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
            keys = some_names([str(key) for key in raw])
            raise MismatchError(
                f"`{path}` does not hold weights alone: {some_names([str(key)])} is of type {kind}; "
                f"its keys are {keys}",
                "A published checkpoint has the keys model, ema, opt and args, or is a bare state dict",
            )
        name = str(key).removeprefix(_PREFIX)
        if name in state:
            raise MismatchError(
                f"`{path}` holds {some_names([name])} twice, with and without the prefix `{_PREFIX}`", FOREIGN_HINT
            )
        state[name] = value
    # A tensor with stride 0 can claim any size; copying it would take memory that the file does not have.
    if sum(tensor.nbytes for tensor in state.values()) > path.stat().st_size:
        raise RefusedError(f"`{path}` was refused: its weights are larger than the file", FOREIGN_HINT)
    return state
