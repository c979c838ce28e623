"""The base class and the field types of all sections of the settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from dis_cli.config.sampling import LARGEST_SEED
from dis_cli.errors import UsageError
from dis_cli.paths import expand_home

# A count that the data decide, before there are any; no count is negative.
AUTO: Final = -1


class Section(BaseModel):
    """The base of all sections: frozen, no unknown keys, defaults checked like given values."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


def _read_none(value: object) -> object:
    return None if str(value).lower() == "none" else value


def _read_home(value: object) -> object:
    try:
        return expand_home(str(value)) if isinstance(value, str | Path) else value
    except UsageError as error:
        # The only kind that pydantic lists beside the other problems.
        raise ValueError(f"{error.message}. {error.hint}") from error


def _read_held_out(value: object) -> str:
    text = str(value)
    if text in ("none", "test"):
        return text
    try:
        share = float(text)
    except ValueError:
        return str(_read_home(text))
    if not 0 < share < 1:
        raise ValueError(f"got `{text}`, allowed: none, test, a share above 0 and below 1, or a path")
    return text


PositiveInt = Annotated[int, Field(ge=1)]

Seed = Annotated[int, Field(ge=0, lt=LARGEST_SEED + 1)]

Share = Annotated[float, Field(ge=0, le=1)]

PrecisionName = Literal["auto", "fp32", "bf16"]

# TOML has no null and the command line only text: in an optional setting the word "none" means no value.
NoneWord = BeforeValidator(_read_none)

# No shell sees the paths in TOML or after KEY=. A VAE is a path or a name, and no name begins with `~`.
HomePath = Annotated[Path, BeforeValidator(_read_home)]
# "none", "test", a share as text, or a path.
HeldOut = Annotated[str, BeforeValidator(_read_held_out)]
HomePathOrName = Annotated[str, BeforeValidator(_read_home)]


class OneOf:
    """A string that is one of some names, some of which stand in tables that may grow; refused as by a Literal.

    Args:
        names: The names, or tables of them.
    """

    def __init__(self, *names: str | Mapping[str, object]) -> None:
        self._given = names

    @property
    def names(self) -> list[str]:
        """All of them, now."""
        return [name for given in self._given for name in ([given] if isinstance(given, str) else given)]

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A string that is checked."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The names as an enumeration."""
        return handler(schema) | {"enum": self.names}

    def _check(self, name: str) -> str:
        if name not in self.names:
            raise PydanticKnownError("literal_error", {"expected": ", ".join(self.names)})
        return name


class OrAuto:
    """A number that may also be the word "auto": `AUTO` until the data decide it."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The number, or the word, which is written as it is read."""
        return core_schema.no_info_wrap_validator_function(
            lambda value, number: AUTO if value == "auto" else number(value),
            handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda value: "auto" if value == AUTO else value
            ),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The number first, as texts are read by it."""
        return {"anyOf": [handler(schema), {"const": "auto", "type": "string"}]}


OptionalSteps = Annotated[PositiveInt | None, NoneWord]
