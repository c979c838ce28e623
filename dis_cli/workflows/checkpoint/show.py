"""The description of a checkpoint, file by file."""

import contextlib
import json
from pathlib import Path
from typing import Any

from dis_cli.checkpoints.bundled import place_of
from dis_cli.checkpoints.manifest import MANIFEST, read_manifest, verify_file
from dis_cli.checkpoints.portable import FOLDER_CONFIG, FOLDER_WEIGHTS
from dis_cli.checkpoints.store import checkpoints_of, is_checkpoint_folder, steps_in
from dis_cli.errors import CheckpointError
from dis_cli.runtime.files import sha256_file
from dis_cli.workflows.load.opened import Opened
from dis_cli.workflows.load.saved import SavedModel, read_saved


def describe(opened: Opened) -> dict[str, Any]:
    """The description of a checkpoint, after verification as if for use.

    Raises:
        DisError: As in `read_saved`. Files of a checkpoint folder that its weights do not need may be damaged: see
            "verified" of each.
    """
    saved, path = read_saved(opened), opened.named
    is_run = saved.form == "run" and not is_checkpoint_folder(path)
    files = _files(saved)
    return {
        "kind": "checkpoint" if saved.form == "run" and not is_run else saved.form,
        "path": str(path),
        "checkpoint": str(saved.path),
        "steps": steps_in(checkpoints_of(path)) if is_run else None,
        "step": saved.step,
        "parameters": sum(tensor.numel() for tensor in saved.weights.values()),
        "dtype": saved.dtype,
        "averages": list(saved.held),
        "ema_decay": saved.average.decay,
        "class_names": list(saved.class_names),
        "vae": saved.vae_record,
        "sha256": saved.sha256,
        "versions": saved.versions or _versions_of_run(saved),
        "size_bytes": sum(file["size_bytes"] for file in files),
        "files": files,
        "config": saved.config.model_dump(mode="json"),
        "notes": list(saved.notes),
    }


def _files(saved: SavedModel) -> list[dict[str, Any]]:
    """Each file with its size and SHA-256, and whether it is as it was written; None where nothing says how that is."""
    if saved.form != "run":
        place = place_of(saved.path)
        paths = sorted(place.iterdir()) if saved.form == "folder" else [place]
        known = (FOLDER_CONFIG, FOLDER_WEIGHTS)
        return [
            _file(path, verified=True if saved.form != "folder" or path.name in known else None)
            for path in paths
            if path.is_file()
        ]
    files: list[dict[str, Any]] = []
    for name, entry in read_manifest(saved.path).items():
        try:
            verify_file(saved.path / name, entry)
            verified = True
        except CheckpointError:
            verified = False
        files.append({"file": name, "size_bytes": entry["size"], "sha256": entry["sha256"], "verified": verified})
    return [*files, _file(saved.path / MANIFEST, verified=True)]


def _file(path: Path, *, verified: bool | None) -> dict[str, Any]:
    size = path.stat().st_size
    return {"file": path.name, "size_bytes": size, "sha256": sha256_file(path), "verified": verified}


def _versions_of_run(saved: SavedModel) -> dict[str, str]:
    """The versions that a run was last started with, as far as its folder says."""
    if saved.run_folder is None:
        return {}
    with contextlib.suppress(OSError, ValueError, RecursionError):
        facts = json.loads((saved.run_folder / "run.json").read_bytes())
        if isinstance(facts, dict):
            return {name: str(facts[name]) for name in ("dis", "torch", "python") if name in facts}
    return {}
