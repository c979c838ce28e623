"""What all sections of the settings share: how they are checked, and the types of their fields."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """The base of all sections: frozen, no unknown keys, defaults checked like given values."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


def _read_none(value: object) -> object:
    return None if str(value).lower() == "none" else value


PositiveInt = Annotated[int, Field(ge=1)]

Share = Annotated[float, Field(ge=0, le=1)]

PrecisionName = Literal["auto", "fp32", "bf16"]

# TOML has no null and the command line only text: in an optional setting the word "none" means no value.
NoneWord = BeforeValidator(_read_none)

OptionalSteps = Annotated[PositiveInt | None, NoneWord]
