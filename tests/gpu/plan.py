"""The plan of a probe: parts in the order of their worth, a budget of seconds, and a report that survives a kill."""

import json
import os
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path


class AbsentError(Exception):
    """What a part would measure is not on this machine; the message says what and why."""


@dataclass(frozen=True)
class Part:
    """One measurement.

    Args:
        section: The section of the report that it belongs to.
        name: Its name in the section.
        seconds: The most that it takes on a GPU: with less left of the budget it is left out.
        measure: Measures, and returns what JSON can hold.
    """

    section: str
    name: str
    seconds: float
    measure: Callable[[], object]


@dataclass
class Report:
    """What was found, in a file that is whole at every moment.

    Args:
        path: The JSON file, written after every part.
        facts: What stands above the sections, such as versions and the device.

    Attributes:
        sections: What each part found, or its error, by section and name.
        left_out: Why each part that was not measured was not, by "section: name".
    """

    path: Path
    facts: dict[str, object]
    sections: dict[str, dict[str, object]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    running: str | None = None

    def write(self) -> None:
        """Replace the file in one step."""
        content = {"finished": self.running is None, "running": self.running, **self.facts}
        content |= {"left_out": self.left_out, "sections": self.sections}
        temporary = self.path.with_name(f"{self.path.name}.tmp-{os.getpid()}")
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        temporary.replace(self.path)


def run_parts(
    parts: Iterable[Part],
    report: Report,
    *,
    budget: float,
    started: float,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Measure every part that fits, in order; a smaller one may still fit where a larger one did not.

    Args:
        budget: Seconds since ``started`` that all may take together.
        started: When the program began, by ``clock``.
        say: Tells one line of progress.
    """
    for part in parts:
        name = f"{part.section}: {part.name}"
        left = budget - (clock() - started)
        if part.seconds > left:
            report.left_out[name] = f"takes up to {part.seconds:.0f} s, and {max(0.0, left):.0f} s are left"
            say(f"{name}: left out, {report.left_out[name]}")
            continue
        # Written before, so that after a kill the file tells what ran.
        report.running = name
        report.write()
        began = clock()
        try:
            found = part.measure()
        except AbsentError as absent:
            report.left_out[name] = str(absent)
            say(f"{name}: left out, {absent}")
            continue
        except Exception as error:  # noqa: BLE001 - the other parts are worth as much
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}:{where.lineno}"
            found = {"error": f"{type(error).__name__}: {error}"[:600], "at": place}
        report.sections.setdefault(part.section, {})[part.name] = found
        seconds = report.sections.setdefault("seconds", {})
        seconds[name] = round(clock() - began, 1)
        say(f"{name}: {seconds[name]} s: {json.dumps(found)[:300]}")
    report.running = None
    report.facts["seconds"] = round(clock() - started, 1)
    report.write()
