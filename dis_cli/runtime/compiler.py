"""Whether torch can compile on this machine."""

import torch
from torch import Tensor

from dis_cli.errors import ConfigError


def require_compiler(device: torch.device, asked: str = "`train.compile`: got true") -> None:
    """Compile a sum, so that what is missing is told before the work begins and not at its first step.

    It takes some seconds, most of which the model would spend later: to load torch's compiler. That a compiler is
    installed would say less: it also needs Python's headers, and on a GPU Triton.

    Args:
        device: What the model computes on.
        asked: What asked for it, for the beginning of the message.

    Raises:
        ConfigError: It cannot.
    """
    try:
        torch.compile(_add_one)(torch.zeros(1, device=device))
    except (RuntimeError, OSError) as error:
        # torch wraps what a backend raises.
        cause = str(getattr(error, "inner_exception", error)).partition("\n")[0].rstrip(".")
        raise ConfigError(
            f"{asked}, but torch cannot compile on this machine: {cause}",
            "Install a C++ compiler (g++, or name one in the variable CXX), or do without compiling",
        ) from error


def _add_one(values: Tensor) -> Tensor:
    return values + 1
