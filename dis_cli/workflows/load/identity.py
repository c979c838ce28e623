"""The identity and place of a run's training data, recognised in every working directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dis_cli.checkpoints.store import latest_checkpoint
from dis_cli.codecs.locate import absolute_vae
from dis_cli.config.schema import RunConfig
from dis_cli.data.images.files import FileSource
from dis_cli.data.latents.source import LatentSource
from dis_cli.data.source import ImageSource
from dis_cli.errors import DataError, MismatchError
from dis_cli.paths import home_path
from dis_cli.workflows.build import build_image_source
from dis_cli.workflows.load.opened import saved_config


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """``config`` with paths that mean the same in every working directory; links in them are not followed."""
    data, codec, evaluate = config.data, config.codec, config.evaluate
    held_out = data.validation if data.validation_path is None else str(data.validation_path.absolute())
    return config.model_copy(
        update={
            "data": data.model_copy(update={"path": data.path and data.path.absolute(), "validation": held_out}),
            "codec": codec.model_copy(update={"vae": codec.vae and absolute_vae(codec.vae)}),
            "evaluate": evaluate.model_copy(update={"inception": evaluate.inception and evaluate.inception.absolute()}),
        }
    )


def identity_of(source: ImageSource) -> dict[str, str]:
    """A checkpoint's record of the data it was trained on.

    Returns:
        "data_fingerprint" of the samples; and "images_fingerprint" of the images that they come from, before bad ones
        were left out and before they were encoded: of all that can be found again and compared.
    """
    own = images = source.fingerprint
    if isinstance(source, LatentSource):
        images = source.settings.source
    elif isinstance(source, FileSource) and source.left_out:
        images = source.whole().fingerprint
    return {"data_fingerprint": own, "images_fingerprint": images}


def recorded_images(meta: Mapping[str, Any], config: RunConfig) -> str | None:
    """The fingerprint of the images behind a checkpoint.

    Args:
        meta: Data saved beside its weights.

    Returns:
        None when it says nothing of them, as those of earlier versions do where bad images were left out or encoded.
    """
    is_same = config.codec.kind == "pixel" and config.data.on_bad == "stop"
    found = meta.get("images_fingerprint", meta.get("data_fingerprint") if is_same else None)
    return found if isinstance(found, str) else None


def require_there(config: RunConfig, saved: RunConfig, checkpoint: Path) -> None:
    """Refuse to look for a checkpoint's data in a place where nothing is.

    Args:
        config: The settings asked for, with absolute paths.
        saved: Those saved with the checkpoint; earlier versions recorded paths as they were typed.

    Raises:
        DataError: Says what was tried, and how to tell where they are.
    """
    path = config.data.path
    if path is None or config.data.download or path.exists():
        return
    own = saved.data.path
    is_relative = own is not None and not own.is_absolute() and own.absolute() == path
    tried = f" (recorded as `{own}`, and taken from the working directory)" if is_relative else ""
    raise DataError(
        f"The data of `{checkpoint}` are not there: `{path}`{tried}",
        "Say where they are with `--data PATH`, or compare with other images with `--ref PATH`",
    )


def require_same_images(config: RunConfig, recorded: str | None, checkpoint: Path) -> None:
    """Refuse to compare a model with other images than it was trained on as if they were the same.

    Args:
        config: Its ``data`` section says where the images are.
        recorded: From `recorded_images`.

    Raises:
        MismatchError: Gives both fingerprints.
    """
    if recorded is None or config.data.source == "latents":
        return
    source = build_image_source(config, split="train")
    if (now := source.fingerprint) != recorded:
        raise MismatchError(
            f"The data {source.name} are not those that `{checkpoint}` was trained on: sha256 {recorded[:12]} then, "
            f"{now[:12]} now",
            "Say where those are with `--data PATH`, or compare with these, as other images, with "
            f"`--ref {config.data.path or 'PATH'}`",
        )


def require_same_as_run(preset: str | None, base: RunConfig, config: RunConfig) -> None:
    """Refuse data that are no longer those of a run whose ``config.toml`` is the preset.

    Args:
        preset: The preset's name or path, or None.
        config: These with what was asked for instead; other data may be asked for.

    Raises:
        MismatchError: Gives both fingerprints.
    """
    if preset is None or config.data != base.data or Path(preset).name != "config.toml":
        return
    checkpoint, _ = latest_checkpoint(home_path(preset).parent / "checkpoints", ())
    if checkpoint is not None:
        recorded = recorded_images(checkpoint.meta, saved_config(checkpoint.path, checkpoint.meta))
        require_same_images(config, recorded, checkpoint.path)
