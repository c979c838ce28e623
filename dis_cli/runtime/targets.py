"""Checks that a result can be written to its place, before the work that makes it, and without a trace."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from dis_cli.errors import StorageError, UsageError
from dis_cli.runtime.files import TEMPORARY_PREFIX, storage_error

# A file; a folder that gets its name when it is whole; a folder that is filled where it stands.
Kind = Literal["file", "folder", "filled folder"]

# Endings by which people and programs know a file. Version numbers and the like are none.
_ENDINGS = (
    "7z apng arrow avi avif bin bmp bz2 ckpt csv db eps exr feather gif gz h5 hdf5 heic heif html ico j2k jfif "
    "jp2 jpe jpeg jpg json jsonl jxl lmdb log lz4 mat md mkv mov mp4 npy npz onnx parquet pbm pdf pgm pickle pkl "
    "png ppm psd pt pth rar safetensors sqlite svg tar tbz2 tfrecord tga tgz tif tiff toml tsv txt txz wav webm "
    "webp xml xz yaml yml zip zst "
)
FILE_SUFFIXES = frozenset(f".{ending}" for ending in _ENDINGS.split())

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a file",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def require_writable(path: Path, kind: Kind, *, suffixes: Collection[str] = (), option: str = "--out") -> None:
    """Refuse a path that cannot be written, before there is anything to write.

    Missing parent folders are fine: they are made with the result. Whether what is there may be replaced is for the
    caller to say. Nothing stays behind of the attempt.

    Args:
        suffixes: The endings, in small letters, that a file of this content may have; others in `FILE_SUFFIXES` are
            refused.
        option: The option that named the path.

    Raises:
        UsageError: What is there is something else, or the name says something else than what would be written.
        StorageError: The operating system does not allow it.
    """
    mode = _mode(path, option)
    fits = stat.S_ISREG if kind == "file" else stat.S_ISDIR
    if mode is not None and not fits(mode):
        raise UsageError(
            f"`{path}` exists and is {_KINDS.get(stat.S_IFMT(mode), 'something else')}; "
            f"{'a file' if kind == 'file' else 'a folder'} is to be written",
            f"Choose another path with `{option}`",
        )
    if mode is None or kind == "file":
        _require_name(path, kind, suffixes, option)
    if kind == "folder" and mode is not None:
        _require_movable(path, option)
    try:
        _try(path, inside=kind == "filled folder" and mode is not None)
    except OSError as error:
        raise storage_error(path, error, action="write" if kind == "file" else "create") from error


def followed(path: Path) -> Path:
    """The target of a link, for a result that replaces what is there; any other path as it is."""
    with contextlib.suppress(OSError):
        if path.is_symlink() and path.exists():
            return Path(os.path.realpath(path))
    return path


def is_folder(path: Path) -> bool:
    """True if a folder is there; False for a path that the operating system refuses to look at."""
    try:
        return path.is_dir()
    except OSError:
        return False


def without_ending(path: Path) -> Path:
    """A path without what says that it is a file: ``x`` for ``x.tar.gz``."""
    while path.suffix.lower() in FILE_SUFFIXES:
        path = path.with_suffix("")
    return path


def _mode(path: Path, option: str) -> int | None:
    """The mode of the file there, links followed; None when there is none."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        pass
    except NotADirectoryError as error:
        parent = next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), path.parent)
        raise StorageError(
            f"Cannot create `{path}`: `{parent}` is not a folder", f"Choose another path with `{option}`"
        ) from error
    except OSError as error:
        raise storage_error(path, error) from error
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            raise UsageError(
                f"`{place}` is a symbolic link to `{place.readlink()}`, which is not there",
                f"Remove the link, or choose another path with `{option}`",
            )
    return None


def _require_name(path: Path, kind: Kind, suffixes: Collection[str], option: str) -> None:
    suffix = path.suffix.lower()
    if suffix not in FILE_SUFFIXES or suffix in suffixes:
        return
    written = "a folder" if kind != "file" else " or ".join(suffixes)
    raise UsageError(
        f"`{option}`: got `{path}`, whose name ends in {path.suffix}, but the result is {written}",
        f"Give `{option} {without_ending(path)}{next(iter(suffixes), '')}`",
    )


def _require_movable(path: Path, option: str) -> None:
    """Refuse an empty folder whose place no other can take."""
    is_mount = os.path.ismount(os.path.realpath(path))
    if is_mount or path.samefile(Path.cwd()):
        what = "the place where a disk is mounted" if is_mount else "the current folder"
        raise UsageError(
            f"`{path}` is {what}, and the result is a folder of its own", f"Give one in it: `{option} {path / 'new'}`"
        )


def _try(path: Path, *, inside: bool) -> None:
    """Make a file where the result, or the first of its missing parents, would be made."""
    # As the system sees it: behind links, and without "..".
    real = Path(os.path.realpath(path))
    folder = real if inside else next(parent for parent in (*real.parents, real) if parent.exists())
    longest = max((len(os.fsencode(part)) for part in real.relative_to(folder).parts), default=0)
    if longest > os.pathconf(folder, "PC_NAME_MAX"):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    _make_file_in(folder)


def _make_file_in(folder: Path) -> None:
    # A file without a name leaves nothing even when the process is killed; not all file systems know such files.
    nameless = getattr(os, "O_TMPFILE", None)
    if nameless is not None:
        try:
            os.close(os.open(folder, nameless | os.O_WRONLY, 0o600))
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.EISDIR):
                raise
        else:
            return
    probe = folder / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
