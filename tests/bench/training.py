"""Training: memory with and without gradient checkpointing, a whole step's memory, and what is spent beside the model.

``checkpointing``: DiS-S/2 at 32x32x3 (257 tokens). What one forward and backward add to the peak of a fresh process,
beyond weights and gradients, with glibc told to give freed memory back at once; and the time of both, taking turns.

``memory``: `dis train` of that model at batch 4 with AdamW and the average, in a fresh process with nothing set: its
resident peak up to the second step, and that beyond what importing torch takes. The reference loop's was 9.9 GB.

``beside the model``: steps of the digits preset as `dis train` takes them, from one step's record to the next, against
bare forward, backward and optimizer step on batches made before; they take turns, ten steps each.

``saving``: the same run with a checkpoint every 100 steps and without; they take turns of 100 steps, with the save in
the middle, since a checkpoint is written while the next steps are taken.

``two ranks``: `dis train` of DiS-S/2, 16 images a step, by two processes of one thread against one of two threads.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch
from common import (
    EXACT_MEMORY,
    Record,
    Settings,
    at_least,
    at_most,
    can_measure_memory,
    clock_name,
    cores,
    extra_peak,
    interleaved,
    thread_counts,
)
from torch import Tensor

from dis_cli.config.overrides import apply_overrides
from dis_cli.config.presets import load_preset
from dis_cli.config.schema import RunConfig
from dis_cli.data.batches import TrainingSet, training_batches
from dis_cli.events import Event, Step
from dis_cli.models.dis.backbone import DiS
from dis_cli.training.optimizer import make_optimizer
from dis_cli.workflows.build import build_model, build_objective, build_source
from dis_cli.workflows.train.train import train

sys.path.append(str(Path(__file__).parents[1]))
from support.cifar import make_cifar10

BATCHES = (4, 8)
REFERENCE_BYTES = 9.9e9
DIGITS = load_preset("dis-xs-digits")
STEPS_IN_TURN = 10
SAVE_EVERY = 100
NEVER = 1_000_000
RANKS_BATCH = 16


def measure(settings: Settings) -> Iterator[Record]:
    """The figures of this subject."""
    threads = thread_counts()[-1]
    for batch in BATCHES:
        yield from _checkpointing(batch, settings, threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_cifar10(folder / "cifar", 200)
        yield from _step_memory(folder)
        torch.set_num_threads(threads)
        yield _beside_the_model(folder, settings, threads)
        yield _saving(folder, settings, threads)
        yield from _two_ranks(folder, settings)


def _small(cifar: Path, *, batch: int, steps: int) -> list[str]:
    """The settings of DiS-S/2 on CIFAR-10, as they are written on the command line."""
    train_settings = {"batch_size": batch, "steps": steps, "precision": "fp32", "save_every": NEVER}
    return [f"data.path={cifar}", *(f"train.{key}={value}" for key, value in train_settings.items())]


def _forward_and_backward(batch: int, engine: str) -> tuple[DiS, Callable[[], None]]:
    torch.manual_seed(0)
    model = build_model(load_preset("dis-s-cifar").model_copy(update={"engine": engine})).train()
    x, t, uniform = torch.randn(batch, 3, 32, 32), torch.arange(batch), torch.rand(model.num_drop_path, batch)

    def run() -> None:
        model(x, t, drop_path_uniform=uniform).square().mean().backward()

    return model, run


def _checkpointing(batch: int, settings: Settings, threads: int) -> Iterator[Record]:
    name = f"DiS-S/2, batch {batch}"
    if can_measure_memory():
        kept, fewer = (
            int(_output(["--activations", str(batch), *flag, "--engine", settings.engine], EXACT_MEMORY))
            for flag in ((), ("--checkpointing",))
        )
        yield Record(f"{name}, forward+backward: extra memory", kept / 1e6, "MB", "peak")
        yield Record(f"{name}, the same, checkpointed", fewer / 1e6, "MB", "peak")
        yield Record(f"{name}: checkpointed / not, memory", 100 * fewer / kept, "%", "peak", at_most(50))
    else:
        yield Record(f"{name}: checkpointed / not, memory", None, "%", note="needs Linux's /proc")
    model, run = _forward_and_backward(batch, settings.engine)

    def contender(*, checkpointing: bool) -> Callable[[], None]:
        def step() -> None:
            model.gradient_checkpointing = checkpointing
            run()

        return step

    contenders = {"plain": contender(checkpointing=False), "checkpointed": contender(checkpointing=True)}
    seconds = interleaved(contenders, threads=threads, rounds=settings.rounds(9))
    clock = clock_name(threads)
    yield Record(f"{name}: forward+backward", seconds["plain"] * 1e3, "ms", clock)
    longer = 100 * (seconds["checkpointed"] / seconds["plain"] - 1)
    yield Record(f"{name}: checkpointed, more time", longer, "%", clock, at_most(40))


def _step_memory(folder: Path) -> Iterator[Record]:
    name = "DiS-S/2, training at batch 4: resident peak"
    if not can_measure_memory():
        yield Record(name, None, "MB", note="needs Linux's /proc")
        return
    output = _output(["--whole", str(folder / "cifar"), "--out", str(folder / "memory")], {})
    total, baseline = map(int, output.split()[-2:])
    yield Record(name, total / 1e6, "MB", "peak", at_most(REFERENCE_BYTES / 3 / 1e6), "reference: 9900 MB")
    yield Record(f"{name}, beyond importing torch", (total - baseline) / 1e6, "MB", "peak")


def _beside_the_model(folder: Path, settings: Settings, threads: int) -> Record:
    """What a step takes that is not forward, backward or optimizer, of the whole."""
    config = _long(DIGITS)
    events = train(config, folder / "whole", device="cpu")
    bare = _bare_steps(config)
    shares: list[float] = []
    for number in range(settings.rounds(21) + 1):
        of_whole, of_bare = _seconds(STEPS_IN_TURN, _steps(events)), _seconds(STEPS_IN_TURN, bare)
        # the first turn warms up
        if number:
            shares.append(1 - of_bare / of_whole)
    events.close()
    return Record(
        "digits: share of a step beside forward, backward, optimizer",
        100 * median(shares),
        "%",
        clock_name(threads),
        at_most(5),
    )


def _bare_steps(config: RunConfig) -> Iterator[Tensor]:
    """Forward, backward and optimizer step, nothing else, over batches that lie ready."""
    model, loss_function = build_model(config).train(), build_objective(config).loss
    own = config.train
    optimizer = make_optimizer(model, lr=own.lr, betas=own.betas, weight_decay=own.weight_decay)
    dataset = TrainingSet(build_source(config), seed=0, num_timesteps=config.diffusion.num_timesteps, num_drop_path=0)
    batches = list(
        training_batches(dataset, first_step=0, last_step=32, batch_size=own.batch_size, accumulation=1, num_workers=0)
    )
    while True:
        for batch in batches:
            loss = loss_function(model, batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            yield loss


def _saving(folder: Path, settings: Settings, threads: int) -> Record:
    """How much longer the steps of a run take that saves, of those of one that does not.

    Turns are one interval long and begin half an interval after a save, so that all that is done for a checkpoint falls
    into the turn in which it is begun.
    """
    config = apply_overrides(_long(DIGITS), [f"train.save_every={SAVE_EVERY}"])
    runs = {
        "saving": train(config, folder / "saving", device="cpu"),
        "not": train(_long(DIGITS), folder / "not-saving", device="cpu"),
    }
    for events in runs.values():
        _seconds(SAVE_EVERY // 2, _steps(events))
    ratios: list[float] = []
    for _ in range(settings.rounds(15)):
        seconds = {name: _seconds(SAVE_EVERY, _steps(events)) for name, events in runs.items()}
        ratios.append(seconds["saving"] / seconds["not"])
    for events in runs.values():
        events.close()
    name = f"digits: a checkpoint every {SAVE_EVERY} steps, more time"
    note = f"{len(ratios)} saves: {min(ratios):.3f} to {max(ratios):.3f}"
    return Record(name, 100 * (median(ratios) - 1), "%", clock_name(threads), at_most(2), note)


def _steps(events: Iterator[Event]) -> Iterator[Step]:
    return (event for event in events if isinstance(event, Step))


def _seconds(count: int, steps: Iterator[object]) -> float:
    """The time that the next ``count`` steps take."""
    started = time.perf_counter()
    for _ in range(count):
        next(steps)
    return time.perf_counter() - started


def _two_ranks(folder: Path, settings: Settings) -> Iterator[Record]:
    name = f"DiS-S/2, batch {RANKS_BATCH}"
    if cores() < 2:
        yield Record(f"{name}: two ranks / one rank of two threads", None, "%", note="needs two cores")
        return
    launchers = {
        "one": ([sys.executable], "2"),
        "two": ([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"], "1"),
    }
    speeds: dict[str, list[float]] = {launcher: [] for launcher in launchers}
    for number in range(settings.rounds(3)):
        for launcher, (command, threads) in launchers.items():
            out = folder / f"ranks-{launcher}-{number}"
            arguments = [
                "-m",
                "dis_cli",
                "train",
                "--preset",
                "dis-s-cifar",
                "--out",
                str(out),
                "--device",
                "cpu",
                "-q",
            ]
            arguments += _small(folder / "cifar", batch=RANKS_BATCH, steps=6)
            subprocess.run(
                command + arguments, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": threads}
            )
            speeds[launcher].append(RANKS_BATCH / median(_step_seconds(out)[1:]))
    one, two = median(speeds["one"]), median(speeds["two"])
    clock = clock_name(2)
    yield Record(f"{name}, one rank of two threads: images/s", one, "", clock)
    yield Record(f"{name}, two ranks of one thread: images/s", two, "", clock)
    yield Record(f"{name}: two ranks / one rank of two threads", 100 * two / one, "%", clock, at_least(90))


def _step_seconds(out: Path) -> list[float]:
    records = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    return [record["seconds"] for record in records if record["event"] == "step"]


def _long(config: RunConfig) -> RunConfig:
    return apply_overrides(config, [f"train.steps={NEVER}", f"train.save_every={NEVER}"])


def _output(arguments: list[str], environment: dict[str, str]) -> str:
    """What this file prints in a process of its own."""
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment).stdout


def print_activations(batch: int, engine: str, *, checkpointing: bool) -> None:
    """Print the bytes that a forward and backward add to this process's peak, once the gradients are there."""
    torch.set_num_threads(1)
    model, run = _forward_and_backward(batch, engine)
    model.gradient_checkpointing = checkpointing
    run()
    print(extra_peak(run))


def print_whole(cifar: Path, out: Path) -> None:
    """Print this process's resident peak after two steps of training, and one's that only imported torch."""
    overrides = _small(cifar, batch=4, steps=3)
    peak = 0
    for event in train(apply_overrides(load_preset("dis-s-cifar"), overrides), out, device="cpu"):
        if isinstance(event, Step) and event.step == 2:
            peak = _peak_of(Path("/proc/self/status").read_text())
    script = "import torch; print(open('/proc/self/status').read())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    print(peak, _peak_of(done.stdout))


def _peak_of(status: str) -> int:
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--activations", type=int, metavar="BATCH")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--whole", type=Path, metavar="CIFAR")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.whole is not None:
        print_whole(given.whole, given.out)
    else:
        print_activations(given.activations, given.engine, checkpointing=given.checkpointing)
