"""The manifest of a checkpoint folder: the size and SHA-256 of every other file.

safetensors has no checksum of its own, so a flipped bit in a weight would load without a word. Nothing of a
checkpoint is believed before its bytes were found right, and a manifest that was itself damaged never fits its files.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dis_cli.errors import CheckpointError
from dis_cli.runtime.files import sha256_file

FORMAT = "dis-checkpoint"
VERSION = 1
MANIFEST = "manifest.json"

_LIMIT_BYTES = 1 << 24

Entries = dict[str, dict[str, Any]]


def entry_of(data: bytes) -> dict[str, int | str]:
    """The manifest's entry for a file with this content."""
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def manifest_bytes(entries: Mapping[str, Mapping[str, int | str]]) -> bytes:
    """The content of ``manifest.json`` for these files."""
    return to_json({"format": FORMAT, "version": VERSION, "files": entries})


def verify_folder(folder: Path) -> None:
    """Check that a checkpoint has exactly the files of its manifest, byte for byte, without loading it.

    Raises:
        CheckpointError: It is no checkpoint, of a later format, incomplete or damaged: names the file, the expected
            and the found value.
    """
    entries = read_manifest(folder)
    check_listing(folder, entries)
    for name, entry in entries.items():
        verify_file(folder / name, entry)


def read_manifest(folder: Path) -> Entries:
    """The entries of a folder's manifest: file name -> size in bytes and sha256.

    Raises:
        CheckpointError: There is none, or it is damaged or of a later format.
    """
    path = folder / MANIFEST
    try:
        data = path.read_bytes() if path.stat().st_size <= _LIMIT_BYTES else b""
    except OSError as error:
        raise unreadable(path, error) from error
    manifest = parse_json(path, data)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"`{path}` says format {manifest.get('format')!r}, expected {FORMAT!r}")
    if manifest.get("version") != VERSION:
        raise CheckpointError(
            f"`{path}` is of format version {manifest.get('version')!r}, this `dis` reads version {VERSION}",
            "Install a newer `dis`",
        )
    entries = manifest.get("files")
    if not isinstance(entries, dict) or not all(
        isinstance(entry, dict) and entry.keys() == {"size", "sha256"} for entry in entries.values()
    ):
        raise CheckpointError(f"`{path}` is damaged: it does not list files with their size and sha256")
    # Nothing else vouches for the manifest, so it must be what was written to the byte.
    if data != manifest_bytes(entries):
        raise CheckpointError(f"`{path}` is damaged: it is not as `dis` wrote it")
    return entries


def read_verified(folder: Path, name: str, entries: Entries) -> bytes:
    """The content of a file of the checkpoint, after its size and hash were found right.

    Raises:
        CheckpointError: It is missing or damaged: names the file, the expected and the found sha256.
    """
    path = folder / name
    if name not in entries:
        raise CheckpointError(f"`{folder / MANIFEST}` does not list `{name}`")
    try:
        # A file of the wrong size could be of any size: it is not taken into memory.
        if path.stat().st_size != entries[name]["size"]:
            verify_file(path, entries[name])
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"`{folder}` is not complete: `{name}` is missing") from error
    except OSError as error:
        raise unreadable(path, error) from error
    _compare(path, entries[name], entry_of(data))
    return data


def verify_file(path: Path, expected: Mapping[str, Any]) -> None:
    """Check that a file is what its manifest's entry says, without taking it into memory.

    Raises:
        CheckpointError: It is missing or damaged: names the expected and the found sha256.
    """
    try:
        found = {"size": path.stat().st_size, "sha256": sha256_file(path)}
    except OSError as error:
        raise unreadable(path, error) from error
    _compare(path, expected, found)


def _compare(path: Path, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    if found != expected:
        raise CheckpointError(
            f"`{path}` is damaged: expected sha256 {expected['sha256']} ({expected['size']} bytes), "
            f"found {found['sha256']} ({found['size']} bytes)",
            "Use another checkpoint of the run",
        )


def check_listing(folder: Path, entries: Entries) -> None:
    """Refuse missing and foreign files; hidden ones are what operating systems leave behind, and are ignored.

    Raises:
        CheckpointError: Names the files.
    """
    try:
        found = {path.name for path in folder.iterdir() if not path.name.startswith(".")} - {MANIFEST}
    except OSError as error:
        raise unreadable(folder, error) from error
    if missing := sorted(entries.keys() - found):
        raise CheckpointError(f"`{folder}` is not complete: {_quoted(missing)} missing")
    if extra := sorted(found - entries.keys()):
        raise CheckpointError(f"`{folder}` holds files that are not its own: {_quoted(extra)}", "Move them elsewhere")


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """The error to show when the operating system cannot read a part of a checkpoint."""
    return CheckpointError(f"Cannot read `{path}`: {error.strerror or error}")


def to_json(value: object) -> bytes:
    """``value`` as JSON text for people and programs, UTF-8."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def parse_json(path: Path, data: bytes) -> dict[str, Any]:
    """The JSON object in ``data``, the content of ``path``.

    Raises:
        CheckpointError: It is something else.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"`{path}` is damaged: it is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"`{path}` is damaged: it is not a JSON object")
    return value


def _quoted(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
