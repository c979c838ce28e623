"""Grids are large enough to look at, and say what is in them."""

import io

import numpy as np
import pytest
from PIL import Image

from dis_cli.pictures.grid import labelled_grid, labelled_rows, preview_labels
from dis_cli.workflows.sample.output import trajectory_images


def images(count: int, side: int, channels: int = 3) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, side, side, channels), dtype=np.uint8))


@pytest.mark.parametrize(("side", "tile"), [(8, 64), (28, 84), (32, 64), (48, 96), (64, 64), (100, 100)])
@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_are_enlarged_by_whole_factors(side: int, tile: int, channels: int) -> None:
    (image,) = images(1, side, channels)
    grid = np.array(labelled_grid([image], None))
    assert grid.shape == (tile + 8, tile + 8, 3)
    factor = tile // side
    assert np.array_equal(grid[4:-4, 4:-4], np.broadcast_to(image.repeat(factor, 0).repeat(factor, 1), (tile, tile, 3)))


def test_a_long_name_takes_no_more_room_than_names_may() -> None:
    def width(name: str) -> int:
        return labelled_grid(images(1, 64), [name]).width

    assert width("china") < width("a name of some length") < width("n" * 40) == width("n" * 4000) <= 160 + 3 * 4 + 64
    # Both the beginning and the sign of what is cut are there.
    long, other = (np.array(labelled_grid(images(1, 64), [first + "n" * 40])) for first in "mi")
    assert not np.array_equal(long[:, :8], other[:, :8])


def test_headings_stand_above_their_columns() -> None:
    row = ("one", images(2, 64))
    plain, headed = np.array(labelled_rows([row])), np.array(labelled_rows([row], ["noise", "step 1"]))
    above = len(headed) - len(plain)
    assert above > 0
    assert np.array_equal(headed[above + 4 :], plain[4:])
    left = headed.shape[1] - 2 * 68
    for start in (left, left + 68):
        assert (headed[:above, start : start + 60] < 128).any()
    assert (headed[:above, : left - 4] == 255).all()


def test_a_trajectory_keeps_the_order_of_the_images_and_names_each() -> None:
    frames = [(0, np.stack(images(3, 64))), (25, 255 - np.stack(images(3, 64)))]
    (data,) = trajectory_images(frames, ["b", "a", "b"], "strip").values()
    strip = np.array(Image.open(io.BytesIO(data)))
    left = strip.shape[1] - 2 * 68
    for place in range(3):
        top = 20 + place * 68
        assert np.array_equal(strip[top : top + 64, left : left + 64], frames[0][1][place])
        assert np.array_equal(strip[top : top + 64, left + 68 : left + 132], frames[1][1][place])
        assert (strip[top : top + 64, : left - 4] < 128).any()


@pytest.mark.parametrize(
    ("most", "num_classes", "classes", "each"),
    [(64, 10, range(10), 6), (64, 3, range(3), 21), (4, 4, range(4), 1), (64, 1000, range(0, 1000, 125), 8)],
)
def test_a_preview_has_whole_rows(most: int, num_classes: int, classes: range, each: int) -> None:
    assert preview_labels(most, num_classes) == [*classes] * each


def test_a_preview_of_one_image_has_one() -> None:
    assert preview_labels(1, 10) == [0]
