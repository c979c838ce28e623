"""Events of running workflows: frozen records, in the order in which things happened.

A workflow is a generator of these records and never writes to the terminal; whoever runs it (the command line, a
notebook, a test) decides what to show. ``to_json`` gives the line that ``events.jsonl`` stores.
"""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal


@dataclass(frozen=True, kw_only=True)
class Event:
    """The base of all records; ``kind`` names the class in JSON."""

    kind: ClassVar[str] = "event"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()

    def to_json(self) -> dict[str, object]:
        """The record as a JSON object: ``event`` first, then the fields; paths become strings."""
        record: dict[str, object] = {"event": self.kind}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            record[field.name] = str(value) if isinstance(value, Path) else value
        return record


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """A workflow begins: what will be done, on what."""

    what: str
    total: int
    unit: str
    first: int = 0
    details: dict[str, object] = dataclasses.field(default_factory=dict[str, object])


@dataclass(frozen=True, kw_only=True)
class Step(Event):
    """One optimizer step was taken. ``step`` counts finished steps, so the first one is 1.

    ``data_seconds`` is the part of ``seconds`` in which the model waited for its data. ``skipped`` says that the loss
    or the gradient was not finite, and that the weights were left as they were. ``memory_bytes`` is what this process
    (or its GPU) holds; ``mfu``, the model FLOPs utilisation, is the share of the machine's own matrix speed that went
    into the multiply-adds of the model, three passes an image; None when unknown.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    seconds: float
    data_seconds: float = 0.0
    images_per_second: float
    skipped: bool = False
    memory_bytes: int | None = None
    mfu: float | None = None


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """``done`` of ``total`` units are finished; ``size_bytes`` of results, when that is of interest."""

    done: int
    total: int
    unit: str
    size_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Saved(Event):
    """A checkpoint was written, verified and given its final name."""

    step: int
    path: Path
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Wrote(Event):
    """A result file or folder is complete at ``path``. ``what`` is a short noun: "grid", "images", "result".

    ``step`` is the optimizer step whose weights it is of, when it was made while training.
    """

    what: str
    path: Path
    step: int | None = None


@dataclass(frozen=True, kw_only=True)
class Metric(Event):
    """One measured number, with the bound or reference values that give it meaning.

    ``step`` is the optimizer step whose weights it is of, when it was measured while training, and ``conditions`` what
    it depends on then: only numbers of equal conditions say which weights are better.
    """

    name: str
    value: float
    context: dict[str, float] = dataclasses.field(default_factory=dict[str, float])
    step: int | None = None
    conditions: dict[str, object] = dataclasses.field(default_factory=dict[str, object])


@dataclass(frozen=True, kw_only=True)
class Note(Event):
    """Something the user should know and that does not stop the work."""

    message: str
    level: Literal["info", "warning"] = "info"


@dataclass(frozen=True, kw_only=True)
class Waiting(Event):
    """The work stands still until somebody else does something; shown also where notes are not."""

    message: str


@dataclass(frozen=True, kw_only=True)
class Stopped(Event):
    """Training ended before its last step: asked to by a signal, by ``train.max_minutes``, or because of an error.

    ``step`` is the last step taken, and ``message`` what the user was told.
    """

    step: int
    reason: Literal["signal", "time", "error"]
    message: str


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """The workflow's last record; ``result`` is what ``--json`` prints (without the ``schema`` key)."""

    result: dict[str, object]
