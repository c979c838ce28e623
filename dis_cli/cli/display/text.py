"""Text for terminals and JSON readers from anything a command may hold."""

import math
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import TextIO, cast

# A name can hold escape sequences; shown as they are, they would drive the terminal.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def printable(text: str, stream: TextIO | None) -> str:
    """``text`` without control characters and with whatever ``stream`` cannot encode shown as an escape."""
    encoding = (stream.encoding if stream is not None else None) or "utf-8"
    return text.translate(_CONTROLS).encode(encoding, "backslashreplace").decode(encoding)


def jsonable(value: object) -> object:
    """``value`` in JSON's types: paths become strings, arrays lists, NaN and infinities null."""
    match value:
        case Mapping():
            return {str(key): jsonable(entry) for key, entry in cast("Mapping[object, object]", value).items()}
        case list() | tuple():
            return [jsonable(entry) for entry in cast("list[object]", value)]
        case float():
            return float(value) if math.isfinite(value) else None
        case PurePath():
            return str(value)
        case _:
            # numpy's and torch's numbers and arrays, which nothing here may import.
            tolist = cast("Callable[[], object] | None", getattr(value, "tolist", None))
            return value if tolist is None else jsonable(tolist())


def duration(seconds: float) -> str:
    """A time span as ``m:ss``, ``h:mm:ss`` or ``N d N h``."""
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours}:{minutes % 60:02d}:{whole % 60:02d}"
    return f"{minutes}:{whole % 60:02d}"


def size(num_bytes: float) -> str:
    """A number of bytes with three digits and its decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def table(rows: list[list[str]]) -> list[str]:
    """Lines in which the columns of ``rows`` are aligned: numbers to the right, the rest to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_aligned(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _aligned(cell: str, width: int) -> str:
    return cell.rjust(width) if cell[:1].isdigit() else cell.ljust(width)
