"""Grids of settings, and the picture of what was measured at their points."""

import io

import numpy as np
import pytest
from PIL import Image

from dis_cli.config.schema import RunConfig
from dis_cli.config.sweep import Axis, check_points, parse_axes, points_of
from dis_cli.errors import ConfigError, UsageError
from dis_cli.pictures.plot import Curve, curves_png
from dis_cli.workflows.eval_fid.sweep import best_of, sweep_png


def test_axes_in_one_text_or_several() -> None:
    wanted = [Axis("cfg", "sample.cfg_scale", ("1.0", "1.5")), Axis("steps", "sample.steps", ("20", "50"))]
    assert parse_axes(["cfg=1.0,1.5 steps=20,50"]) == wanted
    assert parse_axes(["cfg=1.0,1.5", "steps=20,50"]) == wanted
    assert parse_axes(["sample.cfg_power=2,4"]) == [Axis("sample.cfg_power", "sample.cfg_power", ("2", "4"))]
    assert parse_axes([]) == []


def test_every_combination_is_a_point() -> None:
    points = points_of(parse_axes(["sampler=ddim,dpm++ ema=0,0.9"]))
    assert [tuple(point.values.values()) for point in points] == [
        ("ddim", "0"),
        ("ddim", "0.9"),
        ("dpm++", "0"),
        ("dpm++", "0.9"),
    ]
    # another sampler takes its usual steps, and not the run's
    assert points[3].overrides == ("sample.steps=auto", "sample.sampler=dpm++", "sample.ema=0.9")
    assert "sample.steps=auto" not in points_of(parse_axes(["sampler=ddim steps=20"]))[0].overrides
    with pytest.raises(UsageError, match="more than 400"):
        points_of(parse_axes([f"steps={','.join(map(str, range(1, 41)))} eta={','.join(f'0.{i}' for i in range(11))}"]))


def test_one_point_that_cannot_run_refuses_all() -> None:
    points = points_of(parse_axes(["steps=20,2000"]))
    with pytest.raises(ConfigError, match="2000 exceeds"):
        check_points(RunConfig(), points)


def test_the_best() -> None:
    assert best_of([3.0, 1.0, 2.0], higher=False) == 1
    assert best_of([3.0, 1.0, 2.0], higher=True) == 0


def dark(data: bytes) -> np.ndarray:
    """Where the picture has ink, which curves have not."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).max(axis=2) < 90


def test_the_best_point_has_a_ring(tmp_path) -> None:
    curves = [Curve("a", ((0, 1.0), (1, 2.0), (2, 4.0)))]

    def picture(best: tuple[float, float]) -> bytes:
        return curves_png(curves, cache=tmp_path, ticks=("x", "y", "z"), title="", x_label="", y_label="", best=best)

    first, last = dark(picture((0, 1.0))), dark(picture((2, 4.0)))
    # The three values stand in the middle of thirds of the 760 pixels from 84 on.
    for ring, column in ((first & ~last, 84 + 760 / 6), (last & ~first, 84 + 760 * 5 / 6)):
        _, columns = ring.nonzero()
        assert columns.mean() == pytest.approx(column, abs=1)
        # 20 pixels wide, of which the outermost are pale
        assert np.ptp(columns) in (18, 19)


@pytest.mark.parametrize("values", [(0.0, 0.0), (5.0, 5.0), (-1e-4, 3e-4), (1e5, 3.1e5)])
def test_any_numbers_can_be_drawn(values: tuple[float, float]) -> None:
    axes = [Axis("steps", "sample.steps", ("2", "3"))]
    rows = [{"settings": {"steps": step}, "kid": value} for step, value in zip(("2", "3"), values, strict=True)]
    with Image.open(io.BytesIO(sweep_png(axes, rows, "kid", 0))) as image:
        assert image.size == (1000, 640)
