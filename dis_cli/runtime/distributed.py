"""Which share of the work is this process's: told by `torchrun` in the environment, or by the user."""

import os
import re
from dataclasses import dataclass

from dis_cli.errors import UsageError


@dataclass(frozen=True)
class Part:
    """A share of work that is dealt out in turn: item k belongs to part ``k % count``.

    Args:
        index: This part, 0 to count - 1.
        count: Parts in all.
        together: The other parts are processes of the same job, which end together; else they may run at any time.
    """

    index: int = 0
    count: int = 1
    together: bool = True

    def holds(self, item: int) -> bool:
        """Whether an item belongs to this part."""
        return item % self.count == self.index


def part_from_environment() -> Part:
    """This process's part of a job that `torchrun` started; the whole when it was started alone.

    Raises:
        UsageError: The environment says something impossible.
    """
    # torchrun sets both
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        return Part()
    rank, world_size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    if not (rank.isdecimal() and world_size.isdecimal() and int(rank) < int(world_size)):
        raise UsageError(
            f"RANK must be a number from 0 to WORLD_SIZE - 1, got RANK={rank} and WORLD_SIZE={world_size}",
            "Start the processes with `torchrun`, which sets these variables, or unset both",
        )
    return Part(int(rank), int(world_size))


def local_rank() -> int:
    """Number of this process among those that `torchrun` started on this machine; 0 when it was started alone."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """How many processes `torchrun` started on this machine; 1 when this one was started alone."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def parse_part(text: str) -> Part:
    """A part from ``i/n``, counted from 1.

    Raises:
        UsageError: The text is no such thing.
    """
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    index, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= index <= count:
        raise UsageError(
            f"Part must be i/n with i from 1 to n, got `{text}`",
            "With two processes, give one `--part 1/2` and the other `--part 2/2`",
        )
    return Part(index - 1, count, together=False)
