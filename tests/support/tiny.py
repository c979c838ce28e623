"""A model on the bundled digits that is small enough to train in a test."""

import json
from pathlib import Path
from typing import Any

from dis_cli.cli.app import run

TINY = ["model.embed_dim=16", "model.depth=3", "model.patch_size=4", "train.warmup_steps=2", "train.batch_size=4"]


def dis(*arguments: object) -> int:
    """Run a command in this process; returns its exit status."""
    return run([str(argument) for argument in arguments])


def train(out: Path, *overrides: str) -> int:
    return dis("train", "--out", out, "-q", *TINY, *overrides)


def trained(out: Path, *overrides: str) -> Path:
    """A run that was trained in this process."""
    assert train(out, *overrides) == 0
    return out


def save_latent_run(folder: Path, vae: str) -> Path:
    """Write a run of an untrained model of latents, as a training run leaves it; it is to be decoded by ``vae``."""
    from dis_cli.checkpoints.store import write_checkpoint
    from dis_cli.config.backbones import DisConfig
    from dis_cli.config.generation import SampleConfig
    from dis_cli.config.schema import CodecConfig, DataConfig, RunConfig
    from dis_cli.workflows.build import build_model

    config = RunConfig(
        model=DisConfig(image_size=8, patch_size=4, in_channels=4, embed_dim=16, depth=3),
        data=DataConfig(source="latents"),
        codec=CodecConfig(kind="vae", vae=vae, downsample=2),
        sample=SampleConfig(sampler="ddim", steps=2),
    )
    meta = {"config": config.model_dump(mode="json"), "class_names": []}
    write_checkpoint(folder / "checkpoints", 1, {"ema": build_model(config).state_dict()}, meta)
    return folder


def result(capsys: Any) -> dict[str, Any]:
    """The one JSON object on standard output."""
    return json.loads(capsys.readouterr().out)
