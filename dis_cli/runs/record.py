"""A training run's record of itself: ``run.json``, ``events.jsonl``, ``log.txt`` and the trackers."""

import json
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime

import torch

from dis_cli.config.schema import RunConfig
from dis_cli.events import Event, Finished, Metric, Note, Progress, Saved, Started, Step, Stopped, Wrote
from dis_cli.runs.folder import RunDir
from dis_cli.runs.trackers import Trackers
from dis_cli.runtime.files import atomic_write_text
from dis_cli.runtime.precision import Precision
from dis_cli.runtime.process_group import ProcessGroup
from dis_cli.scan.engines.choose import ChosenEngine
from dis_cli.version import __version__


class Recorder:
    """Writes down every event of a run, once.

    Args:
        run: The run's folder, which this process holds.
        log_every: Steps between lines of the log.
        trackers: Trackers of steps and scores.
    """

    def __init__(self, run: RunDir, *, log_every: int, trackers: Trackers) -> None:
        self._run = run
        self._log_every = log_every
        self._trackers = trackers

    def record(self, event: Event) -> Iterator[Event]:
        """Write one event down; yields it, and what there is to say about the writing.

        Progress is shown and not kept: a run's record holds what happened, not how far it was at every moment.
        """
        if not isinstance(event, Progress):
            self._write(event)
        yield event
        for note in self._trackers.record(event):
            self._write(note)
            yield note

    def close(self) -> None:
        """Let the trackers finish what they have."""
        self._trackers.close()

    def _write(self, event: Event) -> None:
        self._run.append_event(event)
        text = _log_line(event, self._log_every)
        if text is not None:
            self._run.append_log(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")


def write_run_json(
    run: RunDir,
    config: RunConfig,
    device: torch.device,
    group: ProcessGroup,
    parameters: int,
    engine: ChosenEngine,
    precision: Precision,
    lineage: object = None,
) -> None:
    """Write down what this start of the run works with; its settings too, since people edit ``config.toml``."""
    facts = {
        "schema": 1,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": sys.argv,
        "dis": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processes": group.world_size,
        "threads": torch.get_num_threads(),
        "engine": asdict(engine),
        "precision": asdict(precision),
        "parameters": parameters,
        "config": config.model_dump(mode="json"),
    }
    # The model that the run began with.
    facts |= {} if lineage is None else {"lineage": lineage}
    atomic_write_text(run.run_json, json.dumps(facts, indent=2) + "\n")


def _log_line(event: Event, log_every: int) -> str | None:
    match event:
        case Step() if event.step % log_every == 0 or event.step == 1:
            return f"step {event.step} loss {event.loss:.5f} lr {event.lr:.3e} {event.images_per_second:.1f} images/s"
        case Started():
            return f"{event.what}: from step {event.first} to {event.total}, {event.details}"
        case Saved():
            return f"saved step {event.step} in {event.path}"
        case Wrote():
            return f"wrote {event.what}: {event.path}"
        case Metric():
            return f"{event.name} {event.value:.6g} at step {event.step}"
        case Note():
            return f"{event.level}: {event.message}"
        case Stopped():
            return f"stopped at step {event.step} ({event.reason}): {event.message}"
        case Finished():
            return f"finished at step {event.result['step']}"
        case _:
            return None
