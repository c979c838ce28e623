"""Runs whose averages differ, and what is exported of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from support.saved import DIGITS, config_of
from support.tiny import dis
from torch import Tensor

from dis_cli.checkpoints.portable import (
    FOLDER_WEIGHTS,
    content_sha256,
    make_record,
    safetensors_chunks,
    torch_bytes,
)
from dis_cli.checkpoints.store import write_checkpoint
from dis_cli.config.presets import dump_toml
from dis_cli.config.schema import RunConfig
from dis_cli.workflows.build import build_model
from dis_cli.workflows.sample.output import png_bytes

NAMES = [f"digit {number}" for number in range(10)]
FORMS = {"safetensors": "x.safetensors", "pt": "x.pt", "diffusers": "x"}


def weights_of(seed: int, config: RunConfig | None = None) -> dict[str, Tensor]:
    """Weights of an untrained model."""
    return build_model((config or config_of(DIGITS)).model_copy(update={"seed": seed})).state_dict()


def save_averages(folder: Path, *steps: int) -> Path:
    """A run with a checkpoint for each step, all of weights of their own: as trained, and of the decays 0.9999, 0.9."""
    config = config_of(DIGITS, train__ema_more=(0.9,))
    for step in steps or (7,):
        groups = {
            name: weights_of(10 * step + index)
            for index, name in enumerate(("model", "ema", "ema_more_0", "optimizer"))
        }
        meta = {"config": config.model_dump(mode="json"), "class_names": NAMES}
        write_checkpoint(folder / "checkpoints", step, groups, meta)
    (folder / "config.toml").write_text(dump_toml(config))
    return folder


def exported(run: Path, folder: Path, form: str, *arguments: object) -> Path:
    out = folder / FORMS[form]
    assert dis("checkpoint", "export", run, "--out", out, "-q", *arguments) == 0
    return out


def forge(path: Path, weights: dict[str, Tensor], **changes: Any) -> Path:
    """A file with a record that is right but for ``changes``, and a hash that vouches for all of it."""
    fields = {
        "config": config_of(DIGITS).model_dump(mode="json"),
        "step": 1,
        "ema_decay": 0.9999,
        "class_names": [],
        "vae": None,
        "versions": {"dis": "0.1.0"},
    }
    inner = {name: changes.pop(name) for name in list(changes) if name in fields}
    record = make_record(weights, **(fields | inner))
    if changes:
        record |= changes
        record["sha256"] = content_sha256(record, weights)
    chunks = [torch_bytes(record, weights)] if path.suffix == ".pt" else safetensors_chunks(record, weights)[0]
    path.write_bytes(b"".join(chunks))
    return path


def weights_file(out: Path) -> Path:
    return out / FOLDER_WEIGHTS if out.is_dir() else out


def sampled(checkpoint: Path, out: Path, *arguments: object) -> dict[str, bytes]:
    """The images that `dis sample` writes, by name, as PNGs without what they say about their checkpoint."""
    command = ["sample", "--ckpt", checkpoint, "--out", out, "-n", 4, "-q", "sample.precision=fp32"]
    assert dis(*command, *arguments) == 0
    records = json.loads((out / "samples.json").read_text())["images"]
    return {record["file"]: _bare_png(out / record["file"]) for record in records}


def _bare_png(path: Path) -> bytes:
    with Image.open(path) as image:
        return png_bytes(np.atleast_3d(np.asarray(image)))
