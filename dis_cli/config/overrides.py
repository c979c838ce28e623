"""KEY=VALUE settings from the command line, on top of a configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from pydantic import ValidationError

from dis_cli.config.backbones import BACKBONES
from dis_cli.config.other_backbone import model_with_backbone
from dis_cli.config.schema import RunConfig
from dis_cli.config.settings import (
    Problem,
    Setting,
    as_text,
    config_error,
    explain,
    list_keys,
    section_names,
    settings,
    unknown_key,
    wrong_value,
)

_BACKBONE: Final = "model.backbone"


def apply_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """``config`` with every ``KEY=VALUE`` of ``overrides`` set.

    The value is read by the setting's declared type: text stays as it is, ``none`` empties an optional setting,
    tuples are separated by commas, switches are ``true`` or ``false``. Of two values for one key the later counts.
    Rules between settings are checked once, after all values are set.

    Args:
        config: The configuration to start from; it is not changed.

    Raises:
        ConfigError: An override has no ``=``, an unknown key or a refused value; all problems are listed.
    """
    data: dict[str, Any] = config.model_dump()
    problems: list[Problem] = []
    backbone = _backbone(config, overrides)
    if backbone != config.model.backbone:
        typed = [override.partition("=")[0].strip() for override in overrides]
        data["model"] = model_with_backbone(config, backbone, typed)
    known = settings(backbone)
    # What the configuration has, before anything is set; a new backbone's own settings have the schema's.
    defaults = {key: _value_of(data, setting) for key, setting in known.items()}
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        setting = known.get(key)
        if not equals:
            problems.append(_no_equals(override, known))
        elif not key:
            problems.append(
                Problem(f"No key in front of `=` in `{override}`", "Write KEY=VALUE, as in train.steps=1000")
            )
        elif key in section_names():
            problems.append(Problem(f"`{key}` is a section and takes no value", list_keys(key, backbone)))
        elif setting is None:
            problems.append(unknown_key(key, backbone))
        else:
            value = _read(setting, text, defaults[key])
            if isinstance(value, Problem):
                problems.append(value)
            else:
                section, _, leaf = key.rpartition(".")
                (data[section] if section else data)[leaf] = value
    try:
        result = RunConfig.model_validate(data)
    except ValidationError as error:
        raise config_error([*problems, *explain(error, data, as_text, defaults)]) from None
    if problems:
        raise config_error(problems)
    return result


def as_overrides(options: Mapping[str, object]) -> list[str]:
    """Given options as overrides, by the keys of their settings; None means that one was not given."""
    options = dict(options)
    if options.get("sample.steps") is None and options.get("sample.sampler") is not None:
        # The run's number of steps is that of its own sampler.
        options["sample.steps"] = "auto"
    return [f"{key}={as_text(value)}" for key, value in options.items() if value is not None]


def describe_keys() -> list[tuple[str, str, str, str]]:
    """Every key with what it allows, its default as KEY=VALUE has it, and its meaning, in the schema's order.

    After those of the default backbone come those that are others with another one.
    """
    usual = settings()
    found = [*usual.values()]
    for name in BACKBONES:
        own = [setting for key, setting in settings(name).items() if setting != usual.get(key)]
        own = [setting for setting in own if setting.key != _BACKBONE]
        found += [replace(setting, description=f"{setting.description} ({_BACKBONE}={name})") for setting in own]
    return [(setting.key, setting.allowed, as_text(setting.default), setting.description) for setting in found]


def _backbone(config: RunConfig, overrides: Sequence[str]) -> str:
    """The backbone that the settings will be of; the configuration's own when there is none of the name asked for."""
    asked = [text for key, _, text in (override.partition("=") for override in overrides) if key.strip() == _BACKBONE]
    return asked[-1] if asked and asked[-1] in BACKBONES else config.model.backbone


def _value_of(data: dict[str, Any], setting: Setting) -> object:
    section, _, leaf = setting.key.rpartition(".")
    return (data[section] if section else data).get(leaf, setting.default)


def _read(setting: Setting, text: str, default: object) -> object:
    # Only what pydantic would read differently or not at all: it takes "yes" and "1" for switches, and "" for a path.
    if not text and setting.kind != "string":
        return wrong_value(setting, text, default)
    if setting.kind == "boolean":
        return {"true": True, "false": False}.get(text.lower(), wrong_value(setting, text, default))
    if setting.kind == "list" and text.lower() == "none":
        return []
    if setting.kind in ("array", "list"):
        return text.split(",")
    return text


def _no_equals(override: str, known: Mapping[str, Setting]) -> Problem:
    if override in known:
        return Problem(f"`{override}` has no value", f"Write `{override}=VALUE`: {known[override].allowed}")
    return Problem(
        f"Not of the form KEY=VALUE: `{override}`", "Write the key, `=` and the value, as in train.steps=1000"
    )
