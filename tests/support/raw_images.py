"""Image files written byte by byte from samples: Pillow cannot write most of the kinds that it reads."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

PNG_TYPES = {"grey": 0, "rgb": 2, "palette": 3, "la": 4, "rgba": 6}


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """What an array of that orientation shows, (h, w, ...)."""
    turned = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a.swapaxes(0, 1)[:, ::-1],
        7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
        8: lambda a: a.swapaxes(0, 1)[::-1],
    }
    return turned[orientation](array)


def packed(samples: np.ndarray, depth: int, order: str) -> list[bytes]:
    """The rows of (h, w, c) samples, each padded to a byte; ``order`` is that of 16 and 32 bits, < or >."""
    rows = samples.reshape(len(samples), -1)
    if depth >= 8 and depth != 12:
        kind = samples.dtype.kind if samples.dtype.kind == "f" or samples.min() < 0 else "u"
        return [row.astype(f"{order}{kind}{depth // 8}").tobytes() for row in rows]
    bits = rows[..., None] >> np.arange(depth)[::-1] & 1
    return [np.packbits(row.ravel().astype(np.uint8)).tobytes() for row in bits]


def png(
    kind: str,
    depth: int,
    samples: np.ndarray,
    *,
    trns: bytes | None = None,
    palette: np.ndarray | None = None,
    orientation: int = 1,
) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width = samples.shape[:2]
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, PNG_TYPES[kind], 0, 0, 0))]
    parts += [] if palette is None else [chunk(b"PLTE", palette.astype(np.uint8).tobytes())]
    parts += [] if trns is None else [chunk(b"tRNS", trns)]
    parts += [chunk(b"eXIf", exif(orientation).tobytes().removeprefix(b"Exif\0\0"))]
    parts += [chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in packed(samples, depth, ">"))))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def tiff(
    photometric: int,
    depth: int,
    samples: np.ndarray,
    *,
    extra: int | None = None,
    sample_format: int = 1,
    order: str = "<",
    palette: np.ndarray | None = None,
    compressed: bool = False,
    orientation: int = 1,
) -> bytes:
    """A TIFF file of one strip; ``palette`` is (entries, 3) in 16 bits."""
    height, width, channels = samples.shape
    data = b"".join(packed(samples, depth, order))
    data = zlib.compress(data) if compressed else data
    tags: dict[int, tuple[str, Sequence[int]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [depth] * channels),
        259: ("H", [8 if compressed else 1]),
        262: ("H", [photometric]),
        273: ("I", [0]),
        274: ("H", [orientation]),
        277: ("H", [channels]),
        278: ("I", [height]),
        279: ("I", [len(data)]),
        339: ("H", [sample_format] * channels),
    }
    if photometric == 6:
        # the colours are in every pixel
        tags[530] = ("H", [1, 1])
    if palette is not None:
        tags[320] = ("H", palette.T.ravel().tolist())
    if extra is not None:
        tags[338] = ("H", [extra])
    place = 8 + 2 + 12 * len(tags) + 4
    entries, far = b"", b""
    tags[273] = ("I", [place + sum(_size(*tag) for tag in tags.values() if _size(*tag) > 4)])
    for number, (kind, values) in sorted(tags.items()):
        content = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(content) > 4:
            content, far = struct.pack(f"{order}I", place + len(far)), far + content
        entries += struct.pack(f"{order}HHI", number, 3 if kind == "H" else 4, len(values)) + content.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + bytes(4) + far + data


def _size(kind: str, values: Sequence[int]) -> int:
    return len(values) * (2 if kind == "H" else 4)
