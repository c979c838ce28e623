import json

import pytest

from dis_cli.cli.app import run
from dis_cli.config.presets import load_preset, preset_names
from dis_cli.errors import ConfigError


def test_list_shows_every_preset_aligned(capsys):
    assert run(["presets", "list"]) == 0
    captured = capsys.readouterr()
    header, *rows = captured.out.splitlines()
    assert captured.err == ""
    assert header.split() == ["NAME", "SIZE", "PARAMETERS", "PIXELS", "CLASSES", "DESCRIPTION"]
    assert [row.split()[0] for row in rows] == preset_names()
    column = header.index("DESCRIPTION")
    for row in rows:
        assert row[column - 2 : column] == "  "
        assert row[column:].strip() == load_preset(row.split()[0]).description
    # Counted by hand from the definition: the demo has 655,492 parameters.
    digits = next(row for row in rows if row.startswith("dis-xs-digits"))
    assert digits.split()[1:5] == ["xs/2", "655,492", "8x8", "10"]


def test_list_as_json(capsys):
    assert run(["presets", "list", "--json"]) == 0
    listing = json.loads(capsys.readouterr().out)
    assert listing["schema"] == 1
    entry = next(entry for entry in listing["presets"] if entry["name"] == "dis-xl-imagenet256")
    assert (entry["size"], entry["patch_size"], entry["num_classes"]) == ("xl", 2, 1000)
    # Latents of a 256-pixel image; the published class of 677.0 M parameters.
    assert entry["image_size_pixels"] == 256
    assert round(entry["num_parameters"] / 1e6, 1) == 677.0


def test_shown_preset_is_itself_a_preset_with_nothing_left_out(capsys, tmp_path):
    assert run(["presets", "show", "dis-s-cifar"]) == 0
    path = tmp_path / "saved.toml"
    path.write_text(text := capsys.readouterr().out)
    assert load_preset(path) == load_preset("dis-s-cifar")
    # A default that the preset's own file does not hold.
    assert "num_timesteps = 1000" in text.splitlines()


def test_show_as_json(capsys):
    assert run(["presets", "show", "dis-xs-digits", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["num_parameters"] == 655_492
    assert shown["preset"]["model"]["embed_dim"] == 96
    assert shown["preset"]["data"]["path"] is None


def test_shipped_presets_are_valid(capsys):
    assert run(["presets", "validate"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{name}: valid" for name in preset_names()]


@pytest.fixture
def bad_preset(tmp_path):
    path = tmp_path / "[" / "x].toml"
    path.parent.mkdir()
    path.write_text("[model]\ndepth = 'seven'\nwidth = 3\n")
    with pytest.raises(ConfigError):
        load_preset(path)
    return str(path)


def test_validate_tells_every_problem_and_exits_with_3(bad_preset, capsys):
    assert run(["presets", "validate", "dis-s-cifar", bad_preset]) == 3
    captured = capsys.readouterr()
    first, *problems = captured.out.splitlines()
    assert first == "dis-s-cifar: valid"
    assert len(problems) == 2
    assert all(line.startswith(f"{bad_preset}: ") for line in problems)
    assert [key for key in ("model.depth", "model.width") if any(key in line for line in problems)] == [
        "model.depth",
        "model.width",
    ]
    assert captured.err.startswith("error: 1 of 2 presets are not valid\n")


def test_validate_as_json_prints_one_object(bad_preset, capsys):
    assert run(["presets", "validate", bad_preset, "dis-s-cifar", "--json"]) == 3
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["valid"] is False
    assert [(entry["path"], entry["valid"], len(entry["problems"])) for entry in verdict["presets"]] == [
        (bad_preset, False, 2),
        ("dis-s-cifar", True, 0),
    ]


def test_missing_file_is_told(capsys, tmp_path):
    assert run(["presets", "validate", str(tmp_path / "none.toml")]) == 3
    assert "No such file" in capsys.readouterr().out


def test_keys_say_what_every_setting_means(capsys):
    assert run(["presets", "keys"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (steps,) = [line for line in lines if line.startswith("train.steps=")]
    assert "optimizer steps in all" in steps
    assert len(lines) > 40
