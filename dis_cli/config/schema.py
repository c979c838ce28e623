"""Every setting of a run, with its unit, its bounds and its default.

The defaults are the published training code's where it has one; presets hold only what differs. Objects are frozen
and refuse unknown keys, so a typing error can never be a silently ignored setting.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from dis_cli.config.backbones import DisConfig, ModelSection
from dis_cli.config.generation import EvaluateConfig, SampleConfig
from dis_cli.config.sampling import SamplerName, choose_sampling, guidance_problem, sampling_problem
from dis_cli.config.section import (
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
    schedule: Literal["linear", "cosine", "rectified_flow"] = Field(
        default="linear",
        description="betas: 'linear' 1e-4 to 0.02 (scaled by 1000 / num_timesteps), or 'cosine' (max 0.999); "
        "'rectified_flow': straight lines from image to noise",
    )
    prediction: Literal["epsilon", "v", "x_0", "velocity"] = Field(
        default="epsilon", description="what the model's output estimates; 'velocity' (noise - x_0) for rectified flow"
    )
    variance: Literal["learned_range", "fixed_small", "fixed_large"] = Field(
        default="learned_range", description="variance of a reverse step; 'learned_range' doubles the output channels"
    )
    loss_weight: Literal["uniform", "min_snr"] = Field(
        default="uniform", description="weight of a timestep in the loss; 'min_snr' caps its signal-to-noise ratio"
    )
    min_snr_gamma: Annotated[float, Field(gt=0)] = Field(default=5.0, description="the cap of 'min_snr'")

    @model_validator(mode="after")
    def _combination_is_defined(self) -> Self:
        if (self.schedule == "rectified_flow") != (self.prediction == "velocity"):
            raise ValueError(
                "schedule 'rectified_flow' and prediction 'velocity' need each other, got schedule "
                f"'{self.schedule}' and prediction '{self.prediction}'; with both goes a fixed diffusion.variance"
            )
        if self.prediction != "epsilon" and self.variance == "learned_range":
            raise ValueError(
                f"prediction '{self.prediction}' needs a fixed variance: set diffusion.variance to 'fixed_small'"
            )
        if self.prediction == "velocity" and self.loss_weight == "min_snr":
            raise ValueError("loss_weight 'min_snr' is not defined for prediction 'velocity': set it to 'uniform'")
        if self.schedule == "linear" and self.num_timesteps <= 20:
            raise ValueError(f"the linear schedule needs num_timesteps above 20, got {self.num_timesteps}")
        return self


class DataConfig(Section):
    """Where the training and reference images come from."""

    source: Literal["digits", "folder", "zip", "tar", "cifar10", "celeba", "imagenet", "latents"] = Field(
        default="folder",
        description="'digits' (bundled), 'folder' (class sub-folders), 'zip' and 'tar' (never unpacked), 'cifar10', "
        "'celeba' (torchvision's layouts), 'imagenet' (train/ and val/), 'latents' (written by `dis encode-latents`)",
    )
    path: Annotated[HomePath | None, NoneWord] = Field(
        default=None, description="folder or archive of the images or latents; none for the bundled digits"
    )
    hflip: bool = Field(default=True, description="mirror half of the training images; never digits")
    background: Literal["white", "black", "gray"] | Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")] = Field(
        default="white", description="what transparent images are laid on; other colours as '#rrggbb'"
    )
    check: bool = Field(default=True, description="read all image files once before training, to find the bad ones")
    on_bad: Literal["stop", "skip"] = Field(
        default="stop", description="when images cannot be used: list them and stop, or leave them out"
    )
    download: bool = Field(default=False, description="fetch cifar10 or celeba into data.path when it is not there")
    num_workers: Literal["auto"] | Annotated[int, Field(ge=0, le=256)] = Field(
        default="auto", description="loader processes; 0 loads in line, 'auto' decides by the machine"
    )


class CodecConfig(Section):
    """What stands between images and the grid the model sees."""

    kind: Literal["pixel", "vae"] = Field(
        default="pixel", description="'pixel': the image itself; 'vae': latents of a VAE"
    )
    vae: Annotated[HomePathOrName | None, NoneWord] = Field(
        default=None, description="folder or hub id of a diffusers AutoencoderKL, or 'digits' (bundled)"
    )
    scale: Annotated[float, Field(gt=0)] = Field(default=0.18215, description="factor on VAE latents, to unit variance")
    downsample: PositiveInt = Field(default=8, description="image pixels per latent pixel along one side")


class TrainConfig(Section):
    """The optimisation. Time is the optimizer step; nothing depends on epochs or the wall clock."""

    steps: PositiveInt = Field(default=500_000, description="optimizer steps in all")
    batch_size: PositiveInt = Field(default=128, description="images per optimizer step")
    accumulation: PositiveInt = Field(default=1, description="equal parts a batch is computed in, to save memory")
    lr: Annotated[float, Field(gt=0, le=1)] = Field(default=1e-4, description="peak learning rate of AdamW")
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="final (for inverse_sqrt the lowest) learning rate, as a share of lr"
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(default=0, description="steps of linear warm-up")
    warmup_start: Literal["above_zero", "zero"] = Field(
        default="above_zero",
        description="first learning rate of the warm-up; 'zero' is published, and a step that changes nothing",
    )
    lr_schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = Field(
        default="constant",
        description="learning rate after warm-up: kept, lowered to min_lr_ratio along a line or half a cosine, or "
        "lowered as 1 / sqrt(step)",
    )
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="last share of the steps over which a line or half a cosine is lowered"
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.999), description="AdamW's decay rates of the first and second moment"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=0.0,
        description="AdamW's decoupled weight decay, of matrices only (not A_log, D, biases, norms, positions)",
    )
    clip_norm: Annotated[Annotated[float, Field(gt=0)] | None, NoneWord] = Field(
        default=1.0, description="largest global gradient norm; none does not clip"
    )
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.9999, description="decay of the weight average that is sampled from, per step"
    )
    ema_more: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(
        default=(), description="decays of further weight averages, kept beside it; choose one with sample.ema"
    )
    ema_warmup: bool = Field(default=False, description="use min(ema_decay, (1 + n) / (10 + n)) after n steps")
    on_nonfinite: Annotated[str, Field(pattern=r"^(stop|skip:[1-9][0-9]*)$")] = Field(
        default="stop",
        description="when the loss or a gradient is NaN or infinite: 'stop', or 'skip:N' to leave out up to N updates",
    )
    save_every: PositiveInt = Field(
        default=5000, description="steps between checkpoints; the last step is always saved"
    )
    precision: PrecisionName = Field(
        default="auto",
        description="numbers of the linear layers; 'auto' takes bf16 where it is faster, once, at the first start",
    )
    keep_last: PositiveInt = Field(default=3, description="newest checkpoints kept; older ones are deleted")
    keep_every: OptionalSteps = Field(
        default=None, description="checkpoints of multiples of this step are kept for good"
    )
    preview_every: OptionalSteps = Field(
        default=None, description="steps between pictures of what the averaged weights generate"
    )
    preview_images: PositiveInt = Field(default=64, description="images on such a picture")
    evaluate_every: OptionalSteps = Field(
        default=None, description="steps between scores; the best checkpoint so far is kept for good"
    )
    best_metric: Annotated[str, OneOf("distance", "class_accuracy", METRICS)] = Field(
        default="distance",
        description="what makes a checkpoint the best: the lowest Frechet distance, accuracy, or another metric",
    )
    max_minutes: Annotated[Annotated[float, Field(gt=0)] | None, NoneWord] = Field(
        default=None, description="save and stop in order after this time; the same command continues"
    )
    sharding: Literal["ddp", "fsdp"] = Field(
        default="ddp",
        description="with several processes: 'ddp' keeps all weights in each, 'fsdp' deals weights and optimizer out",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="keep only what enters a block and compute the rest again: less memory, more time"
    )
    compile: bool = Field(default=False, description="compile the model with torch.compile; needs a C++ compiler")
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        default=(), description="where steps and scores are shown besides events.jsonl"
    )
    log_every: PositiveInt = Field(default=100, description="steps between plain progress lines")

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
    description: str = Field(default="", description="one line on what it is for")
    seed: Seed = Field(default=0, description="seed of the weights and of every draw")
    engine: str = Field(
        default=engines.AUTO,
        description="what computes the scan; 'auto' takes the fastest that works. See `dis doctor`",
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
        """Whether the model also predicts the variance of a reverse step."""
        return self.diffusion.variance == "learned_range"

    @property
    def sampling(self) -> tuple[SamplerName, int]:
        """The sampler that will run, and its model evaluations per image."""
        return choose_sampling(
            self.sample.sampler,
            self.sample.steps,
            is_flow=self.diffusion.prediction == "velocity",
            num_timesteps=self.diffusion.num_timesteps,
        )

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
            prediction=self.diffusion.prediction,
            is_flow=self.diffusion.prediction == "velocity",
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
