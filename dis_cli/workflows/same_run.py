"""Whether a start belongs to the run that is already in its folder: its settings and its data."""

from typing import Any

import torch

from dis_cli.config.presets import read_config
from dis_cli.config.schema import RunConfig
from dis_cli.data.source import ImageSource
from dis_cli.errors import MismatchError, listed
from dis_cli.runtime.precision import Precision
from dis_cli.runtime.run_dir import RunDir
from dis_cli.workflows.build import pick_precision

# Settings that may change between two starts of a run, because they change nothing that was computed so far, or, like
# engines and the parts a batch is computed in, the rounding only: a run may move to another machine.
CHANGEABLE = frozenset(
    {
        "name",
        "description",
        "engine",
        "train.steps",
        "train.accumulation",
        "train.sharding",
        "train.gradient_checkpointing",
        "train.compile",
        "train.on_nonfinite",
        "train.save_every",
        "train.keep_last",
        "train.keep_every",
        "train.log_every",
        "train.preview_every",
        "train.preview_images",
        "train.evaluate_every",
        "train.best_metric",
        "train.max_minutes",
        "train.trackers",
        "data.path",
        "data.check",
        "data.on_bad",
        "data.download",
        "data.num_workers",
        # The folder may move; that it holds the same VAE is checked by its content.
        "codec.vae",
    }
)
CHANGEABLE_SECTIONS = ("sample.", "evaluate.")


def settle_precision(
    recorded: RunConfig | None, config: RunConfig, device: torch.device
) -> tuple[RunConfig, Precision]:
    """``config`` with "auto" resolved, by what the run has recorded or else by this machine, and the reason."""
    if config.train.precision == "auto" and recorded is not None:
        precision = Precision(recorded.train.precision, "the run was begun with it")
    else:
        precision = pick_precision(config.train.precision, config, device)
    return _with_precision(config, precision.name), precision


def check_same_run(run: RunDir, recorded: RunConfig, config: RunConfig) -> None:
    """Refuse to go on with other settings than the run was begun with, which are ``recorded``.

    Raises:
        MismatchError: Lists every setting that differs, with both values.
    """
    before, now = flat_settings(recorded), flat_settings(config)
    changed = [
        key
        for key in now
        if before.get(key) != now[key] and key not in CHANGEABLE and not key.startswith(CHANGEABLE_SECTIONS)
    ]
    if changed:
        lines = listed([f"{key}: {before.get(key)} there, {now[key]} asked for" for key in changed])
        raise MismatchError(
            f"`{run.path}` holds a run with other settings:{lines}",
            "Choose another folder with `--out DIR`, start over with `--fresh`, or continue that run with "
            f"`dis train --preset {run.config_path} --out {run.path}`",
        )


def check_same_data(run: RunDir, meta: dict[str, Any], source: ImageSource) -> None:
    """Refuse to go on with other data than a checkpoint's.

    Raises:
        MismatchError: Gives both fingerprints.
    """
    before, now = meta.get("data_fingerprint"), source.fingerprint
    if before != now:
        raise MismatchError(
            f"The data {source.name} are not those that `{run.path}` was trained on: "
            f"sha256 {str(before)[:12]} then, {now[:12]} now",
            "Bring the data back as they were, or begin a new run with `--out DIR`",
        )


def recorded_config(run: RunDir) -> RunConfig | None:
    """The settings that a run was begun with; None before its first start."""
    if not run.config_path.exists():
        return None
    config = read_config(run.config_path)
    # Only a run from before there was a choice records none; it computed in float32.
    return _with_precision(config, "fp32") if config.train.precision == "auto" else config


def _with_precision(config: RunConfig, name: str) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update={"precision": name})})


def flat_settings(config: RunConfig) -> dict[str, object]:
    """Every setting by its dotted key, as JSON can hold it."""
    flat: dict[str, object] = {}
    for key, value in config.model_dump(mode="json").items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": entry for name, entry in value.items()}
        else:
            flat[key] = value
    return flat
