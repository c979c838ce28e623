"""KEY=VALUE settings from the command line, on top of a configuration."""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

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


def apply_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """``config`` with every ``KEY=VALUE`` of ``overrides`` set.

    The value is read by the setting's declared type: text stays as it is, ``none`` empties an optional setting,
    tuples are separated by commas, switches are ``true`` or ``false``. Of two values for one key the later counts.
    Rules between settings are checked once, after all values are set.

    Args:
        config: The configuration to start from; it is not changed.
        overrides: Texts such as ``train.steps=2``.

    Raises:
        ConfigError: An override has no ``=``, an unknown key or a refused value; all problems are listed.
    """
    data: dict[str, Any] = config.model_dump()
    defaults = {key: _value_of(data, key) for key in settings()}
    problems: list[Problem] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        setting = settings().get(key)
        if not equals:
            problems.append(_no_equals(override))
        elif not key:
            problems.append(
                Problem(f"No key in front of `=` in `{override}`", "Write KEY=VALUE, as in train.steps=1000")
            )
        elif key in section_names():
            problems.append(Problem(f"`{key}` is a section and takes no value", list_keys(key)))
        elif setting is None:
            problems.append(unknown_key(key))
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


def describe_keys() -> list[tuple[str, str, str, str]]:
    """Every key with what it allows, its default as KEY=VALUE has it, and its meaning, in the schema's order."""
    return [
        (setting.key, setting.allowed, as_text(setting.default), setting.description) for setting in settings().values()
    ]


def _value_of(data: dict[str, Any], key: str) -> object:
    section, _, leaf = key.rpartition(".")
    return (data[section] if section else data)[leaf]


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


def _no_equals(override: str) -> Problem:
    if override in settings():
        return Problem(f"`{override}` has no value", f"Write `{override}=VALUE`: {settings()[override].allowed}")
    return Problem(
        f"Not of the form KEY=VALUE: `{override}`", "Write the key, `=` and the value, as in train.steps=1000"
    )
