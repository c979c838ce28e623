"""Downloads of data sets, with every failure of torchvision or the network as one clear line."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError

from dis_cli.data.decode import printable
from dis_cli.errors import MissingResourceError, first_line


@contextmanager
def downloading(what: str, path: Path, hint: str) -> Generator[None, None, None]:
    """Raise MissingResourceError for whatever goes wrong inside.

    Args:
        path: The folder it is fetched to.
        hint: Advice on another way to get it.
    """
    try:
        yield
    # no network or space (OSError), no gdown or a wrong checksum (RuntimeError), a quota (an error of gdown's own)
    except Exception as error:
        # it is the server's answer as well, with a socket
        if isinstance(error, HTTPError):
            error.close()
        # gdown's messages have many lines
        reason = printable(first_line(error).strip())
        raise MissingResourceError(f"{what} cannot be downloaded to `{printable(path)}` ({reason})", hint) from error
