"""The only place where a configuration becomes objects: one function for each, with an explicit branch per choice."""

import torch
from torch import Tensor

from dis_cli.codecs.pixel import PixelCodec
from dis_cli.codecs.vae import VaeCodec
from dis_cli.config.schema import RunConfig
from dis_cli.data.images import open_source
from dis_cli.data.latents import LatentSource
from dis_cli.data.source import ImageSource
from dis_cli.diffusion.batch import TrainingBatch
from dis_cli.diffusion.objective import q_sample, training_losses
from dis_cli.diffusion.samplers import Sampler, make_sampler
from dis_cli.diffusion.schedule import Schedule, make_schedule
from dis_cli.errors import ConfigError, MismatchError, UsageError
from dis_cli.events import Note
from dis_cli.models.backbone import DiS
from dis_cli.runtime.precision import Precision, choose_precision, linear_precision
from dis_cli.runtime.seed import Stream, generator
from dis_cli.scan.engines import ENGINES, Engine, choose_engine, unavailable
from dis_cli.training.ema import Ema
from dis_cli.training.loop import LossFunction
from dis_cli.training.lr import learning_rate
from dis_cli.training.state import TrainingState, make_optimizer

Codec = PixelCodec | VaeCodec


def build_source(config: RunConfig, *, split: str = "train") -> ImageSource:
    """The grids that the model is trained on; checked against the model.

    Raises:
        UsageError: No folder was given, or the model's classes or channels are not the data's.
        DataError: The data are missing or unreadable.
    """
    data, model = config.data, config.model
    if data.source == "latents":
        if data.path is None:
            raise UsageError(
                "No folder of latents given",
                "Make one with `dis encode-latents`, then pass it with `--data DIR` (or data.path=DIR)",
            )
        source: ImageSource = LatentSource(
            data.path,
            image_size=model.image_size,
            channels=model.in_channels,
            hflip=data.hflip,
            scale=config.codec.scale,
        )
    else:
        source = open_source(
            data.source,
            data.path,
            split=split,
            image_size=model.image_size,
            channels=model.in_channels,
            hflip=data.hflip,
        )
    if model.num_classes and source.num_classes != model.num_classes:
        raise MismatchError(
            f"The model has {model.num_classes} classes, the data {source.name} have {source.num_classes}",
            f"Set model.num_classes={source.num_classes}"
            + (" (0 is unconditional)" if source.num_classes == 0 else ", or give other data with `--data DIR`"),
        )
    return source


def build_image_source(config: RunConfig, *, split: str) -> ImageSource:
    """The images, in pixels, that generated ones are compared with.

    Raises:
        UsageError: The run was trained on latents, and no folder of images was given.
    """
    if config.data.source == "latents":
        raise UsageError(
            "The run was trained on latents, which are no reference for images",
            "Give the images with `data.source=folder data.path=DIR`",
        )
    return open_source(
        config.data.source,
        config.data.path,
        split=split,
        image_size=config.pixel_size,
        channels=config.pixel_channels,
    )


def pick_engine(config: RunConfig, device: torch.device) -> Engine:
    """What will compute the scan on a device, and why.

    Raises:
        ConfigError: The engine that the configuration names cannot compute there.
    """
    try:
        return choose_engine(config.engine, device.type)
    except ValueError as error:
        usable = [name for name in ENGINES if name != "auto" and unavailable(name, device.type) is None]
        raise ConfigError(
            f"`engine`: got `{config.engine}`, allowed on {device.type} here: auto, {', '.join(usable)}. {error}",
            "`engine=auto` takes the fastest that works; see `dis doctor`",
        ) from error


def pick_precision(requested: str, config: RunConfig, device: torch.device) -> Precision:
    """The numbers that the linear layers compute in, "auto" decided by what is faster for this model.

    Args:
        requested: ``config.train.precision`` or ``config.sample.precision``.
        config: Its model's width is what is timed.
        device: Where the model computes.
    """
    return choose_precision(requested, device, config.model.embed_dim)


def choices(engine: Engine, precision: Precision) -> list[Note]:
    """What the machine decided, to be told once when the work begins."""
    return [
        Note(message=f"engine {engine.name}: {engine.reason}"),
        Note(message=f"precision {precision.name}: {precision.reason}"),
    ]


def build_model(config: RunConfig) -> DiS:
    """The backbone on the CPU, its weights drawn from the run's seed whatever was drawn before."""
    model = config.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(config.seed, Stream.WEIGHTS).integers(2**63)))
        return DiS(
            image_size=model.image_size,
            patch_size=model.patch_size,
            in_channels=model.in_channels,
            embed_dim=model.embed_dim,
            depth=model.depth,
            num_classes=model.num_classes,
            learn_sigma=config.learn_sigma,
            drop_path=model.drop_path,
            label_drop=model.label_drop,
            d_state=model.d_state,
            d_conv=model.d_conv,
            expand=model.expand,
            init=model.init,
            final_init=model.final_init,
            engine=config.engine,
        )


def build_schedule(config: RunConfig) -> Schedule:
    """The forward process."""
    return make_schedule(config.diffusion.schedule, config.diffusion.num_timesteps)


def build_sampler(config: RunConfig) -> Sampler:
    """The reverse process.

    Raises:
        ConfigError: The sampler cannot take that many steps.
    """
    try:
        return make_sampler(
            build_schedule(config),
            name=config.sample.sampler,
            steps=config.sample.steps,
            prediction=config.diffusion.prediction,
            variance=config.diffusion.variance,
        )
    except ValueError as error:
        raise ConfigError(f"Sampler `{config.sample.sampler}`: {error}", "Choose another `--steps`") from error


def build_codec(config: RunConfig, device: torch.device) -> Codec:
    """What stands between images and the model's grid.

    Raises:
        UsageError: The codec is a VAE and none was named.
        MissingResourceError: The VAE is not on this machine.
    """
    match config.codec.kind:
        case "pixel":
            return PixelCodec()
        case "vae":
            if config.codec.vae is None:
                raise UsageError("The model works on latents, and no VAE was named", "Give its folder with `--vae DIR`")
            return VaeCodec(config.codec.vae, scale=config.codec.scale, device=device)


def build_training_state(config: RunConfig, device: torch.device) -> TrainingState:
    """The state before the first step."""
    model = build_model(config).to(device)
    optimizer = make_optimizer(
        model, lr=config.train.lr, betas=config.train.betas, weight_decay=config.train.weight_decay
    )
    ema = Ema(model, decay=config.train.ema_decay, warmup=config.train.ema_warmup)
    return TrainingState(model=model, ema=ema, optimizer=optimizer)


def build_loss_function(config: RunConfig) -> LossFunction:
    """The mean loss of a batch, in float32 whatever the linear layers compute in.

    Args:
        config: Its ``train.precision`` is "fp32" or "bf16": "auto" was resolved before.
    """
    schedule = build_schedule(config)
    precision = config.train.precision
    prediction, variance = config.diffusion.prediction, config.diffusion.variance

    def loss_function(model: torch.nn.Module, batch: TrainingBatch) -> Tensor:
        x_t = q_sample(schedule, batch.x_0, batch.t, batch.noise)
        with linear_precision(precision, x_t.device.type):
            output = model(
                x_t,
                batch.t,
                batch.labels if config.model.num_classes else None,
                label_drop_uniform=batch.label_drop_uniform,
                drop_path_uniform=batch.drop_path_uniform,
            )
        losses = training_losses(
            schedule, output.float(), batch.x_0, x_t, batch.noise, batch.t, prediction=prediction, variance=variance
        )
        return losses["loss"].mean()

    return loss_function


def build_learning_rate(config: RunConfig, step: int) -> float:
    """The learning rate of a step, counted from 0."""
    train = config.train
    return learning_rate(
        step,
        peak=train.lr,
        warmup_steps=train.warmup_steps,
        total_steps=train.steps,
        schedule=train.lr_schedule,
        min_ratio=train.min_lr_ratio,
        decay_fraction=train.decay_fraction,
    )
