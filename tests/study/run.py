"""The study's runs: ``python tests/study/run.py --runs DIR`` (or ``make study``) makes the results that are missing.

A folder of run files: ``base.toml`` is a preset of `dis`; ``choices.toml`` says which pilots decide what; each other
file is a group of named runs, which differ from the base in settings. Every run is nothing but commands of the product:

    dis train --preset base.toml --data TRAIN --out DIR/NAME --seed N KEY=VALUE...
    dis flops --preset DIR/NAME/config.toml
    dis eval-fid --ckpt DIR/NAME ...         once for each list of options in `scores`

Settings are those of the choices in `after`, then of the group, then of the run; later ones replace earlier ones;
``{test}`` stands for the test images, and ``{data}`` for the folder they are in. A run that was stopped continues where
it was when it is started again; a finished one writes ``results/NAME.json`` at once, and is not made again. Two at a
time with one thread each make about a tenth more than one with two threads.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dis_cli.runtime.machine import cache_folder

DIS = [sys.executable, "-m", "dis_cli"]
# One thread a run, which waits for others shortly, and makes way for everything else on the machine.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "1000"}
POLITE = ["nice", "-n", "19"]
# The training and the test images; None where the base names its own data.
Archives = tuple[Path, Path] | None
BASE, CHOICES = "base.toml", "choices.toml"
# The groups whose families are timed against each other.
PEERS = ("peers", "families")


@dataclass(frozen=True)
class Run:
    """A run as its file has it.

    Attributes:
        own: The settings that are this run's alone: what a choice takes over from the winner.
        minutes: Of one core, for training and for scoring; estimates.
        after: The choices whose settings come first.
        scores: Options of `dis eval-fid`, a list for each time.
    """

    name: str
    group: str
    family: str
    seed: int
    shared: tuple[str, ...]
    own: tuple[str, ...]
    minutes: tuple[float, float]
    after: tuple[str, ...]
    scores: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Choice:
    """Which of some runs is the best: the one whose result is the lowest."""

    by: str
    of: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """A folder of run files.

    Attributes:
        runs: By name, in order of worth.
    """

    folder: Path
    runs: dict[str, Run]
    choices: dict[str, Choice]

    def result_path(self, name: str) -> Path:
        """Where the result of a run lies."""
        return self.folder / "results" / f"{name}.json"

    def result(self, name: str) -> dict[str, Any] | None:
        """The result of a run; None before it has one."""
        path = self.result_path(name)
        return json.loads(path.read_bytes()) if path.is_file() else None

    def waits_for(self, run: Run) -> list[str]:
        """The runs without a result that decide settings of this one."""
        names = [name for choice in run.after for name in self.choices[choice].of]
        return [name for name in dict.fromkeys(names) if not self.result_path(name).is_file()]

    def winner(self, choice: Choice) -> Run:
        """The run that a choice falls on; all have their results."""
        results = {name: self.result(name) or {} for name in choice.of}
        return self.runs[min(choice.of, key=lambda name: results[name][choice.by])]

    def settings(self, run: Run) -> list[str]:
        """All that a run differs in from the base."""
        chosen = [text for choice in run.after for text in self.winner(self.choices[choice]).own]
        texts = [*chosen, *run.shared, *run.own]
        return [f"{key}={value}" for key, value in dict(text.split("=", 1) for text in texts).items()]


def read_study(folder: Path) -> Study:
    """All run files of a folder; a run of several seeds is one for each, named NAME-seedN from the second on."""
    groups = {
        path.stem: tomllib.loads(path.read_text()) for path in folder.glob("*.toml") if path.name not in (BASE, CHOICES)
    }
    runs: dict[str, Run] = {}
    for group, table in sorted(groups.items(), key=lambda item: item[1]["order"]):
        for name, row in table["runs"].items():
            row = {**table, **row, "own": row["settings"]}
            for place, seed in enumerate(row["seeds"]):
                run = Run(
                    name=name if place == 0 else f"{name}-seed{seed}",
                    group=group,
                    family=row["family"],
                    seed=seed,
                    shared=tuple(table["settings"]),
                    own=tuple(row["own"]),
                    minutes=tuple(row["minutes"]),
                    after=tuple(row.get("after", ())),
                    scores=tuple(map(tuple, row["scores"])),
                )
                if run.name in runs:
                    raise ValueError(f"two runs are called {run.name}")
                runs[run.name] = run
    path = folder / CHOICES
    table = tomllib.loads(path.read_text()) if path.is_file() else {}
    return Study(folder, runs, {name: Choice(row["by"], tuple(row["of"])) for name, row in table.items()})


def missing(study: Study, only: Sequence[str] = ()) -> list[Run]:
    """The runs that have no result yet, in order of worth.

    Args:
        only: Names of runs or groups; none takes all.

    Raises:
        SystemExit: There is no run or group of that name.
    """
    known = {*study.runs, *(run.group for run in study.runs.values())}
    if unknown := [name for name in only if name not in known]:
        sys.exit(f"No run and no group is called {', '.join(unknown)}: `--dry-run` lists them")
    wanted = [run for run in study.runs.values() if not only or run.name in only or run.group in only]
    return [run for run in wanted if not study.result_path(run.name).is_file()]


def commands(study: Study, run: Run, runs: Path, archives: Archives) -> Iterator[list[str]]:
    """What a run does, in order: arguments of `dis`.

    Args:
        runs: Where run folders lie.
    """
    train, test = archives or (Path(), Path())

    def filled(texts: Sequence[str]) -> list[str]:
        return [text.replace("{test}", str(test)).replace("{data}", str(test.parent)) for text in texts]

    out, settings = runs / run.name, filled(study.settings(run))
    data = [] if archives is None else ["--data", str(train)]
    yield ["train", "--preset", str(study.folder / BASE), *data, "--out", str(out), "--seed", str(run.seed), *settings]
    yield ["flops", "--preset", str(out / "config.toml")]
    for options in run.scores:
        yield ["eval-fid", "--ckpt", str(out), *filled(options)]


def result_of(
    study: Study, run: Run, folder: Path, printed: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """A result as it is written.

    Args:
        folder: Of the run.
        printed: What its commands printed.
        facts: Of the machine and the code.
    """
    trained, cost, *scores = printed
    config = tomllib.loads((folder / "config.toml").read_text())
    seconds: dict[int, float] = {}
    on_the_way: dict[int, float] = {}
    for line in (folder / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "step":
            seconds[event["step"]] = event["seconds"]
        elif event["event"] == "metric" and event["name"] == "eps_mse":
            on_the_way[event["step"]] = event["value"]
    result: dict[str, Any] = {
        "name": run.name,
        "group": run.group,
        "family": run.family,
        "seed": run.seed,
        "settings": study.settings(run),
        "macs": cost["macs"],
        "published_macs": cost.get("published_macs"),
        "parameters": cost["num_parameters"],
        "images_seen": trained["step"] * config["train"]["batch_size"],
    }
    for score in scores:
        # Numbers, and of several draws each; the rest of a score is in the run's folder.
        measured = {key: value for key, value in score.items() if key.startswith("eps_mse") or isinstance(value, float)}
        result |= {key: value for key, value in measured.items() if key != "ema_decay"}
        draws = {key: draw["values"] for key, draw in score.get("draws", {}).items()}
        result |= {"draws": result.get("draws", {}) | draws} if draws else {}
        result["checkpoint_sha256"] = score["checkpoint_sha256"]
    result |= {"eps_mse_on_the_way": sorted(on_the_way.items())} if on_the_way else {}
    return result | {"seconds_per_step": statistics.median(seconds.values()), **facts}


class Worker:
    """A run under way: its commands one after the other, each a process."""

    def __init__(self, study: Study, run: Run, runs: Path, archives: Archives) -> None:
        self.run = run
        self.printed: list[dict[str, Any]] = []
        self._left = commands(study, run, runs, archives)
        self._out, self._log = runs / f"{run.name}.out", runs / f"{run.name}.log"
        self._log.write_bytes(b"")
        self._process: subprocess.Popen[bytes] | None = None

    def poll(self) -> bool | None:
        """Go on: None while it works, then whether it has come to its end."""
        if self._process is not None:
            status = self._process.poll()
            if status is None:
                return None
            if status:
                return False
            self.printed.append(json.loads(self._out.read_bytes()))
        command = next(self._left, None)
        if command is None:
            return True
        with self._log.open("ab") as log, self._out.open("wb") as out:
            self._process = subprocess.Popen(
                [*POLITE, *DIS, *command, "--json"], stdout=out, stderr=log, env=os.environ | ENVIRONMENT
            )
        return None

    def stop(self) -> None:
        """Stop the process in order: what was trained is saved."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()

    @property
    def last_words(self) -> str:
        """The end of what its commands told."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-4:])


def work(
    study: Study, todo: Sequence[Run], runs: Path, archives: Archives, *, jobs: int, facts: Mapping[str, Any]
) -> int:
    """Make runs, some at a time; a run whose choice is open waits for it.

    Args:
        facts: What every result says of the machine and the code.

    Returns:
        How many runs failed, or wait for one that did.
    """
    waiting, active, failed = list(todo), list[Worker](), 0
    with contextlib.ExitStack() as held:
        held.callback(lambda: [worker.stop() for worker in active])
        while True:
            while len(active) < jobs and (run := next((run for run in waiting if not study.waits_for(run)), None)):
                waiting.remove(run)
                tell(f"{run.name}: started, about {sum(run.minutes):.0f} minutes")
                active.append(Worker(study, run, runs, archives))
            if not active:
                break
            for worker in list(active):
                done = worker.poll()
                if done is None:
                    continue
                active.remove(worker)
                if done:
                    finish(study, worker, runs / worker.run.name, facts)
                else:
                    failed += 1
                    tell(f"{worker.run.name}: FAILED\n{worker.last_words}")
            time.sleep(0.2)
    for run in waiting:
        tell(f"{run.name}: waits for {', '.join(study.waits_for(run))}")
    return failed + len(waiting)


def finish(study: Study, worker: Worker, folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the result of a run that came to its end."""
    result = result_of(study, worker.run, folder, worker.printed, facts)
    path = study.result_path(worker.run.name)
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=2) + "\n")
    part.replace(path)
    scores = ", ".join(f"{name} {result[name]:.4g}" for name in ("frechet_mnist", "eps_mse") if name in result)
    tell(f"{worker.run.name}: done, {scores}")


def facts_here() -> dict[str, Any]:
    """The code and the machine, without its name or paths."""
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    done = subprocess.run([*DIS, "doctor", "--json"], capture_output=True, env=os.environ | ENVIRONMENT, check=False)
    doctor = json.loads(done.stdout)
    cpu = {"cpu": doctor["cpu"]["name"], "cores": doctor["cpu"]["num_cores"], "kernel": doctor["kernel"]["isa"]}
    return {"commit": commit, "machine": cpu | {name: doctor[name] for name in ("torch", "python")}}


def time_peers(study: Study, runs: Path, archives: Archives, rounds: int = 7) -> Path:
    """Write the seconds of a training step of each family of peers, in turns on one thread, and say where.

    Wants a quiet machine, unlike the runs, whose own seconds are those of a busy one.
    """
    peers = [run for run in study.runs.values() if run.group in PEERS and run.seed == 0]
    took: dict[str, list[float]] = {run.family: [] for run in peers}
    for _ in range(rounds):
        for run in peers:
            train = next(commands(study, run, runs / "times", archives))
            done = subprocess.run(
                [*DIS, *train, "--dry-run", "--json"], capture_output=True, env=os.environ | ENVIRONMENT, check=True
            )
            took[run.family].append(json.loads(done.stdout)["seconds_per_step"])
    medians = {family: statistics.median(values) for family, values in took.items()}
    path = study.folder / "times.json"
    path.write_text(json.dumps({"rounds": rounds, "seconds_per_step": medians, **facts_here()}, indent=2) + "\n")
    return path


def plan(study: Study, todo: Sequence[Run]) -> str:
    """The runs that are missing, a line each, and what they take."""
    lines = [f"{'run':<28} {'group':<11} {'family':<7} {'train':>5} {'score':>5}   core-minutes, estimated"]
    for run in todo:
        waits = f"   after {', '.join(run.after)}" if run.after else ""
        lines.append(f"{run.name:<28} {run.group:<11} {run.family:<7} {run.minutes[0]:>5} {run.minutes[1]:>5}{waits}")
    minutes = sum(sum(run.minutes) for run in todo)
    lines.append(f"{len(todo)} of {len(study.runs)} runs are missing: {minutes:.0f} core-minutes")
    return "\n".join(lines)


def tell(text: str) -> None:
    """A line with the time."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the study's results that are missing.")
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="runs or groups, instead of all")
    parser.add_argument("--runs", type=Path, default=cache_folder() / "study", metavar="DIR", help="where runs lie")
    parser.add_argument("--data", type=Path, metavar="DIR", help="where the archives lie or are built [RUNS/data]")
    parser.add_argument(
        "--study", type=Path, default=Path(__file__).parent, metavar="DIR", help="another folder of files"
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs at a time, one thread each [2]")
    parser.add_argument("--dry-run", action="store_true", help="list what is missing, in order of worth")
    parser.add_argument("--times", action="store_true", help="time a step of each peer on a quiet machine, and no more")
    parser.add_argument("--page", action="store_true", help="write README.md and its plots, and make no run")
    arguments = parser.parse_args()
    study = read_study(arguments.study.resolve())
    if arguments.page:
        from page import write_page

        print(write_page(len(missing(study))))
        return
    todo = missing(study, arguments.only)
    if arguments.dry_run or not (todo or arguments.times):
        print(plan(study, todo))
        return
    runs = arguments.runs.resolve()
    runs.mkdir(parents=True, exist_ok=True)
    # A base that names its own data, such as the bundled digits, needs no archives.
    has_own = "path" in (base := tomllib.loads((study.folder / BASE).read_text())["data"]) or base["source"] == "digits"
    archives = None
    if not has_own:
        from data import build

        archives = build(arguments.data or runs / "data")
    # So that what is under way is saved when this is asked to stop.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if arguments.times:
        print(time_peers(study, runs, archives))
        return
    sys.exit(bool(work(study, todo, runs, archives, jobs=arguments.jobs, facts=facts_here())))


if __name__ == "__main__":
    main()
