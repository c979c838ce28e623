"""The Python interface: a trained model as a module, and images from it."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dis_cli.config.overrides import as_overrides
from dis_cli.config.sampling import LARGEST_SEED
from dis_cli.config.schema import RunConfig
from dis_cli.errors import UsageError
from dis_cli.models.backbone import Backbone
from dis_cli.paths import home_path
from dis_cli.runtime.device import pick_device
from dis_cli.workflows.build import build_codec, pick_precision
from dis_cli.workflows.load import model as load
from dis_cli.workflows.load.model import LoadedModel
from dis_cli.workflows.load.opened import open_checkpoint
from dis_cli.workflows.sample.generate import generate
from dis_cli.workflows.sample.requests import parse_classes

_DEFAULT_IMAGES = 16


class TrainedDiS(Backbone):
    """A backbone, such as a `DiS`, with trained weights, and what was saved beside them; see `load_model`."""

    origin: LoadedModel

    @property
    def config(self) -> RunConfig:
        """The settings of its run, with what was asked for instead."""
        return self.origin.config

    @property
    def step(self) -> int | None:
        """Optimizer steps it was trained for; None when unknown."""
        return self.origin.saved.step

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a class; empty when unknown."""
        return self.origin.saved.class_names

    def __reduce__(self) -> tuple[Any, ...]:
        # Its class is made when it is needed, so that pickle has to be told where it comes from.
        return _blank, (type(self).__bases__[1],), self.__dict__


def load_model(
    path: str | os.PathLike[str],
    *,
    device: str = "auto",
    step: int | None = None,
    ema: float | None = None,
    overrides: Sequence[str] = (),
) -> TrainedDiS:
    """The model of a checkpoint as a module, its settings in ``config``.

    It is in evaluation mode, and its parameters need no gradient: ``model.train().requires_grad_()`` changes both.

    Args:
        path: Whatever ``--ckpt`` takes: a run folder (its newest sound checkpoint), a checkpoint folder, a file or
            folder of `dis checkpoint export`, or a ``.pt`` of the published code.
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".
        step: The checkpoint of a run folder to take instead of the newest.
        ema: Decay of the weight average to take, of those that the run kept; 0 takes the weights as they were trained,
            None the usual average.
        overrides: ``KEY=VALUE`` on the settings saved with it, such as "engine=torch".

    Raises:
        DisError: `UsageError` where the arguments are wrong, `CheckpointError` where the file is damaged,
            `MismatchError` where it is sound and of something else.
    """
    asked = [*overrides, *as_overrides({"sample.ema": ema})]
    place = pick_device(device)
    loaded = load.load_model(open_checkpoint(home_path(os.fspath(path)), asked, step), place)
    model = loaded.model
    model.__class__ = _trained(type(model))
    assert isinstance(model, TrainedDiS)
    model.origin = loaded
    return model


def sample_images(
    model: TrainedDiS,
    n: int | None = None,
    *,
    classes: int | str | Sequence[int | str] = (),
    seeds: Sequence[int] | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    cfg_scale: float | None = None,
    vae: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> npt.NDArray[np.uint8]:
    """Images from a model: those that `dis sample` writes for the same seeds, classes and settings, bit for bit.

    An image depends on its seed and class only.

    Args:
        model: From `load_model`.
        n: Number; None takes as many as there are seeds, or else 16.
        classes: A number or name, or several that take turns, or "all", as ``--class`` takes them: where names are
            numbers, a number is a name. () lets each image's seed choose.
        seeds: One an image, 0 or more; None takes 0 to n - 1.
        steps: Model evaluations an image, instead of the run's.
        sampler: As ``--sampler``, instead of the run's; with its usual steps, unless ``steps`` says how many.
        cfg_scale: Classifier-free guidance; 1 is none.
        vae: Folder, or cached hub id, of the VAE that decodes latents.
        overrides: ``KEY=VALUE`` on the model's settings, such as "sample.batch_size=8".

    Returns:
        (n, height, width, channels), 0 to 255.

    Raises:
        UsageError: A setting, class or seed is wrong.
        DisError: The VAE or the device do not allow it.
    """
    loaded = model.origin
    options = {
        "sample.steps": steps,
        "sample.sampler": sampler,
        "sample.cfg_scale": cfg_scale,
        "codec.vae": None if vae is None else os.fspath(vae),
    }
    config = loaded.config_with([*as_overrides(options), *overrides])
    seeds = _seeds(n, seeds)
    wanted = [classes] if isinstance(classes, int | np.integer | str) else classes
    asked_classes = [str(entry) for entry in wanted]
    chosen = parse_classes(asked_classes, loaded.saved.class_names, loaded.saved.config.model.num_classes).places
    batches = generate(
        model,
        build_codec(config, model.device, loaded.saved.vae),
        config,
        seeds=seeds,
        classes=[chosen[index % len(chosen)] for index in range(len(seeds))] if chosen else None,
        device=model.device,
        precision=pick_precision(config.sample.precision, config, model.device).name,
    )
    was_training = model.training
    try:
        model.eval()
        with torch.no_grad():
            return np.concatenate([batch.images.numpy() for batch in batches if batch.images is not None])
    finally:
        model.train(was_training)


@functools.cache
def _trained(backbone: type[Backbone]) -> type[Backbone]:
    """A backbone's class, with what a trained model can say."""
    return type(f"Trained{backbone.__name__}", (TrainedDiS, backbone), {})


def _blank(backbone: type[Backbone]) -> Backbone:
    trained = _trained(backbone)
    return trained.__new__(trained)


def _seeds(n: int | None, seeds: Sequence[int] | None) -> Sequence[int]:
    count = n if n is not None else _DEFAULT_IMAGES if seeds is None else len(seeds)
    found = range(count) if seeds is None else seeds
    if count < 1 or len(found) != count:
        raise UsageError(
            f"n is {count} and there are {len(found)} seeds: one an image is needed, and one image or more"
        )
    if wrong := [seed for seed in found if not 0 <= seed <= LARGEST_SEED]:
        raise UsageError(f"Seed {wrong[0]} is out of range: allowed are 0 to {LARGEST_SEED}")
    return found
