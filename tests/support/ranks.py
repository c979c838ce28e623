"""Several processes that train one model, as `torchrun` starts them, without the seconds that importing torch takes.

They are forked from a server that has imported everything and started nothing. What goes wrong in them is sent along.
"""

import contextlib
import functools
import importlib
import math
import multiprocessing
import os
import pickle
import resource
import runpy
import socket
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from support.tiny import TINY

# Long enough for a machine that does much else beside.
PATIENCE = 120.0

Fault = Callable[..., None]

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    [
        "dis_cli.cli.app",
        "dis_cli.workflows.train.train",
        "sklearn.datasets",
        "sklearn.model_selection",
        "torch._dynamo",
    ]
)


class At:
    """Does something at a point of some steps; see `dis_cli.runtime.faults`.

    Args:
        steps: Optimizer steps, counted from 1.
        action: Called with what the work holds there.
        point: The point's name.
    """

    def __init__(self, *steps: int, action: Callable[..., None], point: str = "gradients") -> None:
        self.steps = steps
        self.action = action
        self.point = point

    def __call__(self, point: str, step: int, **what: Any) -> None:
        if point == self.point and step in self.steps:
            note_time()
            self.action(**what)


@dataclass(frozen=True)
class BadLoss:
    """Makes the loss of some steps no number, before its gradient is taken; a batch must be computed in one part.

    Args:
        steps: Counted from 1, from this start on.
        value: What the loss is multiplied with.
    """

    steps: tuple[int, ...]
    value: float = math.nan

    def prepare(self) -> None:
        from dis_cli.diffusion import loss

        losses, calls = loss.training_losses, []

        def training_losses(*arguments: Any, **options: Any) -> dict[str, Any]:
            calls.append(None)
            result = losses(*arguments, **options)
            if len(calls) in self.steps:
                note_time()
                result["loss"] = result["loss"] * self.value
            return result

        loss.training_losses = training_losses

    def __call__(self, point: str, step: int, **what: Any) -> None:
        pass


@dataclass(frozen=True)
class When:
    """Does something when a workflow calls a function.

    Args:
        name: Of the function.
        action: Called without arguments, before the function itself.
        module: That of `dis_cli.workflows` which calls it.
    """

    name: str
    action: Callable[[], None]
    module: str = "train.train"

    def prepare(self) -> None:
        caller = importlib.import_module(f"dis_cli.workflows.{self.module}")
        function = getattr(caller, self.name)

        def with_action(*arguments: Any, **options: Any) -> Any:
            note_time()
            self.action()
            return function(*arguments, **options)

        setattr(caller, self.name, with_action)

    def __call__(self, point: str, step: int, **what: Any) -> None:
        pass


class CountImages:
    """Says on standard error how many images this rank generates in training, each time."""

    def prepare(self) -> None:
        from dis_cli.workflows.train import watch

        generate = watch.generate

        def counted(*arguments: Any, **options: Any) -> Any:
            sys.stderr.write(f"{len(options['seeds'])} ")
            return generate(*arguments, **options)

        watch.generate = counted

    def __call__(self, point: str, step: int, **what: Any) -> None:
        pass


def note_time() -> None:
    """Write down when the fault happened, when in a process of `start`."""
    if "DIS_TEST_FAULT" in os.environ:
        Path(os.environ["DIS_TEST_FAULT"]).write_text(str(time.monotonic()))


def fail_with(error: BaseException) -> Callable[..., None]:
    """An action that raises."""
    return functools.partial(_fail, error)


def _fail(error: BaseException, **what: Any) -> None:
    raise error


def signalling(*numbers: int) -> Callable[..., None]:
    """An action that sends this process signals."""
    return functools.partial(_signal, numbers)


def _signal(numbers: tuple[int, ...], **what: Any) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def bad_gradient(value: float) -> Callable[..., None]:
    """An action that makes one entry of the gradient this."""
    return functools.partial(_bad_gradient, value)


def _bad_gradient(value: float, parameters: Sequence[Any]) -> None:
    gradient = parameters[-1].grad
    getattr(gradient, "_local_tensor", gradient).view(-1)[0] = value


def flip_bit(parameters: Sequence[Any]) -> None:
    """Change one bit of one weight, not so low that the next update could round it away."""
    import torch

    parameters[-1].data.view(-1)[:1].view(torch.int32).bitwise_xor_(1 << 12)


def limit_memory(megabytes: int) -> Callable[..., None]:
    """An action after which this process gets only so much more memory."""
    return functools.partial(_limit_memory, megabytes)


def _limit_memory(megabytes: int, **what: Any) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@dataclass(frozen=True)
class Ended:
    """How one rank ended.

    Attributes:
        code: Its exit status; the negative number of the signal that killed it.
        out: What it wrote on standard output.
        err: What it wrote on standard error.
        at: When, by `time.monotonic`.
        fault_at: When its fault happened; None when it did not.
    """

    code: int
    out: str
    err: str
    at: float
    fault_at: float | None


@dataclass
class Ranks:
    """Running ranks, and what they write."""

    processes: list[Any]
    folder: Path
    ended: dict[int, float] = field(default_factory=dict)

    def send(self, number: int, *ranks: int) -> float:
        """Send a signal to some ranks, or to all, that still run; returns when."""
        at = time.monotonic()
        for rank in ranks or range(len(self.processes)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.processes[rank].pid, number)
        return at

    def finish(self, timeout: float = PATIENCE) -> list[Ended]:
        """Wait for all ranks."""
        deadline = time.monotonic() + timeout
        try:
            while len(self.ended) < len(self.processes):
                waiting = {
                    process.sentinel: rank for rank, process in enumerate(self.processes) if rank not in self.ended
                }
                done = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
                texts = [(self._said(rank, "out"), self._said(rank, "err")) for rank in waiting.values()]
                assert done, f"ranks {sorted(waiting.values())} still run after {timeout:.0f} s: {texts}"
                self.ended |= {waiting[sentinel]: time.monotonic() for sentinel in done}
        finally:
            for process in self.processes:
                if process.is_alive():
                    process.kill()
                process.join()
        return [
            Ended(
                process.exitcode,
                self._said(rank, "out"),
                self._said(rank, "err"),
                self.ended[rank],
                float(self._said(rank, "fault")) if self._said(rank, "fault") else None,
            )
            for rank, process in enumerate(self.processes)
        ]

    def _said(self, rank: int, kind: str) -> str:
        return (self.folder / f"{rank}.{kind}").read_text()


def start(
    count: int,
    *arguments: object,
    folder: Path,
    faults: Mapping[int, Fault] | None = None,
    own: Mapping[int, Sequence[str]] | None = None,
) -> Ranks:
    """Start ``dis *arguments`` on so many ranks.

    Args:
        count: How many.
        arguments: Of the command.
        folder: Where they write what they say; made when missing.
        faults: What goes wrong on which rank.
        own: Further arguments of single ranks.
    """
    command = [str(argument) for argument in arguments]
    by_rank = [([*command, *(own or {}).get(rank, ())], (faults or {}).get(rank)) for rank in range(count)]
    return _start(count, _run_command, by_rank, folder)


def start_calls(count: int, function: Callable[..., Any], *arguments: Any, folder: Path) -> Ranks:
    """Start ``function(*arguments)`` on so many ranks, without a command.

    Args:
        count: How many.
        function: At the top of its file, which the ranks read again.
        arguments: Must be picklable.
        folder: As for ``start``.
    """
    call = (function.__code__.co_filename, function.__name__, arguments)
    return _start(count, _call_function, [call] * count, folder)


def call_on(count: int, function: Callable[..., Any], *arguments: Any, folder: Path) -> list[Any]:
    """What ``function(*arguments)`` returns on so many ranks; see ``start_calls``."""
    ended = start_calls(count, function, *arguments, folder=folder).finish()
    assert [rank.code for rank in ended] == [0] * count, ended
    return [pickle.loads((folder / f"{rank}.result").read_bytes()) for rank in range(count)]


def _start(count: int, work: Callable[..., None], by_rank: Sequence[tuple[Any, ...]], folder: Path) -> Ranks:
    folder.mkdir(parents=True, exist_ok=True)
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "OMP_NUM_THREADS": "1"}
    common |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "DIS_CACHE_DIR": os.environ["DIS_CACHE_DIR"]}
    processes = []
    for rank, arguments in enumerate(by_rank):
        variables = (common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) if count > 1 else {}
        for kind in ("out", "err", "fault"):
            (folder / f"{rank}.{kind}").write_text("")
        files = str(folder / str(rank))
        processes.append(_server.Process(target=_rank, args=(variables, files, work, *arguments), daemon=True))
    for process in processes:
        process.start()
    return Ranks(processes, folder)


def train_on(
    count: int, run: Path, *overrides: str, faults: Mapping[int, Fault] | None = None, options: Sequence[str] = ("-q",)
) -> list[Ended]:
    """Train the tiny model on so many ranks, to the end."""
    return start_training(count, run, *overrides, faults=faults, options=options).finish()


def start_training(
    count: int, run: Path, *overrides: str, faults: Mapping[int, Fault] | None = None, options: Sequence[str] = ("-q",)
) -> Ranks:
    """Begin to train the tiny model on so many ranks; what they say is kept beside the run."""
    command = ["train", "--out", run, *options, *TINY, *overrides]
    return start(count, *command, folder=run.with_name(f"{run.name}-said"), faults=faults)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _rank(variables: dict[str, str], files: str, work: Callable[..., None], *arguments: Any) -> None:
    for descriptor, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{files}.{kind}", os.O_WRONLY | os.O_APPEND), descriptor)
    os.environ |= variables | {"DIS_TEST_FAULT": f"{files}.fault"}
    warnings.simplefilter("error")
    # Of a weight that is one column, whose strides mean nothing.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    work(files, *arguments)


def _run_command(files: str, command: list[str], fault: Fault | None) -> None:
    from dis_cli.cli.app import main
    from dis_cli.runtime.faults import inject

    sys.argv = ["dis", *command]
    if fault is not None and hasattr(fault, "prepare"):
        fault.prepare()
    inject(fault)
    main()


def _call_function(files: str, path: str, name: str, arguments: tuple[Any, ...]) -> None:
    function = runpy.run_path(path)[name]
    Path(f"{files}.result").write_bytes(pickle.dumps(function(*arguments)))
