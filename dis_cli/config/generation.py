"""The settings of how images are generated, and how they are scored."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dis_cli.config.sampling import SamplerName
from dis_cli.config.section import HomePath, NoneWord, OneOf, PositiveInt, PrecisionName, Section, Seed, Share
from dis_cli.metrics.table import METRICS


def _read_three(value: object) -> object:
    return "first3" if str(value) == "3" else value


class SampleConfig(Section):
    """How images are generated, by `dis sample` and for `dis eval-fid`."""

    sampler: Literal["auto", SamplerName] = Field(
        default="auto",
        description="the reverse process; 'auto' is 'dpm++'; for a rectified flow 'heun', or 'euler' with even steps",
    )
    steps: Literal["auto"] | PositiveInt = Field(
        default="auto",
        description="model evaluations per image; 'auto' by the sampler: ancestral 250 (the paper's), ddim and euler "
        "50, others 25",
    )
    eta: Share = Field(default=0.0, description="for 'ddim': share of the ancestral noise, 0 (none) to 1")
    cfg_scale: Annotated[float, Field(ge=0)] = Field(
        default=1.0, description="classifier-free guidance; 1 is none, 0 ignores the class"
    )
    cfg_channels: Annotated[Literal["all", "first3"], BeforeValidator(_read_three)] = Field(
        default="all", description="channels that are guided; 'first3' (or 3) is the published code's choice"
    )
    cfg_interval: tuple[Share, Share] = Field(
        default=(0.0, 1.0), description="shares of the diffusion time between which images are guided; 1 is noise"
    )
    cfg_schedule: Literal["constant", "linear", "power-cosine"] = Field(
        default="constant", description="how the scale grows from noise to image; all but 'constant' begin at 1"
    )
    cfg_power: Annotated[float, Field(gt=0)] = Field(
        default=4.0, description="power of 'power-cosine': the higher, the later the scale grows"
    )
    ema: Annotated[Annotated[float, Field(ge=0, lt=1)] | None, NoneWord] = Field(
        default=None,
        description="decay of the weight average to take (train.ema_more); none takes train.ema_decay, 0 the weights",
    )
    batch_size: Literal["auto"] | PositiveInt = Field(
        default="auto", description="images generated at a time, which does not change them; 'auto' goes by the memory"
    )
    precision: PrecisionName = Field(
        default="auto", description="numbers of the linear layers; 'auto' takes bf16 where it is faster, at every start"
    )

    @model_validator(mode="after")
    def _interval_ascends(self) -> Self:
        low, high = self.cfg_interval
        if low >= high:
            raise ValueError(f"the lower end of cfg_interval must be below the upper one, got {low:g} and {high:g}")
        return self

    @property
    def name_parts(self) -> tuple[str, ...]:
        """How images differ, beside their sampler, steps and scale, from those of the default settings: for names."""
        parts = [f"eta-{self.eta:g}"] if self.eta else []
        if self.cfg_scale != 1:
            low, high = self.cfg_interval
            schedule = f"{self.cfg_schedule}-{self.cfg_power:g}" if self.cfg_schedule == "power-cosine" else "linear"
            parts += [self.cfg_channels] if self.cfg_channels != "all" else []
            parts += [f"from-{low:g}-to-{high:g}"] if (low, high) != (0, 1) else []
            parts += [schedule] if self.cfg_schedule != "constant" else []
        return tuple(parts)


class EvaluateConfig(Section):
    """How a model is scored."""

    num_samples: Annotated[Annotated[int, Field(ge=2)] | None, NoneWord] = Field(
        default=None, description="generated images; none takes as many as the reference has"
    )
    seed: Seed = Field(default=1_000_000, description="seed of the first generated image")
    inception: Annotated[HomePath | None, NoneWord] = Field(
        default=None, description="weights of Inception; none takes those in torch's cache where they are needed"
    )
    features: Literal["auto", "inception", "digits", "clip", "dinov2"] = Field(
        default="auto", description="what looks at the images; 'auto' is 'digits' for the digits, else 'inception'"
    )
    metrics: tuple[Annotated[str, OneOf("all", METRICS)], ...] = Field(
        default=("fid",), min_length=1, description="what is measured; 'all' is all that the features allow"
    )
    split: Literal["auto", "train", "test", "all"] = Field(
        default="auto", description="part of the data to compare with; 'auto' is 'test' for the digits, else 'train'"
    )
