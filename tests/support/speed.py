"""Processor time of a command, and the limit it has on a processor as fast as this one is now."""

import functools
import resource
import subprocess
import sys
from collections.abc import Sequence

# What importing the command line's libraries takes on the machine that the limits are of, in seconds.
_LIBRARIES_SECONDS = 0.15


def least_seconds(command: Sequence[str], *, enough: float) -> float:
    """The least processor time of up to ten runs: what other programs do meanwhile counts little."""
    seconds: list[float] = []
    while not seconds or (min(seconds) >= enough and len(seconds) < 10):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(seconds)


@functools.cache
def limit(seconds: float) -> float:
    """``seconds``, or more where even the libraries take longer: two threads of one busy core are half as fast."""
    libraries = [sys.executable, "-c", "import typer, typer._adapters"]
    return seconds * max(1.0, least_seconds(libraries, enough=0.0) / _LIBRARIES_SECONDS)
