"""Portable models: one set of weights with everything needed to use it, in one file or folder.

The record beside the weights is JSON: settings, step, decay of the average, class names, VAE, versions, and the SHA-256
of the record itself and of every weight. It is the same in each of three forms, and so is its SHA-256:

    x.safetensors   the record is in the header's metadata, as "dis"
    x.pt            a dictionary of torch.save: the weights as "ema", or "model" when they are no average, where the
                    published code looks for them, and the record's text as "dis"
    a folder        diffusers' layout: config.json, and the first form under diffusers' name

Weights come back bit-equal, or not at all: neither safetensors nor PyTorch would notice a flipped bit.
"""

import hashlib
import io
import itertools
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeGuard

from safetensors import SafetensorError

from dis_cli.checkpoints.manifest import parse_json, unreadable
from dis_cli.checkpoints.tensors import bytes_of, stored
from dis_cli.errors import CheckpointError, MismatchError, RefusedError
from dis_cli.models.families import DEFAULT, FAMILIES
from dis_cli.runtime.safetensors_layout import layout
from dis_cli.runtime.untrusted import MAX_HEADER_BYTES, MAX_PICKLE_BYTES, check_header

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "dis-model"
VERSION = 1
RECORD = "dis"

# Names that diffusers looks for in a folder.
FOLDER_WEIGHTS = "diffusion_pytorch_model.safetensors"
FOLDER_CONFIG = "config.json"

_FOREIGN_HINT = "Give a run folder of `dis train`, or a file that `dis checkpoint export` wrote"
_DAMAGED_HINT = "Copy or download the file again, or export it once more"

Record = dict[str, Any]
# Which file it is; one that is none of the forms counts as published.
FileForm = Literal["safetensors", "pt", "published"]


@dataclass(frozen=True)
class Portable:
    """A model that was read, and found as it was written.

    Args:
        record: Data saved beside the weights.
        weights: By name, on the CPU, of the type that they are stored in.
    """

    record: Record
    weights: "dict[str, Tensor]"

    @property
    def step(self) -> int | None:
        """Optimizer steps it was trained for; None when unknown."""
        return self.record["step"]

    @property
    def ema_decay(self) -> float:
        """Decay of the average that the weights are, per step; 0 when they are none."""
        return self.record["ema_decay"]


def make_record(
    weights: "Mapping[str, Tensor]",
    *,
    config: Mapping[str, Any],
    step: int | None,
    ema_decay: float,
    class_names: Iterable[str],
    vae: Mapping[str, Any] | None,
    versions: Mapping[str, str],
) -> Record:
    """The record to be written beside ``weights``.

    Args:
        step: Optimizer steps taken; None when unknown.
        ema_decay: Decay of the average that they are, per step; 0 for weights as they were trained.
        class_names: One a class; none when unknown.
        vae: The VAE that the model's latents are of; None for pixels, or when unknown.
        versions: Package name -> version, of those that write.
    """
    record: Record = {
        "format": FORMAT,
        "version": VERSION,
        "versions": dict(versions),
        "step": step,
        "ema_decay": ema_decay,
        "class_names": list(class_names),
        "vae": None if vae is None else dict(vae),
        "config": dict(config),
    }
    return record | {"sha256": content_sha256(record, weights)}


def content_sha256(record: Mapping[str, Any], weights: "Mapping[str, Tensor]") -> str:
    """The SHA-256 of a record, but for its own ``sha256``, and of the weights: names, types, shapes and numbers."""
    digest = hashlib.sha256(_text({key: value for key, value in record.items() if key != "sha256"}).encode())
    entries = stored(weights)
    for name in sorted(entries):
        dtype, shape, _ = entries[name]
        digest.update(json.dumps([name, dtype, shape]).encode())
        digest.update(bytes_of(weights[name]))
    return digest.hexdigest()


def safetensors_chunks(
    record: Mapping[str, Any], weights: "Mapping[str, Tensor]"
) -> tuple[Iterable[bytes | memoryview], int]:
    """The content of a safetensors file, piece by piece, and its size in bytes."""
    # Readers of such files look for the framework under "format".
    header, _, size = layout(entries := stored(weights), {"format": "pt", RECORD: _text(record)})
    return itertools.chain([header], (bytes_of(weights[name]) for name in entries)), size


def torch_bytes(record: Mapping[str, Any], weights: "Mapping[str, Tensor]") -> memoryview:
    """The content of a ``.pt`` file; `torch.load` with ``weights_only=True`` reads it."""
    import torch

    buffer = io.BytesIO()
    group = "ema" if record["ema_decay"] else "model"
    # Of a view its whole storage would be saved.
    own = {
        name: tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
        for name, tensor in weights.items()
    }
    torch.save({group: own, RECORD: _text(record)}, buffer)
    return buffer.getbuffer()


def folder_config(record: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a folder's ``config.json``: the model's arguments, as diffusers has them, and the record."""
    model, diffusion = (record["config"].get(name) for name in ("model", "diffusion"))
    arguments: dict[str, Any] = dict(model) if isinstance(model, dict) else {}
    family = FAMILIES.get(str(arguments.pop("backbone", DEFAULT)), FAMILIES[DEFAULT])
    learn_sigma = isinstance(diffusion, dict) and diffusion.get("variance") == "learned_range"
    return {"_class_name": family.class_name, **arguments, "learn_sigma": learn_sigma, RECORD: dict(record)}


def is_class_name(name: object) -> bool:
    """True if a ``config.json`` with this ``_class_name`` is of one of these models."""
    return name in [family.class_name for family in FAMILIES.values()]


def is_folder(path: Path) -> bool:
    """True if a folder is laid out like one of diffusers' models."""
    return (path / FOLDER_CONFIG).is_file() or (path / FOLDER_WEIGHTS).is_file()


def file_form(path: Path) -> FileForm:
    """The form of a file, told without torch: one of these models, or else "published"."""
    if path.suffix == ".safetensors":
        return "safetensors"
    try:
        with path.open("rb") as file:
            if file.read(9)[8:] == b"{":
                return "safetensors"
            with zipfile.ZipFile(file) as archive:
                pickles = [record for record in archive.infolist() if record.filename.endswith("/data.pkl")]
                small = [record for record in pickles if record.file_size <= MAX_PICKLE_BYTES]
                is_own = any(f'"format":"{FORMAT}"'.encode() in archive.read(record) for record in small)
                return "pt" if is_own else "published"
    # A damaged archive can raise anything; who reads it in earnest says what is wrong.
    except Exception:  # noqa: BLE001
        return "published"


def read_folder_record(path: Path) -> Record:
    """The record of a folder, which both its files hold; the weights are not looked at, and nothing needs torch.

    Raises:
        CheckpointError: A file is missing or damaged, or they are of two exports.
        MismatchError: It is of another model.
        RefusedError: It is made to do harm.
    """
    config = path / FOLDER_CONFIG
    try:
        data = config.read_bytes() if config.stat().st_size <= MAX_HEADER_BYTES else b""
    except OSError as error:
        raise unreadable(config, error) from error
    settings = parse_json(config, data)
    if not is_class_name(settings.get("_class_name")) or not isinstance(settings.get(RECORD), dict):
        raise MismatchError(
            f"`{config}` is of a {settings.get('_class_name', 'model without a name')!s:.80}, expected a "
            f"{' or '.join(family.class_name for family in FAMILIES.values())} that `dis checkpoint export` wrote",
            _FOREIGN_HINT,
        )
    record = read_record(path / FOLDER_WEIGHTS)
    if settings != folder_config(record):
        raise CheckpointError(
            f"`{config}` and `{FOLDER_WEIGHTS}` beside it are not as they were written: their settings differ",
            "Bring both back; settings are changed with KEY=VALUE when the model is used or exported",
        )
    return record


def read_record(path: Path) -> Record:
    """The record of a safetensors file; the weights are not looked at, and nothing needs torch.

    Raises:
        CheckpointError: It is missing or damaged.
        MismatchError: It is of something else, or of another version of the format.
        RefusedError: It is made to do harm.
    """
    try:
        with path.open("rb") as file:
            return _record_in(path, file)
    except OSError as error:
        raise unreadable(path, error) from error


def _record_in(path: Path, file: BinaryIO) -> Record:
    check_header(path, file)
    file.seek(0)
    size = int.from_bytes(file.read(8), "little")
    text = file.read(size)
    if size == 0 or len(text) < size:
        raise CheckpointError(f"`{path}` is damaged or not a safetensors file: it ends in its header", _DAMAGED_HINT)
    metadata = parse_json(path, text).get("__metadata__")
    if not isinstance(metadata, dict) or RECORD not in metadata:
        hint = f"Give the folder: `{path.parent}`" if (path.parent / "manifest.json").exists() else _FOREIGN_HINT
        raise MismatchError(f"`{path}` holds no settings of a DiS model, only tensors", hint)
    return _parse_record(path, metadata[RECORD])


def read_safetensors(path: Path) -> Portable:
    """A model of a safetensors file.

    Raises:
        CheckpointError, MismatchError, RefusedError: As in `read_record`; or the weights are damaged.
    """
    from safetensors.torch import load

    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    record = _record_in(path, io.BytesIO(data))
    try:
        weights = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"`{path}` is damaged: {error}", _DAMAGED_HINT) from error
    return _verified(path, record, weights)


def has_record(content: object) -> TypeGuard[dict[str, Any]]:
    """True if the content of a ``.pt`` is one of these models; others call a discriminator so."""
    return isinstance(content, dict) and isinstance(content.get(RECORD), str)


def parse_torch(path: Path, content: Mapping[str, Any]) -> Portable:
    """The model in what a ``.pt`` file holds.

    Args:
        content: Its content, from `read_torch_file`.

    Raises:
        CheckpointError: It is damaged.
        MismatchError: It is of another version of the format, or does not hold what its record says.
        RefusedError: Its weights are made to fill the memory.
    """
    import torch

    record = _parse_record(path, content[RECORD])
    group = "ema" if record["ema_decay"] else "model"
    weights = content.get(group)
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
        for name, tensor in weights.items()
    ):
        raise MismatchError(f"`{path}` holds no weights as `{group}`, where its record says they are", _FOREIGN_HINT)
    # A tensor with stride 0 can claim any size.
    if sum(tensor.nbytes for tensor in weights.values()) > path.stat().st_size:
        raise RefusedError(f"`{path}` was refused: its weights are larger than the file", _FOREIGN_HINT)
    return _verified(path, record, weights)


def _verified(path: Path, record: Record, weights: "dict[str, Tensor]") -> Portable:
    try:
        found = content_sha256(record, weights)
    except KeyError as error:
        raise MismatchError(f"`{path}` holds weights of the type {error}", _FOREIGN_HINT) from error
    except ValueError as error:
        raise CheckpointError(f"`{path}` is damaged: its record is not JSON ({error})", _DAMAGED_HINT) from error
    if found != record["sha256"]:
        raise CheckpointError(
            f"`{path}` is damaged: expected sha256 {record['sha256']} of its content, found {found}", _DAMAGED_HINT
        )
    return Portable(record, weights)


def _parse_record(path: Path, text: object) -> Record:
    """The record in its text, its fields of the types that they should have; its config is for others to judge."""
    record = parse_json(path, text.encode() if isinstance(text, str) else b"")
    if record.get("format") != FORMAT:
        raise MismatchError(f"`{path}` says format {record.get('format')!r:.80}, expected {FORMAT!r}", _FOREIGN_HINT)
    if record.get("version") != VERSION:
        raise MismatchError(
            f"`{path}` is of format version {record.get('version')!r:.80}, this `dis` reads version {VERSION}",
            "Install a newer `dis`",
        )
    step, decay = record.get("step"), record.get("ema_decay")
    fits = {
        "step": step is None or (type(step) is int and step >= 0),
        "ema_decay": isinstance(decay, int | float) and 0 <= decay < 1,
        "config": isinstance(record.get("config"), dict),
        "versions": isinstance(record.get("versions"), dict),
        "class_names": isinstance(record.get("class_names"), list),
        "sha256": isinstance(record.get("sha256"), str),
    }
    if wrong := [name for name, right in fits.items() if not right]:
        raise CheckpointError(f"`{path}` is damaged: its record has no usable {', '.join(wrong)}", _DAMAGED_HINT)
    return record


def _text(record: Mapping[str, Any]) -> str:
    """The one way in which a record is written, so that equal ones have equal hashes."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
