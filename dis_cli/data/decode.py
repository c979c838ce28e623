"""One image file, read with care: what Pillow gets silently wrong is corrected, announced or refused.

16-bit grey                      scaled to 8 bits (a plain conversion clips it to white)
transparency                     composited on white or another colour (a plain conversion shows what is hidden)
EXIF orientation                 applied
animation, multi-page file       first frame, with a remark of `check_image`
CMYK                             converted without its colour profile, with a remark
over 80 megapixels               refused before anything is decoded
one side over 32 times the other refused: the crop keeps next to nothing, and enlarging it could fill the memory
integers beyond 16 bits, floats  refused: their range is not known
empty, truncated, not an image   refused
"""

import logging
import os
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dis_cli.errors import DataError, is_limit

# below Pillow's own limits, 89 megapixels for a warning and 179 for an error
MAX_PIXELS = 80_000_000
MAX_ASPECT = 32

# Raised whenever a file that was accepted may now be refused or remarked on: what was checked before then no longer
# counts.
RULES = 1

_TOO_LARGE = f"over the limit of {MAX_PIXELS // 1_000_000} megapixels"

# Only these decoders are tried, whatever a file is called: Pillow has others that start programs (EPS: Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})

# Pillow logs some of what it then raises. Without any handler it would come out on stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())

# A BytesIO is a BinaryIO, but one cannot tell when the program runs.
Readable = Path | BinaryIO | BytesIO


class UnreadableImage(DataError):
    """An image that cannot be used.

    Args:
        name: The file, printable.
        reason: Why, without a full stop.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"Image cannot be read: `{name}` ({reason})", "Repair, replace or remove the file")
        self.reason = reason


def printable(path: str | os.PathLike[str]) -> str:
    r"""A path for a message: bytes that are no UTF-8 and control characters become ``\udcff``, ``\n``, ``\x1b``."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in os.fspath(path))


def read_image(file: Readable, *, channels: int, background: str = "white", name: str | None = None) -> Image.Image:
    """Read an image file as 8-bit grey or RGB, upright and opaque; the module's page says how.

    Args:
        file: The file, by its path or opened; its content decides the format, not its name.
        channels: 1 gives mode "L" (ITU-R 601 luma), 3 mode "RGB".
        background: The colour that shows through transparent pixels, a name or ``#rrggbb``.
        name: What to call the file in an error, printable; None takes the path.

    Returns:
        The image in its own size, detached from the file.

    Raises:
        DataError: When the file cannot be read or is refused, naming it and the reason.
        ValueError: When channels is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    return _decode(file, name, channels, background, small=False)[0]


def check_image(file: Readable) -> list[str]:
    """Refuse what ``read_image`` refuses, whatever its settings, in less time.

    Args:
        file: The file, by its path or opened.

    Returns:
        What of the file is not used: a sentence for each.

    Raises:
        UnreadableImage: The file cannot be read or is refused.
    """
    _, remarks = _decode(file, None, 3, "white", small=True)
    return remarks


def center_crop(image: Image.Image, image_size: int) -> Image.Image:
    """The largest centred square of an image, resized to ``image_size``.

    The crop of the ADM code base (arXiv 2105.05233), which FID figures of class-conditional models rest on: halve with
    a box filter while the short side is at least twice the target, resize it to the target with a bicubic filter
    (keeping the aspect ratio), cut the middle. Smaller images are enlarged.

    Args:
        image: An 8-bit image.
        image_size: Side of the result, in pixels.
    """
    while min(image.size) >= 2 * image_size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = image_size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - image_size) // 2, (image.height - image_size) // 2
    return image.crop((left, top, left + image_size, top + image_size))


def _decode(
    file: Readable, name: str | None, channels: int, background: str, *, small: bool
) -> tuple[Image.Image, list[str]]:
    """The image, and what of its file is not used; ``small`` may give fewer pixels where that is faster."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            _refuse_extreme_size(*image.size)
            remarks = _remarks(image)
            if small:
                # A JPEG is made an eighth the size, in grey: all of its file is parsed, but less is computed. The other
                # formats cannot do this, and are not changed.
                image.draft("L", (1, 1))
            ImageOps.exif_transpose(image, in_place=True)
            return _opaque_8_bit(image, background).convert("L" if channels == 1 else "RGB"), remarks
    # decoders raise anything on a damaged file: OSError, SyntaxError, EOFError, struct.error, TypeError ...
    except Exception as error:
        if is_limit(error):
            # The image is not to blame.
            raise
        raise UnreadableImage(name or printable(str(file)), _reason(error, file)) from error


def _remarks(image: Image.Image) -> list[str]:
    remarks: list[str] = []
    # the second picture of an MPO (a photo of many telephones) is a preview or a depth map
    if getattr(image, "is_animated", False) and image.format != "MPO":
        remarks.append("Only the first frame of animated images is used")
    if image.mode == "CMYK":
        remarks.append("CMYK images are converted without their colour profile")
    return remarks


def _refuse_extreme_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}x{height} is {_TOO_LARGE}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"{width}x{height}: one side is over {MAX_ASPECT} times the other")


def _opaque_8_bit(image: Image.Image, background: str) -> Image.Image:
    if image.mode == "F":
        raise ValueError("32-bit floats have no known range")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("integers beyond 16 bits have no known range")
        # 65535 = 255 * 257: the nearest of 256 levels
        return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode == "LAB":
        # Pillow knows no way from here to grey
        return image.convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, background), layer)
    return image


def _reason(error: Exception, file: Readable) -> str:
    if isinstance(error, UnidentifiedImageError):
        empty = (file.stat().st_size if isinstance(file, Path) else file.seek(0, os.SEEK_END)) == 0
        return "the file is empty" if empty else f"not a {', '.join(FORMATS)} file"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return _TOO_LARGE
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # Pillow quotes bytes of some files
    return printable(str(error) or type(error).__name__)
