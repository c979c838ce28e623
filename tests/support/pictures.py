"""Image files that people really have: good ones, odd ones that are used all the same, and bad ones."""

import io
import os
import struct
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dis_cli.data.images.files import FileSource
from dis_cli.events import Event

CLASSES = ("ant", "bee")
NUM_GOOD = 100
SIZE = 24


def noise(height: int = SIZE, width: int = SIZE, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bilevel_png(side: int, rows: int = 0) -> bytes:
    """A PNG that promises side x side pixels of one bit, and holds so many rows of them."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(rows * (1 + (side + 7) // 8)), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def turned_exif() -> Image.Exif:
    """Orientation 6: to be shown after a quarter turn clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _animation() -> bytes:
    frames = [Image.new("RGB", (SIZE, SIZE), colour) for colour in ("red", "blue")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


# Files that are refused, with words of the reason.
BAD_FILES = {
    "empty.png": (b"", "the file is empty"),
    "text.png": (b"no image at all", "not a PNG, JPEG"),
    "cut.jpg": (encoded(noise(), "JPEG")[:-300], "truncated"),
    "cut.png": (encoded(noise(), "PNG")[:-300], "truncated"),
    "program.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "not a PNG, JPEG"),
    "big.png": (bilevel_png(9_000), "9000x9000 is over the limit of 80 megapixels"),
    "hundred.png": (bilevel_png(10_000, rows=10_000), "over the limit of 80 megapixels"),
    "bomb.png": (bilevel_png(60_000), "over the limit of 80 megapixels"),
    "line.png": (encoded(noise(1, 64), "PNG"), "64x1: one side is over 32 times the other"),
    "float.tif": (encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"), "no known range"),
    "int.tif": (encoded(Image.fromarray(np.full((8, 8), 70_000, np.int32)), "TIFF"), "no known range"),
    "\x1b[31m\n.png": (encoded(noise(64, 1), "PNG"), "1x64: one side"),
}

# Files that are used, with what is said of them.
ODD_FILES = {
    "deep.png": (encoded(Image.fromarray(np.full((SIZE, SIZE), 1000, np.uint16)), "PNG"), None),
    "clear.png": (encoded(Image.new("RGBA", (SIZE, SIZE), (255, 0, 0, 0)), "PNG"), None),
    "turned.jpg": (encoded(noise(), "JPEG", exif=turned_exif()), None),
    os.fsdecode(b"\xff.png"): (encoded(noise(seed=1), "PNG"), None),
    "phone.jpg": (encoded(noise(seed=3), "MPO", save_all=True, append_images=[noise(seed=4)]), None),
    "animated.gif": (_animation(), "Only the first frame of animated images is used"),
    "cmyk.jpg": (encoded(noise(seed=2).convert("CMYK"), "JPEG"), "CMYK images are converted without their"),
}


class Table(NamedTuple):
    """Names are paths inside the folder; they stand between each other in the order of a source.

    Attributes:
        good: Plain images, each of other pixels than the rest.
        bad: Words of the reason for which each cannot be used.
        used: Odd images that are used all the same.
        remarks: What is said of some of the used ones, one each.
    """

    good: list[str]
    bad: dict[str, str]
    used: list[str]
    remarks: list[str]


def make_table(folder: Path) -> Table:
    """Fill a folder with two classes: NUM_GOOD good images, and every kind of odd and bad ones among them."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    table = Table([], {}, [], [])
    for seed in range(NUM_GOOD):
        # from A to z, with the others between
        table.good.append(f"{CLASSES[seed % 2]}/{chr(ord('A') + seed // 2)}{seed:02d}.png")
        noise(seed=100 + seed).save(folder / table.good[-1])
    for number, (name, (content, reason)) in enumerate(BAD_FILES.items()):
        place = f"{CLASSES[number % 2]}/{name}"
        (folder / place).write_bytes(content)
        table.bad[place] = reason
    for number, (name, (content, remark)) in enumerate(ODD_FILES.items()):
        table.used.append(f"{CLASSES[number % 2]}/{name}")
        (folder / table.used[-1]).write_bytes(content)
        table.remarks.extend([remark] if remark else [])
    table.bad.update(add_odd_entries(folder, CLASSES[0]))
    return table


def add_odd_entries(folder: Path, class_name: str) -> dict[str, str]:
    """Entries that look like images and cannot be any, with words of the reasons."""
    (folder / class_name / "broken.png").symlink_to("nowhere.png")
    (folder / class_name / "loop.png").symlink_to("loop.png")
    (folder / class_name / "folder.png").mkdir()
    noise().save(folder / "beside.png")
    return {
        f"{class_name}/broken.png": "a broken link",
        f"{class_name}/loop.png": "Too many levels of symbolic links",
        f"{class_name}/folder.png": "a folder named like an image",
        "beside.png": "lies beside the class folders",
    }


def outcome(check: Generator[Event, None, FileSource]) -> tuple[list[Event], FileSource]:
    """The events of a check, and what it returns."""
    events: list[Event] = []
    while True:
        try:
            events.append(next(check))
        except StopIteration as end:
            return events, end.value
