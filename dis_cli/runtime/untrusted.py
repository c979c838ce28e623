"""Files that anybody may have made: what could run code or fill the memory is refused before a library reads it.

What is absent or merely damaged passes: the reader says better what is wrong. Nothing here imports torch.
"""

import contextlib
import io
import itertools
import json
import pickletools
import re
import zipfile
from pathlib import Path
from typing import BinaryIO

from dis_cli.errors import RefusedError, UsageError

# The largest published model's pickle has 0.43 MB and 138,000 instructions, each of which can make an object of some
# 200 bytes. A header of this size has tens of thousands of tensors; safetensors itself would take up to 100 MB of it,
# and twenty times that in memory.
MAX_PICKLE_BYTES = 1 << 24
MAX_PICKLE_INSTRUCTIONS = 500_000
MAX_HEADER_BYTES = 1 << 22

# What weights and plain settings need. PyTorch's own list is longer: it has bytearray, which takes any size.
_PICKLE_NAMES = re.compile(
    r"collections\.OrderedDict|argparse\.Namespace|torch\._utils\._rebuild_(tensor|tensor_v2|parameter|parameter_with_state)"
    r"|torch\.nn\.parameter\.Parameter|torch\.(\w+Storage|Size|device|b?float\d+|u?int\d+|bool)"
)
# They name things by other ways than one that can be read off.
_PICKLE_INDIRECT = frozenset({"STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"})
# What torch.save wrote before PyTorch 1.6 begins with five: magic number, version, system, content, keys.
_LEGACY_PICKLES = 5

_DISTRUST_HINT = "Do not load it with anything else either, unless you trust whoever made it"


def check_safetensors(path: Path) -> None:
    """Refuse a safetensors file whose header is too large to be read, or whose tensors share bytes.

    Raises:
        RefusedError: It is one of these.
    """
    with contextlib.suppress(OSError), path.open("rb") as file:
        check_header(path, file)


def check_header(path: Path, file: BinaryIO) -> None:
    """`check_safetensors` of an open file, at its beginning; ``path`` is named in errors."""
    size = int.from_bytes(file.read(8), "little")
    header = file.read(size) if size <= MAX_HEADER_BYTES else b""
    if size > MAX_HEADER_BYTES:
        raise RefusedError(
            f"`{path}` was refused: its header claims {size:,} bytes, at most {MAX_HEADER_BYTES:,} are allowed",
            "It is another kind of file, or made to fill the memory",
        )
    try:
        entries = {name: entry["data_offsets"] for name, entry in json.loads(header).items() if name != "__metadata__"}
        places = sorted((int(start), int(end), name) for name, (start, end) in entries.items())
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return
    for (_, end, name), (start, _, other) in itertools.pairwise(places):
        if start < end:
            raise RefusedError(f"`{path}` was refused: its tensors `{name}` and `{other}` overlap", _DISTRUST_HINT)


def check_torch_file(path: Path, file: BinaryIO, hint: str) -> None:
    """Refuse a file of ``torch.save`` that holds anything but tensors and plain values.

    PyTorch's own guard runs no code either, but unpacks compressed records and makes objects of any size.

    Args:
        path: Its name, for errors.
        file: The open file, at its beginning.
        hint: Advice on another file, for a file that is of another kind.

    Raises:
        RefusedError: It names code, or is made to fill the memory.
        UsageError: It is of another kind.
        zipfile.BadZipFile, ValueError: It is damaged, or not of torch.save.
    """
    start = file.read(MAX_PICKLE_BYTES)
    if start[8:9] == b"{":
        raise UsageError(f"`{path}` is a safetensors file, expected one that torch.save wrote", hint)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            _check_archive(path, archive, file.seek(0, io.SEEK_END), hint)
    else:
        pickles = io.BytesIO(start)
        try:
            for _ in range(_LEGACY_PICKLES):
                _check_pickle(path, pickles)
        except ValueError as error:
            raise ValueError("it is neither an archive nor a row of pickles") from error


def refused_pickle(path: Path, what: str) -> RefusedError:
    """The error to show for a pickle that asks for more than weights and plain settings; ``what`` says for what."""
    return RefusedError(
        f"`{path}` was refused, nothing in it was run: it holds more than weights and plain settings ({what})",
        _DISTRUST_HINT,
    )


def _check_archive(path: Path, archive: zipfile.ZipFile, size: int, hint: str) -> None:
    records = archive.infolist()
    # PyTorch looks names up without regard to case.
    pickles = [record for record in records if record.filename.lower().rpartition("/")[2] == "data.pkl"]
    if not pickles:
        raise RefusedError(f"`{path}` was refused: it is an archive that torch.save did not write", hint)
    stored = all(record.compress_type == zipfile.ZIP_STORED for record in records)
    if not stored or sum(record.file_size for record in records) > size:
        raise RefusedError(f"`{path}` was refused: its records are compressed or overlap", hint)
    if any(record.file_size > MAX_PICKLE_BYTES for record in pickles):
        raise refused_pickle(path, f"its pickle is larger than {MAX_PICKLE_BYTES:,} bytes")
    # PyTorch does not look at the checksums.
    if damaged := archive.testzip():
        raise zipfile.BadZipFile(f"its record `{damaged}` fails its CRC-32")
    for record in pickles:
        _check_pickle(path, io.BytesIO(archive.read(record)))


def _check_pickle(path: Path, file: BinaryIO) -> None:
    """Read a pickle's instructions, without following them."""
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        name = str(argument).replace(" ", ".")
        if opcode.name == "GLOBAL" and not _PICKLE_NAMES.fullmatch(name):
            raise refused_pickle(path, f"it names `{name}`")
        if opcode.name in _PICKLE_INDIRECT:
            raise refused_pickle(path, f"it has the instruction {opcode.name}")
        if number >= MAX_PICKLE_INSTRUCTIONS:
            raise refused_pickle(path, f"its pickle has more than {MAX_PICKLE_INSTRUCTIONS:,} instructions")
