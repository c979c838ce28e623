import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dis_cli.data.decode import ImageWarning, center_crop, printable, read_image
from dis_cli.errors import DataError


def save(image, path, **options):
    image.save(path, **options)
    return path


def pixels(path, channels=3):
    return np.asarray(read_image(path, channels=channels))


def noise(height=24, width=24):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    values = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    path = save(Image.fromarray(values), tmp_path / f"deep.{suffix}")
    expected = np.rint(values / 257)
    assert np.array_equal(pixels(path, channels=1), expected)
    assert np.array_equal(pixels(path), np.stack([expected] * 3, axis=-1))


def test_hidden_colours_become_white(tmp_path):
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[..., 0] = 255
    rgba[8:, :, 3] = 255
    rgba[:4, :, 3] = 128
    found = pixels(save(Image.fromarray(rgba), tmp_path / "alpha.png"))
    assert (found[8:] == [255, 0, 0]).all()
    assert (found[4:8] == 255).all()
    # red at alpha 128 of 255 over white
    assert (np.abs(found[:4].astype(int) - [255, 127, 127]) <= 1).all()


@pytest.mark.parametrize("transparency", [0, bytes([0, 255])])
def test_transparent_palette_entries_become_white(tmp_path, transparency):
    image = Image.fromarray(np.tile(np.uint8([0, 1]), (8, 4)), "L")
    image = image.convert("P")
    image.putpalette([200, 0, 0, 0, 0, 200])
    found = pixels(save(image, tmp_path / "palette.png", transparency=transparency))
    assert (found[:, 0::2] == 255).all()
    assert (found[:, 1::2] == [0, 0, 200]).all()


def test_exif_orientation_is_applied(tmp_path):
    image = noise(24, 16)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(image, tmp_path / "turned.png", exif=exif)
    # orientation 6: shown after a quarter turn clockwise
    assert np.array_equal(pixels(path), np.rot90(np.asarray(image), -1))


def test_grey_and_rgb_follow_channels(tmp_path):
    path = save(noise(), tmp_path / "a.png")
    red, green, blue = np.moveaxis(np.asarray(noise()).astype(float), -1, 0)
    assert np.abs(pixels(path, channels=1) - (0.299 * red + 0.587 * green + 0.114 * blue)).max() <= 1
    grey = save(noise().convert("L"), tmp_path / "b.png")
    assert np.array_equal(pixels(grey), np.stack([pixels(grey, channels=1)] * 3, axis=-1))
    with pytest.raises(ValueError, match="channels must be 1 or 3"):
        read_image(path, channels=4)


def test_animations_and_cmyk_are_announced(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    animation = save(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(ImageWarning, match="first frame"):
        assert (pixels(animation) == [255, 0, 0]).all()
    with pytest.warns(ImageWarning, match="colour profile"):
        assert pixels(save(Image.new("CMYK", (8, 8)), tmp_path / "a.jpg")).shape == (8, 8, 3)


def huge_png(side):
    """A PNG header that promises side x side pixels, with data for none of them."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def encoded(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


BAD_FILES = {
    "empty.png": (b"", "the file is empty"),
    "text.png": (b"no image at all", "not a PNG, JPEG"),
    "cut.jpg": (encoded(noise(), "JPEG")[:-300], "truncated"),
    "cut.png": (encoded(noise(), "PNG")[:-300], ""),
    "program.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "not a PNG, JPEG"),
    "big.png": (huge_png(9_000), "9000x9000 is over the limit of 80 megapixels"),
    "hundred.png": (huge_png(10_000), "over the limit of 80 megapixels"),
    "bomb.png": (huge_png(60_000), "over the limit of 80 megapixels"),
    "line.png": (encoded(noise(1, 64), "PNG"), "64x1: one side is over 32 times the other"),
    "float.tif": (encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"), "no known range"),
    "int.tif": (encoded(Image.fromarray(np.full((8, 8), 70_000, np.int32)), "TIFF"), "no known range"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named_with_the_reason(tmp_path, name):
    content, reason = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_image(path, channels=3)
    assert f"`{path}`" in caught.value.message
    assert reason in caught.value.message
    assert caught.value.hint


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png` \(No such file"):
        read_image(tmp_path / "gone.png", channels=3)


def test_printable_names_hold_no_control_characters():
    assert printable(os.fsdecode(b"caf\xc3\xa9 \xff\x1b[0m\n.png")) == "café \\udcff\\x1b[0m\\n.png"


def test_center_crop_halves_until_below_twice_the_target():
    # each 4x4 block is one colour, so two halvings give the blocks back exactly; one bicubic step would blur them
    blocks = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(blocks.repeat(4, axis=0).repeat(4, axis=1))
    assert np.array_equal(np.asarray(center_crop(image, 8)), blocks)


def test_center_crop_keeps_the_middle():
    # 17 columns too many: 8 are cut on the left, 9 on the right
    ramp = np.tile(np.arange(25, dtype=np.uint8), (8, 1))
    assert np.array_equal(np.asarray(center_crop(Image.fromarray(ramp), 8)), ramp[:, 8:16])
