"""Where results go: beside those of other conditions, and over those of the same only."""

import json
import os
from pathlib import Path

import pytest

from dis_cli.errors import MismatchError, UsageError
from dis_cli.runtime.files import numbered, place_for, require_replaceable
from dis_cli.workflows.eval_fid.place import find_place, listed_values, points_there, short_name, write_result

SETTINGS = {
    "schema": 1,
    "features": "cnn",
    "num_samples": 40,
    "metrics": ("fid",),
    "ema_decay": 0.5,
    "engine": {"name": "kernel", "reason": "it works"},
    "precision": {"name": "fp32", "reason": "auto"},
    "sample": {"steps": 2, "batch_size": "auto", "precision": "auto", "ema": None},
    "reference": {"kind": "data", "name": "digits", "n": 450, "split": "test"},
    "command": "dis eval-fid",
}
RESULT = SETTINGS | {"fid": 3.5, "notes": []}


@pytest.fixture
def there(tmp_path: Path) -> Path:
    path = tmp_path / "score_cfg-1.5.json"
    path.write_text(json.dumps(RESULT))
    return path


@pytest.mark.parametrize(
    "same",
    [
        {"command": "dis eval-fid --json"},
        {"checkpoint": "moved/here"},
        {"bounds": {"fid": 3.0}},
        {"engine": {"name": "kernel", "reason": "asked for"}},
        {"precision": {"name": "fp32", "reason": "asked for"}},
        {"sample": {"steps": 2, "batch_size": 8, "precision": "fp32", "ema": 0.5}},
    ],
)
def test_a_repeat_takes_its_own_place(same: dict[str, object], there: Path) -> None:
    for is_named in (False, True):
        assert find_place(there, SETTINGS | same, is_named=is_named) == there
    assert write_result(there, RESULT | same).path == there
    assert [path.name for path in there.parent.iterdir()] == [there.name]


@pytest.mark.parametrize(
    "other",
    [
        {"num_samples": 8},
        {"metrics": ["fid", "kid"]},
        {"ema_decay": 0.9},
        {"engine": {"name": "torch", "reason": "it works"}},
        {"precision": {"name": "bf16", "reason": "auto"}},
        {"sample": {"steps": 3}},
        {"reference": {"kind": "data", "name": "digits", "n": 450, "split": "train"}},
        {"axes": {"cfg": ["1", "2"]}},
    ],
)
def test_a_result_of_other_conditions_stays(other: dict[str, object], there: Path) -> None:
    content = there.read_bytes()
    beside = there.with_name("score_cfg-1.5_2.json")
    assert find_place(there, SETTINGS | other, is_named=False) == beside
    with pytest.raises(MismatchError, match="holds a score of other settings") as error:
        find_place(there, SETTINGS | other, is_named=True)
    assert f"`--out {beside}`" in (error.value.hint or "")
    # Whoever writes there without asking first replaces nothing either.
    result = RESULT | other
    assert write_result(there, result).path == beside
    assert result["result_file"] == str(beside)
    assert there.read_bytes() == content
    assert find_place(there, SETTINGS | other, is_named=False) == beside


def test_other_numbers_of_the_same_settings_are_another_result(there: Path) -> None:
    assert write_result(there, RESULT | {"fid": 3.25}).path.name == "score_cfg-1.5_2.json"
    # Nor does a number go that is not measured again.
    more = there.with_name("more.json")
    more.write_text(json.dumps(RESULT | {"fid_interval": {"low": 3.0}}))
    assert write_result(more, dict(RESULT)).path.name == "more_2.json"
    assert write_result(more, RESULT | {"fid_interval": {"low": 3.0}, "kid": 1.0}).path == more


def test_what_is_no_score_is_left_alone(tmp_path: Path) -> None:
    for name, content in (("thesis.json", "{}"), ("list.json", "[1]"), ("text.json", "precious")):
        path = tmp_path / name
        path.write_text(content)
        with pytest.raises(UsageError, match="exists and is not a score"):
            find_place(path, SETTINGS, is_named=True)
        assert find_place(path, SETTINGS, is_named=False) == write_result(path, dict(RESULT)).path
        assert path.read_text() == content
    empty = tmp_path / "empty.json"
    empty.touch()
    assert find_place(empty, SETTINGS, is_named=True) == empty
    with pytest.raises(UsageError, match="is a folder"):
        find_place(tmp_path, SETTINGS, is_named=True)


def test_a_sweep_keeps_its_hands_off_a_picture_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "sweep.png").write_bytes(b"of my cat")
    settings = SETTINGS | {"axes": {"cfg": ["1"]}, "plot": "sweep.png"}
    with pytest.raises(UsageError, match=r"sweep\.png` exists and is not a score"):
        find_place(tmp_path / "sweep.json", settings, is_named=True)
    assert find_place(tmp_path / "sweep.json", settings, is_named=False).name == "sweep_2.json"


def test_points_of_a_sweep_are_added_and_never_changed(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    sweep = SETTINGS | {"axes": {"cfg": ["1", "2"]}, "plot": "x", "points": [{"fid": 1.0}]}
    assert points_there(path) == 0
    assert write_result(path, dict(sweep)).path == path
    assert write_result(path, sweep | {"points": [{"fid": 1.0}, {"fid": 2.0}]}).path == path
    assert points_there(path) == 2
    changed = sweep | {"points": [{"fid": 1.5}]}
    assert write_result(path, changed).path == tmp_path / "sweep_2.json"
    assert changed["plot"] == str(tmp_path / "sweep_2.png")


def test_names() -> None:
    assert short_name("a/photos v2.1") == "photos-v2.1"
    assert short_name("VIRTUAL.tar.gz") == "VIRTUAL"
    assert short_name("/") == "images"
    assert listed_values("sampler", ("ddim", "dpm++")) == "sampler-ddim-dpmpp"
    assert listed_values("steps", tuple(map(str, range(100, 130)))) == "steps-100-to-129-in-30"
    names = iter(map(str, (numbered(Path("x/n-3_cfg-1.25")))))
    assert [next(names) for _ in range(3)] == [f"x/n-3_cfg-1.25{end}" for end in ("", "_2", "_3")]


def test_a_picture_is_replaced_by_itself_only(tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    assert place_for(path, b"a") == path
    path.write_bytes(b"a")
    assert place_for(path, b"a") == path
    require_replaceable(path, b"a", option="--out")
    assert place_for(path, b"b") == tmp_path / "grid_2.png"
    with pytest.raises(UsageError, match="exists and holds something else") as error:
        require_replaceable(path, b"b", option="--plot")
    assert f"`--plot {tmp_path / 'grid_2.png'}`" in (error.value.hint or "")
    require_replaceable(Path(os.devnull), b"b", option="--plot")
