"""Pictures inside a page, small enough together; or as they are."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from PIL import Image

# Of all pictures of a page: with base64's third and the curves it stays below 5 MB.
_BUDGET_BYTES: Final = 3_000_000
_QUALITIES: Final = (90, 75, 60, 45)
# Of previews, by all runs together.
MOST_PREVIEWS: Final = 60

_T = TypeVar("_T")


@dataclass(frozen=True)
class Embedded:
    """A picture as an ``img`` element has it."""

    uri: str
    width: int
    height: int


def embed(png: bytes, *, full: bool, pictures: int) -> Embedded | None:
    """A picture as a data URI: the PNG itself, or WebP that fits, without loss where it can.

    Args:
        png: A file of a picture; None comes back for what is none.
        full: Whether to take the file as it is.
        pictures: How many share the page.
    """
    try:
        with Image.open(io.BytesIO(png)) as opened:
            opened.load()
            picture = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    kind, data = ("png", png) if full else ("webp", _small(picture, _BUDGET_BYTES // max(pictures, 1)))
    text = base64.b64encode(data).decode("ascii")
    return Embedded(f"data:image/{kind};base64,{text}", picture.width, picture.height)


def spread(items: Sequence[_T], most: int) -> list[_T]:
    """Items evenly chosen, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)] if most > 1 else [items[-1]]


def _small(picture: Image.Image, budget: int) -> bytes:
    if len(data := _webp(picture, lossless=True)) <= budget:
        return data
    while True:
        for quality in _QUALITIES:
            data = _webp(picture, quality=quality)
            if len(data) <= budget or max(picture.size) < 64:
                return data
        picture = picture.resize((max(picture.width // 2, 1), max(picture.height // 2, 1)), Image.Resampling.BOX)


def _webp(picture: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", **options)
    return buffer.getvalue()
