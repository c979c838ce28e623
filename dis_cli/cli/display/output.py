"""The one place that writes to the terminal.

Standard output carries results only: text lines, with ``--json`` one JSON object, or with ``--json=lines`` one for each
event and the result or the error as the last. Everything else (progress, notes, warnings, errors, hints) goes to
standard error. Nothing here imports torch; rich is imported only when there
is a terminal to draw on.
"""

import contextlib
import errno
import json
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from dis_cli.cli.display.colour import is_terminal, with_labels
from dis_cli.cli.display.help import page
from dis_cli.cli.display.meter import Meter
from dis_cli.cli.display.text import jsonable, printable, size
from dis_cli.errors import DisError, Interrupted, PeerError, StorageError, UsageError
from dis_cli.events import Event, Finished, Metric, Note, Progress, Saved, Started, Step, Waiting, Wrote
from dis_cli.metrics.table import EPSILON_ERROR
from dis_cli.runtime.signals import is_stopping

if TYPE_CHECKING:
    from dis_cli.cli.display.live import LiveLine

SECONDS_BETWEEN_LINES = 30.0

# What was printed as a result so far: True for a JSON object.
_results: list[bool] = []


class Output:
    """Shows what a command does, as its flags ask.

    Args:
        quiet: Show results and errors only.
        verbose: Show a line for every step.
        progress: Show progress at all; notes and warnings stay without it.
        json_lines: Print every event as a line of JSON when it happens, and the result as the last one.
        clock: Seconds, from any origin; paces the plain lines.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        verbose: bool = False,
        progress: bool = True,
        as_json: bool = False,
        json_lines: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if quiet and verbose:
            raise UsageError("--quiet and --verbose exclude each other", "Give one of them")
        self._quiet = quiet
        self._verbose = verbose
        self._progress = progress and not quiet
        self._as_json = as_json
        self._json_lines = json_lines
        self._clock = clock
        self._live: LiveLine | None = None
        self._meter: Meter | None = None
        self._training: Meter | None = None
        self._log_every: int | None = None
        self._unwritten = 0
        self._written_at: float | None = None

    def render(self, events: Iterable[Event], *, log_every: int | None = None) -> dict[str, Any]:
        """Run a workflow by taking its events, show them, and return what its last one carries.

        Args:
            log_every: Steps between plain lines when there is no terminal; None leaves it to the clock.

        Raises:
            RuntimeError: The workflow ended without Finished.
            StorageError: Standard output is to have every event, and is closed or full.
        """
        self._log_every, self._training = log_every, None
        finished: dict[str, Any] | None = None
        with _closed_at_the_end(events), self._live_line():
            for event in events:
                if isinstance(event, Finished):
                    finished = event.result
                    continue
                if self._json_lines:
                    _write_event(_json_line(event.to_json()))
                if isinstance(event, Waiting):
                    self._line(f"warning: {event.message}")
                elif not self._quiet:
                    self._show(event)
        if finished is None:
            raise RuntimeError("the workflow ended without a result")
        return finished

    def result(self, lines: Iterable[str], data: Mapping[str, object]) -> None:
        """Print a command's result: ``lines`` as text, or ``data`` with ``--json``."""
        if self._json_lines:
            _print_last({"event": Finished.kind, "schema": 1, "result": data})
        else:
            result(lines, data, self._as_json)

    def note(self, message: str) -> None:
        """Say something the user may want to know."""
        if not self._quiet:
            self._line(message)

    def warning(self, message: str) -> None:
        """Say something the user should know and that does not stop the work."""
        self.note(f"warning: {message}")

    @contextlib.contextmanager
    def _live_line(self) -> Generator[None]:
        try:
            # Lines of JSON on the same terminal would tear the live line.
            torn = self._json_lines and is_terminal(sys.stdout)
            if self._progress and is_terminal(sys.stderr) and not torn:
                from dis_cli.cli.display.live import LiveLine

                with LiveLine() as self._live:
                    yield
            else:
                yield
        finally:
            self._live = None
            self._end_of_work()

    def _show(self, event: Event) -> None:
        match event:
            case Started():
                self._end_of_work()
                self._meter = Meter(event, self._clock)
                if event.unit == "steps":
                    self._training = self._meter
                self.note(_started_line(event))
            case Step() | Progress():
                self._tick(event)
            case Saved():
                self.note(f"saved step {event.step}: {event.path} ({size(event.size_bytes)})")
            case Wrote():
                self.note(f"wrote {event.what}: {event.path}")
            case Metric():
                if event.name == EPSILON_ERROR and self._training is not None:
                    self._training.remember(event.name, event.value)
                context = ", ".join(f"{name} {value:.3g}" for name, value in event.context.items())
                place = f" at step {event.step}" if event.step is not None else ""
                self.note(f"{event.name}: {event.value:.6g}{place}" + (f" ({context})" if context else ""))
            case Note(level="warning"):
                self.warning(event.message)
            case Note():
                self.note(event.message)
            case _:
                pass

    def _tick(self, event: Step | Progress) -> None:
        if not self._progress:
            return
        self._meter = meter = self._meter_of(event)
        meter.update(event)
        self._unwritten += 1
        complete = meter.fraction >= 1
        if self._live is not None and complete:
            self._live.clear()
        elif self._live is not None:
            self._live.show(meter)
        if complete or self._verbose or (self._live is None and self._is_due()):
            self._write_progress()

    def _meter_of(self, event: Step | Progress) -> Meter:
        # Between two steps of a training, images are generated to be looked at or scored.
        if isinstance(event, Step) and self._training is not None:
            if self._meter is not self._training:
                self._end_of_work()
                self._training.go_on(event.seconds)
            return self._training
        if self._meter is not None and (isinstance(event, Step) or self._meter is not self._training):
            return self._meter
        self._end_of_work()
        total, unit = (0, "steps") if isinstance(event, Step) else (event.total, event.unit)
        return Meter(Started(what="work", total=total, unit=unit), self._clock)

    def _is_due(self) -> bool:
        if self._written_at is None or self._clock() - self._written_at >= SECONDS_BETWEEN_LINES:
            return True
        return self._log_every is not None and self._unwritten >= self._log_every

    def _write_progress(self) -> None:
        if self._meter is not None:
            self._line("  ".join(self._meter.parts(verbose=self._verbose)))
        self._unwritten, self._written_at = 0, self._clock()

    def _end_of_work(self) -> None:
        if self._live is not None:
            self._live.clear()
        # The last state is always told, also when an error ends the work.
        if self._unwritten:
            self._write_progress()
        self._meter, self._written_at = None, None

    def _line(self, text: str) -> None:
        if self._live is not None:
            self._live.print(with_labels(printable(text, sys.stderr), sys.stderr))
        else:
            write_stderr(f"{text}\n")


def start() -> None:
    """Forget earlier results of this process: another command begins."""
    _results.clear()


def result(lines: Iterable[str], data: Mapping[str, object], as_json: bool) -> None:
    """Print a result on standard output: ``lines`` as text, or ``data`` as one JSON object.

    Raises:
        StorageError: Standard output is closed or full.
    """
    if as_json:
        _print_last({"schema": 1} | dict(data))
    else:
        _results.append(False)
        _write_stdout("".join(f"{printable(line, sys.stdout)}\n" for line in lines))


def _print_last(record: Mapping[str, object]) -> None:
    text = _json_line(record)
    _results.append(True)
    _write_stdout(text)


def _json_line(record: Mapping[str, object]) -> str:
    # ASCII only: parses whatever the terminal's encoding, also with names that are not UTF-8.
    return json.dumps(jsonable(record), allow_nan=False) + "\n"


def _write_stdout(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except (OSError, ValueError, AttributeError) as error:
        # ValueError and AttributeError: closed by the caller, as in `dis flops >&-`.
        raise StorageError(
            f"Standard output takes no more: {getattr(error, 'strerror', None) or 'it is closed'}"
        ) from error


def _write_event(text: str) -> None:
    try:
        _write_stdout(text)
    except (BrokenPipeError, StorageError) as error:
        # What ends a job, such as Ctrl-C or the closing of its terminal, may end its reader first; a terminal that is
        # gone (EIO) tells so before the signal comes. The work is still to be saved.
        is_gone = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EIO
        if not is_gone and not is_stopping():
            raise


def error(failure: DisError, as_json: bool, *, json_lines: bool = False) -> None:
    """Print an error and its hint; with ``as_json`` or ``json_lines`` also as the last object on standard output.

    A command that has already printed its result keeps that as the last one. Of several processes all but the first
    tell only what is their own, on standard error.
    """
    # As it stands: that it makes no sense may be the very error that is to be told.
    rank = os.environ.get("RANK", "0") if "WORLD_SIZE" in os.environ else "0"
    if rank != "0" and isinstance(failure, PeerError | Interrupted):
        return
    hint = f"\nhint: {failure.hint}\n" if failure.hint else ""
    write_stderr(f"error: {'' if rank == '0' else f'rank {rank}: '}{failure.message}\n{hint}")
    if rank == "0" and (as_json or json_lines) and not any(_results):
        with contextlib.suppress(OSError, StorageError):
            _print_last(({"event": "error"} if json_lines else {}) | failure.to_json())


def _started_line(event: Started) -> str:
    amount = f"{event.total} {event.unit}"
    line = f"{event.what}: " + (f"continuing at {event.first} of {amount}" if event.first else amount)
    details = ", ".join(f"{name} {value}" for name, value in event.details.items())
    return f"{line} ({details})" if details else line


def write_stderr(text: str) -> None:
    """Write ``text`` to standard error at once, or not at all: its reader's going must not end a training run."""
    _to_stderr(with_labels(printable(text, sys.stderr), sys.stderr))


def help_page(context: Any) -> None:
    """Write the help of a command that was called without what it needs."""
    _to_stderr(page(context, sys.stderr) + "\n")


def _to_stderr(text: str) -> None:
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
            sys.stderr.flush()


@contextlib.contextmanager
def _closed_at_the_end(events: Iterable[Event]) -> Generator[None]:
    # A generator left by an exception keeps its locks and files until it is collected.
    try:
        yield
    finally:
        if isinstance(events, Generator):
            cast("Generator[Event]", events).close()
