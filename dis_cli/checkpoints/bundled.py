"""Models that come with the package, by the names that stand for them wherever a checkpoint is asked for."""

from pathlib import Path
from typing import Final

# Folders that `dis checkpoint export` wrote, each with its model card.
BUNDLED: Final = {"mnist": Path(__file__).parent / "weights" / "mnist"}


def place_of(path: Path) -> Path:
    """Where a checkpoint's files are: a model that comes with the package wherever its name is no path."""
    bundled = BUNDLED.get(str(path))
    return path if bundled is None or path.exists() else bundled
