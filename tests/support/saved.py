"""Saved runs and presets of untrained models, and what is said of those that are of something else."""

from pathlib import Path
from typing import Any

import pytest
from support.tiny import dis
from torch import Tensor

from dis_cli.checkpoints.store import write_checkpoint
from dis_cli.config.presets import dump_toml
from dis_cli.config.schema import RunConfig
from dis_cli.runs.folder import RunDir
from dis_cli.workflows.build import build_model
from dis_cli.workflows.load import model as load

MOST_LINES = 15

DIGITS: dict[str, Any] = {
    "name": "tiny",
    "model": {"image_size": 8, "patch_size": 4, "in_channels": 1, "embed_dim": 16, "depth": 3, "num_classes": 10},
    "data": {"source": "digits", "hflip": False},
    "sample": {"sampler": "ddim", "steps": 2},
}
LATENTS: dict[str, Any] = {
    "name": "tiny-latent",
    "model": {"image_size": 8, "patch_size": 4, "in_channels": 4, "embed_dim": 16, "depth": 3},
    "data": {"source": "latents"},
    "codec": {"kind": "vae", "downsample": 2},
    "sample": {"sampler": "ddim", "steps": 2},
}


def config_of(base: dict[str, Any], **changes: object) -> RunConfig:
    """A configuration with ``section__key=value`` changed."""
    data = {key: dict(value) if isinstance(value, dict) else value for key, value in base.items()}
    for key, value in changes.items():
        section, _, leaf = key.partition("__")
        data.setdefault(section, {})[leaf] = value
    return RunConfig.model_validate(data)


def save_preset(path: Path, base: dict[str, Any], **changes: object) -> Path:
    path.write_text(dump_toml(config_of(base, **changes)))
    return path


def save_run(
    folder: Path,
    config: RunConfig,
    *,
    weights: dict[str, Tensor] | None = None,
    settings: object = None,
    **meta: object,
) -> Path:
    """A run of an untrained model, with other weights, settings or records beside them when given."""
    weights = build_model(config).state_dict() if weights is None else weights
    RunDir(folder).create()
    # It stays when a process gives a run back.
    (folder / ".lock").touch()
    (folder / "config.toml").write_text(dump_toml(config))
    saved = {"config": config.model_dump(mode="json") if settings is None else settings, **meta}
    write_checkpoint(folder / "checkpoints", 1, {"model": weights, "ema": weights}, saved)
    return folder


def content(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


class Refusal:
    """Runs commands that must refuse: they make no model, leave all files as they are and say so in a few lines.

    Args:
        folder: Where the files are.
        capsys: What is written is taken from it.
    """

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.capsys = capsys

    def __call__(self, *arguments: object, status: int = 2) -> list[str]:
        """The lines on standard error."""
        before = content(self.folder)
        self.capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(load, "build_model", None)
            patch.chdir(self.folder)
            assert dis(*arguments) == status
        assert content(self.folder) == before
        lines = self.capsys.readouterr().err.splitlines()
        assert lines[0].startswith("error: ")
        assert len(lines) <= MOST_LINES
        return lines


def differences(lines: list[str]) -> list[str]:
    return [line.strip() for line in lines if line.startswith("  ")]


def commands(checkpoint: Path, out: Path) -> list[list[object]]:
    return [
        ["sample", "--ckpt", checkpoint, "--out", out / "samples", "-n", 1],
        ["eval-fid", "--ckpt", checkpoint, "--out", out / "score.json", "--num-samples", 2],
    ]
