"""Options that say how images are generated, for the commands that generate them."""

from typing import Annotated

import typer

from dis_cli.paths import expand_home

StepsOption = Annotated[
    int | None,
    typer.Option("--steps", metavar="N", min=1, help="Model evaluations per image, instead of the run's."),
]
SamplerOption = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        metavar="NAME",
        help="auto, ancestral (the paper's), ddim, dpm++, dpm++sde, unipc, heun or euler, instead of the run's; with "
        "its usual steps, unless --steps says how many.",
    ),
]
EtaOption = Annotated[
    float | None, typer.Option("--eta", metavar="X", help="For ddim: share of the ancestral noise, 0 to 1.")
]
CfgScaleOption = Annotated[
    float | None, typer.Option("--cfg-scale", metavar="X", help="Classifier-free guidance; 1 is none.")
]
CfgChannelsOption = Annotated[
    str | None, typer.Option("--cfg-channels", metavar="all|3", help="Channels that are guided; 3 as published.")
]
CfgIntervalOption = Annotated[
    str | None,
    typer.Option(
        "--cfg-interval", metavar="LO,HI", help="Guide between these shares of the diffusion time only; 1 is noise."
    ),
]
CfgScheduleOption = Annotated[
    str | None,
    typer.Option(
        "--cfg-schedule",
        metavar="NAME",
        help="constant, linear or power-cosine: the last two grow from 1 to --cfg-scale.",
    ),
]
VaeOption = Annotated[
    str | None,
    typer.Option(
        "--vae", metavar="DIR", parser=expand_home, help="Folder, or cached hub id, of the VAE that decodes latents."
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
