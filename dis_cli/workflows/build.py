"""The only place where a configuration becomes objects: one function for each, with an explicit branch per choice."""

import contextlib
from pathlib import Path

import torch

from dis_cli.codecs.locate import locate_vae
from dis_cli.codecs.pixel import PixelCodec
from dis_cli.codecs.vae import VaeCodec
from dis_cli.config.schema import RunConfig
from dis_cli.data.held_out import first_look
from dis_cli.data.images.verify import layout_notes
from dis_cli.data.latents.format import VaeRecord
from dis_cli.data.latents.source import LatentSource
from dis_cli.data.open import open_source, recognise
from dis_cli.data.source import ImageSource
from dis_cli.diffusion.flow import ForwardProcess, make_flow
from dis_cli.diffusion.guidance import Guidance
from dis_cli.diffusion.loss import Objective
from dis_cli.diffusion.samplers.loop import Sampler, make_sampler
from dis_cli.diffusion.schedule import make_schedule
from dis_cli.diffusion.timesteps import ContinuousTimesteps
from dis_cli.errors import ConfigError, MismatchError, MissingResourceError, UsageError
from dis_cli.events import Note
from dis_cli.models.backbone import Backbone
from dis_cli.runtime.precision import Precision, choose_precision
from dis_cli.runtime.seed import Stream, generator
from dis_cli.scan.engines.choose import ChosenEngine, SecondChoice, choose_engine, failing, unavailable
from dis_cli.scan.engines.table import ENGINES
from dis_cli.workflows.cost import model_family, model_shape
from dis_cli.workflows.preflight import named_vae

Codec = PixelCodec | VaeCodec


def encodes_first(config: RunConfig) -> bool:
    """True if the run is trained on latents of images that it has to encode before."""
    return config.codec.kind == "vae" and config.data.source != "latents"


def build_source(config: RunConfig) -> ImageSource:
    """The source of a run: the grids that the model is trained on, or the images to be encoded into them.

    Raises:
        UsageError: No folder was given, or the model's classes or channels are not the data's.
        DataError: The data are missing or unreadable.
    """
    if config.data.source == "latents":
        if config.data.path is None:
            raise UsageError(
                "No folder of latents given",
                "Make one with `dis encode-latents`, then pass it with `--data DIR` (or data.path=DIR)",
            )
        return first_look(build_latents(config, config.data.path), config.data.max_images)
    if encodes_first(config):
        require_fitting_vae(config)
    source = build_image_source(config, split="train", hflip=config.data.hflip)
    _check_classes(config, source)
    return first_look(source, config.data.max_images)


def build_latents(config: RunConfig, folder: Path) -> LatentSource:
    """Latents as training data; checked against the model and the VAE that will decode its samples.

    Raises:
        MismatchError: They are of another shape, scale, size or VAE, or of other classes.
        DataError: They are missing, unfinished or damaged.
    """
    source = LatentSource(
        folder,
        image_size=config.model.image_size,
        channels=config.model.in_channels,
        hflip=config.data.hflip,
        scale=config.codec.scale,
    )
    if source.settings.image_size != config.pixel_size:
        downsample = source.settings.image_size // config.model.image_size
        raise MismatchError(
            f"The latents in `{folder}` are of images of {source.settings.image_size} pixels, the run decodes to "
            f"{config.pixel_size} (model.image_size {config.model.image_size} times codec.downsample "
            f"{config.codec.downsample})",
            f"Set codec.downsample={downsample}",
        )
    # A VAE that is not here cannot be compared; it is when samples are decoded.
    with contextlib.suppress(MissingResourceError):
        if config.codec.vae is not None:
            require_vae(source.settings.vae, config.codec.vae, f"The latents in `{folder}` were made by")
    _check_classes(config, source)
    return source


def build_image_source(config: RunConfig, *, split: str, hflip: bool = False) -> ImageSource:
    """The images in pixels, as they are encoded, or as generated ones are compared with them.

    Raises:
        UsageError: The run was trained on latents, and no images were given.
    """
    data = config.data
    if data.source == "latents":
        raise UsageError(
            "The run was trained on latents, which cannot be a reference for images",
            "Give the images with `data.source=folder data.path=DIR`",
        )
    kind = recognise(data.path) if data.source == "auto" and data.path is not None else data.source
    return open_source(
        "folder" if kind == "auto" else kind,
        data.path,
        split=split,
        image_size=config.pixel_size,
        channels=config.pixel_channels,
        hflip=hflip,
        background=data.background,
        download=data.download,
    )


def _check_classes(config: RunConfig, source: ImageSource) -> None:
    if config.model.num_classes and source.num_classes != config.model.num_classes:
        notes = "".join(f"\n  {note.message}" for note in layout_notes(source, checked=True))
        # Without classes there is nothing to guide with.
        unguided = " sample.cfg_scale=1" if config.sample.cfg_scale != 1 else ""
        raise MismatchError(
            f"The model has {config.model.num_classes} classes, the data {source.name} have {source.num_classes}"
            + notes,
            f"Set model.num_classes={source.num_classes}"
            + (
                f"{unguided} (0 is unconditional)"
                if source.num_classes == 0
                else ", or give other data with `--data DIR` (or data.path=DIR)"
            ),
        )


def require_vae(record: VaeRecord, vae: str, made: str) -> None:
    """Refuse a VAE that is not the one recorded.

    Args:
        record: The VAE that made the latents.
        vae: The one at hand.
        made: The beginning of the sentence that ends with the recorded VAE's name.

    Raises:
        MismatchError: Gives both values of what differs.
        MissingResourceError: The VAE at hand is not on this machine.
    """
    found = dict(zip(("configuration", "weights"), locate_vae(vae).identity, strict=True))
    recorded = {"configuration": record.config_sha256, "weights": record.weights_sha256}
    lines = "".join(
        f"\n  {what}: sha256 {recorded[what][:12]} then, {found[what][:12]} in `{vae}`"
        for what in found
        if recorded[what] != found[what]
    )
    if lines:
        raise MismatchError(
            f"{made} the VAE `{record.name}`, not by `{vae}`{lines}",
            "Give that VAE with `--vae DIR` (or codec.vae=DIR), or encode the images again",
        )


def pick_engine(config: RunConfig, device: torch.device) -> ChosenEngine:
    """The engine of the scan on a device, with its reason.

    Raises:
        ConfigError: The engine that the configuration names cannot compute there.
    """
    try:
        return choose_engine(config.engine, device)
    except ValueError as error:
        usable = [name for name in ENGINES if unavailable(name, device.type) is None and failing(name, device) is None]
        raise ConfigError(
            f"`engine`: got `{config.engine}`, allowed on {device.type} here: auto, {', '.join(usable)}. {error}",
            "`engine=auto` takes the fastest that works; see `dis doctor`",
        ) from error


def pick_precision(requested: str, config: RunConfig, device: torch.device) -> Precision:
    """The numbers that the linear layers compute in, "auto" decided by what is faster for this model.

    Args:
        requested: ``config.train.precision`` or ``config.sample.precision``.
        config: Its model's width is what is timed.
    """
    return choose_precision(requested, device, model_shape(config).width)


def engine_note(engine: ChosenEngine) -> Note:
    """A note on the chosen engine and its reason; a warning when one that is installed does not work."""
    level = "warning" if isinstance(engine, SecondChoice) else "info"
    return Note(message=f"engine {engine.name}: {engine.reason}", level=level)


def choices(engine: ChosenEngine, precision: Precision) -> list[Note]:
    """Notes on the machine's choices, to be shown once when the work begins."""
    return [
        engine_note(engine),
        Note(message=f"precision {precision.name}: {precision.reason}"),
    ]


def build_model(config: RunConfig) -> Backbone:
    """The backbone on the CPU, its weights drawn from the run's seed whatever was drawn before.

    Raises:
        ConfigError: The data have not decided yet what is "auto".
    """
    if config.open_settings:
        raise ConfigError(
            f"{' and '.join(config.open_settings)} cannot be auto without data to decide", "Set a number, such as 3"
        )
    settings = config.model.model_dump(exclude={"backbone"})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(config.seed, Stream.WEIGHTS).integers(2**63)))
        return model_family(config).build(**settings, learn_sigma=config.learn_sigma, engine=config.engine)


def build_schedule(config: RunConfig) -> ForwardProcess:
    """The forward process."""
    diffusion = config.diffusion
    offset = diffusion.timestep_offset
    if diffusion.schedule == "rectified_flow":
        return make_flow(diffusion.num_timesteps, shift=diffusion.shift, timestep_offset=offset)
    return make_schedule(diffusion.schedule, diffusion.num_timesteps, timestep_offset=offset)


def with_precision(config: RunConfig, name: str) -> RunConfig:
    """``config`` with what ``train.precision`` comes to in place of "auto"."""
    return config.model_copy(update={"train": config.train.model_copy(update={"precision": name})})


def build_timestep_draw(config: RunConfig) -> ContinuousTimesteps | None:
    """The draw of timesteps that need not be whole; None where they are."""
    diffusion = config.diffusion
    if diffusion.timesteps == "discrete":
        return None
    return ContinuousTimesteps(
        diffusion.timesteps, diffusion.num_timesteps, mean=diffusion.timestep_mean, std=diffusion.timestep_std
    )


def build_objective(config: RunConfig) -> Objective:
    """What the model is trained to output.

    Args:
        config: Its ``train.precision`` is "fp32" or "bf16": "auto" was resolved before.
    """
    diffusion = config.diffusion
    return Objective(
        process=build_schedule(config),
        prediction=diffusion.prediction,
        variance=diffusion.variance,
        loss_weight=diffusion.loss_weight,
        min_snr_gamma=diffusion.min_snr_gamma,
        velocity_clamp=diffusion.velocity_clamp,
        is_conditional=config.model.num_classes > 0,
        precision=config.train.precision,
    )


def build_sampler(config: RunConfig) -> Sampler:
    """The reverse process that will run."""
    name, steps = config.sampling
    return make_sampler(
        build_schedule(config),
        name=name,
        steps=steps,
        prediction=config.diffusion.prediction,
        variance=config.diffusion.variance,
        eta=config.sample.eta,
    )


def build_guidance(config: RunConfig) -> Guidance:
    """The guidance of the model."""
    settings = {name: value for name, value in config.sample if name.startswith("cfg_")}
    diffusion = config.diffusion
    return Guidance(num_timesteps=diffusion.num_timesteps, timestep_offset=diffusion.timestep_offset, **settings)


def build_codec(config: RunConfig, device: torch.device, trained_with: VaeRecord | None = None) -> Codec:
    """The codec between images and the model's grid.

    Args:
        config: Its ``codec`` section says what; its model must fit.
        trained_with: The VAE that the model's latents are of; None when that is not known.

    Raises:
        UsageError: The codec is a VAE and none was named.
        MissingResourceError: The VAE is not on this machine.
        MismatchError: It is another one, or does not fit the model.
    """
    match config.codec.kind:
        case "pixel":
            return PixelCodec()
        case "vae":
            vae = named_vae(config)
            if trained_with is not None:
                require_vae(trained_with, vae, "The model was trained on latents made by")
            require_fitting_vae(config)
            return VaeCodec(vae, scale=config.codec.scale, device=device)


def require_fitting_vae(config: RunConfig) -> None:
    """Refuse a VAE whose latents are not the model's grid.

    Raises:
        MismatchError: Gives both values of what differs.
        MissingResourceError: The VAE is not on this machine.
    """
    vae = named_vae(config)
    files = locate_vae(vae)
    wanted, found = (config.model.in_channels, config.codec.downsample), (files.latent_channels, files.downsample)
    if wanted != found:
        raise MismatchError(
            f"The VAE `{vae}` has latents of {found[0]} channels, one pixel for {found[1]}x{found[1]} of the image; "
            f"the run has model.in_channels {wanted[0]} and codec.downsample {wanted[1]}",
            f"Set model.in_channels={found[0]} codec.downsample={found[1]}, or name another VAE with codec.vae=DIR",
        )
