"""What a command needs beside the weights of a checkpoint, looked for without torch, which takes seconds to import."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from dis_cli.checkpoints.store import Checkpoint, resolve_checkpoint
from dis_cli.codecs.locate import locate_vae
from dis_cli.config.overrides import apply_overrides
from dis_cli.config.schema import RunConfig
from dis_cli.config.settings import as_text, explain
from dis_cli.errors import MismatchError, UsageError, listed
from dis_cli.metrics.locate import locate_inception
from dis_cli.workflows.averages import choose_average, choose_published


def read_config(checkpoint: Path, overrides: Sequence[str]) -> RunConfig | None:
    """The settings that a command will work with.

    Args:
        checkpoint: Run folder, checkpoint folder or published ``.pt`` file.
        overrides: ``KEY=VALUE`` on the settings saved with it.

    Returns:
        None for a published file: its settings are told from its weights, which only torch reads.

    Raises:
        UsageError: There is no such path, an override is wrong, or the run kept no such average of its weights.
        CheckpointError: It is damaged, or not a checkpoint.
    """
    if is_published(checkpoint):
        choose_published(overrides)
        return None
    saved = saved_config(resolve_checkpoint(checkpoint, names=()))
    config = apply_overrides(saved, overrides)
    choose_average(saved, config.sample.ema)
    return config


def is_published(checkpoint: Path) -> bool:
    """Whether a path names a published file, as opposed to a folder.

    Raises:
        UsageError: It is neither.
    """
    if not checkpoint.is_file() and not checkpoint.is_dir():
        raise UsageError(
            f"No checkpoint at `{checkpoint}`",
            "Give a run folder, one of its checkpoints/step-* folders, or a published .pt file",
        )
    return checkpoint.is_file()


def saved_config(checkpoint: Checkpoint) -> RunConfig:
    """The settings saved with a checkpoint.

    Raises:
        MismatchError: They are of another version, or it is a checkpoint of something else: lists what is wrong.
    """
    settings = checkpoint.meta.get("config")
    if not isinstance(settings, dict):
        raise MismatchError(f"`{checkpoint.path}` holds no settings of a run", "Give a run folder of `dis train`")
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        problems = [problem.message for problem in explain(error, settings, as_text)]
        raise MismatchError(
            f"The settings in `{checkpoint.path}` are not ones that this version reads:{listed(problems)}",
            "They may be of a later version: install a newer `dis`",
        ) from error


def look_for_vae(config: RunConfig | None, vae: str | None) -> None:
    """Find the VAE that decodes the model's latents.

    Args:
        config: The command's settings; None when they are not known yet.
        vae: The option ``--vae``, looked for when they are not.

    Raises:
        UsageError: The settings name none.
        MissingResourceError: It is not on this machine.
    """
    if config is not None:
        vae = named_vae(config) if config.codec.kind == "vae" else None
    if vae is not None:
        locate_vae(vae)


def named_vae(config: RunConfig) -> str:
    """What the settings of a run on latents call their VAE.

    Raises:
        UsageError: They name none.
    """
    if config.codec.vae is None:
        raise UsageError(
            "The model works on latents, and no VAE was named", "Give its folder with `--vae DIR` (or codec.vae=DIR)"
        )
    return config.codec.vae


def look_for_inception(config: RunConfig | None, inception: Path | None) -> None:
    """Find the weights of Inception.

    Args:
        config: The command's settings; None when they are not known yet, and then only the option is looked at.
        inception: The option ``--inception``.

    Raises:
        MissingResourceError: They are needed and not on this machine.
    """
    if config is not None:
        locate_inception(inception, config.data.source)
    elif inception is not None:
        locate_inception(inception, "folder")
