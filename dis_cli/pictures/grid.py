"""One labelled picture of many images."""

import io
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

MAX_COLUMNS = 16
MIN_TILE = 32
MARGIN = 4


def labelled_grid(
    images: Sequence[npt.NDArray[np.uint8]], labels: Sequence[str] | None, columns: int | None = None
) -> Image.Image:
    """Rows of images, each class beginning a row of its own with its name at the left.

    Args:
        images: (h, w, c) each, all of one shape, c = 1 or 3.
        labels: Name of each image's class; None puts all in rows without a name.
        columns: Images in a row; None makes a square of a single group, and else a row of each.
    """
    names = labels if labels is not None else [""] * len(images)
    groups: dict[str, list[npt.NDArray[np.uint8]]] = {}
    for name, image in zip(names, images, strict=True):
        groups.setdefault(name, []).append(image)
    largest = max(len(group) for group in groups.values())
    columns = columns or min(MAX_COLUMNS, math.ceil(math.sqrt(largest)) if len(groups) == 1 else largest)
    rows = [
        (name if start == 0 else "", group[start : start + columns])
        for name, group in groups.items()
        for start in range(0, len(group), columns)
    ]
    side = images[0].shape[0]
    scale = max(1, MIN_TILE // side)
    tile = side * scale + MARGIN
    font = ImageFont.load_default(size=12)
    left = max(math.ceil(font.getlength(name)) for name in groups) + MARGIN if labels is not None else 0
    canvas = Image.new("RGB", (left + MARGIN + columns * tile, MARGIN + len(rows) * tile), "white")
    draw = ImageDraw.Draw(canvas)
    for row, (name, group) in enumerate(rows):
        top = MARGIN + row * tile
        draw.text((MARGIN, top + (tile - MARGIN) / 2), name, fill="black", font=font, anchor="lm")
        for column, image in enumerate(group):
            picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
            canvas.paste(
                picture.resize((side * scale, side * scale), Image.Resampling.NEAREST),
                (left + MARGIN + column * tile, top),
            )
    return canvas


def grid_png(
    images: Sequence[npt.NDArray[np.uint8]], labels: Sequence[str] | None, columns: int | None = None
) -> bytes:
    """``labelled_grid`` as a PNG file."""
    buffer = io.BytesIO()
    labelled_grid(images, labels, columns).save(buffer, format="PNG")
    return buffer.getvalue()
