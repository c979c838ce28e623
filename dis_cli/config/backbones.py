"""The settings of the model: a section for each family of backbones, chosen by ``model.backbone``."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    Field,
    SerializeAsAny,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from dis_cli.config.section import PositiveInt, Section
from dis_cli.errors import did_you_mean

DEFAULT: Final = "dis"


class BackboneConfig(Section):
    """What all families have. The model sees a square grid: pixels, or latents when the codec is a VAE."""

    backbone: str = Field(
        default=DEFAULT,
        description="family of the model, which has its own settings",
        json_schema_extra=lambda schema: schema.update(enum=[*BACKBONES]),
    )
    image_size: PositiveInt = Field(default=32, description="side of the square grid the model sees, in its own pixels")
    patch_size: PositiveInt = Field(default=2, description="side of a patch, in grid pixels; divides image_size")
    in_channels: PositiveInt = Field(default=3, description="channels of the grid: 1 grey, 3 RGB, 4 VAE latents")
    num_classes: Annotated[int, Field(ge=0)] = Field(default=0, description="number of classes; 0 is unconditional")
    label_drop: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="fraction of training labels replaced by the null class, for guidance"
    )

    @field_validator("backbone")
    @classmethod
    def _is_of_this_family(cls, name: str) -> str:
        if BACKBONES.get(name) is not cls:
            closest = did_you_mean(name, BACKBONES)
            hint = f". Did you mean `{closest}`?" if closest else ""
            raise ValueError(f"got `{name}`, allowed: {', '.join(BACKBONES)}{hint}")
        return name

    @model_validator(mode="after")
    def _patches_fit(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide image_size {self.image_size}")
        return self


class DisConfig(BackboneConfig):
    """DiS: bidirectional Mamba blocks with long skip connections."""

    embed_dim: Annotated[int, Field(ge=8)] = Field(default=368, description="width of a token, in channels")
    depth: PositiveInt = Field(default=25, description="number of blocks, odd: half in, one middle, half out")
    d_state: PositiveInt = Field(default=16, description="state size N of the selective scan, per channel")
    d_conv: PositiveInt = Field(default=4, description="taps of the causal convolution, in tokens")
    expand: PositiveInt = Field(default=2, description="inner width of a mixer, as a multiple of embed_dim")
    drop_path: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="drop-path rate of the last block in training, as a fraction; grows linearly from 0"
    )
    init: Literal["corrected", "published"] = Field(
        default="corrected",
        description="'corrected' gives the backward scan's time step the forward's initialisation; 'published' keeps 0",
    )
    final_init: Literal["published", "zero"] = Field(
        default="published", description="initial weights of the output layer: as published (random), or zero"
    )

    @model_validator(mode="after")
    def _depth_is_odd(self) -> Self:
        if self.depth % 2 == 0:
            raise ValueError(f"depth must be odd (half in, one middle, half out), got {self.depth}")
        return self


# A row for each family: name, section. A section's settings are arguments of the family's network.
BACKBONES: Final[dict[str, type[BackboneConfig]]] = {DEFAULT: DisConfig}


def backbone_of(model: object) -> str:
    """The backbone that a ``model`` section asks for; the default when it names none, or none that there is."""
    name = model.get("backbone") if isinstance(model, Mapping) else None
    return name if isinstance(name, str) and name in BACKBONES else DEFAULT


def with_backbone(model: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A ``model`` section for another backbone: what all families have stays, the rest begins at its defaults."""
    return {key: value for key, value in model.items() if key in BackboneConfig.model_fields} | {"backbone": name}


def _by_backbone(value: object, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> BackboneConfig:
    if not isinstance(value, Mapping):
        return handler(value)
    section = BACKBONES[backbone_of(value)]
    if info.mode == "json":
        return section.model_validate_json(json.dumps(value), strict=True)
    return section.model_validate(value)


ModelSection = Annotated[SerializeAsAny[BackboneConfig], WrapValidator(_by_backbone)]
