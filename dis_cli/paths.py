"""Paths as people write them: ``~`` is a home folder, as in a shell, which does not see those in quotes or settings."""

from pathlib import Path

from dis_cli.errors import UsageError


def expand_home(text: str) -> str:
    """A path with the home folder in place of a leading ``~`` or ``~user``; any other text as it is.

    Raises:
        UsageError: There is no such home folder.
    """
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError as error:
        owner = f"of a user `{text[1:].partition('/')[0]}`" if text[1:2] not in ("", "/") else "of yours"
        raise UsageError(
            f"`{text}`: no home folder {owner} is known on this machine",
            f"What is really called so is written `./{text}`",
        ) from error


def home_path(text: str | Path) -> Path:
    """The same as a path."""
    return Path(expand_home(str(text)))
