"""Careful decoding of an image file: whatever Pillow silently gets wrong is corrected, reported or refused.

Every file, whatever its format and mode, passes the same steps in this order:

1. size           over 80 megapixels: refused before anything is decoded. One side over 32 times the other: refused,
                  the crop keeps next to nothing, and enlarging it could fill the memory
2. remarks        animation, several pages: the first frame is used. CMYK: converted without its colour profile.
                  Both are remarks of `check_image`
3. orientation    of EXIF or TIFF, applied
4. transparency   found at the file's own depth: of the pixels, of the palette, or one colour (tRNS of PNG), which a
                  pixel has in all bits or not at all
5. 8 bits         grey of 12 and 16 bits to the nearest level (a plain conversion clips it to white); colour of 16 bits
                  by its high bytes, less than a level off; TIFF's "white is zero" turned over at every depth;
                  premultiplied colours divided by their alpha; CIE L*a*b*, YCbCr, CMYK and palettes to RGB
6. background     transparent pixels laid on white or another colour (a plain conversion shows what is hidden)
7. channels       RGB, or grey as ITU-R 601 luma; so grey images show the luma of the background

Refused, because nobody can tell what is white: floats, signed integers of 8 and 16 bits, and wider integers beyond
16 bits or within 8. Refused, because there is no image: empty, truncated, another kind of file.
"""

import logging
import os
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageFile, ImageOps, UnidentifiedImageError, features

from dis_cli.errors import DataError, is_limit

# below Pillow's own limits, 89 megapixels for a warning and 179 for an error
MAX_PIXELS = 80_000_000
MAX_ASPECT = 32

# Raised whenever a file that was accepted may now be refused or remarked on: what was checked before then no longer
# counts.
RULES = 2

_TOO_LARGE = f"over the limit of {MAX_PIXELS // 1_000_000} megapixels"

# Only these decoders are tried, whatever a file is called: Pillow has others that start programs (EPS: Ghostscript),
# that take nearly any file for theirs (TGA), or that few images need and attackers like (JPEG 2000).
SUFFIXES_OF = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".jfi", ".pjpeg", ".pjp", ".mpo"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
}
# Pillow can be built without these; versions before 11.3 do not know AVIF.
_OPTIONAL = {"WEBP": "webp", "AVIF": "avif"}


def _is_built_in(name: str) -> bool:
    module = _OPTIONAL.get(name)
    return module is None or (module in features.modules and features.check_module(module))


FORMATS = tuple(name for name in SUFFIXES_OF if _is_built_in(name))
SUFFIXES = frozenset(suffix for name in FORMATS for suffix in SUFFIXES_OF[name])

# Pillow logs some of what it then raises. Without any handler it would come out on stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())

# A BytesIO is a BinaryIO, but one cannot tell when the program runs.
Readable = Path | BinaryIO | BytesIO


# How the files begin whose format is told though their content is not understood.
_SIGNATURES = {b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF", b"\x89PNG": "PNG", b"BM": "BMP"}

# Numbers of TIFF tags.
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339


class Decoded(NamedTuple):
    """An image and what became of its file.

    Attributes:
        image: In its own size, detached from the file.
        grey: Whether the file has one channel of brightness, and no colours.
        transparent: Whether the file says how opaque its pixels are, even when all of them are.
        unused: Parts of the file that are not used, a sentence each.
    """

    image: Image.Image
    grey: bool
    transparent: bool
    unused: list[str]


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
    """Read an image file as 8-bit grey or RGB, upright and opaque; see ``decode_image``."""
    return decode_image(file, channels=channels, background=background, name=name).image


def decode_image(file: Readable, *, channels: int, background: str = "white", name: str | None = None) -> Decoded:
    """Read an image file as 8-bit grey or RGB, upright and opaque; the module's page says how.

    Args:
        file: The file, by its path or opened; its content decides the format, not its name.
        channels: 1 gives mode "L" (ITU-R 601 luma), 3 mode "RGB".
        background: The colour that shows through transparent pixels, a name or ``#rrggbb``.
        name: Name of the file in an error, printable; None takes the path.

    Raises:
        DataError: When the file cannot be read or is refused, naming it and the reason.
        ValueError: When channels is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    return _decode(file, name, channels, background, small=False)


def check_image(file: Readable) -> list[str]:
    """Refuse what ``read_image`` refuses, whatever its settings, in less time.

    Args:
        file: The file, by its path or opened.

    Returns:
        What of the file is not used: a sentence for each.

    Raises:
        UnreadableImage: The file cannot be read or is refused.
    """
    return _decode(file, None, 3, "white", small=True).unused


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


def _decode(file: Readable, name: str | None, channels: int, background: str, *, small: bool) -> Decoded:
    """The image; ``small`` may give fewer pixels where that is faster."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            _refuse_extreme_size(*image.size)
            remarks = _remarks(image)
            samples = _samples(image)
            if small:
                # A JPEG is made an eighth the size, in grey: all of its file is parsed, but less is computed. The other
                # formats cannot do this, and are not changed.
                image.draft("L", (1, 1))
            ImageOps.exif_transpose(image, in_place=True)
            keyed = None if samples.key is None else _alpha_of_key(image, samples, file)
            colours, alpha = _split_8_bit(image, samples)
            alpha = keyed or alpha
            if alpha is not None:
                layer = colours.convert("RGBA")
                layer.putalpha(alpha)
                colours = Image.alpha_composite(Image.new("RGBA", layer.size, background), layer)
            opaque = colours.convert("L" if channels == 1 else "RGB")
            return Decoded(opaque, samples.grey, alpha is not None, remarks)
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


class _Samples(NamedTuple):
    """A file's own account of its samples, which Pillow does not keep or heed.

    Attributes:
        top: The value of full brightness, where Pillow leaves more than 8 bits.
        white_is_zero: Whether it is that of black, and Pillow does not turn it over.
        wide: Whether the type of the values says nothing of their range.
        key: The values of the colour that is transparent; None without one.
        low_bytes: Pillow's name for the lower halves of samples of which it keeps the upper; None when it keeps all.
    """

    grey: bool
    top: int
    white_is_zero: bool
    wide: bool
    key: tuple[int, ...] | None
    low_bytes: str | None


def _samples(image: ImageFile.ImageFile) -> _Samples:
    tags: Any = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    bits = max(tags.get(_BITS, (16,)))
    if image.mode == "F":
        raise ValueError("32-bit floats have no known range")
    if 2 in tags.get(_SAMPLE_FORMAT, ()) and bits <= 16:
        raise ValueError("signed integers have no known range")
    layout = str(image.tile[0][3]) if image.format == "PNG" and image.tile else ""
    key = None
    # of a palette it stays where Pillow finds it
    if image.mode != "P" and (found := image.info.pop("transparency", None)) is not None:
        key = tuple(found) if isinstance(found, tuple) else (found * {"L;2": 85, "L;4": 17}.get(layout, 1),)
    return _Samples(
        grey=image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I") or layout == "LA;16B",
        top=(1 << min(bits, 16)) - 1,
        white_is_zero=tags.get(_PHOTOMETRIC) == 0 and image.mode.startswith("I"),
        wide=bits > 16,
        key=key,
        low_bytes="RGB;16L" if layout == "RGB;16B" else None,
    )


def _alpha_of_key(image: Image.Image, samples: _Samples, file: Readable) -> Image.Image:
    """Transparent where all channels have the key's values."""
    assert samples.key is not None
    key = np.array(samples.key)
    if samples.low_bytes is None:
        # PNG: of a key, only as many bits count as the samples have
        return _where_different(image, key if image.mode.startswith("I") else key & 255)
    upper = _where_different(image, key >> 8)
    if not isinstance(file, Path):
        file.seek(0)
    with Image.open(file, formats=FORMATS) as low:
        # a plain tuple until Pillow 11, and later one with names, which is private
        low.tile = [(*low.tile[0][:3], samples.low_bytes)]  # pyright: ignore[reportAttributeAccessIssue]
        ImageOps.exif_transpose(low, in_place=True)
        return ImageChops.lighter(upper, _where_different(low, key & 255))


def _where_different(image: Image.Image, key: npt.NDArray[np.int64]) -> Image.Image:
    values = np.asarray(image.convert("L") if image.mode == "1" else image)
    different = (values.reshape(*values.shape[:2], -1) != key).any(axis=2)
    return Image.fromarray(np.where(different, np.uint8(255), np.uint8(0)))


def _split_8_bit(image: Image.Image, samples: _Samples) -> tuple[Image.Image, Image.Image | None]:
    """Grey or colours in 8 bits, and the alpha channel that is in the pixels or the palette."""
    if image.mode.startswith("I"):
        return _grey_8_bit(image, samples), None
    if image.mode == "LAB":
        # Pillow knows no way from here to grey
        return image.convert("RGB"), None
    if image.mode == "La":
        # nor from here to RGBA
        image = image.convert("LA")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return layer.convert("RGB"), layer.getchannel("A")
    return image, None


def _grey_8_bit(image: Image.Image, samples: _Samples) -> Image.Image:
    values = np.asarray(image)
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > 65535:
        raise ValueError("integers beyond 16 bits have no known range")
    if samples.wide and 0 < highest <= 255:
        raise ValueError(f"32-bit integers up to {highest} may be of 8 or 16 bits: save them as what they are")
    levels = (values.astype(np.uint32) * 255 + samples.top // 2) // samples.top
    return Image.fromarray((255 - levels if samples.white_is_zero else levels).astype(np.uint8))


def _reason(error: Exception, file: Readable) -> str:
    if isinstance(error, UnidentifiedImageError):
        start = _first_bytes(file)
        kind = next((kind for signature, kind in _SIGNATURES.items() if start.startswith(signature)), None)
        if kind is not None:
            return f"a {kind} file, damaged or with a kind of pixels that Pillow cannot read"
        return f"not a {', '.join(FORMATS)} file" if start else "the file is empty"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return _TOO_LARGE
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # Pillow quotes bytes of some files
    return printable(str(error) or type(error).__name__)


def _first_bytes(file: Readable) -> bytes:
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return opened.read(16)
    file.seek(0)
    return file.read(16)
