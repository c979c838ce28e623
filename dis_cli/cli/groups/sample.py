"""Sampling options, for the commands that generate images."""

from typing import Annotated

import typer

from dis_cli.cli.completion.words import sampler_words
from dis_cli.cli.display.help import Panel
from dis_cli.diffusion.samplers.table import SAMPLERS
from dis_cli.paths import expand_home

StepsOption = Annotated[
    int | None,
    typer.Option(
        "--steps",
        metavar="N",
        min=1,
        help="Model evaluations per image, instead of the run's setting.",
        rich_help_panel=Panel.SAMPLING,
    ),
]
SamplerOption = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        metavar="NAME",
        help=f"Sampler: auto, {', '.join(SAMPLERS)}. It brings its usual number of steps, unless --steps is given.",
        autocompletion=sampler_words,
        rich_help_panel=Panel.SAMPLING,
    ),
]
EtaOption = Annotated[
    float | None,
    typer.Option(
        "--eta", metavar="X", help="Share of the ancestral noise in ddim, 0 to 1.", rich_help_panel=Panel.SAMPLING
    ),
]
CfgScaleOption = Annotated[
    float | None,
    typer.Option(
        "--cfg-scale", metavar="X", help="Scale of classifier-free guidance; 1 is none.", rich_help_panel=Panel.SAMPLING
    ),
]
CfgChannelsOption = Annotated[
    str | None,
    typer.Option(
        "--cfg-channels",
        metavar="all|3",
        help="Guided channels: all, or the first 3 as published.",
        rich_help_panel=Panel.SAMPLING,
    ),
]
CfgIntervalOption = Annotated[
    str | None,
    typer.Option(
        "--cfg-interval",
        metavar="LO,HI",
        help="Guide only between these shares of the diffusion time; 1 is pure noise.",
        rich_help_panel=Panel.SAMPLING,
    ),
]
CfgScheduleOption = Annotated[
    str | None,
    typer.Option(
        "--cfg-schedule",
        metavar="NAME",
        help="Guidance over time: constant, or growing from 1 to --cfg-scale (linear, power-cosine).",
        rich_help_panel=Panel.SAMPLING,
    ),
]
VaeOption = Annotated[
    str | None,
    typer.Option(
        "--vae",
        metavar="DIR",
        parser=expand_home,
        help="VAE that decodes latents: a folder, or a cached hub id.",
        rich_help_panel=Panel.SAMPLING,
    ),
]


def sample_settings(
    *,
    steps: int | None,
    sampler: str | None,
    eta: float | None,
    cfg_scale: float | None,
    cfg_channels: str | None,
    cfg_interval: str | None,
    cfg_schedule: str | None,
    vae: str | None,
    overrides: list[str] | None,
) -> list[str]:
    """The settings that options stand for, as overrides; explicit KEY=VALUE win."""
    from dis_cli.config.overrides import as_overrides

    options = {
        "sample.sampler": sampler,
        "sample.steps": steps,
        "sample.eta": eta,
        "sample.cfg_scale": cfg_scale,
        "sample.cfg_channels": cfg_channels,
        "sample.cfg_interval": cfg_interval,
        "sample.cfg_schedule": cfg_schedule,
        "codec.vae": vae,
    }
    return as_overrides(options) + (overrides or [])
