"""A model ready to sample, from whatever ``--ckpt`` names."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from dis_cli.config.overrides import apply_overrides
from dis_cli.config.presets import load_preset
from dis_cli.config.schema import RunConfig
from dis_cli.models.backbone import Backbone
from dis_cli.scan.engines.choose import ChosenEngine
from dis_cli.workflows.build import build_model, pick_engine
from dis_cli.workflows.load.identity import with_absolute_paths
from dis_cli.workflows.load.mismatch import check_overrides, check_preset
from dis_cli.workflows.load.opened import Opened
from dis_cli.workflows.load.saved import SavedModel, read_saved


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be sampled, and where it came from.

    Attributes:
        model: In evaluation mode.
        saved: Saved model that it was made of; without the weights, which the model has.
        config: The settings saved with it, with what was asked for instead, and without "auto" in the sampler and its
            steps.
        engine: Engine of its scan.
    """

    model: Backbone
    saved: SavedModel
    config: RunConfig
    engine: ChosenEngine

    def config_with(self, overrides: Sequence[str]) -> RunConfig:
        """The settings with others in place: "auto" may then stand for another sampler, or other steps.

        Raises:
            UsageError: A setting is wrong.
        """
        asked = self.config.model_copy(update={"sample": self.saved.asked_config.sample})
        return apply_overrides(asked, overrides).settled()


def load_model(opened: Opened, device: torch.device, preset: str | None = None) -> LoadedModel:
    """Make the model of what was looked at.

    Args:
        opened: From `open_checkpoint`.
        device: Device of the model.
        preset: The preset that it must belong to; None accepts any.

    Raises:
        UsageError: An override of a ``.pt`` file, the preset or the engine is wrong.
        CheckpointError: It is damaged, or cannot be told to be one of these.
        MismatchError: It is sound and of something else: of another architecture, or its weights fit neither the
            settings saved with them nor those asked for.
    """
    wanted = None if preset is None else load_preset(preset)
    # All that can be wrong with it is told before there is a model that could be loaded in part.
    saved = read_saved(opened)
    saved.require_known()
    config = with_absolute_paths(saved.asked_config).settled()
    if wanted is not None:
        check_preset(saved.path, saved.config, saved.vae, wanted)
    check_overrides(saved.path, saved.config, config)
    engine = pick_engine(config, device)
    model = build_model(saved.config.model_copy(update={"engine": config.engine}))
    model.load_state_dict(saved.weights)
    model.to(device).eval().requires_grad_(False)
    return LoadedModel(model, replace(saved, weights={}), config, engine)
