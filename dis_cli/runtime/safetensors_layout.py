"""The layout of a safetensors file, for writers that do not want to hold all of it in memory.

The size of the header in 8 bytes, the header in JSON with every tensor's type, shape and place, then the tensors one
after the other. The library itself writes from memory only.
"""

import json
from collections.abc import Mapping
from typing import NamedTuple


class Stored(NamedTuple):
    """One tensor of a file.

    Args:
        dtype: As the format calls it: "F32", "F16", "BF16", "I64", "U8" ...
    """

    dtype: str
    shape: list[int]
    size_bytes: int


def layout(
    tensors: Mapping[str, Stored], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, int], int]:
    """The header of a file, where its tensors begin, and its size, all in bytes from the start of the file.

    Args:
        tensors: By name, in the order in which they lie; those of larger numbers first, so that all are aligned.
        metadata: Further content of the header.
    """
    begins: dict[str, int] = {}
    entries: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, shape, size) in tensors.items():
        begins[name] = end
        end += size
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begins[name], end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    # the tensors begin at a multiple of 8 bytes, so that they can be mapped
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + begin for name, begin in begins.items()}, len(header) + end
