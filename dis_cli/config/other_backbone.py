"""A configuration with another backbone: what stays, what falls away, and how large the new model is."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Final

from dis_cli.config.backbones import BACKBONES, with_backbone
from dis_cli.config.schema import RunConfig
from dis_cli.config.settings import as_text
from dis_cli.models.families import FAMILIES
from dis_cli.models.match import nearest

# What the images decide, whatever the model.
_GRID: Final = ("image_size", "patch_size", "in_channels", "num_classes")


def model_with_backbone(config: RunConfig, name: str, typed: Sequence[str]) -> dict[str, Any]:
    """The ``model`` section of a configuration for another backbone.

    What all families have stays; width and depth become those of the new family that are nearest in parameters, unless
    one of these settings was typed: then the others begin at their defaults.

    Args:
        name: The other backbone.
        typed: Keys that the user sets.
    """
    model = with_backbone(config.model.model_dump(), name)
    size = _nearest_size(config.assumed(), name, with_backbone(config.assumed().model.model_dump(), name))
    return model if {f"model.{key}" for key in size} & set(typed) else model | size


def describe_change(before: RunConfig, after: RunConfig) -> str | None:
    """What another backbone changed, in one line; None when it is the same."""
    name = after.model.backbone
    if name == before.model.backbone:
        return None
    old, new = before.model.model_dump(), after.model.model_dump()
    gone = [key for key in old if key not in new]
    own = [f"{key} {as_text(value)}" for key, value in new.items() if key not in old or key in ("embed_dim", "depth")]
    counts = [_parameters(config.assumed()) for config in (before, after)]
    sizes = "" if None in counts else f", {counts[1]:,} parameters where {old['backbone']} had {counts[0]:,}"
    lost = f"; settings it does not have: {', '.join(gone)}" if gone else ""
    return f"model.backbone={name}: {', '.join(own)}{sizes}{lost}"


def _nearest_size(config: RunConfig, name: str, model: dict[str, Any]) -> dict[str, Any]:
    if (target := _parameters(config)) is None:
        return {}
    defaults = BACKBONES[name].model_fields
    grid = {key: model.get(key, defaults[key].default) for key in _GRID} | {"learn_sigma": config.learn_sigma}
    return nearest(FAMILIES[name], grid, "parameters", target)


def _parameters(config: RunConfig) -> int | None:
    """Parameters of the model; None of a family without a closed form."""
    family = FAMILIES[config.model.backbone]
    if family.count is None:
        return None
    settings = config.model.model_dump() | {"learn_sigma": config.learn_sigma}
    shape = family.shape(**{field.name: settings[field.name] for field in fields(family.shape)})
    return family.count(shape, None).parameters
