"""Progress as short texts, for the live line and the plain lines alike."""

import sys
import time
from collections import deque
from collections.abc import Callable

from dis_cli.cli.display.text import duration, size
from dis_cli.events import Progress, Started, Step
from dis_cli.runtime.machine import resident_bytes

SECONDS_OF_RECENT_PAST = 20.0
# What is seen in less time says nothing about the speed.
SECONDS_OF_PROOF = 1.0


class Meter:
    """Follows one piece of work from its Started record on.

    Args:
        started: The record that announced the work.
        clock: Seconds, from any origin.
    """

    def __init__(self, started: Started, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._unit = started.unit
        self._total = started.total
        self._done = started.first
        self._step: Step | None = None
        self._beside: dict[str, float] = {}
        self._size_bytes: int | None = None
        self._is_new = True
        # The recent speed, not that of the whole: the first step compiles, and machines get busy.
        self._recent = deque([(clock(), started.first)])

    def update(self, event: Step | Progress) -> None:
        """Take in one record."""
        if isinstance(event, Step):
            self._step, self._done = event, event.step
        else:
            # What comes before the first units, such as reading and warming up, is no part of the speed.
            if self._is_new or event.unit != self._unit or event.done < self._done:
                self._recent.clear()
            self._step, self._done, self._total, self._unit = None, event.done, event.total, event.unit
            self._size_bytes = event.size_bytes
        self._is_new = False
        now = self._clock()
        self._recent.append((now, self._done))
        while len(self._recent) > 2 and now - self._recent[1][0] > SECONDS_OF_RECENT_PAST:
            self._recent.popleft()

    def remember(self, name: str, value: float) -> None:
        """Show a number that was measured between two steps, until the next of its name."""
        self._beside[name] = value

    def go_on(self, seconds: float) -> None:
        """Go on after other work, which took time and says nothing about the speed of this.

        Args:
            seconds: Time that the next unit has taken.
        """
        self._recent = deque([(self._clock() - seconds, self._done)])

    @property
    def fraction(self) -> float:
        """The finished share of the work, 0 to 1."""
        return min(self._done / self._total, 1.0) if self._total > 0 else 0.0

    @property
    def units_per_second(self) -> float | None:
        """The recent speed; None while it is unknown."""
        (time_0, done_0), (time_1, done_1) = self._recent[0], self._recent[-1]
        seen = done_1 > done_0 and time_1 - time_0 >= SECONDS_OF_PROOF
        return (done_1 - done_0) / (time_1 - time_0) if seen else None

    @property
    def seconds_left(self) -> float | None:
        """The time until the end at the recent speed, in seconds; None while that is unknown."""
        speed = self.units_per_second
        return None if speed is None or self._total <= 0 else max(self._total - self._done, 0) / speed

    def parts(self, *, verbose: bool = False) -> list[str]:
        """The texts to show, the most important first, so that a narrow terminal can drop the last ones."""
        count = f"{self._done}/{self._total}" if self._total > 0 else f"{self._done}"
        step = self._step
        parts = [f"{count} {self._unit}"] if step is None else [f"step {count}", f"loss {step.loss:.4g}"]
        if step is not None:
            parts += [f"{name} {value:.4g}" for name, value in self._beside.items()]
        if (left := self.seconds_left) is not None:
            parts.append(f"ETA {duration(left)}")
        speed = self.units_per_second if step is None else step.images_per_second
        if speed is not None:
            unit = self._unit if step is None else "images"
            parts.append(f"{speed:.0f} {unit}/s" if speed >= 100 else f"{speed:.3g} {unit}/s")
        if self._size_bytes is not None:
            parts.append(f"{size(self._size_bytes)} written")
        memory = memory_bytes() if step is None or step.memory_bytes is None else step.memory_bytes
        if memory is not None:
            parts.append(size(memory))
        if step is not None and step.mfu is not None:
            percent = 100 * step.mfu
            parts.append(f"mfu {percent:.0f} %" if percent >= 10 else f"mfu {percent:.2g} %")
        if verbose and step is not None:
            parts += [f"lr {step.lr:.3g}", f"grad_norm {step.grad_norm:.3g}"]
        return parts


def memory_bytes() -> int | None:
    """The memory in use: the GPU's peak once there is one, else what this process holds; None when unknown."""
    # Looked up and never imported: a command that needs no torch must not pay for it here.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_reserved())
    return resident_bytes()
