"""The held-out images of a run, and a model's losses on them, shared out to all ranks."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dis_cli.codecs.vae import VaeCodec
from dis_cli.config.schema import RunConfig
from dis_cli.data.held_out import held_out_batch, held_out_part, training_part, unaugmented
from dis_cli.data.latents.format import MANIFEST, VaeRecord
from dis_cli.data.open import kind_of, open_source
from dis_cli.data.source import ImageSource
from dis_cli.diffusion.denoising import LOG_SNRS, EpsilonError, epsilon_errors, nearest_levels, summarize
from dis_cli.diffusion.loss import Objective
from dis_cli.errors import MismatchError, UsageError
from dis_cli.events import Event, Metric, Progress
from dis_cli.metrics.table import EPSILON_ERROR, OF_MODEL
from dis_cli.models.backbone import Backbone
from dis_cli.runtime.device import Process
from dis_cli.workflows.build import build_codec, build_image_source, build_latents

# Images in a forward of the losses; each is noised at 16 levels, and once for the run's own loss.
_IMAGES = 4


@dataclass(frozen=True)
class Losses:
    """What a model loses on held-out images.

    Args:
        loss: The run's own loss.
        epsilon: The error of epsilon.
        images: How many images they are of.
        log_snrs: The log signal-to-noise ratios at which epsilon was estimated.
    """

    loss: float
    epsilon: EpsilonError
    images: int
    log_snrs: tuple[float, ...]

    @property
    def result(self) -> dict[str, object]:
        """As results have it."""
        epsilon = self.epsilon
        return {
            OF_MODEL: self.loss,
            EPSILON_ERROR: epsilon.mean,
            f"{EPSILON_ERROR}_std_error": epsilon.std_error,
            f"{EPSILON_ERROR}_quarters": list(epsilon.quarters),
            f"{EPSILON_ERROR}_quarters_std_error": list(epsilon.quarter_std_errors),
            "log_snrs": list(self.log_snrs),
        }

    def metrics(self, step: int | None, conditions: dict[str, object]) -> list[Metric]:
        """What is told of them at once."""
        epsilon = self.epsilon
        context = {"std_error": epsilon.std_error}
        context |= {f"quarter_{place + 1}": value for place, value in enumerate(epsilon.quarters)}
        return [
            Metric(name=OF_MODEL, value=self.loss, step=step, conditions=conditions),
            Metric(name=EPSILON_ERROR, value=epsilon.mean, context=context, step=step, conditions=conditions),
        ]


def trained_on(config: RunConfig, source: ImageSource) -> ImageSource:
    """What of a run's data it is trained on: all, unless a share is held out."""
    share = config.data.validation_share
    return source if share is None else training_part(source, share, config.seed)


def share_of(config: RunConfig, source: ImageSource) -> ImageSource | None:
    """The share of a run's data that is held out; None when none is."""
    share = config.data.validation_share
    return None if share is None else held_out_part(source, share, config.seed)


def held_out(config: RunConfig, source: ImageSource, vae: VaeRecord | None, device: torch.device) -> ImageSource | None:
    """The held-out grids, as the model sees them; None when there are none.

    Args:
        config: Its ``data.validation`` says which.
        source: The run's data: of a run that encodes its images the latents, or the images where those are not there.
        vae: The VAE that the model's latents are of; None when that is not known.
        device: Where images are encoded.

    Raises:
        UsageError: The data have no test split.
        MismatchError: Other images are of other classes.
        DisError: They are not there, or the VAE is not.
    """
    data = config.data
    if data.validation == "none":
        return None
    if (share := share_of(config, source)) is not None:
        return grids(config, share, vae, device)
    if data.validation_path is not None:
        found = _others(config, data.validation_path)
    elif data.source == "latents":
        raise UsageError(
            "The run is trained on latents, which have no test split: data.validation is test",
            "Hold out a share (`data.validation=0.05`), or give a folder of other latents or images",
        )
    else:
        found = build_image_source(config, split="test")
        if found.fingerprint == build_image_source(config, split="train").fingerprint:
            raise UsageError(
                f"The data {found.name} have no test split: data.validation is test",
                "Hold out a share (`data.validation=0.05`), or give the path of other images",
            )
    if config.model.num_classes and found.num_classes != config.model.num_classes:
        raise MismatchError(
            f"The model has {config.model.num_classes} classes, the held-out images {found.name} {found.num_classes}",
            "Give images of the same classes with data.validation=PATH, or hold out a share",
        )
    return grids(config, unaugmented(found), vae, device)


def grids(config: RunConfig, source: ImageSource, vae: VaeRecord | None, device: torch.device) -> ImageSource:
    """Samples as the model sees them: images of a run on latents are encoded."""
    if config.codec.kind == "pixel" or (source.channels, source.image_size) == (
        config.model.in_channels,
        config.model.image_size,
    ):
        return source
    codec = build_codec(config, device, vae)
    assert isinstance(codec, VaeCodec)
    return _Encoded(source, codec)


class _Encoded:
    """Images as the modes of their latents, one at a time; an `ImageSource`."""

    def __init__(self, source: ImageSource, codec: VaeCodec) -> None:
        self._source = source
        self._codec = codec
        self.name = source.name
        self.num_classes = source.num_classes
        self.class_names = source.class_names
        self.labels = source.labels
        self.channels = codec.latent_channels
        self.image_size = source.image_size // codec.downsample

    @property
    def fingerprint(self) -> str:
        return self._source.fingerprint

    def __len__(self) -> int:
        return len(self._source)

    def sample_name(self, index: int) -> str:
        return self._source.sample_name(index)

    def load(self, index: int, rng: np.random.Generator | None) -> Float[Tensor, "c h w"]:
        return self._codec.modes(self._source.load(index, rng)[None])[0].cpu()


def _others(config: RunConfig, path: Path) -> ImageSource:
    if config.codec.kind == "vae" and (path / MANIFEST).is_file():
        return build_latents(config, path)
    return open_source(
        kind_of(path),
        path,
        split="all",
        image_size=config.pixel_size,
        channels=config.pixel_channels,
        background=config.data.background,
    )


def conditions_of(source: ImageSource, num_images: int, ema_decay: float) -> dict[str, object]:
    """What held-out losses depend on beside the weights and the objective."""
    return {
        "held_out": source.name,
        "held_out_sha256": source.fingerprint,
        "num_samples": num_images,
        "ema_decay": ema_decay,
    }


def measure(
    model: Backbone,
    source: ImageSource,
    places: Sequence[int],
    objective: Objective,
    *,
    seed: int,
    draw_timestep: Callable[[np.random.Generator], float] | None,
    process: Process,
) -> Generator[Event, None, Losses | int | None]:
    """A model's losses on held-out images; every rank takes a share of them, and all have to call this together.

    Args:
        model: In evaluation mode.
        source: From `held_out`.
        places: Which of its images.
        objective: The run's; its ``is_conditional`` says whether the model takes labels.
        seed: The run's, of the noise.
        draw_timestep: The run's draw of timesteps that need not be whole, for its own loss.

    Returns:
        The losses on the leader, None on other ranks; the number of a signal that a rank received meanwhile.

    Raises:
        DataError: An image could not be read.
    """
    group, device = process.group, process.device
    mine = places[group.rank * len(places) // group.world_size : (group.rank + 1) * len(places) // group.world_size]
    schedule = objective.process
    losses: list[float] = []
    done = 0
    errors: list[np.ndarray] = []
    received = 0
    for first in range(0, len(mine), _IMAGES):
        batch = held_out_batch(
            source,
            mine[first : first + _IMAGES],
            seed=seed,
            num_timesteps=schedule.num_timesteps,
            draw_timestep=draw_timestep,
        ).to(device)
        labels = batch.labels if objective.is_conditional else None
        with torch.no_grad():
            losses.append(float(objective.loss(model, batch)) * len(batch.x_0))
        errors.append(
            epsilon_errors(
                schedule,
                model,
                batch.x_0,
                batch.noise,
                labels,
                prediction=objective.prediction,
                variance=objective.variance,
                precision=objective.precision,
            )
        )
        done += len(batch.x_0)
        yield Progress(done=done, total=len(mine), unit="held-out images")
        if process.stop.requested is not None:
            received = process.stop.requested
            break
    signal_number = int(group.maximum([received])[0])
    if signal_number:
        return signal_number
    gathered = group.gather((losses, np.concatenate(errors) if errors else np.empty((0, len(LOG_SNRS)))))
    if gathered is None:
        return None
    mean = sum(loss for own, _ in gathered for loss in own) / len(places)
    epsilon = summarize(np.concatenate([own for _, own in gathered]))
    return Losses(mean, epsilon, len(places), tuple(nearest_levels(schedule).log_snrs.tolist()))
