"""Settings of image generation and scoring."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dis_cli.config.section import HomePath, NoneWord, OneOf, PositiveInt, PrecisionName, Section, Seed, Share
from dis_cli.diffusion.samplers.table import ANY_STEPS_OF_FLOWS, AUTO, SAMPLERS, USUAL, USUAL_OF_FLOWS
from dis_cli.metrics.table import METRICS, OF_MODEL


def _read_three(value: object) -> object:
    return "first3" if str(value) == "3" else value


class SampleConfig(Section):
    """The generation of images, by `dis sample` and for `dis eval-fid`."""

    sampler: Annotated[str, OneOf(AUTO, SAMPLERS)] = Field(
        default=AUTO,
        description=f"sampler; 'auto' is '{USUAL}'; for a rectified flow '{USUAL_OF_FLOWS}', or '{ANY_STEPS_OF_FLOWS}' "
        "with even steps",
    )
    steps: Literal["auto"] | PositiveInt = Field(
        default="auto",
        description="model evaluations per image; 'auto' by the sampler: "
        + ", ".join(f"{name} {row.usual_steps}" for name, row in SAMPLERS.items()),
    )
    eta: Share = Field(default=0.0, description="for 'ddim': share of the ancestral noise, 0 (none) to 1")
    cfg_scale: Annotated[float, Field(ge=0)] = Field(
        default=1.0, description="scale of classifier-free guidance; 1 is none, 0 ignores the class"
    )
    cfg_channels: Annotated[Literal["all", "first3"], BeforeValidator(_read_three)] = Field(
        default="all", description="guided channels; 'first3' (or 3) is the published code's choice"
    )
    cfg_interval: tuple[Share, Share] = Field(
        default=(0.0, 1.0), description="part of the diffusion time with guidance, as two shares; 1 is noise"
    )
    cfg_schedule: Literal["constant", "linear", "power-cosine"] = Field(
        default="constant", description="growth of the scale from noise to image; all but 'constant' begin at 1"
    )
    cfg_power: Annotated[float, Field(gt=0)] = Field(
        default=4.0, description="power of 'power-cosine': the higher, the later the scale grows"
    )
    ema: Annotated[Annotated[float, Field(ge=0, lt=1)] | None, NoneWord] = Field(
        default=None,
        description="decay of the weight average to use, one of train.ema_more; none uses train.ema_decay, 0 the "
        "weights as trained",
    )
    batch_size: Literal["auto"] | PositiveInt = Field(
        default="auto", description="images generated at a time, which does not change them; 'auto' fits the memory"
    )
    precision: PrecisionName = Field(
        default="auto",
        description="precision of the linear layers; 'auto' is bf16 where that is faster, decided at every start",
    )

    @model_validator(mode="after")
    def _interval_ascends(self) -> Self:
        low, high = self.cfg_interval
        if low >= high:
            raise ValueError(f"the lower end of cfg_interval must be below the upper one, got {low:g} and {high:g}")
        return self

    @property
    def name_parts(self) -> tuple[str, ...]:
        """The settings of images, beside sampler, steps and scale, that are not the defaults: for names."""
        parts = [f"eta-{self.eta:g}"] if self.eta else []
        if self.cfg_scale != 1:
            low, high = self.cfg_interval
            schedule = f"{self.cfg_schedule}-{self.cfg_power:g}" if self.cfg_schedule == "power-cosine" else "linear"
            parts += [self.cfg_channels] if self.cfg_channels != "all" else []
            parts += [f"from-{low:g}-to-{high:g}"] if (low, high) != (0, 1) else []
            parts += [schedule] if self.cfg_schedule != "constant" else []
        return tuple(parts)


class EvaluateConfig(Section):
    """The scoring of a model."""

    num_samples: Annotated[Annotated[int, Field(ge=2)] | None, NoneWord] = Field(
        default=None, description="number of generated images; none makes as many as the reference has"
    )
    seed: Seed = Field(default=1_000_000, description="seed of the first generated image")
    inception: Annotated[HomePath | None, NoneWord] = Field(
        default=None, description="path of the Inception weights; none uses those in torch's cache"
    )
    features: Literal["auto", "inception", "digits", "mnist", "clip", "dinov2"] = Field(
        default="auto", description="feature extractor; 'auto' is 'digits' for the bundled digits, else 'inception'"
    )
    metrics: tuple[Annotated[str, OneOf("all", METRICS)], ...] = Field(
        default=("fid",), min_length=1, description="metrics; 'all' means all that the features allow"
    )
    split: Literal["auto", "train", "test", "all"] = Field(
        default="auto", description="part of the data to compare with; 'auto' is 'test' for the digits, else 'train'"
    )

    @model_validator(mode="after")
    def _of_images_or_model(self) -> Self:
        if OF_MODEL in self.metrics and len(self.metrics) > 1:
            raise ValueError(
                f"{OF_MODEL} generates no images, and is measured alone: got {','.join(self.metrics)}, allowed: "
                f"{OF_MODEL}, or others without it"
            )
        return self
