"""Writing files so that a kill, a full disk or a power cut never leaves half of one under its final name.

Everything is first written under a name that starts with ``.tmp-`` in the folder where it will stay, forced to the
disk, and then renamed. What a kill leaves behind is recognised by that prefix (`remove_temporaries`).
"""

import contextlib
import errno
import hashlib
import itertools
import os
import secrets
import shutil
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from dis_cli.errors import StorageError, UsageError

if TYPE_CHECKING:
    import filelock

TEMPORARY_PREFIX = ".tmp-"

_SPACE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_CHUNK_BYTES = 1 << 20


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write a file that has, at any moment, either its old content or all of the new; see `atomic_write_chunks`."""
    atomic_write_chunks(path, [data], size=len(data))


def atomic_write_chunks(path: Path, chunks: Iterable[bytes | memoryview], *, size: int) -> None:
    """Write a file piece by piece that has, at any moment, either its old content or all of the new.

    Missing parent folders are made. A symbolic link is followed. The mode follows the umask.

    Args:
        size: Of all of them, in bytes.

    Raises:
        StorageError: Nothing was written; names the path, the bytes needed and the bytes free.
    """
    final = Path(os.path.realpath(path))
    temporary = _temporary_for(final)
    try:
        # Renaming over a device, a pipe or a socket would remove it from the system.
        if final.exists() and not final.is_file():
            raise StorageError(f"Cannot write `{path}`: it exists and is not a regular file", "Choose another path")
        final.parent.mkdir(parents=True, exist_ok=True)
        with _durable_file(temporary, size, path) as file:
            file.writelines(chunks)
        temporary.replace(final)
        _fsync(final.parent)
    except OSError as error:
        raise storage_error(path, error, size) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def atomic_write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file like `atomic_write_bytes`."""
    atomic_write_bytes(path, text.encode())


def numbered(path: Path) -> Iterator[Path]:
    """A path, and the names beside it that a result gets whose own is taken: ``score.json``, ``score_2.json`` ..."""
    yield path
    suffix = path.suffix if path.suffix[1:].isalpha() else ""
    for number in itertools.count(2):
        yield path.with_name(f"{path.name.removesuffix(suffix)}_{number}{suffix}")


def place_for(path: Path, data: bytes) -> Path:
    """The path, or the first name beside it, where writing replaces nothing but the same content."""
    return next(place for place in numbered(path) if not place.exists() or _holds(place, data))


def require_replaceable(path: Path, data: bytes, *, option: str) -> None:
    """Refuse to write a file in the place of another content.

    Args:
        path: The file that the user named.
        option: Option that named it, such as "--plot".

    Raises:
        UsageError: It is there, and holds something else.
    """
    if (place := place_for(path, data)) != path and path.is_file():
        raise UsageError(
            f"`{path}` exists and holds something else",
            f"Choose another file, such as `{option} {place}`, or delete it",
        )


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:
        return False


def publish(temporary: Path, final: Path) -> None:
    """Force a finished file, or a folder of forced files, to the disk and give it its final name.

    A file takes the place of what had the name; a folder only that of an empty folder.

    Args:
        temporary: The file or folder, on the same file system.

    Raises:
        OSError: The old content of ``final`` is untouched.
    """
    _fsync(temporary)
    temporary.replace(final)
    _fsync(final.parent)


@contextlib.contextmanager
def atomic_folder(final: Path) -> Generator[Path, None, None]:
    """A folder that appears under its name only when everything in it is complete and on the disk.

    Yields a ``.tmp-*`` sibling to fill. On success all of it is forced to the disk and it is renamed; on an error it
    is removed. Missing parent folders are made.

    Args:
        final: The folder's name to be. It must not exist, or be empty: nothing is ever overwritten.

    Raises:
        StorageError: The folder cannot be made, forced to the disk or renamed.
    """
    temporary = _temporary_for(final)
    try:
        try:
            temporary.mkdir(parents=True)
        except OSError as error:
            raise storage_error(final, error) from error
        yield temporary
        try:
            _fsync_tree(temporary)
            temporary.rename(final)
            _fsync(final.parent)
        except OSError as error:
            raise storage_error(final, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_durably(path: Path, data: bytes, *, shown_as: Path | None = None) -> None:
    """Write a new file and force it to the disk; for files inside an `atomic_folder`.

    Args:
        path: The file, which must not exist.
        shown_as: The path to name in an error; None names ``path``.

    Raises:
        StorageError: The file may be there in part.
    """
    with _durable_file(path, len(data), shown_as or path) as file:
        file.write(data)


def write_hashed(path: Path, chunks: Iterable[bytes | memoryview], *, size: int, shown_as: Path) -> str:
    """Write a new file piece by piece and force it to the disk like `write_durably`.

    Args:
        path: The file, which must not exist.
        size: Of all of them, in bytes.
        shown_as: The path to name in an error.

    Returns:
        The SHA-256 of what was to be written, as 64 hexadecimal digits.

    Raises:
        StorageError: The file may be there in part.
    """
    digest = hashlib.sha256()
    with _durable_file(path, size, shown_as) as file:
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def discard_folder(folder: Path) -> None:
    """Delete a folder so that a kill leaves all of it under its name, or none of it.

    Raises:
        StorageError: The folder could not be renamed, and is untouched.
    """
    temporary = _temporary_for(folder)
    try:
        folder.rename(temporary)
        _fsync(folder.parent)
    except OSError as error:
        raise storage_error(folder, error, action="delete") from error
    shutil.rmtree(temporary, ignore_errors=True)


def remove_temporaries(folder: Path) -> list[Path]:
    """Delete what a killed process left in ``folder`` and return it; a folder that does not exist has nothing.

    To be called at a start, by the only process that writes there.

    Raises:
        StorageError: Something could not be deleted.
    """
    if not folder.is_dir():
        return []
    leftovers = sorted(folder.glob(f"{TEMPORARY_PREFIX}*"))
    for leftover in leftovers:
        try:
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()
        except OSError as error:
            raise storage_error(leftover, error, action="delete") from error
    return leftovers


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's content, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def try_lock(lock: "filelock.BaseFileLock") -> bool:
    """Take a lock without waiting; False while another process holds it.

    Raises:
        OSError: The file system has no locks, or does not let us.
    """
    # Imported here: only commands that write need it.
    import filelock

    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        return False
    except NotImplementedError as error:
        raise OSError(str(error)) from error
    return True


def free_bytes(path: Path) -> int | None:
    """Free bytes on the disk of ``path``, or of its nearest existing parent; None when that cannot be told."""
    for place in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return None


def storage_error(path: Path, error: OSError, needed: int | None = None, *, action: str = "write") -> StorageError:
    """The error to show when the operating system refused to write.

    Args:
        path: Path that was to be written, under the name the user knows.
        needed: Size of what was to be written, in bytes; None when unknown.
    """
    facts = [] if needed is None else [f"needs {needed:,} bytes"]
    free = free_bytes(path)
    if free is not None:
        facts.append(f"{free:,} bytes free")
    message = f"Cannot {action} `{path}`: {error.strerror or error}" + (f" ({', '.join(facts)})" if facts else "")
    if error.errno == errno.EFBIG:
        hint = "A limit on the size of files is set: see `ulimit -f`"
    elif error.errno == errno.ENAMETOOLONG:
        hint = "Choose a shorter name"
    elif error.errno in _SPACE_ERRORS:
        hint = "Free some space there, or choose a folder on another disk"
    else:
        hint = "Check that the folder exists and that you may write to it"
    return StorageError(message, hint)


@contextlib.contextmanager
def _durable_file(path: Path, size: int, shown_as: Path) -> Generator[BinaryIO]:
    """A new file to fill, which is forced to the disk at the end."""
    try:
        with path.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise storage_error(shown_as, error, size) from error


def _temporary_for(final: Path) -> Path:
    """A fresh temporary name beside ``final``; short, whatever the length of the final name."""
    return final.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"


def _fsync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            _fsync(Path(parent, name))
        _fsync(Path(parent))


def _fsync(path: Path) -> None:
    """Force a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot do this for folders, where it is not needed either.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
