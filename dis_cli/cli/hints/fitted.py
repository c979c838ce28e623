"""Messages in the words of the command at hand: its options, or its settings.

Messages from below the command line name settings, and an option beside one where some commands have it: "`--vae DIR`
(or codec.vae=DIR)". Which of the two works when it is typed depends on the command, which only the command line knows.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import typer

from dis_cli.cli.display.help import WordCommand

# The options of `dis encode-latents`, which takes no KEY=VALUE, for the settings that mean the same.
_ENCODE_OPTIONS: Final = {
    "data.path": "--data",
    "data.source": "--source",
    "data.background": "--background",
    "data.on_bad": "--on-bad",
    "data.num_workers": "--num-workers",
    "codec.vae": "--vae",
    "codec.scale": "--scale",
}
_ENCODE_FLAGS: Final = {
    "data.download=true": "--download",
    "data.check=false": "--no-check",
    "data.hflip=false": "--no-flip",
}

# "`--vae DIR` (or codec.vae=DIR)", and "sample.steps (`--steps`)"
_EITHER = re.compile(r"`(?P<option>--[a-z-]+)(?P<value>[^`]*)` \(or (?P<setting>[a-z_.]+=[^)\s]+)\)")
_ASIDE = re.compile(r" \(`(?P<option>--[a-z-]+)`\)")
_SETTING = re.compile(r"`?(?P<setting>\b(?:data|codec)\.[a-z_]+=[^\s,;)`]*[^\s,;)`.])`?")


@dataclass(frozen=True)
class Taken:
    """The options and settings that a command takes.

    Args:
        name: The command without ``dis``, such as "checkpoint show".
        options: Its options, with their dashes.
        settings: Whether it takes KEY=VALUE.
    """

    name: str
    options: frozenset[str]
    settings: bool


def command_of(root: Any, arguments: Sequence[str]) -> tuple[str, Any]:
    """The command that arguments call, by its name without ``dis`` and as the parser's object; ``root`` is ""."""
    names: list[str] = []
    command = root
    for place, word in enumerate(arguments):
        inner = command.form(list(arguments[place:])) if isinstance(command, WordCommand) else command
        if inner is command:
            inner = getattr(command, "commands", {}).get(word)
        if inner is None:
            break
        names.append(word)
        command = inner
    return " ".join(names), command


def taken_by(name: str, command: Any) -> Taken:
    """The options and settings of a command, by its parser's object."""
    parameters: list[Any] = command.params
    flags = [option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)]
    options = frozenset(option for option in flags if option.startswith("-")) | {"-h", "--help"}
    return Taken(name, options, any(parameter.name == "overrides" for parameter in parameters))


def fitted(text: str, taken: Taken) -> str:
    """``text`` with what the command takes, where it names an option and a setting, or a setting that has an option."""

    def either(match: re.Match[str]) -> str:
        if not taken.settings:
            return f"`{match['option']}{match['value']}`"
        return match[0] if match["option"] in taken.options else match["setting"]

    text = _EITHER.sub(either, text)
    text = _ASIDE.sub(lambda match: match[0] if match["option"] in taken.options else "", text)
    if taken.name == "encode-latents":
        text = _SETTING.sub(lambda match: encode_option(match["setting"]) or match[0], text)
    return text


def encode_option(setting: str) -> str | None:
    """The option of `dis encode-latents` for a KEY=VALUE, in backticks; None where it has none."""
    key, _, value = setting.partition("=")
    if setting == "data.source=latents":
        # What it writes, and does not read.
        return None
    if setting in _ENCODE_FLAGS:
        return f"`{_ENCODE_FLAGS[setting]}`"
    return f"`{_ENCODE_OPTIONS[key]} {value}`" if key in _ENCODE_OPTIONS else None


def taken_in(context: typer.Context | None) -> Taken:
    """The options and settings of the command that the parser was in; none outside of any."""
    if context is None:
        return Taken("", frozenset({"--help"}), settings=False)
    return taken_by(context.command_path.partition(" ")[2], context.command)
