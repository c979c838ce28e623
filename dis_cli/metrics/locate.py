"""Which weights score what, and whether they are there; without torch, so that what is absent is reported at once."""

from pathlib import Path
from typing import Final

from dis_cli.errors import MissingResourceError

INCEPTION_FILE: Final = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_HINT: Final = (
    f"Fetch {INCEPTION_FILE} from the releases of pytorch-fid (torch-fidelity's is called weights-inception-...), "
    "put it anywhere, and give its path with `--inception PATH`"
)


def locate_inception(inception: Path | None, source: str) -> Path | None:
    """The Inception weights that score a source's images; None when the bundled classifier of digits scores them.

    Args:
        inception: The file that the user named, or None.
        source: The name of the data source.

    Raises:
        MissingResourceError: They are needed and not there.
    """
    if inception is None and source == "digits":
        return None
    if inception is None:
        raise MissingResourceError(
            f"Images of {source} are scored in the features of Inception, whose weights are not bundled", INCEPTION_HINT
        )
    if not inception.is_file():
        raise MissingResourceError(f"Inception weights not found: `{inception}`", INCEPTION_HINT)
    return inception
