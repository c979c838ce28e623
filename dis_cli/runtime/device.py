"""Choosing the device that computes."""

import re

import torch

from dis_cli.errors import UsageError
from dis_cli.runtime.distributed import local_rank


def pick_device(name: str = "auto") -> torch.device:
    """The device that a name stands for.

    Args:
        name: ``auto`` (a CUDA device if there is one, under `torchrun` the one that is this process's turn, else the
            CPU), ``cpu``, ``cuda`` (the first) or ``cuda:N`` (the N-th, from 0).

    Raises:
        UsageError: The name is not one of these, or this machine has no such device.
    """
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", name, flags=re.ASCII)
    if match is None:
        raise UsageError(f"Unknown device: `{name}`", "Allowed are auto, cpu, cuda and cuda:N, for example `cuda:1`")
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda", local_rank() % count) if count else torch.device("cpu")
    index = int(match[1] or 0)
    if index >= count:
        have = f"this machine has {count} (cuda:0 to cuda:{count - 1})" if count else "PyTorch finds no CUDA device"
        raise UsageError(f"No device `{name}`: {have}", "Use `--device auto`, or see `dis doctor`")
    return torch.device("cuda", index)
