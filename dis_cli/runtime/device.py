"""The device that computes, and whether torch can compile for it."""

import os
import re

import torch
from torch import Tensor

from dis_cli.errors import ConfigError, UsageError, first_line
from dis_cli.runtime.distributed import WORK_ALONE, local_rank, part_from_environment


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
        asked: What asked for it, for the beginning of the message.

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
