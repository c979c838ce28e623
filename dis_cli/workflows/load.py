"""From what ``--ckpt`` names to a model that can be sampled."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dis_cli.checkpoints.reference import read_reference
from dis_cli.checkpoints.store import resolve_checkpoint
from dis_cli.config.overrides import apply_overrides
from dis_cli.config.presets import load_preset
from dis_cli.config.schema import CodecConfig, DataConfig, DiffusionConfig, ModelConfig, RunConfig
from dis_cli.data.shards import VaeRecord, parse_vae
from dis_cli.errors import CheckpointError, MismatchError, UsageError, did_you_mean
from dis_cli.models.backbone import DiS
from dis_cli.scan.engines import Engine
from dis_cli.workflows.build import build_model, pick_engine
from dis_cli.workflows.resources import is_published, saved_config

PUBLISHED_VAE = "stabilityai/sd-vae-ft-ema"


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be sampled, and where it came from.

    Attributes:
        model: In evaluation mode, with averaged weights.
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
        folder = self.path.parent.parent
        return folder if self.step is not None and (folder / "config.toml").exists() else None


def load_model(path: Path, device: torch.device, overrides: Sequence[str] = ()) -> LoadedModel:
    """Read a run folder (its newest sound checkpoint), a checkpoint folder, or a published ``.pt`` file.

    Args:
        path: One of these.
        device: Where the model will be.
        overrides: ``KEY=VALUE`` on the settings saved with it. The model's shape stays that of the weights.

    Raises:
        UsageError: There is no such path, or an override or the engine is wrong.
        CheckpointError: It is damaged, or none of these.
        MismatchError: The weights do not fit the settings saved with them.
    """
    found = _read_published(path) if is_published(path) else _read_own(path)
    config = apply_overrides(found.config, overrides)
    engine = pick_engine(config, device)
    model = build_model(found.config.model_copy(update={"engine": config.engine}))
    _load_weights(model, found.weights, found.path)
    model.to(device).eval().requires_grad_(False)
    return LoadedModel(
        model, found.config, config, engine, found.path, found.step, found.class_names, found.vae, found.notes
    )


@dataclass(frozen=True)
class _Found:
    """What a file or folder holds."""

    config: RunConfig
    weights: dict[str, torch.Tensor]
    path: Path
    step: int | None
    class_names: tuple[str, ...]
    vae: VaeRecord | None
    notes: tuple[str, ...]


def _read_own(path: Path) -> _Found:
    checkpoint = resolve_checkpoint(path, names=("ema",))
    config = saved_config(checkpoint)
    names = tuple(checkpoint.meta.get("class_names", ()))
    vae = checkpoint.meta.get("vae")
    try:
        record = None if vae is None else parse_vae(vae)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"The VAE in the settings of `{checkpoint.path}` cannot be read: {error}") from error
    return _Found(config, checkpoint.tensors["ema"], checkpoint.path, checkpoint.step, names, record, checkpoint.notes)


def _read_published(path: Path) -> _Found:
    reference = read_reference(path)
    kwargs: dict[str, Any] = dict(reference.model_kwargs)
    learn_sigma = kwargs.pop("learn_sigma")
    latent = kwargs["in_channels"] == 4
    config = RunConfig(
        name="published",
        model=ModelConfig(**kwargs),
        diffusion=DiffusionConfig(variance="learned_range" if learn_sigma else "fixed_large"),
        codec=CodecConfig(kind="vae", vae=PUBLISHED_VAE) if latent else CodecConfig(),
        data=DataConfig(source="latents" if latent else "folder"),
    )
    notes = (f"A published checkpoint: its {reference.source} weights, and the published code's diffusion settings",)
    return _Found(config, reference.state_dict, path, None, (), None, notes)


def _load_weights(model: DiS, weights: dict[str, torch.Tensor], path: Path) -> None:
    own = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    theirs = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if own != theirs:
        different = sorted(name for name in own | theirs if own.get(name) != theirs.get(name))
        lines = "".join(
            f"\n  {name}: {theirs.get(name, 'absent')} in the file, {own.get(name, 'absent')} in the model"
            for name in different[:10]
        )
        raise MismatchError(f"The weights in `{path}` do not fit their settings, {len(different)} differ:{lines}")
    model.load_state_dict(weights)


def check_preset(loaded: LoadedModel, preset: str) -> None:
    """Refuse a checkpoint whose model or diffusion is not the preset's.

    Raises:
        MismatchError: Lists both values of each setting that differs.
    """
    wanted = load_preset(preset)
    lines: list[str] = []
    for section in ("model", "diffusion"):
        ours, theirs = getattr(wanted, section).model_dump(), getattr(loaded.saved_config, section).model_dump()
        # Neither changes what the weights mean.
        ignored = ("drop_path", "label_drop", "init", "final_init")
        lines += [
            f"\n  {section}.{key}: {theirs[key]} in the checkpoint, {ours[key]} in the preset"
            for key in ours
            if ours[key] != theirs[key] and key not in ignored
        ]
    if lines:
        raise MismatchError(f"`{loaded.path}` is not a checkpoint of {wanted.name}:{''.join(lines)}")


def parse_classes(values: list[str], loaded: LoadedModel) -> list[int]:
    """Class numbers from what the user wrote: numbers, names, comma-separated lists of them, or "all".

    Raises:
        UsageError: The model has no classes, or not this one.
    """
    count = loaded.saved_config.model.num_classes
    wanted = [part.strip() for value in values for part in value.split(",") if part.strip()]
    if not wanted:
        return []
    if count == 0:
        raise UsageError(f"The model is unconditional and has no class {wanted[0]}", "Leave `--class` out")
    if wanted == ["all"]:
        return list(range(count))
    return [_parse_class(text, count, loaded.class_names) for text in wanted]


def _parse_class(text: str, count: int, names: tuple[str, ...]) -> int:
    if text in names:
        return names.index(text)
    if re.fullmatch(r"-?[0-9]{1,18}", text):
        if 0 <= int(text) < count:
            return int(text)
        raise UsageError(f"Class {text} is out of range: the model has {count} classes, 0 to {count - 1}")
    close = did_you_mean(text, names)
    if close:
        hint = f"Did you mean `{close}`?"
    elif names:
        hint = f"Classes are numbers, 0 to {count - 1}, or names such as `{names[0]}`, or `all`"
    else:
        hint = f"Classes are numbers, 0 to {count - 1}, or `all`; this checkpoint does not name them"
    raise UsageError(f"Unknown class: `{text}`", hint)
