"""Checks before the work for whatever a command needs beside weights and images, without torch."""

from pathlib import Path

from dis_cli.codecs.locate import locate_vae
from dis_cli.config.schema import RunConfig
from dis_cli.errors import UsageError
from dis_cli.metrics.extractors.choose import choose_features
from dis_cli.metrics.extractors.locate import locate_inception


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
    """The name of the VAE in the settings of a run on latents.

    Raises:
        UsageError: They name none.
    """
    if config.codec.vae is None:
        raise UsageError(
            "The model works on latents, but no VAE was given", "Give its folder with `--vae DIR` (or codec.vae=DIR)"
        )
    return config.codec.vae


def look_for_features(config: RunConfig | None, inception: Path | None) -> None:
    """Find the weights of what looks at scored images.

    Args:
        config: The command's settings; None when they are not known yet, and then only the option is looked at.

    Raises:
        UsageError: The options contradict each other.
        MissingResourceError: They are needed and not on this machine.
    """
    if config is not None:
        choose_features(config.evaluate.features, config.data.source, inception or config.evaluate.inception)
    elif inception is not None:
        locate_inception(inception)
