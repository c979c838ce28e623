"""The errors of the program, as one tree.

    DisError                    exit 1   the work could not be done
    ├── UsageError              exit 2   an option, preset, key or value is wrong
    │   ├── ConfigError                  a preset or a KEY=VALUE override
    │   ├── MismatchError                a checkpoint, run or file that is sound, but of something else
    │   └── RefusedError                 a file that may do harm: code in a pickle, tensors that overlap
    ├── DataError               exit 1   images, latents or labels are missing or unreadable
    ├── CheckpointError         exit 1   a checkpoint is incomplete or damaged, or cannot be told to be one
    ├── StorageError            exit 1   the disk is full, read-only or locked by another process
    ├── MissingResourceError    exit 1   a file that must be fetched by hand (weights, a VAE) is absent
    ├── NonFiniteError          exit 1   the loss or a gradient is NaN or infinite
    ├── NegativeVerdict         exit 3   everything ran, and the answer is no (``--fail-above``)
    ├── PeerError               exit n   another process of the job failed with status n
    └── Interrupted             exit 130 after SIGINT, 143 after SIGTERM, 129 after SIGHUP

A file that is whole and holds something else than what was asked for (another size, foreign names of weights, other
settings) is the user's choice to change: a UsageError. A file that is not what its writer wrote (truncated, flipped
bits, a wrong hash, NaN weights) is not: a CheckpointError or a DataError.

Each carries ``message`` (what is wrong, the value got, what is allowed), ``hint`` (one thing that helps, or
None) and ``exit_code``. The command line prints them as ``error: ...`` and ``hint: ...``; broken contracts inside
the numerical core are plain ``ValueError``.
"""

import difflib
import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

# A message with a heading, this many lines, the count of the rest and a hint stays within 15 lines.
MAX_LISTED = 10


class DisError(Exception):
    """An error to show to the user.

    Args:
        message: What is wrong, the value got and what is allowed, without a trailing full stop.
        hint: One thing that helps, or None.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def to_json(self) -> dict[str, object]:
        """The error as the object that ``--json`` prints."""
        return {
            "schema": 1,
            "error": {
                "kind": type(self).__name__,
                "message": self.message,
                "hint": self.hint,
                "exit_code": self.code,
            },
        }

    @property
    def code(self) -> int:
        """The process's exit status for this error."""
        return self.exit_code


class UsageError(DisError):
    """An option, preset, key or value is wrong."""

    exit_code = 2


class ConfigError(UsageError):
    """A preset or an override does not describe a valid configuration."""


class MismatchError(UsageError):
    """A checkpoint, run folder or file is sound, but of other settings or another kind than asked for."""


class RefusedError(UsageError):
    """A file holds what no such file needs: code in a pickle, tensors that overlap, names that lead elsewhere."""


class DataError(DisError):
    """Images, latents or labels are missing or unreadable."""


class CheckpointError(DisError):
    """A checkpoint is incomplete or damaged, or what stands there cannot be told to be one."""


class StorageError(DisError):
    """The disk is full or read-only, or another process holds the folder."""


class MissingResourceError(DisError):
    """A file that the project does not ship and cannot fetch is absent."""


class NonFiniteError(DisError):
    """The loss or the gradient norm is NaN or infinite."""


class NegativeVerdict(DisError):
    """The command ran to its end and its verdict is negative."""

    exit_code = 3


class Interrupted(DisError):
    """A signal asked the command to stop, and it did so in order.

    Args:
        signal_number: The signal received; the exit status is 128 plus it.
    """

    def __init__(self, message: str, signal_number: int, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.signal_number = signal_number

    @property
    def code(self) -> int:
        return 128 + self.signal_number


def listed(entries: Sequence[str]) -> str:
    """``entries`` for the end of a message: one a line, of many the first and the count of the rest."""
    rest = len(entries) - MAX_LISTED
    lines = [*entries[:MAX_LISTED], *([f"and {rest} more"] if rest > 0 else [])]
    return "".join(f"\n  {line}" for line in lines)


def first_of(names: Sequence[str], most: int) -> str:
    """Names in one line, the first of many."""
    return ", ".join([*names[:most], *(["..."] if len(names) > most else [])])


def flat(nested: Mapping[str, object]) -> dict[str, object]:
    """Values by dotted keys, of mappings one level deep."""
    found: dict[str, object] = {}
    for key, value in nested.items():
        found |= {f"{key}.{name}": entry for name, entry in value.items()} if isinstance(value, dict) else {key: value}
    return found


def differing(
    there: Mapping[str, object],
    now: Mapping[str, object],
    show: Callable[[object], str],
    *,
    words: tuple[str, str] = ("there", "now"),
) -> list[str]:
    """A line with both values for each key of ``there`` that is another in ``now``, in their order.

    Args:
        there: Values by key; what only one of both has says nothing.
    """
    return [
        f"{key}: {show(value)} {words[0]}, {show(now[key])} {words[1]}"
        for key, value in there.items()
        if key in now and value != now[key]
    ]


def shortened(text: str) -> str:
    """Both ends of a text that is long, as a hash is."""
    return text if len(text) <= 40 else f"{text[:18]}...{text[-18:]}"


def first_line(error: BaseException, absent: str | None = None) -> str:
    """The first line of an error's message; where it has none, ``absent`` or the error's class."""
    return next(iter(str(error).strip().splitlines()), absent or type(error).__name__)


class PeerError(DisError):
    """Another process of the job failed, and this one stopped because of it.

    Args:
        code: The other's exit status, and this one's.
    """

    def __init__(self, message: str, hint: str | None, code: int) -> None:
        super().__init__(message, hint)
        self._code = code

    @property
    def code(self) -> int:
        return self._code


def did_you_mean(got: str, allowed: Iterable[str]) -> str | None:
    """The entry of ``allowed`` closest to ``got``, or None when nothing is close."""
    close = difflib.get_close_matches(got, list(allowed), n=1, cutoff=0.6)
    return close[0] if close else None


def is_out_of_memory(exception: BaseException) -> bool:
    """True if memory ran out, of the computer or of a GPU."""
    # By name: torch is not imported for this. Its CPU allocator raises a plain RuntimeError.
    names = {kind.__name__ for kind in type(exception).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "DefaultCPUAllocator" in str(exception)


def is_limit(exception: BaseException) -> bool:
    """True if the system gave this process no more files, processes or threads."""
    if isinstance(exception, OSError):
        # A fork that is refused names no file.
        return exception.errno in (errno.EMFILE, errno.ENFILE) or (
            exception.errno == errno.EAGAIN and exception.filename is None
        )
    return isinstance(exception, RuntimeError) and "can't start new thread" in str(exception)
