import io
import os

import numpy as np
import pytest
from PIL import Image
from support.pictures import BAD_FILES, ODD_FILES, encoded, noise, turned_exif
from support.processes import python

from dis_cli.data.decode import UnreadableImage, center_crop, check_image, printable, read_image
from dis_cli.errors import DataError


def save(image, path, **options):
    image.save(path, **options)
    return path


def pixels(path, channels=3):
    return np.asarray(read_image(path, channels=channels))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    values = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    path = save(Image.fromarray(values), tmp_path / f"deep.{suffix}")
    expected = np.rint(values / 257)
    assert np.array_equal(pixels(path, channels=1), expected)
    assert np.array_equal(pixels(path), np.stack([expected] * 3, axis=-1))


@pytest.mark.parametrize(
    ("background", "rgb"), [("white", [255, 255, 255]), ("black", [0, 0, 0]), ("#102030", [16, 32, 48])]
)
def test_hidden_colours_become_the_background(tmp_path, background, rgb):
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[..., 0] = 255
    rgba[8:, :, 3] = 255
    rgba[:4, :, 3] = 128
    path = save(Image.fromarray(rgba), tmp_path / "alpha.png")
    found = np.asarray(read_image(path, channels=3, background=background))
    assert (found[8:] == [255, 0, 0]).all()
    assert (found[4:8] == rgb).all()
    # red at alpha 128 of 255
    expected = np.array([255, 0, 0]) * 128 / 255 + np.array(rgb) * 127 / 255
    assert (np.abs(found[:4] - expected) <= 1).all()
    if background == "white":
        assert np.array_equal(pixels(path), found)


@pytest.mark.parametrize("transparency", [0, bytes([0, 255])])
def test_transparent_palette_entries_become_white(tmp_path, transparency):
    image = Image.fromarray(np.tile(np.uint8([0, 1]), (8, 4)), "L")
    image = image.convert("P")
    image.putpalette([200, 0, 0, 0, 0, 200])
    found = pixels(save(image, tmp_path / "palette.png", transparency=transparency))
    assert (found[:, 0::2] == 255).all()
    assert (found[:, 1::2] == [0, 0, 200]).all()


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_exif_orientation_is_applied(tmp_path, suffix):
    upright = pixels(save(noise(24, 16), tmp_path / f"a.{suffix}"))
    turned = pixels(save(noise(24, 16), tmp_path / f"b.{suffix}", exif=turned_exif()))
    assert np.array_equal(turned, np.rot90(upright, -1))


def test_grey_and_rgb_follow_channels(tmp_path):
    path = save(noise(), tmp_path / "a.png")
    red, green, blue = np.moveaxis(np.asarray(noise()).astype(float), -1, 0)
    assert np.abs(pixels(path, channels=1) - (0.299 * red + 0.587 * green + 0.114 * blue)).max() <= 1
    grey = save(noise().convert("L"), tmp_path / "b.png")
    assert np.array_equal(pixels(grey), np.stack([pixels(grey, channels=1)] * 3, axis=-1))
    # Pillow itself turns CIE L*a*b* into RGB only
    lab = save(Image.new("LAB", (8, 8), (128, 0, 0)), tmp_path / "c.tif")
    assert pixels(lab, channels=1).shape == (8, 8)
    with pytest.raises(ValueError, match="channels must be 1 or 3"):
        read_image(path, channels=4)


def test_animations_and_cmyk_are_announced(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    animation = save(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (pixels(animation) == [255, 0, 0]).all()
    assert check_image(animation) == ["Only the first frame of animated images is used"]
    printed = save(Image.new("CMYK", (8, 8)), tmp_path / "a.jpg")
    assert pixels(printed).shape == (8, 8, 3)
    assert check_image(printed) == ["CMYK images are converted without their colour profile"]


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named_with_the_reason(tmp_path, name):
    content, reason = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    for read in (lambda: read_image(path, channels=3), lambda: check_image(path)):
        with pytest.raises(DataError) as caught:
            read()
        assert f"`{printable(path)}`" in caught.value.message
        assert reason in caught.value.message
        assert caught.value.hint


@pytest.mark.parametrize("name", ODD_FILES)
def test_the_check_says_what_is_left_out(name, recwarn):
    content, remark = ODD_FILES[name]
    remarks = check_image(io.BytesIO(content))
    read_image(io.BytesIO(content), channels=3)
    # neither of them warns: loader processes would each do so
    assert not recwarn
    assert len(remarks) == bool(remark)
    assert all(line.startswith(remark) for line in remarks)


def damage(whole, number, rng):
    """Cut off at any place; or three bytes replaced, anywhere or near the start, where headers are."""
    damaged = bytearray(whole)
    if number % 3 == 0:
        del damaged[rng.integers(len(whole)) :]
        return damaged
    for place in rng.integers(0, len(whole) if number % 3 == 1 else 400, 3):
        damaged[place] = rng.choice([0, 0xD8, 0xD9, 0xFF, rng.integers(256)])
    return damaged


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "progressive JPEG", "CMYK JPEG", "MPO", "PNG", "WEBP", "GIF", "TIFF", "PPM"])
def test_the_check_refuses_what_reading_refuses(kind):
    """The check computes less of a JPEG; it must not find less."""

    def fault(read, content, **options):
        try:
            read(io.BytesIO(content), **options)
        except UnreadableImage as error:
            return error.reason
        return None

    image = noise(40, 33).convert("CMYK" if "CMYK" in kind else "RGB")
    options = {"progressive": True} if "progressive" in kind else {"exif": turned_exif()} if kind == "JPEG" else {}
    whole = encoded(image, kind.split()[-1], **options)
    assert fault(check_image, whole) is None
    rng = np.random.default_rng(0)
    num_bad = 0
    for number in range(150):
        content = damage(whole, number, rng)
        found = fault(check_image, content)
        assert found == fault(read_image, content, channels=3) == fault(read_image, content, channels=1), number
        num_bad += found is not None
    assert num_bad > 20


def test_the_check_computes_an_eighth_of_a_jpegs_side(monkeypatch):
    sizes = []
    monkeypatch.setattr("PIL.ImageOps.exif_transpose", lambda image, **_: sizes.append(image.size))
    for kind in ("JPEG", "MPO", "PNG"):
        check_image(io.BytesIO(encoded(noise(80, 160), kind)))
    assert sizes == [(20, 10), (20, 10), (160, 80)]


def test_reasons_hold_no_control_characters(monkeypatch):
    # Pillow 10 quotes tokens of PPM headers as they are
    def fail(*_, **__):
        raise ValueError("\x1b[31m")

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", fail)
    with pytest.raises(DataError, match=r"\(\\x1b\[31m\)"):
        check_image(io.BytesIO(encoded(noise(), "PNG")))


def test_what_pillow_logs_does_not_reach_the_terminal(tmp_path):
    # SamplesPerPixel, a 16-bit number: 3 becomes 300, for which Pillow logs an error and then raises one
    entry = (277).to_bytes(2, "little") + b"\3\0\1\0\0\0"
    content = encoded(noise(), "TIFF").replace(entry + b"\3\0", entry + b"\x2c\1")
    (tmp_path / "a.tif").write_bytes(content)
    code = "from pathlib import Path; from dis_cli.data.decode import check_image; check_image(Path('a.tif'))"
    done = python("-c", f"import os; os.chdir({str(tmp_path)!r}); {code}")
    assert done.stderr.splitlines()[-1].startswith("dis_cli.data.decode.UnreadableImage")
    assert "More samples" not in done.stderr


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
