"""A model written to be taken elsewhere: one file, or a folder in diffusers' layout."""

import contextlib
import json
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dis_cli.checkpoints.portable import (
    FOLDER_CONFIG,
    FOLDER_WEIGHTS,
    Record,
    folder_config,
    is_class_name,
    make_record,
    safetensors_chunks,
    torch_bytes,
)
from dis_cli.config.schema import RunConfig
from dis_cli.errors import UsageError
from dis_cli.events import Event, Finished, Note, Wrote
from dis_cli.runtime.files import atomic_folder, atomic_write_chunks, discard_folder, write_hashed
from dis_cli.runtime.targets import followed, is_folder, require_writable
from dis_cli.version import __version__
from dis_cli.workflows.checkpoint.model_card import model_card, scores_of, true_description
from dis_cli.workflows.load.mismatch import check_overrides
from dis_cli.workflows.load.opened import Opened
from dis_cli.workflows.load.saved import SavedModel, read_saved
from dis_cli.workflows.run_page import REPORT_FILE, exported_page, preview_of

Format = Literal["safetensors", "pt", "diffusers"]

SUFFIXES: dict[str, Format] = {".safetensors": "safetensors", ".pt": "pt", ".pth": "pt", "": "diffusers"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Images of the weights, beside the model card.
PICTURE_FILE = "samples.png"

# The content of one file, and its size in bytes.
_Content = tuple[Iterable[bytes | memoryview], int]


def export(
    opened: Opened,
    out: Path,
    *,
    form: Format | None = None,
    dtype: str = "fp32",
    force: bool = False,
    dry_run: bool = False,
) -> Iterator[Event]:
    """Write a model in a form that needs nothing else, from which `load_model` makes the same one again.

    Paths of this machine (``data.path``, ``evaluate.inception``) are left out of the settings, and of a VAE's folder
    the name is left.

    Args:
        opened: The checkpoint, from `open_checkpoint`, with the settings that are written.
        out: The file or folder to write.
        form: Form to write; None tells it by the suffix of ``out``.
        dtype: A key of `DTYPES`, for the weights; all but "fp32" round them.
        force: Replace an earlier export.

    Raises:
        UsageError: ``out`` exists, has an unknown suffix, or holds something else; or the dtype is too small.
        DisError: The checkpoint or the disk do not allow it.
    """
    form = _chosen_form(form, out)
    if form == "diffusers":
        require_writable(out, "folder")
    else:
        # What the name says was judged already.
        require_writable(out, "file", suffixes=(out.suffix.lower(),))
    out = followed(out)
    replaces = _check_free(out, form, force=force)
    saved = read_saved(opened)
    saved.require_known()
    yield from (Note(message=note, level="warning") for note in saved.notes)
    config = _portable_config(saved)
    weights = _cast(saved, dtype)
    versions = {"dis": __version__, "torch": str(torch.__version__), "python": platform.python_version()}
    record = make_record(
        weights,
        config=config.model_dump(mode="json"),
        step=saved.step,
        ema_decay=saved.average.decay,
        class_names=saved.class_names,
        vae=saved.vae_record and saved.vae_record | {"name": _name_of(saved.vae_record["name"])},
        versions=versions,
    )
    contents = _contents(form, out, saved, config, record, weights)
    result: dict[str, object] = {
        "checkpoint": str(saved.path),
        "step": saved.step,
        "ema_decay": saved.average.decay,
        "format": form,
        "dtype": dtype,
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "sha256": record["sha256"],
        "size_bytes": sum(size for _, size in contents.values()),
        "out": str(out),
    }
    if dry_run:
        yield Finished(result=result | {"dry_run": True})
        return
    if form == "diffusers":
        _write_folder(out, contents, replaces=replaces)
    else:
        ((chunks, size),) = contents.values()
        atomic_write_chunks(out, chunks, size=size)
    yield Wrote(what="model", path=out)
    yield Finished(result=result)


def _chosen_form(form: Format | None, out: Path) -> Format:
    told = SUFFIXES.get(out.suffix.lower())
    if form is not None:
        if out.suffix and told not in (None, form) and not is_folder(out):
            raise UsageError(
                f"`--format {form}` contradicts `--out {out}`", "Leave `--format` out, or choose another name"
            )
        return form
    if told is None and not is_folder(out):
        raise UsageError(
            f"`{out}` does not tell what to write: its suffix is `{out.suffix}`, allowed: .safetensors, .pt, or none "
            "for a folder in diffusers' layout",
            "Say it with `--format`",
        )
    return "diffusers" if told is None or is_folder(out) else told


def _check_free(out: Path, form: Format, *, force: bool) -> bool:
    """True if an earlier export stands there, to be replaced; anything else that stands there is not ours."""
    if not out.exists() or (form == "diffusers" and out.is_dir() and not any(out.iterdir())):
        return False
    if not force:
        raise UsageError(f"`{out}` exists", "Choose another name with `--out`, or replace it with `--force`")
    if form == "diffusers" and not _is_export(out):
        raise UsageError(f"`{out}` exists and is no model that was exported", "Choose another folder with `--out`")
    if form == "diffusers" and (beside := _new_beside(out)).exists():
        raise UsageError(f"`{beside}` exists, and is where the new export would be made", "Move it away")
    return True


def _is_export(folder: Path) -> bool:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        settings = json.loads((folder / FOLDER_CONFIG).read_bytes())
        return isinstance(settings, dict) and is_class_name(settings.get("_class_name"))
    return False


def _portable_config(saved: SavedModel) -> RunConfig:
    """The settings to be written: those asked for, without what is true of this machine or of other weights only."""
    config = saved.asked_config
    check_overrides(saved.path, saved.config, config)
    elsewhere = config.data.validation_path is not None
    return config.model_copy(
        update={
            "description": true_description(config),
            "data": config.data.model_copy(update={"path": None} | ({"validation": "none"} if elsewhere else {})),
            "train": config.train.model_copy(update={"validate_every": None} if elsewhere else {}),
            "codec": config.codec.model_copy(update={"vae": config.codec.vae and _name_of(config.codec.vae)}),
            "evaluate": config.evaluate.model_copy(update={"inception": None}),
            "sample": config.sample.model_copy(update={"ema": None}),
        }
    )


def _name_of(vae: str) -> str:
    return Path(vae).name if Path(vae).is_absolute() else vae


def _cast(saved: SavedModel, dtype: str) -> dict[str, Tensor]:
    cast = {name: tensor.to(DTYPES[dtype]) for name, tensor in saved.weights.items()}
    if large := [name for name, tensor in cast.items() if not bool(torch.isfinite(tensor).all())]:
        raise UsageError(f"{dtype} is too small for `{large[0]}` of `{saved.path}`", "Take `--dtype bf16` or fp32")
    return cast


def _contents(
    form: Format, out: Path, saved: SavedModel, config: RunConfig, record: Record, weights: dict[str, Tensor]
) -> dict[str, _Content]:
    """The files to be written, by name."""
    match form:
        case "safetensors":
            return {out.name: safetensors_chunks(record, weights)}
        case "pt":
            packed = torch_bytes(record, weights)
            return {out.name: ([packed], len(packed))}
        case "diffusers":
            name, run = out.absolute().name, saved.run_folder
            picture = None if run is None else preview_of(run, saved.step)
            card = model_card(saved, config, name, scores_of(saved), PICTURE_FILE if picture else None)
            texts = {FOLDER_CONFIG: json.dumps(folder_config(record), indent=2, sort_keys=True) + "\n"}
            texts |= {"README.md": card}
            # Other runs than trained ones, and folders that hold checkpoints alone, have no page.
            if run is not None and (run / "config.toml").is_file():
                texts[REPORT_FILE] = exported_page(run, config, name, saved.step)
            data = {file: text.encode() for file, text in texts.items()}
            data |= {} if picture is None else {PICTURE_FILE: picture}
            files: dict[str, _Content] = {file: ([content], len(content)) for file, content in data.items()}
            return files | {FOLDER_WEIGHTS: safetensors_chunks(record, weights)}


def _new_beside(out: Path) -> Path:
    """The place of an export that will replace another, while it is made."""
    return out.with_name(out.name + ".new")


def _write_folder(out: Path, contents: dict[str, _Content], *, replaces: bool) -> None:
    new = _new_beside(out) if replaces else out
    with atomic_folder(new) as folder:
        for name, (chunks, size) in contents.items():
            write_hashed(folder / name, chunks, size=size, shown_as=out / name)
    if replaces:
        discard_folder(out)
        new.rename(out)
