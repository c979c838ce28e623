"""Fetching the weights of Inception, when the user allows it; a network that is off is told within three seconds."""

import http.client
import os
import socket
import threading
import urllib.request
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from dis_cli.errors import MissingResourceError, StorageError
from dis_cli.metrics.extractors.locate import FIDELITY_FILE, INCEPTION_HINT, INCEPTION_SHA256, Weights, torch_cache
from dis_cli.runtime.files import TEMPORARY_PREFIX, publish, storage_error, write_hashed

# torch-fidelity's.
INCEPTION_URL: Final = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FIDELITY_FILE}"
INCEPTION_BYTES: Final = 95_628_359

# Seconds that the first answer may take; and any later one.
_FIRST_ANSWER = 2.0
_PATIENCE = 20.0


def download_inception(url: str = INCEPTION_URL) -> Weights:
    """Fetch the published weights into torch's cache, where torch-fidelity looks for them as well.

    The file gets its name only when its sha256 is the published one.

    Raises:
        MissingResourceError: The network is off, or gives something else.
        StorageError: The cache cannot be written.
    """
    final = torch_cache() / "checkpoints" / FIDELITY_FILE
    temporary = final.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{FIDELITY_FILE}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(final, error, INCEPTION_BYTES) from error
    try:
        _require_answer(url)
        with urllib.request.urlopen(url, timeout=_PATIENCE) as response:
            found = write_hashed(temporary, _chunks(response), size=INCEPTION_BYTES, shown_as=final)
        if found != INCEPTION_SHA256:
            raise MissingResourceError(
                f"The file from {url} is not Inception: expected sha256 {INCEPTION_SHA256}, found {found}",
                INCEPTION_HINT,
            )
        publish(temporary, final)
    except StorageError:
        raise
    # no network, an answer that is none, or the file system when it is renamed
    except (OSError, http.client.HTTPException) as error:
        raise MissingResourceError(
            f"Inception weights are not at `{final}`, and cannot be fetched from {url} ({error})", INCEPTION_HINT
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return Weights(final, INCEPTION_SHA256)


def _require_answer(url: str) -> None:
    """Find out in two seconds whether the server, or the proxy before it, can be reached.

    Looking up a name cannot be told to give up, and a thread can be left alone.

    Raises:
        OSError: It cannot.
    """
    place = urlsplit(url)
    proxy = urllib.request.getproxies().get(place.scheme)
    if proxy and not urllib.request.proxy_bypass(place.hostname or ""):
        place = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = place.port or {"https": 443, "socks5": 1080}.get(place.scheme, 80)
    outcome: list[OSError | None] = []

    def connect() -> None:
        try:
            socket.create_connection((place.hostname or "", port), timeout=_FIRST_ANSWER).close()
            outcome.append(None)
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_FIRST_ANSWER)
    error = outcome[0] if outcome else TimeoutError(f"no answer from {place.hostname} in {_FIRST_ANSWER:g} s")
    if error is not None:
        raise error


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The server's bytes, up to the size of the file.

    Raises:
        MissingResourceError: It stops answering.
    """
    left = INCEPTION_BYTES + 1
    while left > 0:
        try:
            chunk = response.read(min(1 << 20, left))
        # The one who writes would take it for an error of the disk.
        except OSError as error:
            raise MissingResourceError(f"{INCEPTION_URL} stopped answering ({error})", INCEPTION_HINT) from error
        if not chunk:
            return
        left -= len(chunk)
        yield chunk
