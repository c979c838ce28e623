"""The schema's settings one by one, and errors in given values, in words."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from dis_cli.config.backbones import BACKBONES, DEFAULT, backbone_of
from dis_cli.config.schema import RunConfig
from dis_cli.config.section import Section
from dis_cli.errors import ConfigError, did_you_mean

_LONGEST_VALUE = 60

_BOUNDS: Final = {
    "minimum": ">=",
    "exclusiveMinimum": ">",
    "maximum": "<=",
    "exclusiveMaximum": "<",
}


@dataclass(frozen=True)
class Setting:
    """One value of a configuration.

    Args:
        key: Its dotted name, such as ``train.steps``.
        kind: Form: "boolean", "integer", "number", "string", "path", "choice", "array" (of fixed length)
            or "list".
        allowed: Type and bounds, in words.
        choices: The words that it may be, as far as they can be counted.
    """

    key: str
    kind: str
    allowed: str
    default: object
    description: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: what, and what helps (or None)."""

    message: str
    hint: str | None = None

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


@functools.cache
def settings(backbone: str = DEFAULT) -> dict[str, Setting]:
    """Every setting of a run with this backbone by its dotted key, in the schema's order."""
    found: dict[str, Setting] = {}
    properties = RunConfig.model_json_schema()["properties"]
    defaults = RunConfig(model=BACKBONES[backbone](backbone=backbone))
    for name, field in RunConfig.model_fields.items():
        value: object = getattr(defaults, name)
        if isinstance(value, Section):
            leaves = type(value).model_json_schema()["properties"]
            for leaf, info in type(value).model_fields.items():
                key = f"{name}.{leaf}"
                found[key] = _setting(key, leaves[leaf], getattr(value, leaf), info.description)
        else:
            found[name] = _setting(name, properties[name], value, field.description)
    return found


def section_names() -> list[str]:
    """The names of the sections, in the schema's order."""
    return list(dict.fromkeys(key.split(".")[0] for key in settings() if "." in key))


def unknown_key(key: str, backbone: str = DEFAULT) -> Problem:
    """The problem that ``key`` is not a setting of a run with this backbone, with the nearest ones."""
    section, _, leaf = key.partition(".") if "." in key else ("", "", key)
    if section not in ["", *section_names()]:
        section = did_you_mean(section, section_names()) or section
    near = _nearest_keys(section, leaf, list(settings(backbone)))
    hint = f"Did you mean {' or '.join(f'`{name}`' for name in near)}?" if near else list_keys(section, backbone)
    return Problem(f"Unknown key: `{key}`", hint)


def _nearest_keys(section: str, leaf: str, known: list[str]) -> list[str]:
    """A section or settings that may be meant: of this section, else of any; a right name beats a similar spelling."""
    own = [key for key in known if key.startswith(f"{section}.")]
    for keys in (own, [*known, *([] if section else section_names())]):
        leaves = {key.rpartition(".")[2]: key for key in keys}
        close = leaf if leaf in leaves else None
        close = close or (did_you_mean(leaf, leaves) if keys is own or not section else None)
        if close:
            return [key for key in keys if key.rpartition(".")[2] == close]
    return []


def list_keys(section: str, backbone: str = DEFAULT) -> str:
    """A sentence that lists the keys of ``section``, or the sections when there is none of that name."""
    leaves = [key.split(".")[1] for key in settings(backbone) if key.startswith(f"{section}.")]
    return f"Keys of `{section}`: {', '.join(leaves)}" if leaves else f"Sections: {', '.join(section_names())}"


def wrong_value(setting: Setting, got: str, default: object) -> Problem:
    """The problem that ``setting`` cannot be ``got``, and is ``default`` where it is left out."""
    near = _nearest_choice(got, setting.choices)
    return Problem(
        f"`{setting.key}`: got `{got}`, allowed: {setting.allowed}",
        (f"Did you mean `{near}`? " if near else "") + f"{setting.description}; default {as_text(default)}",
    )


# What others call a sampler.
_OTHER_CHOICES: Final = {"ddpm": "ancestral", "dpm": "dpm++", "dpm-solver": "dpm++", "dpmsolver": "dpm++"}


def _nearest_choice(got: str, choices: Sequence[str]) -> str | None:
    # In file names and in other programs "dpm++" is "dpmpp".
    word = got.lower().replace("_", "-").replace("pp", "++")
    other = _OTHER_CHOICES.get(word)
    return other if other in choices else did_you_mean(word, choices)


def explain(
    error: ValidationError,
    data: Mapping[str, Any],
    show: Callable[[object], str],
    defaults: Mapping[str, object] | None = None,
) -> list[Problem]:
    """The problems in ``error``, each once, in the order of the schema.

    Args:
        error: Errors of pydantic for ``data``.
        data: The configuration that was refused, as nested mappings.
        show: Function that writes a refused value in the message.
        defaults: Values of settings that are left out, by key; the schema's values when there are none.
    """
    problems: dict[str, Problem] = {}
    backbone = backbone_of(data.get("model"))
    for detail in error.errors(include_url=False):
        names = [str(name) for name in detail["loc"][:2]]
        key = ".".join(names)
        if detail["type"] == "extra_forbidden":
            problem = unknown_key(key, backbone)
        elif detail["type"] == "value_error":
            text = str(detail.get("ctx", {})["error"])
            problem = Problem(f"`{key}`: {text}" if key else text)
        else:
            got: Any = data
            for name in names:
                got = got[name]
            setting = settings(backbone).get(key)
            shown = _shorten(show(got))
            problem = (
                wrong_value(setting, shown, (defaults or {}).get(key, setting.default))
                if setting
                else Problem(f"`{key}`: got `{shown}`, allowed: a section", list_keys(key, backbone))
            )
        problems.setdefault(problem.message, problem)
    return list(problems.values())


def config_error(problems: Sequence[Problem], where: str = "") -> ConfigError:
    """One error for all ``problems``: a single one with its hint, several one a line.

    Args:
        problems: At least one problem.
        where: The file they are in, or "" when they were given on the command line.
    """
    if len(problems) == 1:
        message = problems[0].message
        return ConfigError(f"`{where}`: {message}" if where else message, problems[0].hint)
    heading = f"{len(problems)} problems in `{where}`" if where else f"{len(problems)} problems"
    return ConfigError("\n  ".join([f"{heading}:", *map(str, problems)]))


def as_text(value: object) -> str:
    """A value as it is written in KEY=VALUE."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ",".join(as_text(item) for item in value) or "none"
    return str(value)


def as_json(value: object) -> str:
    """A value as it is written in a file, quotes included."""
    return json.dumps(value, default=str, ensure_ascii=False)


def _setting(key: str, schema: dict[str, Any], default: object, description: str | None) -> Setting:
    options: list[dict[str, Any]] = schema.get("anyOf", [schema])
    values = [option for option in options if option.get("type") != "null"]
    optional = len(values) < len(options)
    return Setting(
        key=key,
        kind=_kind(values[0]),
        allowed=" or ".join(map(_allowed, values)) + (", or none" if optional else ""),
        default=default,
        description=description or "",
        choices=tuple(choice for value in values for choice in _choices(value)),
    )


def _choices(schema: dict[str, Any]) -> list[str]:
    if schema.get("type") == "array":
        return _choices(schema.get("items", {}))
    return schema.get("enum", [schema["const"]] if "const" in schema else [])


def _kind(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return "choice"
    if schema.get("type") == "array" and "prefixItems" not in schema:
        return "list"
    return "path" if schema.get("format") == "path" else schema["type"]


def _allowed(schema: dict[str, Any]) -> str:
    if "const" in schema:
        return schema["const"]
    match _kind(schema):
        case "choice":
            return "one of " + ", ".join(schema["enum"])
        case "array":
            items: list[dict[str, Any]] = schema["prefixItems"]
            return f"{len(items)} values, each {_allowed(items[0])}"
        case "list":
            return f"any number of values, each {_allowed(schema['items'])}, or none"
        case "boolean":
            return "true or false"
        case "string":
            return f"text that matches {schema['pattern']}" if "pattern" in schema else "text"
        case "path":
            return "a path"
        case kind:
            noun = "an integer" if kind == "integer" else "a number"
            bounds = [f"{sign} {schema[name]}" for name, sign in _BOUNDS.items() if name in schema]
            return f"{noun} {' and '.join(bounds)}" if bounds else noun


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."
