"""KEY=VALUE that a shell offers: the keys, and the values of one."""

import os
import textwrap
from collections.abc import Sequence
from typing import Any

import typer

from dis_cli.cli.completion.words import next_in_list
from dis_cli.errors import DisError
from dis_cli.models.families import FAMILIES
from dis_cli.paths import home_path
from dis_cli.runs.folder import RunDir


def setting_words(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Keys with ``=``; a single one with its values, which may be counted or else is the preset's.

    Each comes with its meaning, which zsh and fish show.
    """
    from dis_cli.config.presets import DEFAULT_PRESET, load_preset
    from dis_cli.config.schema import RunConfig
    from dis_cli.config.settings import settings

    given, key, text, before = _split(ctx.params.get("overrides") or (), incomplete)
    try:
        branch = ctx.params.get("branch")
        own = str(RunDir(home_path(str(branch))).config_path) if branch else None
        preset = own or ctx.params.get("preset") or (DEFAULT_PRESET if ctx.info_name == "train" else None)
        config = load_preset(preset) if preset else RunConfig()
    except DisError:
        config = RunConfig()
    asked = [value for name, _, value in (override.partition("=") for override in given) if name == "model.backbone"]
    backbone = asked[-1] if asked and asked[-1] in FAMILIES else config.model.backbone
    known = settings(backbone)
    if text is None:
        keys = [name for name in known if name.startswith(key)]
        if len(keys) != 1:
            return [(f"{name}=", _in_a_line(known[name].description)) for name in keys]
        key, text, before = keys[0], "", f"{keys[0]}="
    if key not in known:
        return []
    setting = known[key]
    section, _, leaf = key.rpartition(".")
    now = getattr(getattr(config, section) if section else config, leaf, setting.default)
    return [(f"{before}{value}", _in_a_line(setting.description)) for value in _values(setting, now, text)]


def _split(given: Sequence[str], incomplete: str) -> tuple[list[str], str, str | None, str]:
    """The whole settings before, the key, the value's beginning (None before ``=``), and the text before each offer.

    bash takes ``key=value`` for three words, of which it replaces the last one alone; where that is ``=``, typer has
    made it empty.
    """
    key, equals, text = incomplete.partition("=")
    if os.environ.get("_DIS_COMPLETE") != "complete_bash":
        return list(given), key, text if equals else None, f"{key}="
    words = [*given, incomplete]
    typed = os.environ.get("COMP_WORDS", "").split()
    if incomplete == "" and "=" in typed[-1:]:
        words[-1] = "="
    joined: list[str] = []
    for word in words:
        if joined and (word == "=" or joined[-1].endswith("=")):
            joined[-1] += word
        else:
            joined.append(word)
    key, equals, text = joined[-1].partition("=")
    return joined[:-1], key, text if equals else None, ""


def _values(setting: Any, now: object, text: str) -> list[str]:
    from dis_cli.config.settings import as_text

    names = ["true", "false"] if setting.kind == "boolean" else list(setting.choices) or [as_text(now)]
    if setting.kind == "list":
        return next_in_list(names, text)
    return [name for name in names if name.startswith(text)]


def _in_a_line(description: str) -> str:
    # typer breaks longer ones, and shells take each line for an offer.
    return textwrap.shorten(description, 70, placeholder="...")
