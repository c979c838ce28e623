"""Losses of an untrained model on the digits that are held out."""

from typing import Any

import torch

from dis_cli.config.overrides import apply_overrides
from dis_cli.config.presets import load_preset
from dis_cli.config.schema import RunConfig
from dis_cli.events import Progress
from dis_cli.runtime.device import Process
from dis_cli.workflows.build import build_model, build_objective, build_source, build_timestep_draw
from dis_cli.workflows.held_out import held_out, measure

CPU = torch.device("cpu")


def tiny(*overrides: str) -> RunConfig:
    small = ["model.embed_dim=16", "model.depth=3", "model.patch_size=4", "train.precision=fp32"]
    return apply_overrides(load_preset("dis-xs-digits"), [*small, *overrides])


def losses(process: Process, *overrides: str) -> Any:
    """What `measure` returns of 11 images."""
    config = tiny("data.validation=test", *overrides)
    source = held_out(config, build_source(config), None, CPU)
    assert source is not None
    work = measure(
        build_model(config).eval(),
        source,
        range(11),
        build_objective(config),
        seed=1,
        draw_timestep=build_timestep_draw(config),
        process=process,
    )
    while True:
        try:
            assert isinstance(next(work), Progress)
        except StopIteration as end:
            return end.value
