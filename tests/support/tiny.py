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


def result(capsys: Any) -> dict[str, Any]:
    """The one JSON object on standard output."""
    return json.loads(capsys.readouterr().out)
