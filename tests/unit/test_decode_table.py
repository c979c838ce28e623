"""Modes x formats x transparency: every one through the same rules, with values computed from the samples by hand."""

import functools
import io
import itertools
import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from support.raw_images import exif, png, tiff, upright

from dis_cli.data.decode import FORMATS, UnreadableImage, check_image, decode_image, read_image

SHAPE = (4, 6)
BACKGROUNDS = {"white": (255, 255, 255), "#2040a0": (32, 64, 160)}
RNG = np.random.default_rng(0)


class Case(NamedTuple):
    """A kind of file.

    Attributes:
        write: The file, of an orientation.
        rgba: What it shows before it is turned, (h, w, 4), 0 to 255.
        orientations: Those that the format can say.
        levels: How far from it the result may be; rounding and what the format's own coding loses.
    """

    write: Callable[[int], bytes]
    rgba: np.ndarray
    orientations: range = range(1, 9)
    levels: float = 1


def samples(depth: int, channels: int) -> np.ndarray:
    """Random ones with both ends of the range among them, (h, w, c)."""
    found = RNG.integers(0, 1 << depth, (*SHAPE, channels))
    found[0, 0], found[-1, -1] = 0, (1 << depth) - 1
    return found


def shown(colours: np.ndarray, top: float, alpha: np.ndarray | float = 1) -> np.ndarray:
    """(h, w, 4) of colours, 0 to top and in one or three channels, and of alpha from 0 to 1."""
    rgb = np.broadcast_to(colours * (255 / top), (*SHAPE, 3))
    return np.concatenate([rgb, np.broadcast_to(np.asarray(alpha) * 255.0, SHAPE)[..., None]], axis=2)


def of_png(kind: str, depth: int, values: np.ndarray, rgba: np.ndarray, **options: object) -> Case:
    return Case(lambda turn: png(kind, depth, values, orientation=turn, **options), rgba)


def of_tiff(photometric: int, depth: int, values: np.ndarray, rgba: np.ndarray, **options: object) -> Case:
    def write(turn: int, *, compressed: bool = False) -> bytes:
        return tiff(photometric, depth, values, orientation=turn, compressed=compressed, **options)

    return Case(write, rgba)


def squeezed(case: Case) -> Case:
    return case._replace(write=functools.partial(case.write, compressed=True))


def png_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for kind, channels, depth in [*(("grey", 1, d) for d in (1, 2, 4, 8, 16)), ("rgb", 3, 8), ("rgb", 3, 16)]:
        values, top = samples(depth, channels), (1 << depth) - 1
        name = f"PNG {kind} {depth} bit"
        cases[name] = of_png(kind, depth, values, shown(values, top))
        # the key's neighbour differs in the last bit only
        values = values.copy()
        key = values[1, 1].copy()
        values[1, 2], values[1, 3] = key, key ^ ([1] if channels == 1 else [0, 0, 1])
        hidden = (values == key).all(axis=2)
        assert hidden[1, 1]
        assert hidden[1, 2]
        assert not hidden[1, 3]
        trns = struct.pack(f">{channels}H", *key)
        cases[f"{name}, one colour transparent"] = of_png(kind, depth, values, shown(values, top, ~hidden), trns=trns)
        if depth == 8:
            # bits beyond the depth do not count
            trns = struct.pack(f">{channels}H", *(key + 512))
            cases[f"{name}, a key of 10 bits"] = of_png(kind, depth, values, shown(values, top, ~hidden), trns=trns)
    for depth in (1, 2, 4, 8):
        values, entries = samples(depth, 1), min(1 << depth, 200)
        values %= entries
        values[2, 2] = 1
        palette = RNG.integers(0, 256, (entries, 3))
        table = RNG.integers(0, 256, entries)
        table[0] = 0
        for name, trns, alpha in (
            ("", None, np.full(entries, 255)),
            (", one entry transparent", b"\xff\0", np.where(np.arange(entries) == 1, 0, 255)),
            (", entries with alpha", bytes(table.tolist()), table),
        ):
            cases[f"PNG palette {depth} bit{name}"] = of_png(
                "palette",
                depth,
                values,
                shown(palette[values[..., 0]], 255, alpha[values[..., 0]] / 255),
                palette=palette,
                trns=trns,
            )
    for kind, depth in itertools.product(("la", "rgba"), (8, 16)):
        values, top = samples(depth, 2 if kind == "la" else 4), (1 << depth) - 1
        case = of_png(kind, depth, values, shown(values[..., :-1], top, values[..., -1] / top))
        # of 16 bits, colours and alpha are each rounded before they are laid on the background
        cases[f"PNG {kind} {depth} bit"] = case._replace(levels=depth // 8)
    return cases


def tiff_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for depth, order in [*((d, "<") for d in (1, 2, 4, 8, 12, 16)), (8, ">"), (16, ">")]:
        values, top = samples(depth, 1), (1 << depth) - 1
        name = f"TIFF grey {depth} bit {order}"
        cases[name] = of_tiff(1, depth, values, shown(values, top), order=order)
        # Pillow does not open those of 12 bits, nor those of 16 in the other order
        if (depth, order) not in ((12, "<"), (16, ">")):
            cases[f"{name}, white is zero"] = of_tiff(0, depth, values, shown(top - values, top), order=order)
    for order in "<>":
        values = samples(16, 1)
        cases[f"TIFF 32 bit signed {order} of 16 bit values"] = of_tiff(
            1, 32, values, shown(values, 65535), sample_format=2, order=order
        )
    cases["TIFF 32 bit of 16 bit values"] = of_tiff(1, 32, values, shown(values, 65535))
    cases["TIFF 32 bit, black"] = of_tiff(1, 32, values * 0, shown(values * 0, 1))
    for photometric, channels, depth in ((1, 1, 8), (2, 3, 8), (2, 3, 16)):
        top = (1 << depth) - 1
        name = f"TIFF {'grey' if channels == 1 else 'RGB'} {depth} bit"
        values = samples(depth, channels + 1)
        colours, alpha = values[..., :-1], values[..., -1:]
        if channels == 3:
            cases[name] = of_tiff(photometric, depth, colours, shown(colours, top))
        cases[f"{name} and what is no alpha"] = of_tiff(photometric, depth, values, shown(colours, top), extra=0)
        cases[f"{name} and alpha"] = of_tiff(
            photometric, depth, values, shown(colours, top, alpha[..., 0] / top), extra=2
        )._replace(levels=depth // 8)
        # an alpha of few levels could not keep the colours: half or more of it, or none
        alpha = np.where(alpha < top // 4, 0, np.maximum(alpha, top // 2))
        multiplied = colours * alpha // top
        cases[f"{name} and premultiplied alpha"] = of_tiff(
            photometric,
            depth,
            np.concatenate([multiplied, alpha], axis=2),
            shown(np.minimum(multiplied * (top / np.maximum(alpha, 1)), top), top, alpha[..., 0] / top),
            extra=1,
        )._replace(levels=2)
    indices, palette = samples(8, 1), RNG.integers(0, 256, (256, 3))
    colours, more = palette[indices[..., 0]], samples(8, 1)
    options = {"palette": palette * 257}
    cases["TIFF palette"] = of_tiff(3, 8, indices, shown(colours, 255), **options)
    both = np.concatenate([indices, more], axis=2)
    cases["TIFF palette and what is no alpha"] = of_tiff(3, 8, both, shown(colours, 255), extra=0, **options)
    cases["TIFF palette and alpha"] = of_tiff(3, 8, both, shown(colours, 255, more[..., 0] / 255), extra=2, **options)
    for depth in (8, 16):
        inks, top = samples(depth, 4), (1 << depth) - 1
        rgb = (1 - inks[..., :3] / top) * (1 - inks[..., 3:] / top)
        cases[f"TIFF CMYK {depth} bit"] = of_tiff(5, depth, inks, shown(rgb, 1))._replace(levels=2)
    # near grey, so that all of it is within RGB
    luma, blue, red = np.moveaxis(samples(6, 3), -1, 0) + np.array([96, -32, -32])[:, None, None]
    rgb = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], axis=-1)
    cases["TIFF YCbCr"] = of_tiff(6, 8, np.stack([luma, blue + 128, red + 128], axis=-1), shown(rgb, 255))._replace(
        levels=2
    )
    lightness = samples(8, 1)
    linear = np.where(lightness > 21, ((lightness / 2.55 + 16) / 116) ** 3, lightness / 2.55 / 903.3)
    grey = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    neutral = np.concatenate([lightness, lightness * 0, lightness * 0], axis=2)
    cases["TIFF L*a*b*"] = of_tiff(8, 8, neutral, shown(grey, 1))._replace(levels=2)
    # compressed ones are read by another library; Pillow takes signed ones in its byte order for beyond 16 bits
    return cases | {f"{name}, compressed": squeezed(case) for name, case in cases.items() if "signed >" not in name}


def pnm_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    height, width = SHAPE
    for magic, channels, top in itertools.product(("P5", "P6"), (1, 3), (100, 255, 1000, 65535)):
        if (magic == "P6") == (channels == 3):
            values = samples(16, channels) % (top + 1)
            content = (
                f"{magic}\n{width} {height}\n{top}\n".encode() + values.astype(">u2" if top > 255 else "u1").tobytes()
            )
            cases[f"{magic} up to {top}"] = Case(lambda _, content=content: content, shown(values, top), range(1, 2))
    bits = samples(1, 1)
    content = f"P4\n{width} {height}\n".encode() + np.packbits(bits[..., 0].astype(np.uint8), axis=1).tobytes()
    cases["P4"] = Case(lambda _: content, shown(1 - bits, 1), range(1, 2))
    return cases


def of_pillow(kind: str, image: Image.Image, rgba: np.ndarray, levels: float = 1, **options: object) -> Case:
    def write(turn: int) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options, **({"exif": exif(turn)} if kind in ("JPEG", "WEBP", "AVIF") else {}))
        return buffer.getvalue()

    return Case(write, rgba, range(1, 9 if kind in ("JPEG", "WEBP", "AVIF") else 2), levels)


def encoded_cases() -> dict[str, Case]:
    rgba = samples(8, 4).astype(np.uint8)
    rgb, grey = rgba[..., :3], rgba[..., :1]
    # one colour in all of the image, which a lossy coding keeps
    plain = np.broadcast_to(np.uint8([180, 90, 40, 128]), (*SHAPE, 4)).copy()
    ink = Image.fromarray(255 - np.concatenate([plain[..., :3], plain[..., :1] * 0 + 255], axis=2), "CMYK")
    palette = RNG.integers(0, 256, (256, 3))
    indexed = Image.fromarray(grey[..., 0], "P")
    indexed.putpalette(palette.ravel().tolist())
    index = int(grey[1, 1, 0])
    hidden = grey[..., 0] == index
    colours = palette[grey[..., 0]]
    half = rgba[..., 3] / 255
    cases = {
        "JPEG grey": of_pillow("JPEG", Image.fromarray(plain[..., 0]), shown(plain[..., :1], 255), 2),
        "JPEG RGB": of_pillow("JPEG", Image.fromarray(plain[..., :3]), shown(plain[..., :3], 255), 3),
        "JPEG CMYK": of_pillow("JPEG", ink, shown(plain[..., :3], 255), 4),
        "WEBP RGB": of_pillow("WEBP", Image.fromarray(rgb), shown(rgb, 255), lossless=True),
        "WEBP RGBA": of_pillow("WEBP", Image.fromarray(rgba), shown(rgb, 255, half), lossless=True, exact=True),
        "GIF palette": of_pillow("GIF", indexed, shown(colours, 255), optimize=False),
        "GIF palette, one entry transparent": of_pillow(
            "GIF", indexed, shown(colours, 255, ~hidden), transparency=index, optimize=False
        ),
        "GIF grey, one entry transparent": of_pillow(
            "GIF", Image.fromarray(grey[..., 0]), shown(grey, 255, ~hidden), transparency=index, optimize=False
        ),
        "BMP grey": of_pillow("BMP", Image.fromarray(grey[..., 0]), shown(grey, 255)),
        "BMP palette": of_pillow("BMP", indexed, shown(colours, 255)),
        "BMP RGB": of_pillow("BMP", Image.fromarray(rgb), shown(rgb, 255)),
        "BMP bilevel": of_pillow("BMP", Image.fromarray(grey[..., 0] > 99), shown(grey > 99, 1)),
        "BMP RGBA": Case(lambda _: bmp_with_alpha(rgba), shown(rgb, 255, half), range(1, 2)),
    }
    if "AVIF" in FORMATS:
        cases["AVIF RGBA"] = of_pillow("AVIF", Image.fromarray(plain), shown(plain[..., :3], 255, 128 / 255), 4)
    return cases


def bmp_with_alpha(rgba: np.ndarray) -> bytes:
    """32 bits a pixel with masks for all four channels (header version 4), rows from below."""
    height, width = rgba.shape[:2]
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    data = np.ascontiguousarray(rgba[::-1][..., [2, 1, 0, 3]]).tobytes()
    info = (
        struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, len(data), 0, 0, 0, 0) + masks + b"BGRs" + bytes(48)
    )
    return struct.pack("<2sIHHI", b"BM", 14 + 108 + len(data), 0, 0, 14 + 108) + info + data


CASES = png_cases() | tiff_cases() | pnm_cases() | encoded_cases()


def seen(rgba: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    alpha = rgba[..., 3:] / 255
    return alpha * rgba[..., :3] + (1 - alpha) * np.array(background)


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_file_follows_the_same_rules(name: str) -> None:
    case = CASES[name]
    for turn in case.orientations:
        content = case.write(turn)
        for background, colour in BACKGROUNDS.items():
            wanted = upright(seen(case.rgba, colour), turn)
            found = np.asarray(read_image(io.BytesIO(content), channels=3, background=background))
            assert found.shape == wanted.shape
            assert np.abs(found - wanted).max() <= case.levels, (turn, background)
            grey = np.asarray(read_image(io.BytesIO(content), channels=1, background=background))
            assert np.abs(grey - wanted @ [0.299, 0.587, 0.114]).max() <= case.levels + 0.5, (turn, background)
        remarks = check_image(io.BytesIO(content))
        assert remarks == (["CMYK images are converted without their colour profile"] if "CMYK" in name else [])


@pytest.mark.parametrize("name", CASES)
def test_what_an_image_was_is_told(name: str) -> None:
    case = CASES[name]
    found = decode_image(io.BytesIO(case.write(1)), channels=3)
    assert found.transparent == bool((case.rgba[..., 3] < 255).any())
    grey = any(word in name for word in ("grey", "la ", "P4", "P5", "bilevel", "32 bit"))
    assert found.grey == grey


def test_an_alpha_channel_that_hides_nothing_leaves_the_colours() -> None:
    values = samples(8, 4)
    values[..., 3] = 255
    found = decode_image(io.BytesIO(png("rgba", 8, values)), channels=3, background="black")
    assert found.transparent
    assert np.array_equal(np.asarray(found.image), values[..., :3])


@pytest.mark.parametrize("top", [4095, 65535])
def test_deep_grey_goes_to_the_nearest_level(top: int) -> None:
    depth = top.bit_length()
    values = np.linspace(0, top, 24).astype(np.int64).reshape(*SHAPE, 1)
    found = np.asarray(read_image(io.BytesIO(tiff(1, depth, values)), channels=1))
    assert np.array_equal(found, np.rint(values[..., 0] * 255 / top))


def whole(values: int | list[int]) -> np.ndarray:
    return np.resize(np.array(values), (*SHAPE, 1))


REFUSED = {
    "float": (tiff(1, 32, whole(0) + 0.5, sample_format=3), "32-bit floats have no known range"),
    "float, big-endian": (tiff(1, 32, whole(0) + 0.5, sample_format=3, order=">"), "floats have no known range"),
    "float, white is zero": (tiff(0, 32, whole(0) + 0.5, sample_format=3), "floats have no known range"),
    "float, PFM": (b"Pf\n2 2\n-1.0\n" + np.ones(4, "<f4").tobytes(), "floats have no known range"),
    "64-bit float": (tiff(1, 64, whole(0) + 0.5, sample_format=3), "a TIFF file, damaged or with a kind of pixels"),
    "signed 8 bit": (tiff(1, 8, whole([-1, 1]), sample_format=2), "signed integers have no known range"),
    "signed 16 bit": (tiff(1, 16, whole([0, 30000]), sample_format=2), "signed integers have no known range"),
    "signed 16 bit, big-endian": (tiff(1, 16, whole(9), sample_format=2, order=">"), "signed integers"),
    "32 bit beyond 16": (tiff(1, 32, whole([0, 70_000])), "beyond 16 bits have no known range"),
    "32 bit beyond 31": (tiff(1, 32, whole([0, 2**32 - 1])), "beyond 16 bits have no known range"),
    "32 bit below 0": (tiff(1, 32, whole([-1, 300]), sample_format=2), "beyond 16 bits have no known range"),
    "32 bit of 8": (tiff(1, 32, whole([0, 200])), "32-bit integers up to 200 may be of 8 or 16 bits"),
    "CMYK and alpha": (tiff(5, 8, samples(8, 5), extra=2), "a TIFF file, damaged or with a kind of pixels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_known_white_is_refused_everywhere(name: str) -> None:
    content, reason = REFUSED[name]
    for read in (
        lambda: check_image(io.BytesIO(content)),
        lambda: read_image(io.BytesIO(content), channels=1),
        lambda: read_image(io.BytesIO(content), channels=3, background="black"),
    ):
        with pytest.raises(UnreadableImage, match=reason):
            read()
