"""The default folder of a run that is named after something: its data, which share it with no others, or a run."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from dis_cli.config.presets import read_config
from dis_cli.config.schema import RunConfig
from dis_cli.errors import ConfigError
from dis_cli.runs.folder import RunDir

_ENDING = re.compile(r"\.(zip|tar|tgz|tbz2|txz|tar\.\w+)$", re.IGNORECASE)


def name_of(path: Path) -> str:
    """The name of a run on these data: that of the folder or archive, as a run may be named."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", _ENDING.sub("", path.resolve().name)).strip("-._")
    return name or "images"


def run_of(root: Path, path: Path) -> Path:
    """The folder in ``root`` for a run on these data: NAME, or NAME-2 where another data set has that one."""
    name, number = name_of(path), 1
    while (folder := root / (name if number == 1 else f"{name}-{number}")).exists():
        config = recorded_config(folder)
        own = config is None or config.data.path is None or config.data.path.resolve() == path.resolve()
        # A folder without a run is not a data set's: `dis train` says what it holds.
        if own:
            return folder
        number += 1
    return folder


def branches_of(root: Path, run: Path) -> Iterator[Path]:
    """The folders in ``root`` that branches of a run may have: NAME-branch, NAME-branch-2 and so on, without end."""
    name = f"{name_of(run)}-branch"
    yield root / name
    yield from (root / f"{name}-{number}" for number in itertools.count(2))


def recorded_config(folder: Path) -> RunConfig | None:
    """The settings of the run in a folder; None where there is none that this version reads."""
    file = RunDir(folder).config_path
    try:
        return read_config(file) if file.is_file() else None
    except ConfigError:
        return None
