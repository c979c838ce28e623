"""Stopping in order: Ctrl-C, SIGTERM and a closed terminal (SIGHUP) ask the work to end at the next good moment."""

import contextlib
import signal
import threading
from collections.abc import Generator
from dataclasses import dataclass
from types import FrameType

from dis_cli.errors import Interrupted

CONTINUE_HINT = "Run the same command again to continue"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


# Of the blocks of `stop_on_signals` that are open.
_requests: list["StopRequest"] = []


# Compared by identity: what is taken out of the open blocks is this one, not one of the same state.
@dataclass(eq=False)
class StopRequest:
    """A request to stop, from `stop_on_signals`. ``requested`` is the number of the first signal received, or None."""

    requested: int | None = None

    def obey(self, state: str, hint: str = CONTINUE_HINT) -> None:
        """End the work here if that was asked for.

        Args:
            state: Progress, for the message.

        Raises:
            Interrupted: It was.
        """
        if self.requested is not None:
            raise Interrupted(f"Interrupted; {state}", self.requested, hint)


@contextlib.contextmanager
def stop_on_signals() -> Generator[StopRequest, None, None]:
    """Note SIGINT, SIGTERM and SIGHUP instead of dying of them; the previous handlers come back at the end.

    A SIGINT that arrives when a stop is already requested raises KeyboardInterrupt at once, so that a second Ctrl-C
    always ends the process. A repeated SIGTERM changes nothing: schedulers send several. A SIGHUP that was ignored
    when the process started, as `nohup` has it, stays ignored. Outside the main thread, where Python allows no
    handlers, nothing is installed and ``requested`` stays None.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if stop.requested is None:
            stop.requested = number
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    heard = [number for number in _SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, on_signal) for number in heard}
    _requests.append(stop)
    try:
        yield stop
    finally:
        _requests.remove(stop)
        for number, handler in previous.items():
            # None stands for a handler that was not installed from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def is_stopping() -> bool:
    """True if this process was asked to stop and is about to."""
    return any(stop.requested is not None for stop in _requests)
