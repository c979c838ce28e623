"""The device of a process and its peers; and a check that torch can compile for the device."""

import contextlib
import os
import re
from collections.abc import Generator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dis_cli.errors import ConfigError, UsageError, first_line
from dis_cli.events import Event
from dis_cli.runtime.distributed import WORK_ALONE, local_rank, part_from_environment
from dis_cli.runtime.process_group import ProcessGroup, join_process_group, meet
from dis_cli.runtime.signals import StopRequest, stop_on_signals


@dataclass(frozen=True)
class Process:
    """This process of a job.

    Attributes:
        device: Device of the computation.
        group: All processes of the job.
        stop: The signals that this one has received.
    """

    device: torch.device
    group: ProcessGroup = field(default_factory=ProcessGroup)
    stop: StopRequest = field(default_factory=StopRequest)

    def obey(self, state: str) -> None:
        """End the work here, on all ranks, if one of them was asked to; see `StopRequest.obey`."""
        self.group.obey(self.stop, state)

    def wait_for_leader(self, state: str) -> None:
        """Return on every rank once the leader has called it too; see `ProcessGroup.wait_for_leader`."""
        self.group.wait_for_leader(self.stop, state)


def join_job(
    device: torch.device, held: contextlib.ExitStack, *, alone: bool = False, stop: StopRequest | None = None
) -> Generator[Event, None, Process]:
    """Work with all processes of the job until ``held`` is left; errors are those of `join_process_group`.

    Args:
        device: Device of this process.
        held: Whatever has to end with the work.
        alone: Need no others, as a process that only looks.
        stop: The caller's note of signals; None notes them here.
    """
    stop = stop or held.enter_context(stop_on_signals())
    meeting = None if alone else (yield from meet(stop))
    group = ProcessGroup() if alone else held.enter_context(join_process_group(device, meeting))
    return Process(device, group, stop)


def pick_device(name: str = "auto") -> torch.device:
    """The device that a name stands for.

    Args:
        name: ``auto`` (a CUDA device if there is one, under `torchrun` the one that is this process's turn, else the
            CPU), ``cpu``, ``cuda`` (the first) or ``cuda:N`` (the N-th, from 0).

    Raises:
        UsageError: The name is not one of these, this machine has no such device, or which is this process's turn
            is not known.
    """
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", name, flags=re.ASCII)
    if match is None:
        raise UsageError(f"Unknown device: `{name}`", "Allowed are auto, cpu, cuda and cuda:N, for example `cuda:1`")
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        if count > 1 and "LOCAL_RANK" not in os.environ and part_from_environment().count > 1:
            raise UsageError(
                f"LOCAL_RANK is not set, which says whose turn each of the {count} GPUs of this machine is",
                f"Start the processes with `torchrun`, which sets it, or name a GPU with `--device`. {WORK_ALONE}",
            )
        return torch.device("cuda", local_rank() % count) if count else torch.device("cpu")
    index = int(match[1] or 0)
    if index >= count:
        have = f"this machine has {count} (cuda:0 to cuda:{count - 1})" if count else "PyTorch finds no CUDA device"
        raise UsageError(f"No device `{name}`: {have}", "Use `--device auto`, or see `dis doctor`")
    return torch.device("cuda", index)


def require_compiler(device: torch.device, asked: str = "`train.compile`: got true") -> None:
    """Compile a sum, so that what is missing is told before the work begins and not at its first step.

    It takes some seconds, most of which the model would spend later: to load torch's compiler. That a compiler is
    installed would say less: it also needs Python's headers, and on a GPU Triton.

    Args:
        asked: Origin of the request, for the beginning of the message.

    Raises:
        ConfigError: It cannot.
    """
    try:
        torch.compile(_add_one)(torch.zeros(1, device=device))
    except (RuntimeError, OSError) as error:
        # torch wraps what a backend raises.
        cause = first_line(getattr(error, "inner_exception", error)).rstrip(".")
        raise ConfigError(
            f"{asked}, but torch cannot compile on this machine: {cause}",
            "Install a C++ compiler (g++, or name one in the variable CXX), or do without compiling",
        ) from error


def _add_one(values: Tensor) -> Tensor:
    return values + 1
