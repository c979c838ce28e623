"""The live progress line of a terminal. The only file that draws with rich.

Texts are ``rich.text.Text`` objects and are never parsed as markup, so a file may be called ``[/x]``.
"""

import contextlib
import time
from types import TracebackType

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dis_cli.cli.display.meter import Meter

SECONDS_BETWEEN_FRAMES = 0.1
NARROWEST_WITH_BAR = 80
BAR_WIDTH = 20


class LiveLine:
    """One live line on standard error; it disappears when the block ends."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        # Nothing written to standard output may pass through rich, which wraps and colours.
        self._live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stdout=False)
        self._next_frame = 0.0

    def __enter__(self) -> "LiveLine":
        # A terminal that has gone away is no reason to lose the work; the same holds below.
        with contextlib.suppress(OSError):
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._live.stop()

    def show(self, meter: Meter) -> None:
        """Draw how far ``meter`` is, in place of the line before, at most every tenth of a second."""
        now = time.monotonic()
        if now < self._next_frame:
            return
        self._next_frame = now + SECONDS_BETWEEN_FRAMES
        with contextlib.suppress(OSError):
            self._live.update(self._frame(meter.parts(), meter.fraction), refresh=True)

    def clear(self) -> None:
        """Take the line away until the next ``show``."""
        self._next_frame = 0.0
        with contextlib.suppress(OSError):
            self._live.update(Text(""), refresh=True)

    def print(self, line: str) -> None:
        """Write a lasting line above the live one, unwrapped, so that a path in it can be copied."""
        with contextlib.suppress(OSError):
            self._console.print(Text.from_ansi(line), soft_wrap=True, highlight=False)

    def _frame(self, parts: list[str], fraction: float) -> RenderableType:
        width = self._console.width
        with_bar = width >= NARROWEST_WITH_BAR
        text = Text(fit(parts, width - BAR_WIDTH - 2 if with_bar else width), no_wrap=True, overflow="ellipsis")
        if not with_bar:
            return text
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_row(ProgressBar(total=1.0, completed=fraction, width=BAR_WIDTH), text)
        return grid


def fit(parts: list[str], width: int) -> str:
    """As many of ``parts`` as fit into ``width`` cells, at least one, joined by two spaces."""
    text = parts[0]
    for part in parts[1:]:
        if cell_len(text) + 2 + cell_len(part) > width:
            break
        text = f"{text}  {part}"
    return text
