"""Every setting of a run, with its unit, its bounds and its default.

The defaults are the published training code's where it has one; presets hold only what differs. Objects are frozen
and refuse unknown keys, so a typing error can never be a silently ignored setting.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from dis_cli.config.backbones import DisConfig, ModelSection
from dis_cli.config.generation import EvaluateConfig, SampleConfig
from dis_cli.config.sampling import choose_sampling, guidance_problem, sampling_problem
from dis_cli.config.section import (
    AUTO,
    HeldOut,
    HomePath,
    HomePathOrName,
    NoneWord,
    OneOf,
    OptionalSteps,
    PositiveInt,
    PrecisionName,
    Section,
    Seed,
)
from dis_cli.metrics.table import METRICS
from dis_cli.scan.engines import table as engines


class DiffusionConfig(Section):
    """The forward process and what the model predicts."""

    num_timesteps: Annotated[int, Field(ge=2, le=10_000)] = Field(
        default=1000, description="steps of the forward process"
    )
    schedule: Literal["linear", "scaled_linear", "cosine", "rectified_flow"] = Field(
        default="linear",
        description="betas: 'linear' 1e-4 to 0.02, 'scaled_linear' the squares of a line from sqrt(0.00085) to "
        "sqrt(0.012) (both scaled by 1000 / num_timesteps), or 'cosine' (max 0.999); "
        "'rectified_flow': straight lines from image to noise",
    )
    prediction: Literal["epsilon", "v", "x_0", "velocity"] = Field(
        default="epsilon",
        description="target of the model's output; for rectified flow 'velocity' (noise - x_0), or 'x_0' with the "
        "loss on the velocity",
    )
    variance: Literal["learned_range", "fixed_small", "fixed_large"] = Field(
        default="learned_range", description="variance of a reverse step; 'learned_range' doubles the output channels"
    )
    loss_weight: Literal["uniform", "min_snr"] = Field(
        default="uniform", description="weight of a timestep in the loss; 'min_snr' caps its signal-to-noise ratio"
    )
    min_snr_gamma: Annotated[float, Field(gt=0)] = Field(default=5.0, description="the cap of 'min_snr'")
    velocity_clamp: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.05, description="for 'x_0' of a rectified flow: smallest share of noise that the loss divides by"
    )
    timesteps: Literal["discrete", "uniform", "logit_normal"] = Field(
        default="discrete",
        description="timesteps of training: whole ones; for rectified flow also any between them, drawn 'uniform' or "
        "'logit_normal'",
    )
    timestep_mean: float = Field(
        default=0.0, description="for 'logit_normal': mean of log(u / (1 - u)), u being the share of noise"
    )
    timestep_std: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="for 'logit_normal': standard deviation of the same"
    )
    shift: Annotated[float, Field(gt=0)] = Field(
        default=1.0,
        description="s of a rectified flow's share of noise s u / (1 + (s - 1) u), in training and sampling",
    )
    timestep_offset: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=0, description="added to the timestep that the model is told; 1 for one trained on 1 to num_timesteps"
    )

    @property
    def is_flow(self) -> bool:
        """A rectified flow, in place of a schedule of betas."""
        return self.schedule == "rectified_flow"

    @model_validator(mode="after")
    def _combination_is_defined(self) -> Self:
        if self.prediction == "velocity" and not self.is_flow:
            raise ValueError(
                f"prediction 'velocity' needs schedule 'rectified_flow', got schedule '{self.schedule}'; with both "
                "goes a fixed diffusion.variance"
            )
        if self.is_flow and self.prediction not in ("velocity", "x_0"):
            raise ValueError(
                f"schedule 'rectified_flow' needs prediction 'velocity' or 'x_0', got prediction '{self.prediction}'"
            )
        if self.prediction != "epsilon" and self.variance == "learned_range":
            raise ValueError(
                f"prediction '{self.prediction}' needs a fixed variance: set diffusion.variance to 'fixed_small'"
            )
        if self.is_flow and self.loss_weight == "min_snr":
            raise ValueError("loss_weight 'min_snr' is not defined for schedule 'rectified_flow': set it to 'uniform'")
        fewest = {"linear": 21, "scaled_linear": 13}.get(self.schedule, 2)
        if self.num_timesteps < fewest:
            raise ValueError(
                f"the {self.schedule} schedule needs num_timesteps above {fewest - 1}, got {self.num_timesteps}"
            )
        return self

    @model_validator(mode="after")
    def _settings_of_flows_are_for_flows(self) -> Self:
        needed = {
            "timesteps": ("schedule", "rectified_flow"),
            "shift": ("schedule", "rectified_flow"),
            "timestep_mean": ("timesteps", "logit_normal"),
            "timestep_std": ("timesteps", "logit_normal"),
        }
        for name, (other, wanted) in needed.items():
            value, found = getattr(self, name), getattr(self, other)
            default = type(self).model_fields[name].default
            if value != default and found != wanted:
                raise ValueError(
                    f"{name} '{value}' is for diffusion.{other} '{wanted}', got '{found}': set diffusion.{name} to "
                    f"{default}"
                )
        return self


class DataConfig(Section):
    """The source of the training and reference images."""

    source: Literal[
        "auto", "digits", "folder", "zip", "tar", "shards", "cifar10", "celeba", "mnist", "imagenet", "latents"
    ] = Field(
        default="auto",
        description="'auto' (recognised by data.path), 'digits' (bundled), 'folder' (class sub-folders), 'zip' and "
        "'tar' (never unpacked), 'shards' (folder of tar files with .cls or .json labels), 'cifar10', 'celeba', "
        "'mnist' (torchvision's layouts), 'imagenet' (train/ and val/), 'latents' (written by `dis encode-latents`)",
    )
    path: Annotated[HomePath | None, NoneWord] = Field(
        default=None, description="folder or archive of the images or latents; none for the bundled digits"
    )
    max_images: Annotated[PositiveInt | None, NoneWord] = Field(
        default=None, description="training images used, evenly spread over all, for a quick look; none takes all"
    )
    hflip: bool = Field(default=True, description="mirror half of the training images; never digits or mnist")
    background: Literal["white", "black", "gray"] | Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")] = Field(
        default="white", description="colour behind transparent images; other colours as '#rrggbb'"
    )
    check: bool = Field(default=True, description="read all image files once before training, to find the bad ones")
    on_bad: Literal["stop", "skip"] = Field(
        default="stop", description="images that cannot be used: 'stop' and list them, or 'skip' them"
    )
    download: bool = Field(default=False, description="download cifar10, celeba or mnist into data.path when missing")
    num_workers: Literal["auto"] | Annotated[int, Field(ge=0, le=256)] = Field(
        default="auto", description="loader processes; 0 loads in line, 'auto' decides by the machine"
    )
    validation: HeldOut = Field(
        default="none",
        description="held-out images: none, 'test' (the source's own test split), a share above 0 and below 1 (drawn "
        "by the seed and not trained on), or the path of others",
    )

    @property
    def validation_share(self) -> float | None:
        """The share of the training images that is held out; None when they are others, or none."""
        try:
            return float(self.validation)
        except ValueError:
            return None

    @property
    def validation_path(self) -> Path | None:
        """Where the held-out images are, when they are others."""
        is_word = self.validation in ("none", "test") or self.validation_share is not None
        return None if is_word else Path(self.validation)


class CodecConfig(Section):
    """The codec between images and the grid the model sees."""

    kind: Literal["pixel", "vae"] = Field(
        default="pixel", description="'pixel': the image itself; 'vae': latents of a VAE"
    )
    vae: Annotated[HomePathOrName | None, NoneWord] = Field(
        default=None, description="folder or hub id of a diffusers AutoencoderKL, or 'digits' (bundled)"
    )
    scale: Annotated[float, Field(gt=0)] = Field(default=0.18215, description="scale of VAE latents, to unit variance")
    downsample: PositiveInt = Field(default=8, description="image pixels per latent pixel along one side")


class TrainConfig(Section):
    """The optimisation. Time is the optimizer step; nothing depends on epochs or the wall clock."""

    steps: PositiveInt = Field(default=500_000, description="optimizer steps in all")
    batch_size: PositiveInt = Field(default=128, description="images per optimizer step")
    accumulation: PositiveInt = Field(
        default=1, description="equal parts of a batch, computed one after another to save memory"
    )
    lr: Annotated[float, Field(gt=0, le=1)] = Field(default=1e-4, description="peak learning rate of AdamW")
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="final (for inverse_sqrt the lowest) learning rate, as a share of lr"
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(default=0, description="steps of linear warm-up")
    warmup_start: Literal["above_zero", "zero"] = Field(
        default="above_zero",
        description="first learning rate of the warm-up; 'zero', as published, makes the first step change nothing",
    )
    lr_schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = Field(
        default="constant",
        description="learning rate after warm-up: constant, falling to min_lr_ratio linearly or along half a "
        "cosine, or falling as 1 / sqrt(step)",
    )
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="share of the steps, at the end, over which 'linear' or 'cosine' falls"
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.999), description="AdamW's decay rates of the first and second moment"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=0.0,
        description="AdamW's decoupled weight decay, of matrices only (not A_log, D, biases, norms, positions)",
    )
    clip_norm: Annotated[Annotated[float, Field(gt=0)] | None, NoneWord] = Field(
        default=1.0, description="largest global gradient norm; none turns clipping off"
    )
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.9999, description="decay per step of the weight average that images are sampled from"
    )
    ema_more: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(
        default=(), description="decays of further weight averages; sample.ema chooses one"
    )
    ema_warmup: bool = Field(default=False, description="use min(ema_decay, (1 + n) / (10 + n)) after n steps")
    on_nonfinite: Annotated[str, Field(pattern=r"^(stop|skip:[1-9][0-9]*)$")] = Field(
        default="stop",
        description="NaN or infinite loss or gradient: 'stop', or 'skip:N' to skip up to N updates",
    )
    save_every: PositiveInt = Field(
        default=5000, description="steps between checkpoints; the last step is always saved"
    )
    precision: PrecisionName = Field(
        default="auto",
        description="precision of the linear layers; 'auto' is bf16 where that is faster, decided once, at the "
        "first start",
    )
    keep_last: PositiveInt = Field(default=3, description="newest checkpoints kept; older ones are deleted")
    keep_every: OptionalSteps = Field(
        default=None, description="checkpoints at multiples of this step are never deleted"
    )
    preview_every: OptionalSteps = Field(
        default=None, description="steps between previews, images from the averaged weights"
    )
    preview_images: PositiveInt = Field(default=64, description="most images in a preview; each class has as many")
    evaluate_every: OptionalSteps = Field(
        default=None, description="steps between scores; the best checkpoint so far is never deleted"
    )
    validate_every: OptionalSteps = Field(
        default=None, description="steps between losses of the averaged weights on the held-out images"
    )
    validate_images: Annotated[PositiveInt | None, NoneWord] = Field(
        default=512, description="held-out images that these are of, evenly spread; none takes all"
    )
    best_metric: Annotated[str, OneOf("distance", "class_accuracy", METRICS)] = Field(
        default="distance",
        description="metric of the best checkpoint: lowest Frechet distance, class accuracy, or another metric",
    )
    max_minutes: Annotated[Annotated[float, Field(gt=0)] | None, NoneWord] = Field(
        default=None, description="time after which training saves and stops; the same command continues"
    )
    sharding: Literal["ddp", "fsdp"] = Field(
        default="ddp", description="of several processes: 'ddp' keeps all weights in each, 'fsdp' shares them out"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="compute the inside of each block again in the backward pass: less memory, more time"
    )
    compile: bool = Field(default=False, description="compile the model with torch.compile; needs a C++ compiler")
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        default=(), description="trackers of steps and scores, besides events.jsonl"
    )
    log_every: PositiveInt = Field(default=100, description="steps between plain progress lines")
    report: bool = Field(default=False, description="write report.html, the run's page, at each score and at the end")

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.batch_size % self.accumulation:
            raise ValueError(f"accumulation {self.accumulation} does not divide batch_size {self.batch_size}")
        return self


class RunConfig(Section):
    """A whole run. A run folder's ``config.toml`` is one of these and so is itself a preset."""

    name: str = Field(
        default="custom", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the preset or run"
    )
    description: str = Field(default="", description="one line on its purpose")
    seed: Seed = Field(default=0, description="seed of the weights and of all random numbers")
    engine: str = Field(
        default=engines.AUTO,
        description="engine of the scan; 'auto' takes the fastest that works. See `dis doctor`",
        json_schema_extra=lambda schema: schema.update(enum=[*engines.allowed()]),
    )
    model: ModelSection = Field(default_factory=DisConfig, description="the backbone")
    diffusion: DiffusionConfig = Field(default_factory=DiffusionConfig, description="the diffusion process")
    data: DataConfig = Field(default_factory=DataConfig, description="the images")
    codec: CodecConfig = Field(default_factory=CodecConfig, description="pixels or latents")
    train: TrainConfig = Field(default_factory=TrainConfig, description="the optimisation")
    sample: SampleConfig = Field(default_factory=SampleConfig, description="the generation of images")
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="the scoring")

    @field_validator("engine")
    @classmethod
    def _engine_exists(cls, name: str) -> str:
        if name not in engines.allowed():
            # Told like any other choice (`dis_cli.config.settings.wrong_value`).
            raise PydanticCustomError("unknown_engine", "engine must be one of {names}", {"names": engines.allowed()})
        return name

    @property
    def pixel_size(self) -> int:
        """Side of a decoded image, in pixels."""
        return self.model.image_size * (self.codec.downsample if self.codec.kind == "vae" else 1)

    @property
    def pixel_channels(self) -> int:
        """Channels of a decoded image."""
        return 3 if self.codec.kind == "vae" else self.model.in_channels

    @property
    def learn_sigma(self) -> bool:
        """True if the model also predicts the variance of a reverse step."""
        return self.diffusion.variance == "learned_range"

    @property
    def sampling(self) -> tuple[str, int]:
        """The sampler that will run, and its model evaluations per image."""
        return choose_sampling(
            self.sample.sampler,
            self.sample.steps,
            is_flow=self.diffusion.is_flow,
            num_timesteps=self.diffusion.num_timesteps,
        )

    @property
    def open_settings(self) -> list[str]:
        """The settings of the model that the data have to decide."""
        return [f"model.{name}" for name in ("in_channels", "num_classes") if getattr(self.model, name) == AUTO]

    def assumed(self) -> Self:
        """The same with colour images without classes where the data have to decide: for sizes and costs."""
        return self.fitted(in_channels=3, num_classes=0) if self.open_settings else self

    def fitted(self, *, in_channels: int, num_classes: int) -> Self:
        """The same with these where the data have to decide; without classes there is nothing to guide with."""
        found = {"in_channels": in_channels, "num_classes": num_classes}
        own = {name: count for name, count in found.items() if f"model.{name}" in self.open_settings}
        sections: dict[str, Section] = {"model": self.model.model_copy(update=own)}
        if own.get("num_classes") == 0:
            sections["sample"] = self.sample.model_copy(update={"cfg_scale": 1.0})
        return self.model_copy(update=sections)

    def settled(self) -> Self:
        """The same with what will run in place of "auto" in sample.sampler and sample.steps."""
        sampler, steps = self.sampling
        return self.model_copy(update={"sample": self.sample.model_copy(update={"sampler": sampler, "steps": steps})})

    @model_validator(mode="after")
    def _sampling_is_possible(self) -> Self:
        sampler, steps = self.sampling
        problem = sampling_problem(
            sampler,
            steps,
            eta=self.sample.eta,
            is_flow=self.diffusion.is_flow,
            num_timesteps=self.diffusion.num_timesteps,
        )
        problem = problem or guidance_problem(
            self.sample.cfg_scale, num_classes=self.model.num_classes, label_drop=self.model.label_drop
        )
        if problem:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if self.train.validate_every and self.data.validation == "none":
            raise ValueError(
                f"train.validate_every {self.train.validate_every} needs held-out images: data.validation is none; "
                "allowed there: test, a share above 0 and below 1, or a path"
            )
        if self.data.source == "latents" and self.codec.kind != "vae":
            raise ValueError("data.source 'latents' needs codec.kind = 'vae'")
        if self.data.source == "digits":
            shape = (self.model.image_size, self.model.in_channels)
            if self.codec.kind == "pixel" and shape != (8, 1):
                raise ValueError(
                    "data.source 'digits' is 8x8 grey: model.image_size must be 8 and model.in_channels 1, "
                    f"got {shape[0]} and {shape[1]}"
                )
            if self.data.hflip:
                raise ValueError("data.source 'digits' needs data.hflip = false: a mirrored digit is rarely a digit")
        return self
