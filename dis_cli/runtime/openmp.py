"""The waiting of OpenMP's threads. Nothing here imports torch, which reads the setting once, on import.

The threads of a training step meet at a barrier hundreds of times. GNU OpenMP lets those that come early spin 300,000
turns before they sleep: on a core that another program wants, that keeps away the very thread which is waited for.
"""

import os
import sys
from dataclasses import dataclass

# Turns that a thread spins before it sleeps: of 300, 1,000 and 3,000 the one that cost least on two quiet cores (a step
# of 66 tokens 1.07 times as long as without a limit, one of the digits alike) and gained most with one of them busy
# (0.68, 0.78). `tests/bench/waiting.py` measures it.
SPIN_COUNT = 300

_SPIN, _POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"
_set_by_dis: list[str] = []


@dataclass(frozen=True)
class Waiting:
    """The waiting of threads.

    Args:
        variable: Variable that says so, or would: "GOMP_SPINCOUNT" or "OMP_WAIT_POLICY".
        value: Its value; None when it is not set, and OpenMP does as it likes.
        set_by: "dis" or "environment"; None when it is not set.
    """

    variable: str
    value: str | None
    set_by: str | None


def limit_spinning() -> None:
    """Let threads spin ``SPIN_COUNT`` turns, where the user says nothing else and torch is not loaded yet."""
    if not os.environ.keys() & {_SPIN, _POLICY} and "torch" not in sys.modules:
        os.environ[_SPIN] = str(SPIN_COUNT)
        _set_by_dis.append(_SPIN)


def waiting() -> Waiting:
    """The waiting of threads in this process."""
    # The count goes before the policy, as in GNU OpenMP.
    variable = next((name for name in (_SPIN, _POLICY) if name in os.environ), None)
    if variable is None:
        return Waiting(_SPIN, None, None)
    return Waiting(variable, os.environ[variable], "dis" if variable in _set_by_dis else "environment")
