"""Colours of a terminal, for the few words that have one."""

import os
import re
from typing import Final, TextIO

HEADING: Final = "1;32"  # bold green
LITERAL: Final = "1;36"  # bold cyan: what is typed as it stands
PLACEHOLDER: Final = "36"  # cyan: what a value takes the place of

_LABELS: Final = {"error": "1;31", "warning": "1;33", "hint": "1;36"}
_LABEL = re.compile(r"^(error|warning|hint):", re.MULTILINE)


def is_terminal(stream: TextIO | None) -> bool:
    """True if ``stream`` is a terminal that can draw."""
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
    except ValueError:
        return False


def has_colour(stream: TextIO | None) -> bool:
    """True if ``stream`` takes colours: a terminal, unless NO_COLOR is set; anything, if FORCE_COLOR is.

    Both count when they are not empty (no-color.org, force-color.org). NO_COLOR wins.
    """
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or is_terminal(stream)


def painted(text: str, style: str) -> str:
    """``text`` in a style, which is a list of SGR numbers."""
    return f"\x1b[{style}m{text}\x1b[0m" if text else ""


def with_labels(text: str, stream: TextIO | None) -> str:
    """``text`` with ``error:``, ``warning:`` and ``hint:`` in colour where lines begin with them."""
    if not has_colour(stream):
        return text
    return _LABEL.sub(lambda match: painted(match[0], _LABELS[match[1]]), text)
