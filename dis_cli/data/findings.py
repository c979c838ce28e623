"""Findings about image files before they are used: their sizes, colours and transparency, of some of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dis_cli.data.decode import decode_image, read_image
from dis_cli.data.held_out import spread_places
from dis_cli.data.images.files import ImageFiles
from dis_cli.errors import DataError, first_of

# Images that are looked at, evenly spread over all.
_LOOKED_AT = 200
_NAMED_CLASSES = 6


@dataclass(frozen=True)
class Findings:
    """Facts about a set of images.

    Attributes:
        num_images: Of the whole set.
        class_names: Empty when it is unlabelled.
        sizes: Width and height of each image that was looked at.
        has_colour: Whether one of them has colours.
        num_transparent: How many of them have a transparent pixel.
    """

    num_images: int
    class_names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    has_colour: bool
    num_transparent: int

    def told(self) -> str:
        """One line, such as "3 classes: ball, china, flower; 60 images, 64x64 to 300x200, RGB"."""
        names = self.class_names
        listed = first_of(names, _NAMED_CLASSES)
        classes = f"{len(names)} class{'es' if len(names) != 1 else ''}: {listed}" if names else "no classes"
        by_area = sorted(self.sizes, key=lambda size: size[0] * size[1])
        ends = dict.fromkeys(f"{width}x{height}" for width, height in (by_area[:1] + by_area[-1:]))
        facts = [f"{self.num_images:,} image{'s' if self.num_images != 1 else ''}"]
        facts += [" to ".join(ends)] if ends else []
        return f"{classes}; {', '.join([*facts, 'RGB' if self.has_colour else 'grey'])}"

    def lost(self, *, channels: int, num_classes: int) -> list[str]:
        """What a model throws away whose settings do not fit the images, a phrase each."""
        found: list[str] = []
        if self.has_colour and channels == 1:
            found.append("colours become grey (model.in_channels=3 keeps them)")
        if self.class_names and num_classes == 0:
            found.append(f"classes are not used (model.num_classes={len(self.class_names)} trains on them)")
        return found

    def prepared(self, *, pixel_size: int, background: str) -> list[str]:
        """What becomes of the images so that all are squares of one size, a phrase each."""
        found: list[str] = []
        sides = [min(size) for size in self.sizes]
        if max(sides, default=0) > pixel_size:
            found.append(f"images are reduced from up to {max(sides)} to {pixel_size} pixels a side")
        if min(sides, default=pixel_size) < pixel_size:
            found.append(f"images are enlarged from as few as {min(sides)} to {pixel_size} pixels a side")
        if cropped := sum(width != height for width, height in self.sizes):
            found.append(f"{_share(cropped, len(self.sizes))} cropped to their centred square")
        if self.num_transparent:
            found.append(
                f"{_share(self.num_transparent, len(self.sizes))} laid on {background} where they are transparent "
                "(data.background)"
            )
        return found


def _share(count: int, total: int) -> str:
    if count == total:
        return "all images are"
    return f"{count} of {total} images looked at {'is' if count == 1 else 'are'}"


def look_at(files: ImageFiles) -> Findings:
    """Look at some images of a set; one that cannot be read is left to the check of all of them."""
    count = len(files.labels)
    sizes: list[tuple[int, int]] = []
    has_colour, num_transparent = False, 0
    for place in spread_places(count, _LOOKED_AT):
        try:
            file = files.open(place)
            on_white = decode_image(file, channels=3, background="white", name="")
            sizes.append(on_white.image.size)
            has_colour = has_colour or (not on_white.grey and _has_colour(on_white.image))
            if on_white.transparent:
                if not isinstance(file, Path):
                    file.seek(0)
                # Only a transparent pixel shows the background.
                on_black = read_image(file, channels=3, background="black", name="")
                num_transparent += on_white.image.tobytes() != on_black.tobytes()
        except (DataError, OSError):
            continue
    return Findings(count, files.class_names, tuple(sizes), has_colour, num_transparent)


def _has_colour(image: Image.Image) -> bool:
    """Whether channels differ by more than compression makes them."""
    levels = np.asarray(image, dtype=np.int16)
    return bool((levels.max(axis=2) - levels.min(axis=2) > 8).mean() > 0.001)
