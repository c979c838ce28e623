"""Comparison of a checkpoint's weights with the settings saved beside them and with those asked for.

All of it is told from names, shapes and settings, before a model is built: there is none to be left half loaded.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from dis_cli.checkpoints.published import recognize, shapes_of
from dis_cli.codecs.locate import BUNDLED, locate_vae
from dis_cli.config.schema import RunConfig
from dis_cli.config.settings import as_text
from dis_cli.data.latents.format import VaeRecord
from dis_cli.errors import MismatchError, MissingResourceError, differing, listed
from dis_cli.workflows.cost import model_shape

# They decide how weights come about, not what they mean.
TRAINING_ONLY = ("loss_weight", "min_snr_gamma", "velocity_clamp", "timesteps", "timestep_mean", "timestep_std")
_FREE = frozenset(f"diffusion.{name}" for name in TRAINING_ONLY)


def check_weights(path: Path, weights: Mapping[str, Tensor], saved: RunConfig) -> None:
    """Refuse weights that are not those of the model in the settings saved with them.

    Raises:
        MismatchError: Gives both values of each setting that differs; or the weights are of another model.
    """
    _, held = recognize(path, shapes_of(weights), saved.model.backbone, asdict(model_shape(saved)))
    if lines := differing(_named(held), _shape(saved), as_text, words=("in the weights", "in the settings")):
        raise MismatchError(
            f"The weights in `{path}` do not match the model in their settings:{listed(lines)}",
            "Its files come from two runs: use another checkpoint",
        )


def check_overrides(path: Path, saved: RunConfig, config: RunConfig) -> None:
    """Refuse settings that would need weights of other shapes.

    Args:
        config: These with what was asked for instead.

    Raises:
        MismatchError: Gives both values of each setting that differs.
    """
    if lines := differing(_shape(saved), _shape(config), as_text, words=("in the checkpoint", "asked for")):
        raise MismatchError(
            f"The weights in `{path}` do not allow these settings:{listed(lines)}",
            "Leave them out to use the settings saved with it",
        )


def check_preset(path: Path, saved: RunConfig, vae: VaeRecord | None, preset: RunConfig) -> None:
    """Refuse a checkpoint whose model, codec or diffusion process is not the preset's.

    Args:
        vae: The VAE that its latents are of; None when that is not known.

    Raises:
        MismatchError: Gives both values of each setting that differs, the model's first.
    """
    theirs, ours = _meaning(saved), _meaning(preset)
    if saved.codec.kind == preset.codec.kind == "vae" and _is_same_vae(saved.codec.vae, vae, preset.codec.vae):
        theirs["codec.vae"] = ours["codec.vae"]
    if lines := differing(theirs, ours, as_text, words=("in the checkpoint", "in the preset")):
        raise MismatchError(
            f"`{path}` is not a checkpoint of {preset.name}:{listed(lines)}",
            "Without `--preset` the settings saved with it are used",
        )


def _shape(config: RunConfig) -> dict[str, object]:
    """The settings that decide the weights' shapes, and what the model makes of them."""
    return {"model.backbone": config.model.backbone} | _named(asdict(model_shape(config)))


def _named(shape: Mapping[str, Any]) -> dict[str, object]:
    """A model's shape by the keys of its settings, the variance last."""
    named: dict[str, object] = {f"model.{key}": value for key, value in shape.items() if key != "learn_sigma"}
    return named | {"diffusion.variance": _variance(learned=shape["learn_sigma"])}


def _meaning(config: RunConfig) -> dict[str, object]:
    """The settings that decide what the weights mean: the model's, then the codec's, then the diffusion process's."""
    codec = config.codec.model_dump() if config.codec.kind == "vae" else {"kind": config.codec.kind}
    shape = _shape(config)
    # Which of the fixed variances is taken matters to the sampler only.
    variance = shape.pop("diffusion.variance")
    sections = {"codec": codec, "diffusion": config.diffusion.model_dump() | {"variance": variance}}
    flat = {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}
    return shape | {key: value for key, value in flat.items() if key not in _FREE}


def _variance(*, learned: bool) -> str:
    return "learned_range" if learned else "fixed"


def _is_same_vae(theirs: str | None, record: VaeRecord | None, ours: str | None) -> bool:
    """True if nothing says that a preset's VAE is another one than a checkpoint's; names of folders say nothing."""
    if ours is None or theirs == ours:
        return True
    if record is not None:
        try:
            return locate_vae(ours).identity == (record.config_sha256, record.weights_sha256)
        except MissingResourceError:
            # It cannot be compared by content here.
            theirs = record.name
    return theirs is None or not (_is_public(theirs) and _is_public(ours))


def _is_public(vae: str) -> bool:
    """True if a VAE's name means the same everywhere: a bundled one, or ``owner/name`` on the hub."""
    looks_like_hub = vae.count("/") == 1 and not vae.startswith(("/", ".", "~")) and not Path(vae).exists()
    return vae in BUNDLED or looks_like_hub
