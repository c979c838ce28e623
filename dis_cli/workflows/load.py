"""From what ``--ckpt`` names to a model that can be sampled."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from dis_cli.checkpoints.manifest import read_manifest
from dis_cli.checkpoints.reference import read_reference
from dis_cli.checkpoints.store import Checkpoint, read_checkpoint, resolve_checkpoint
from dis_cli.config.overrides import apply_overrides
from dis_cli.config.presets import load_preset
from dis_cli.config.schema import RunConfig
from dis_cli.config.settings import as_text, explain
from dis_cli.data.shards import VaeRecord, parse_vae
from dis_cli.errors import MismatchError, listed
from dis_cli.models.backbone import DiS
from dis_cli.scan.engines import Engine
from dis_cli.workflows.averages import Average, choose_average, choose_published
from dis_cli.workflows.build import build_model, pick_engine
from dis_cli.workflows.mismatch import check_overrides, check_preset, check_weights
from dis_cli.workflows.resources import is_published, saved_config

PUBLISHED_VAE = "stabilityai/sd-vae-ft-ema"


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be sampled, and where it came from.

    Attributes:
        model: In evaluation mode.
        average: Which of the checkpoint's weights it has.
        saved_config: The settings of its run; for a published checkpoint those of the published code.
        config: These with what was asked for instead.
        engine: What computes its scan.
        path: The checkpoint read.
        step: Optimizer steps it was trained for; None when the file does not say.
        class_names: One name a class; empty when unknown.
        vae: The VAE that its latents are of; None for pixels, or when the checkpoint does not say.
        notes: What the user should know about how it was found.
    """

    model: DiS
    average: Average
    saved_config: RunConfig
    config: RunConfig
    engine: Engine
    path: Path
    step: int | None
    class_names: tuple[str, ...]
    vae: VaeRecord | None
    notes: tuple[str, ...]

    @property
    def run_folder(self) -> Path | None:
        """The run that the checkpoint is part of, or None."""
        # "step-00000100" alone, given inside the folder of checkpoints, has no parents of its own.
        path = self.path if len(self.path.parts) > 2 else self.path.absolute()
        folder = path.parent.parent
        return folder if self.step is not None and (folder / "config.toml").exists() else None


def load_model(
    path: Path, device: torch.device, overrides: Sequence[str] = (), preset: str | None = None
) -> LoadedModel:
    """Read a run folder (its newest sound checkpoint), a checkpoint folder, or a published ``.pt`` file.

    Args:
        path: One of these.
        device: Where the model will be.
        overrides: ``KEY=VALUE`` on the settings saved with it. ``sample.ema`` says which weights are read.
        preset: The preset that it must belong to; None accepts any.

    Raises:
        UsageError: There is no such path, the run kept no such average, or an override, the preset or the engine is
            wrong.
        CheckpointError: It is damaged, or cannot be told to be one of these.
        MismatchError: It is sound and of something else: of another architecture, or its weights fit neither the
            settings saved with them nor those asked for.
    """
    wanted = None if preset is None else load_preset(preset)
    found = _read_published(path, overrides) if is_published(path) else _read_own(path, overrides)
    config = apply_overrides(found.config, overrides)
    # All that can be wrong with it is told before there is a model that could be loaded in part.
    check_weights(found.path, found.weights, found.config)
    if wanted is not None:
        check_preset(found.path, found.config, found.vae, wanted)
    check_overrides(found.path, found.config, config)
    engine = pick_engine(config, device)
    model = build_model(found.config.model_copy(update={"engine": config.engine}))
    model.load_state_dict(found.weights)
    model.to(device).eval().requires_grad_(False)
    return LoadedModel(
        model=model,
        average=found.average,
        saved_config=found.config,
        config=config,
        engine=engine,
        path=found.path,
        step=found.step,
        class_names=found.class_names,
        vae=found.vae,
        notes=found.notes,
    )


@dataclass(frozen=True)
class _Found:
    """What a file or folder holds."""

    config: RunConfig
    average: Average
    weights: dict[str, torch.Tensor]
    path: Path
    step: int | None
    class_names: tuple[str, ...]
    vae: VaeRecord | None
    notes: tuple[str, ...]


def _read_own(path: Path, overrides: Sequence[str]) -> _Found:
    average = _average_in(resolve_checkpoint(path, names=()), overrides)
    checkpoint = resolve_checkpoint(path, names=(average.group,))
    # Where the newest weights are damaged it is an older checkpoint, which may have kept its averages in another order.
    own = _average_in(checkpoint, overrides)
    tensors = checkpoint.tensors
    if own.group != average.group:
        tensors = read_checkpoint(checkpoint.path, names=(own.group,)).tensors
    return _Found(
        config=saved_config(checkpoint),
        average=own,
        weights=tensors[own.group],
        path=checkpoint.path,
        step=checkpoint.step,
        class_names=_class_names(checkpoint),
        vae=_vae(checkpoint),
        notes=checkpoint.notes,
    )


def _average_in(checkpoint: Checkpoint, overrides: Sequence[str]) -> Average:
    """Which weights of a checkpoint are asked for; by its settings, and by its files."""
    saved = saved_config(checkpoint)
    average = choose_average(saved, apply_overrides(saved, overrides).sample.ema)
    groups = [name.removesuffix(".safetensors") for name in read_manifest(checkpoint.path)]
    if average.group not in groups:
        raise MismatchError(
            f"By its settings `{checkpoint.path}` holds an average of decay {as_text(average.decay)} "
            f"(`{average.group}`), but there are only {', '.join(sorted({*groups} - {'meta.json'}))}",
            "Take another with sample.ema=DECAY, or a later checkpoint of the run",
        )
    return average


def _class_names(checkpoint: Checkpoint) -> tuple[str, ...]:
    names = checkpoint.meta.get("class_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise MismatchError(f"The names of classes in `{checkpoint.path}` are no list of names: {names!r:.60}")
    count = saved_config(checkpoint).model.num_classes
    if names and count and len(names) != count:
        raise MismatchError(
            f"`{checkpoint.path}` names {len(names)} classes, and model.num_classes in its settings is {count}"
        )
    return tuple(names)


def _vae(checkpoint: Checkpoint) -> VaeRecord | None:
    record = checkpoint.meta.get("vae")
    try:
        return None if record is None else parse_vae(record)
    except (ValueError, KeyError, TypeError) as error:
        raise MismatchError(f"The VAE in the settings of `{checkpoint.path}` cannot be read: {error}") from error


def _read_published(path: Path, overrides: Sequence[str]) -> _Found:
    asked = choose_published(overrides)
    reference = read_reference(path, None if asked is None else "ema" if asked.decay else "model")
    kwargs: dict[str, Any] = dict(reference.model_kwargs)
    learn_sigma = kwargs.pop("learn_sigma")
    latent = kwargs["in_channels"] == 4
    settings = {
        "name": "published",
        "model": kwargs,
        "diffusion": {"variance": "learned_range" if learn_sigma else "fixed_large"},
        "codec": {"kind": "vae", "vae": PUBLISHED_VAE} if latent else {},
        "data": {"source": "latents" if latent else "folder"},
    }
    try:
        config = RunConfig.model_validate(settings)
    except ValidationError as error:
        problems = [problem.message for problem in explain(error, settings, as_text)]
        raise MismatchError(
            f"`{path}` holds a DiS model of sizes that this version does not build:{listed(problems)}",
            "`dis presets keys` lists the settings and their bounds",
        ) from error
    average = choose_average(config, None if reference.source == "ema" else 0.0)
    is_default = reference.source == reference.held[0]
    notes = (f"A published checkpoint: its {reference.source} weights, and the published code's diffusion settings",)
    return _Found(
        config=config,
        average=replace(average, is_default=is_default),
        weights=reference.state_dict,
        path=path,
        step=None,
        class_names=(),
        vae=None,
        notes=notes,
    )
