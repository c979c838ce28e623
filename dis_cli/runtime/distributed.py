"""This process's share of the work, as `torchrun` or the user tells it."""

import os
import re
from dataclasses import dataclass

from dis_cli.errors import UsageError

WORK_ALONE = "If this one is to work alone, run `unset RANK WORLD_SIZE`"


@dataclass(frozen=True)
class WorkShare:
    """A share of work that is dealt out in turn: item k belongs to part ``k % count``.

    Args:
        index: This part, 0 to count - 1.
        together: The other parts are processes of the same job, which end together; else they may run at any time.
    """

    index: int = 0
    count: int = 1
    together: bool = True

    def holds(self, item: int) -> bool:
        """True if an item belongs to this part."""
        return item % self.count == self.index


def part_from_environment() -> WorkShare:
    """This process's part of a job that `torchrun` started; the whole when it was started alone.

    Raises:
        UsageError: The environment says something impossible.
    """
    # torchrun sets both
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        return WorkShare()
    rank, world_size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    if not (rank.isdecimal() and world_size.isdecimal() and int(rank) < int(world_size)):
        raise UsageError(
            f"RANK must be a number from 0 to WORLD_SIZE - 1, got RANK={rank} and WORLD_SIZE={world_size}",
            f"Start the processes with `torchrun`, which sets these variables. {WORK_ALONE}",
        )
    return WorkShare(int(rank), int(world_size))


def require_meeting_place(part: WorkShare) -> str:
    """The meeting place of a job's processes, as HOST:PORT.

    Raises:
        UsageError: The environment does not say.
    """
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    port = os.environ.get("MASTER_PORT", "")
    if missing:
        problem = " and ".join(missing) + (" is" if len(missing) == 1 else " are") + " not set"
    elif not (port.isdecimal() and int(port) < 2**16):
        problem = f"MASTER_PORT must be a number from 0 to 65535, got {port}"
    else:
        return f"{os.environ['MASTER_ADDR']}:{port}"
    raise UsageError(
        f"Rank {part.index} of {part.count} cannot reach the others: RANK={part.index} and WORLD_SIZE={part.count} are "
        f"set, but {problem}",
        f"Start the processes with `torchrun`, which sets all of these variables. {WORK_ALONE}",
    )


def local_rank() -> int:
    """Number of this process among those that `torchrun` started on this machine; 0 when it was started alone.

    Raises:
        UsageError: The environment says something else.
    """
    return _number("LOCAL_RANK", 0)


def local_world_size() -> int:
    """The number of processes that `torchrun` started on this machine; 1 when this one was started alone.

    Raises:
        UsageError: The environment says something else.
    """
    return max(1, _number("LOCAL_WORLD_SIZE", 1))


def _number(name: str, alone: int) -> int:
    text = os.environ.get(name, str(alone))
    if not text.isdecimal():
        raise UsageError(
            f"{name} must be a number, got {name}={text}",
            f"Start the processes with `torchrun`, which sets it, or run `unset {name}`",
        )
    return int(text)


def parse_part(text: str) -> WorkShare:
    """A part from ``i/n``, counted from 1.

    Raises:
        UsageError: The text is no such thing.
    """
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    index, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= index <= count:
        raise UsageError(
            f"--part must be i/n with i from 1 to n, got `{text}`",
            "With two processes, give one `--part 1/2` and the other `--part 2/2`",
        )
    return WorkShare(index - 1, count, together=False)
