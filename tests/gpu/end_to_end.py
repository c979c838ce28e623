"""`dis train` as a user runs it: for a minute on generated images, killed on the way, and continued."""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from kernels import Machine, why_not
from plan import AbsentError, Part
from support.cifar import make_cifar10

ROOT = Path(__file__).parents[2]
# What `dis train` imports beyond torch, numpy and jaxtyping, as tests/gpu/wheels.sh gathers it.
NEEDED = ("PIL", "filelock", "pydantic", "safetensors", "tomli_w", "tqdm", "typer")
# A step of the small preset takes some hundredths of a second on a GPU.
SAVE_EVERY, IMAGES = 100, 5000
# A start that takes longer is taken for one that hangs; a busy CPU imports slowly.
LONGEST_START, LONGEST_DRY_START = 60.0, 300.0


def end_to_end_parts(machine: Machine, wheels: Path) -> Iterator[Part]:
    """One part: the training, killed and continued.

    Args:
        wheels: Folder of the wheels that the command needs where they are not installed.
    """
    part = partial(_killed_and_continued, machine, wheels, 1.0 if machine.dry else 22.0)
    yield Part("end to end", "dis train, killed and continued", 85, part)


def _killed_and_continued(machine: Machine, wheels: Path, seconds: float) -> dict[str, object]:
    """Train, kill between two checkpoints, continue; the steps that both starts took must have equal losses.

    Args:
        seconds: Of training in each of the two starts, at least.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = _environment(wheels, folder / "site")
        save_every = 2 if machine.dry else SAVE_EVERY
        make_cifar10(folder / "cifar", 100 if machine.dry else IMAGES)
        command = _command(machine, folder, save_every)
        events = folder / "run" / "events.jsonl"

        def between_checkpoints() -> bool:
            saved, steps = _steps_of(events, "saved"), _steps_of(events, "step")
            return bool(saved and steps) and steps[-1] - saved[-1] >= save_every // 2

        train = partial(_train, command, environment, events, seconds)
        longest = LONGEST_DRY_START if machine.dry else LONGEST_START
        first_start = train(longest, between_checkpoints)
        first = _records(events)
        killed_at = _steps_of(events, "step")[-1]

        def past_the_kill() -> bool:
            return _steps_of(events, "step")[-1] >= killed_at

        second_start = train(longest, past_the_kill)
        second = _records(events)[len(first) :]
        chosen = json.loads((folder / "run" / "run.json").read_text())
    return {
        "engine": chosen["engine"],
        "precision": chosen["precision"],
        "seconds_to_first_step": [first_start, second_start],
        "killed_at_step": killed_at,
        **_comparison(first, second),
    }


def _comparison(first: list[dict[str, object]], second: list[dict[str, object]]) -> dict[str, object]:
    """What the records of both starts say about the steps that both took."""
    losses, again = _losses(first), _losses(second)
    both = sorted(losses.keys() & again.keys())
    rates = [float(str(row["images_per_second"])) for row in [*first, *second] if row["event"] == "step"]
    return {
        "continued_at_step": min(again),
        "last_step": max(again),
        "first_loss": losses[min(losses)],
        "last_loss": again[max(again)],
        "images_per_second": round(statistics.median(rates), 1),
        "steps_taken_twice": len(both),
        "of_them_equal_in_every_bit": sum(losses[step] == again[step] for step in both),
        "largest_difference": max((abs(losses[step] - again[step]) for step in both), default=None),
    }


def _command(machine: Machine, folder: Path, save_every: int) -> list[str]:
    engine = "triton" if "triton" in machine.engines and why_not("triton", machine.device) is None else "auto"
    command = [sys.executable, "-m", "dis_cli", "train", "--preset", "dis-s-cifar", "--data", str(folder / "cifar")]
    command += ["--out", str(folder / "run"), "--device", machine.device.type, "--quiet", f"engine={engine}"]
    command += ["train.steps=1000000", f"train.save_every={save_every}"]
    if machine.dry:
        command += ["model.embed_dim=16", "model.depth=1", "model.patch_size=16", "model.d_state=2"]
        command += ["train.batch_size=1"]
    return command


def _environment(wheels: Path, site: Path) -> dict[str, str]:
    """The variables of a process that can import what the command needs.

    Raises:
        AbsentError: Something is neither installed nor among the wheels.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        files = sorted(wheels.glob("*.whl"))
        if not files:
            raise AbsentError(f"{', '.join(missing)} are not installed, and tests/gpu/wheels.sh put no wheels here")
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        subprocess.run([*install, "--target", str(site), *map(str, files)], check=True)
    own = [str(ROOT), *([str(site)] if missing else []), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(own)}


def _train(
    command: list[str],
    environment: dict[str, str],
    events: Path,
    seconds: float,
    longest: float,
    may_end: Callable[[], bool],
) -> float:
    """Run the command, and kill it once it has trained so long and may end; the seconds to its first step.

    Args:
        seconds: Of training, from the first step on.
        longest: Seconds beside these that are waited for.

    Raises:
        RuntimeError: It ended by itself, or had to be waited for longer.
    """
    known = len(_steps_of(events, "step"))
    began, first = time.monotonic(), None
    # A session of its own, so that its loader processes are killed with it.
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, start_new_session=True, stdout=said, stderr=subprocess.STDOUT
        )
        try:
            while time.monotonic() - began < longest + seconds:
                time.sleep(0.05)
                if process.poll() is not None:
                    said.seek(0)
                    raise RuntimeError(f"dis train ended with {process.returncode}: {said.read().decode()[-400:]}")
                if first is None and len(_steps_of(events, "step")) > known:
                    first = time.monotonic()
                if first is not None and time.monotonic() - first >= seconds and may_end():
                    return round(first - began, 1)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    raise RuntimeError("dis train took no step that could be killed in time")


def _records(events: Path) -> list[dict[str, object]]:
    """The records of a run; a last line that a kill cut short is none."""
    lines = events.read_text().splitlines(keepends=True) if events.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _steps_of(events: Path, kind: str) -> list[int]:
    return [int(str(row["step"])) for row in _records(events) if row["event"] == kind]


def _losses(records: list[dict[str, object]]) -> dict[int, float]:
    return {int(str(row["step"])): float(str(row["loss"])) for row in records if row["event"] == "step"}
