"""Loader processes: what they make beside the work comes back through pipes, in order.

Shared memory would save a copy, but containers have little of it (64 MB of /dev/shm in Docker), and a process that
finds it full dies of SIGBUS. Pipes need none, and the end of one tells that the process behind it is gone.
"""

import contextlib
import os
import pickle
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import Process, util
from multiprocessing.connection import Connection, Pipe
from typing import Any, cast

import torch
from torch import Tensor

from dis_cli.errors import DisError, is_out_of_memory

Tensors = tuple[Tensor, ...]
# Makes item i; calls the second argument now and then, to say that it gets on.
Load = Callable[[int, Callable[[], None]], Tensors]

# Items kept ready here, besides the one that each process has ready.
_PREFETCH = 4
_SECONDS_BETWEEN_SIGNS = 1.0
# Without a sign of life for so long, a process is stuck. Counted in waits of a second, so that a job that was suspended
# as a whole finds no fault with itself.
_PATIENCE_SECONDS = 120
_FAREWELL_SECONDS = 5.0
# What a terminal or a scheduler sends to all processes of a job: the one that trains decides what becomes of it.
_SIGNALS_TO_JOBS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_CONTINUE = "Run the same command again to continue"


def load_ahead(load: Load, indices: range, *, num_workers: int, pin_memory: bool = False) -> Generator[Tensors]:
    """The results of ``load`` for the indices, in order, made by processes ahead of their use.

    Args:
        load: Runs in the processes; picklable where they are not forked.
        indices: Process k makes every ``num_workers``-th, from the k-th on.
        num_workers: Processes, at least 1.
        pin_memory: Put the tensors where a GPU can fetch them by itself.

    Raises:
        DisError: A process could not be started, was killed, ran out of memory or is stuck.
        Exception: What ``load`` raised in a process.
    """
    workers: list[_Worker] = []
    reader = ThreadPoolExecutor(1, thread_name_prefix="loaders")
    # For a user who drops the iterator and ends: these processes heed no SIGTERM.
    end = util.Finalize(None, _end, args=(workers,), exitpriority=0)
    try:
        for number in range(num_workers):
            workers.append(_start(load, indices[number::num_workers], workers, num_workers))
        ahead: deque[Future[Tensors]] = deque()
        for place in range(len(indices)):
            ahead.append(reader.submit(workers[place % num_workers].receive, pin_memory))
            if len(ahead) > _PREFETCH:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        end()
        # Its reading has ended with the processes.
        reader.shutdown(cancel_futures=True)
        for worker in workers:
            worker.pipe.close()


class _Worker:
    """A loader process, as the process that trains sees it."""

    def __init__(self, process: Process, pipe: "Connection[Any, Any]", title: str) -> None:
        self.process = process
        self.pipe = pipe
        self._title = title

    def receive(self, pin_memory: bool) -> Tensors:
        """The next item."""
        try:
            message = None
            while message is None:
                self._wait()
                message = self.pipe.recv()
            if isinstance(message, BaseException):
                raise message
            return tuple(self._tensor(shape, dtype, pin_memory) for shape, dtype in message)
        except (EOFError, ConnectionError) as error:
            raise self._gone() from error

    def _tensor(self, shape: Sequence[int], dtype: torch.dtype, pin_memory: bool) -> Tensor:
        tensor = torch.empty(shape, dtype=dtype, pin_memory=pin_memory)
        # Read into its place: a message of the connection's own would be copied three times.
        rest = _bytes(tensor)
        while rest:
            self._wait()
            count = os.readv(self.pipe.fileno(), [rest])
            if not count:
                raise EOFError
            rest = rest[count:]
        return tensor

    def _wait(self) -> None:
        for _ in range(_PATIENCE_SECONDS):
            if self.pipe.poll(1.0):
                return
        raise DisError(
            f"{self._title} has read nothing for {_PATIENCE_SECONDS} seconds, and was ended",
            "The disk or the network that the images are on may hang, or the process was stopped. data.num_workers=0 "
            f"reads them without such processes. {_CONTINUE}",
        )

    def _gone(self) -> DisError:
        self.process.join(_FAREWELL_SECONDS)
        code = self.process.exitcode
        if code is None or code >= 0:
            what = f"ended before its work was done, with status {code}"
            return DisError(f"{self._title} {what}", f"data.num_workers=0 does without such processes. {_CONTINUE}")
        name = signal.Signals(-code).name if -code in set(signal.Signals) else "no name"
        without = "data.num_workers=0 does without such processes"
        if -code == signal.SIGKILL:
            without = (
                "The system kills processes when memory runs out: close other programs, or take fewer loader "
                "processes with data.num_workers; data.num_workers=0 does without"
            )
        elif -code == signal.SIGBUS:
            without = (
                "A file became shorter while it was read, or shared memory (/dev/shm) is full: give a container more "
                f"with `docker run --shm-size=1g`. {without}"
            )
        return DisError(f"{self._title} was killed by signal {-code} ({name})", f"{without}. {_CONTINUE}")


def _start(load: Load, indices: range, others: Sequence[_Worker], num_workers: int) -> _Worker:
    title = f"Loader process {len(others) + 1} of {num_workers}"
    try:
        # Typed as the pipes of Windows are, too.
        ours, theirs = cast("tuple[Connection[Any, Any], Connection[Any, Any]]", Pipe(duplex=False))
        process = Process(
            target=_work, args=(load, indices, theirs, [ours, *(worker.pipe for worker in others)]), daemon=True
        )
        process.start()
    except (OSError, RuntimeError) as error:
        fewer = f"data.num_workers={len(others)}, or " if others else ""
        raise DisError(
            f"{title} cannot be started: {getattr(error, 'strerror', None) or error}",
            f"Set {fewer}data.num_workers=0, which does without such processes; or raise the limits on processes "
            "(`ulimit -u`) and open files (`ulimit -n`)",
        ) from error
    # The only other end is the process's own, so that the pipe ends with it.
    theirs.close()
    return _Worker(process, ours, title)


def _end(workers: Sequence[_Worker]) -> None:
    # They only read: nothing is lost.
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.process.join()


def _work(load: Load, indices: range, pipe: "Connection[Any, Any]", foreign: Sequence["Connection[Any, Any]"]) -> None:
    """The work of a loader process, from start to end."""
    for number in _SIGNALS_TO_JOBS:
        signal.signal(number, signal.SIG_IGN)
    for other in foreign:
        # Of the process that trains: as long as it is open here, no writer notices that nobody reads any more.
        other.close()
    # More would only wait for each other, and OpenMP's pool does not survive a fork.
    torch.set_num_threads(1)
    last_sign = time.monotonic()

    def sign_of_life() -> None:
        nonlocal last_sign
        if time.monotonic() - last_sign > _SECONDS_BETWEEN_SIGNS:
            pipe.send(None)
            last_sign = time.monotonic()

    # Whoever wanted the rest may be gone, and there may be no memory for last words.
    with contextlib.suppress(BrokenPipeError, ConnectionError, MemoryError):
        try:
            for index in indices:
                tensors = [tensor.contiguous() for tensor in load(index, sign_of_life)]
                pipe.send([(tuple(tensor.shape), tensor.dtype) for tensor in tensors])
                for tensor in tensors:
                    rest = _bytes(tensor)
                    while rest:
                        rest = rest[os.write(pipe.fileno(), rest) :]
        except (BrokenPipeError, ConnectionError):
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is, the process that trains tells it
            pipe.send(_last_word(error))
    pipe.close()


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(cast("Any", tensor.view(-1).view(torch.uint8).numpy())) if tensor.numel() else memoryview(b"")


def _last_word(error: BaseException) -> BaseException:
    """The error in a form that can be sent."""
    if is_out_of_memory(error):
        return DisError(
            "A loader process ran out of memory",
            f"Close other programs, or take fewer loader processes with data.num_workers; data.num_workers=0 does "
            f"without. {_CONTINUE}",
        )
    try:
        error.add_note("".join(traceback.format_exception(error)))
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - errors of other packages need not survive it
        return DisError(f"A loader process failed: {type(error).__name__}: {error}")
    return error
