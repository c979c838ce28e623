"""One image file, read with care: what Pillow gets silently wrong is corrected, announced or refused.

16-bit grey                      scaled to 8 bits (a plain conversion clips it to white)
transparency                     composited on white or another colour (a plain conversion shows what is hidden)
EXIF orientation                 applied
animation, multi-page file       first frame, with an ImageWarning
CMYK                             converted without its colour profile, with an ImageWarning
over 80 megapixels               refused before anything is decoded
one side over 32 times the other refused: the crop keeps next to nothing, and enlarging it could fill the memory
integers beyond 16 bits, floats  refused: their range is not known
empty, truncated, not an image   refused
"""

import os
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dis_cli.errors import DataError

# below Pillow's own limits, 89 megapixels for a warning and 179 for an error
MAX_PIXELS = 80_000_000
MAX_ASPECT = 32

_TOO_LARGE = f"over the limit of {MAX_PIXELS // 1_000_000} megapixels"

# Only these decoders are tried, whatever a file is called: Pillow has others that start programs (EPS: Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})


class ImageWarning(UserWarning):
    """An image is used, but not all that its file holds."""


def printable(path: str | os.PathLike[str]) -> str:
    r"""A path for a message: bytes that are no UTF-8 and control characters become ``\udcff``, ``\n``, ``\x1b``."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in os.fspath(path))


def read_image(
    file: Path | BinaryIO, *, channels: int, background: str = "white", name: str | None = None
) -> Image.Image:
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
    try:
        with Image.open(file, formats=FORMATS) as image:
            _refuse_extreme_size(*image.size)
            # the second picture of an MPO (a photo of many telephones) is a preview or a depth map
            if getattr(image, "is_animated", False) and image.format != "MPO":
                warnings.warn("Only the first frame of animated images is used", ImageWarning, stacklevel=2)
            if image.mode == "CMYK":
                warnings.warn("CMYK images are converted without their colour profile", ImageWarning, stacklevel=2)
            return _opaque_8_bit(ImageOps.exif_transpose(image), background).convert("L" if channels == 1 else "RGB")
    # decoders raise anything on a damaged file: OSError, SyntaxError, EOFError, struct.error, TypeError ...
    except Exception as error:
        raise unreadable(name or printable(str(file)), _reason(error, file)) from error


def unreadable(name: str, reason: str) -> DataError:
    """The error to raise for an image that cannot be used.

    Args:
        name: The file, printable.
        reason: Why, without a full stop.
    """
    return DataError(f"Image cannot be read: `{name}` ({reason})", "Repair, replace or remove the file")


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
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, background), layer)
    return image


def _reason(error: Exception, file: Path | BinaryIO) -> str:
    if isinstance(error, UnidentifiedImageError):
        empty = (file.stat().st_size if isinstance(file, Path) else file.seek(0, os.SEEK_END)) == 0
        return "the file is empty" if empty else f"not a {', '.join(FORMATS)} file"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return _TOO_LARGE
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
