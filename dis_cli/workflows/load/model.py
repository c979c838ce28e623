"""From what ``--ckpt`` names to a model that can be sampled."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dis_cli.config.overrides import apply_overrides
from dis_cli.config.presets import load_preset
from dis_cli.config.schema import RunConfig
from dis_cli.data.latents.format import VaeRecord
from dis_cli.models.backbone import Backbone
from dis_cli.scan.engines.choose import Engine
from dis_cli.workflows.build import build_model, pick_engine
from dis_cli.workflows.load.averages import Average
from dis_cli.workflows.load.identity import with_absolute_paths
from dis_cli.workflows.load.locate import Form
from dis_cli.workflows.load.mismatch import check_overrides, check_preset
from dis_cli.workflows.load.saved import read_saved, run_of


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be sampled, and where it came from.

    Attributes:
        model: In evaluation mode.
        saved_config: The settings of its run; for a published checkpoint those of the published code.
        config: These with what was asked for instead, and without "auto" in the sampler and its steps.
        sha256: Of its content; see `SavedModel`.
        step: Optimizer steps it was trained for; None when the file does not say.
        class_names: One name a class; empty when unknown.
        vae: The VAE that its latents are of; None for pixels, or when the checkpoint does not say.
        notes: What the user should know about how it was found.
        images_fingerprint: Of the images it was trained on; None when it does not say.
    """

    model: Backbone
    average: Average
    saved_config: RunConfig
    config: RunConfig
    engine: Engine
    form: Form
    path: Path
    sha256: str
    step: int | None
    class_names: tuple[str, ...]
    vae: VaeRecord | None
    notes: tuple[str, ...]
    images_fingerprint: str | None

    @property
    def run_folder(self) -> Path | None:
        """The run that the checkpoint is part of, or None."""
        return run_of(self.form, self.path)


def load_model(
    path: Path,
    device: torch.device,
    overrides: Sequence[str] = (),
    preset: str | None = None,
    step: int | None = None,
) -> LoadedModel:
    """Make the model of what `read_saved` reads.

    Args:
        path: Run folder, checkpoint folder, exported file or folder, or published ``.pt`` file.
        overrides: ``KEY=VALUE`` on the settings saved with it. ``sample.ema`` says which weights are read.
        preset: The preset that it must belong to; None accepts any.
        step: The checkpoint of a run folder to take instead of its newest sound one.

    Raises:
        UsageError: There is no such path or step, the run kept no such average, or an override, the preset or the
            engine is wrong.
        CheckpointError: It is damaged, or cannot be told to be one of these.
        MismatchError: It is sound and of something else: of another architecture, or its weights fit neither the
            settings saved with them nor those asked for.
    """
    wanted = None if preset is None else load_preset(preset)
    # All that can be wrong with it is told before there is a model that could be loaded in part.
    saved = read_saved(path, overrides, step)
    config = with_absolute_paths(apply_overrides(saved.config, overrides)).settled()
    if wanted is not None:
        check_preset(saved.path, saved.config, saved.vae, wanted)
    check_overrides(saved.path, saved.config, config)
    engine = pick_engine(config, device)
    model = build_model(saved.config.model_copy(update={"engine": config.engine}))
    model.load_state_dict(saved.weights)
    model.to(device).eval().requires_grad_(False)
    return LoadedModel(
        model=model,
        average=saved.average,
        saved_config=saved.config,
        config=config,
        engine=engine,
        form=saved.form,
        path=saved.path,
        sha256=saved.sha256,
        step=saved.step,
        class_names=saved.class_names,
        vae=saved.vae,
        notes=saved.notes,
        images_fingerprint=saved.images_fingerprint,
    )
