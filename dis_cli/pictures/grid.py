"""One labelled picture of many images."""

import io
import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

MAX_COLUMNS = 16
# Images are enlarged to this many pixels at least, by whole factors.
MIN_TILE = 64
MARGIN = 4
LONGEST_NAME = 160
LINE_HEIGHT = 16

Picture: TypeAlias = npt.NDArray[np.uint8]


def labelled_grid(
    images: Sequence[Picture], labels: Sequence[str] | None, columns: int | None = None, heading: str = ""
) -> Image.Image:
    """Rows of images, each class beginning a row of its own with its name at the left.

    Args:
        images: (h, w, c) each, all of one shape, c = 1 or 3.
        labels: Name of each image's class; None puts all in rows without a name.
        columns: Images in a row; None makes a square of a single group, and else a row of each.
        heading: Text above the first column; none when empty.
    """
    names = labels if labels is not None else [""] * len(images)
    groups: dict[str, list[Picture]] = {}
    for name, image in zip(names, images, strict=True):
        groups.setdefault(name, []).append(image)
    largest = max(len(group) for group in groups.values())
    columns = columns or min(MAX_COLUMNS, math.ceil(math.sqrt(largest)) if len(groups) == 1 else largest)
    rows = [
        (name if start == 0 else "", group[start : start + columns])
        for name, group in groups.items()
        for start in range(0, len(group), columns)
    ]
    return labelled_rows(rows, [heading] if heading else [])


def class_grid(images: Sequence[Picture], labels: Sequence[int] | None, names: Sequence[str]) -> bytes:
    """The PNG of images by class, in the order of the classes, whichever image came first.

    Args:
        images: (h, w, c) each, all of one shape, c = 1 or 3.
        labels: Class of each; None for images without classes.
        names: Of all classes; where there are none, their numbers stand for them.
    """
    if labels is None:
        return png_of(labelled_grid(images, None))
    order = sorted(range(len(images)), key=lambda place: labels[place])
    told = [names[labels[place]] if names else str(labels[place]) for place in order]
    return png_of(labelled_grid([images[place] for place in order], told))


def preview_classes(most: int, num_classes: int) -> list[int]:
    """The classes that previews show: all, or some evenly spread.

    Args:
        most: Images that a preview may have. Where they are fewer than the classes, as many classes are shown as make
            the preview about square.
        num_classes: At least 1.
    """
    shown = num_classes if num_classes <= most else math.isqrt(most)
    return [place * num_classes // shown for place in range(shown)]


def preview_labels(most: int, num_classes: int) -> list[int]:
    """The class of each image of a preview, in the order of the seeds: in turn, and as many of each as of any other."""
    return (classes := preview_classes(most, num_classes)) * (most // len(classes))


def labelled_rows(rows: Sequence[tuple[str, Sequence[Picture]]], headings: Sequence[str] = ()) -> Image.Image:
    """Named rows of images, of which small ones are enlarged.

    Args:
        rows: Name, which is cut when it is long, and (h, w, c) images; all of one shape, c = 1 or 3.
        headings: Texts above the columns, from the first on.
    """
    side = rows[0][1][0].shape[0]
    scale = max(1, math.ceil(MIN_TILE / side))
    tile = side * scale + MARGIN
    font = ImageFont.load_default(size=12)
    names = [_cut(name, font) for name, _ in rows]
    left = max(math.ceil(font.getlength(name)) for name in names) + MARGIN if any(names) else 0
    above = LINE_HEIGHT if headings else 0
    columns = max(len(images) for _, images in rows)
    canvas = Image.new("RGB", (left + MARGIN + columns * tile, above + MARGIN + len(rows) * tile), "white")
    draw = ImageDraw.Draw(canvas)
    for column, heading in enumerate(headings):
        # Only a single heading may run on over other columns.
        heading = _cut(heading, font, tile - MARGIN) if len(headings) > 1 else heading
        draw.text((left + MARGIN + column * tile, MARGIN), heading, fill="black", font=font, anchor="lt")
    for row, (name, (_, images)) in enumerate(zip(names, rows, strict=True)):
        top = above + MARGIN + row * tile
        draw.text((MARGIN, top + (tile - MARGIN) / 2), name, fill="black", font=font, anchor="lm")
        for column, image in enumerate(images):
            picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
            canvas.paste(
                picture.resize((side * scale, side * scale), Image.Resampling.NEAREST),
                (left + MARGIN + column * tile, top),
            )
    return canvas


def png_of(picture: Image.Image) -> bytes:
    """A picture as a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _cut(name: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, room: int = LONGEST_NAME) -> str:
    """The name, or as much of its beginning as there is room for."""
    # No letter is narrower than a pixel.
    kept = name[:room]
    if kept == name and font.getlength(name) <= room:
        return name
    while kept and font.getlength(f"{kept}...") > room:
        kept = kept[:-1]
    return f"{kept.rstrip()}..."
