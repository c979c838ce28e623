"""Small zip and tar files."""

import io
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def png(seed: int = 0, side: int = 12) -> bytes:
    """A PNG file of random colours."""
    levels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "PNG")
    return buffer.getvalue()


def write_archive(path: Path, entries: Sequence[tuple[str, bytes]], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """Write a zip or tar file, by its suffix.

    Args:
        path: The file.
        entries: Names and contents, in order; a name with a slash at its end is a folder.
        compression: Of a zip file.
    """
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in entries:
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w") as archive:
            for name, content in entries:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                if name.endswith("/"):
                    info.type = tarfile.DIRTYPE
                archive.addfile(info, io.BytesIO(content))
    return path


def pack(folder: Path, path: Path, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """Write the files of a folder as an archive, named from the folder; in no particular order."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    entries = [(str(file.relative_to(folder)), file.read_bytes()) for file in files]
    return write_archive(path, entries[::-1], compression)
