"""Presets: configurations in TOML files that hold only what differs from the schema's defaults."""

import re
import tomllib
from pathlib import Path
from typing import Any, Final

import tomli_w
from pydantic import ValidationError

from dis_cli.config.schema import RunConfig
from dis_cli.config.settings import Problem, as_json, config_error, explain, settings
from dis_cli.errors import ConfigError, did_you_mean
from dis_cli.paths import home_path
from dis_cli.text_files import NotUtf8, read_text

# What `dis train` trains where nothing is asked for, and where only data are given.
DEFAULT_PRESET: Final = "dis-xs-digits"
OWN_DATA_PRESET: Final = "dis-xs-images"

_SUFFIX: Final = ".toml"
# The settings in a run folder.
_OF_RUN: Final = "config.toml"


def preset_dir() -> Path:
    """The folder of the presets that come with the program.

    An installed wheel has them inside the package; a checkout, editable or not, beside it.

    Raises:
        ConfigError: There is no such folder, so the installation is incomplete.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "presets", package.parent / "presets"):
        if folder.is_dir():
            return folder
    raise ConfigError(f"The presets are missing from the installation at `{package}`", "Install dis-cli again")


def preset_names() -> list[str]:
    """The names of the presets that come with the program, sorted."""
    return sorted(path.stem for path in preset_dir().glob(f"*{_SUFFIX}"))


def load_preset(name_or_path: str | Path) -> RunConfig:
    """The configuration of a preset.

    Args:
        name_or_path: A name from :func:`preset_names`, a TOML file, or a run folder, whose ``config.toml`` is one. What
            ends in ``.toml`` or contains a path separator is a path.

    Raises:
        ConfigError: There is no such preset, or it is not valid.
    """
    text = str(name_or_path)
    is_path = isinstance(name_or_path, Path) or text.endswith(_SUFFIX) or re.search(r"^~|[/\\]", text)
    if is_path or (text not in preset_names() and (Path(text) / _OF_RUN).is_file()):
        path = home_path(name_or_path)
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise _not_found(text, path.stem if len(path.parts) == 1 else "") from None
        except OSError as error:
            raise config_error([_unreadable(error)], text) from None
        return read_config(path)
    if text not in preset_names():
        raise _not_found(text, text)
    return read_config(preset_dir() / f"{text}{_SUFFIX}")


def read_config(path: Path) -> RunConfig:
    """The configuration in a TOML file, or in a run folder.

    Types are strict: ``steps = "100"`` and ``steps = 100.0`` are refused. The word "none" empties an optional
    setting, because TOML has no null.

    Raises:
        ConfigError: The file cannot be read, is not TOML, or does not describe a valid configuration.
    """
    result = _check(path)
    if isinstance(result, RunConfig):
        return result
    raise config_error(result, str(path))


def validate_file(path: Path) -> list[str]:
    """Everything that is wrong with a configuration file, one line each; empty when it is valid."""
    result = _check(path)
    return [] if isinstance(result, RunConfig) else [str(problem) for problem in result]


def dump_toml(config: RunConfig) -> str:
    """``config`` as TOML with every setting; :func:`read_config` gives the same configuration again.

    Settings without a value are left out, except where the schema's default is a value: there the word "none" stands.
    """
    data: dict[str, Any] = config.model_dump(mode="json")
    for setting in settings(config.model.backbone).values():
        section, _, leaf = setting.key.rpartition(".")
        table = data[section] if section else data
        if table[leaf] is None:
            if setting.default is None:
                del table[leaf]
            else:
                table[leaf] = "none"
    return tomli_w.dumps(data)


def _check(path: Path) -> RunConfig | list[Problem]:
    inside = path / _OF_RUN
    path = inside if inside.is_file() else path
    try:
        text = read_text(path)
    except IsADirectoryError:
        return [Problem("Is a folder, and no run's: it holds no config.toml")]
    except OSError as error:
        return [_unreadable(error)]
    except NotUtf8 as error:
        return [Problem(str(error), "TOML files are UTF-8: save it in that encoding")]
    try:
        data = tomllib.loads(text)
    # Not only TOMLDecodeError, which is one: an integer of more than 4300 digits raises its parent.
    except ValueError as error:
        return [_syntax_problem(str(error), text)]
    try:
        # Strict JSON mode: a list becomes a tuple and text a path, but "3" is no integer.
        return RunConfig.model_validate_json(as_json(data), strict=True)
    except ValidationError as error:
        return explain(error, data, as_json)


def _unreadable(error: OSError) -> Problem:
    return Problem(f"Cannot be read: {error.strerror}")


def _syntax_problem(message: str, text: str) -> Problem:
    # "Invalid value (at line 3, column 5)", "... (at end of document)", or no place at all
    reason, _, place = message.partition(" (at ")
    where = place.rstrip(")").replace("end of document", f"line {len(text.splitlines())}")
    return Problem(f"{where}: {reason}" if where else reason, 'TOML wants key = value, with text in "quotes"')


def _not_found(got: str, name: str) -> ConfigError:
    closest = did_you_mean(name, preset_names())
    listing = "`dis presets list`"
    return ConfigError(
        f"Preset not found: `{got}`", f"Did you mean `{closest}`? See {listing}" if closest else f"See {listing}"
    )
