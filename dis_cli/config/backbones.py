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

from dis_cli.config.section import NoneWord, OrAuto, PositiveInt, Section
from dis_cli.errors import did_you_mean
from dis_cli.models.cost import require_patches
from dis_cli.models.dit import sizes as dit
from dis_cli.models.transformers.shape import heads_of
from dis_cli.models.unet import sizes as unet
from dis_cli.models.uvit import sizes as uvit

DEFAULT: Final = "dis"


class BackboneConfig(Section):
    """The settings of all families. The model sees a square grid: pixels, or latents when the codec is a VAE."""

    backbone: str = Field(
        default=DEFAULT,
        description="family of the model; each family has its own settings",
        json_schema_extra=lambda schema: schema.update(enum=[*BACKBONES]),
    )
    image_size: PositiveInt = Field(default=32, description="side of the model's square grid, in grid pixels")
    patch_size: PositiveInt = Field(default=2, description="side of a patch, in grid pixels; divides image_size")
    in_channels: Annotated[PositiveInt, OrAuto()] = Field(
        default=3, description="channels of the grid: 1 grey, 3 RGB, 4 VAE latents; 'auto' is that of the images"
    )
    num_classes: Annotated[int, Field(ge=0), OrAuto()] = Field(
        default=0, description="number of classes; 0 is unconditional, 'auto' is that of the data"
    )
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
        require_patches(self.image_size, self.patch_size)
        return self


class DisConfig(BackboneConfig):
    """DiS: bidirectional Mamba blocks with long skip connections."""

    embed_dim: Annotated[int, Field(ge=8)] = Field(default=368, description="width of a token, in channels")
    depth: PositiveInt = Field(default=25, description="number of blocks, odd: half in, one middle, half out")
    d_state: PositiveInt = Field(default=16, description="state size N of the selective scan, per channel")
    d_conv: Annotated[int, Field(ge=1, le=33)] = Field(
        default=4, description="taps of the causal convolution, in tokens"
    )
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
    skip: Literal["concat", "add", "none"] = Field(
        default="concat", description="long skip connections: through a linear layer as published, added, or none"
    )
    directions: Literal["both", "forward"] = Field(
        default="both", description="scans of a mixer: from both ends as published, or in the order of the tokens only"
    )
    conditioning: Literal["tokens", "adaln_zero"] = Field(
        default="tokens",
        description="time and class: tokens as published, or a modulation of every block in their place",
    )
    scan_order: Literal["raster", "column", "alternate"] = Field(
        default="raster", description="patches in a scan: by rows as published, by columns, or in turn by block"
    )

    @model_validator(mode="after")
    def _depth_is_odd(self) -> Self:
        if self.depth % 2 == 0:
            raise ValueError(f"depth must be odd (half in, one middle, half out), got {self.depth}")
        return self


Heads = Annotated[PositiveInt | None, NoneWord]


class DitConfig(BackboneConfig):
    """DiT: attention blocks that time and class modulate."""

    embed_dim: Annotated[int, Field(ge=8)] = Field(default=384, description="width of a token, a multiple of 4")
    depth: PositiveInt = Field(default=12, description="number of blocks")
    num_heads: Heads = Field(
        default=None, description="attention heads, which divide embed_dim; none takes those of the named width"
    )

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        dit.require_width(self.embed_dim)
        heads_of(self.embed_dim, self.num_heads, dit.SIZES)
        return self


class UvitConfig(BackboneConfig):
    """U-ViT: attention blocks with long skip connections."""

    embed_dim: Annotated[int, Field(ge=8)] = Field(default=512, description="width of a token, in channels")
    depth: PositiveInt = Field(default=13, description="number of blocks, odd: half in, one middle, half out")
    num_heads: Heads = Field(
        default=None, description="attention heads, which divide embed_dim; none takes those of the named width"
    )
    final_conv: Annotated[bool | None, NoneWord] = Field(
        default=None, description="whether a 3x3 convolution comes last; none: on 1 or 3 channels, not on latents"
    )
    time_mlp: bool = Field(default=False, description="whether two linear layers follow the sinusoids of the time")

    @model_validator(mode="after")
    def _depth_and_heads_fit(self) -> Self:
        uvit.require_depth(self.depth)
        heads_of(self.embed_dim, self.num_heads, uvit.SIZES)
        return self


class UnetConfig(BackboneConfig):
    """U-Net: residual convolutions and self-attention, diffusers' `UNet2DModel`."""

    patch_size: Annotated[int, Field(ge=1, le=1)] = Field(
        default=1, description="always 1: a U-Net works on the grid's own pixels"
    )
    channels: PositiveInt = Field(default=128, description="channels of the first level")
    multipliers: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = Field(
        default=(1, 2),
        description="channels of each level, as multiples, first 1; a level has half the last one's side",
    )
    num_blocks: PositiveInt = Field(default=2, description="residual blocks of a level on the way down; one more up")
    attention_levels: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(), description="levels with self-attention, 0 is the full grid; the middle always has it"
    )
    head_channels: Heads = Field(default=None, description="channels of an attention head; none is one head")
    norm_groups: PositiveInt = Field(default=32, description="groups of the group norms, which divide all channels")

    @model_validator(mode="after")
    def _levels_fit(self) -> Self:
        unet.require_fitting(
            image_size=self.image_size,
            patch_size=self.patch_size,
            channels=self.channels,
            multipliers=self.multipliers,
            attention_levels=self.attention_levels,
            head_channels=self.head_channels,
            norm_groups=self.norm_groups,
        )
        return self


# A row for each family: name, section. A section's settings are arguments of the family's network.
BACKBONES: Final[dict[str, type[BackboneConfig]]] = {
    DEFAULT: DisConfig,
    "dit": DitConfig,
    "uvit": UvitConfig,
    "unet": UnetConfig,
}


def backbone_of(model: object) -> str:
    """The backbone that a ``model`` section asks for; the default when it names none, or none that there is."""
    name = model.get("backbone") if isinstance(model, Mapping) else None
    return name if isinstance(name, str) and name in BACKBONES else DEFAULT


def with_backbone(model: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A ``model`` section for another backbone: what all families have stays, the rest begins at its defaults.

    A setting that the new section declares anew, since it is another there, begins at its default too.
    """
    section = BACKBONES[name]
    common = [key for key in BackboneConfig.model_fields if key not in section.__annotations__]
    return {key: value for key, value in model.items() if key in common} | {"backbone": name}


def _by_backbone(value: object, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> BackboneConfig:
    if not isinstance(value, Mapping):
        return handler(value)
    section = BACKBONES[backbone_of(value)]
    if info.mode == "json":
        return section.model_validate_json(json.dumps(value), strict=True)
    return section.model_validate(value)


ModelSection = Annotated[SerializeAsAny[BackboneConfig], WrapValidator(_by_backbone)]
