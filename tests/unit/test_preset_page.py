"""The page of the presets is what the presets and the closed forms say."""

import re
import tomllib
from pathlib import Path

from bench import presets_page

from dis_cli.config.overrides import apply_overrides
from dis_cli.config.presets import load_preset, preset_dir, preset_names


def test_the_page_is_what_would_be_written() -> None:
    assert presets_page.PAGE.read_text() == presets_page.page(), "run `python tests/bench/presets_page.py`"


def test_every_preset_is_on_the_page_and_its_file_exists() -> None:
    page = presets_page.PAGE.read_text()
    links = re.findall(r"\]\(([a-z0-9-]+\.toml)\)", page)
    assert sorted(links) == sorted(f"{name}.toml" for name in preset_names())
    assert all(tomllib.loads((preset_dir() / link).read_text())["name"] in page for link in links)


def test_what_the_launch_lines_change_are_settings_of_their_presets() -> None:
    lines = re.findall(r"--preset (\S+) --data (\S+)(.*)", Path(presets_page.PAGE).read_text())
    assert len(lines) == sum("imagenet" in name for name in preset_names())
    for name, data, changes in lines:
        config = apply_overrides(load_preset(name), [f"data.path={data}", *changes.split()])
        # Dealt out in equal shares, whole images each.
        assert config.train.batch_size % (presets_page.GPUS * config.train.accumulation) == 0
        assert (config.data.source == "latents") == data.startswith("latents")
