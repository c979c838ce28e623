"""All measurements: ``python tests/bench/run.py`` (or ``make bench``), about 30 minutes on two cores.

Prints one table of figures with their targets, and writes them with the facts of the machine to
``tests/bench/results/ISA.json``. Every figure compares contenders that take turns in one process (``common``), so that
a busy machine shows in both. The targets are those of the instruction set that the compiled kernel uses; without the
kernel, and for its baseline, there are none.

The kernel's instruction set is fixed when a process starts (``DIS_KERNEL_ISA``), so that the subjects in ``EVERY_ISA``
are run again in a process for each of the others that this CPU has, into the same file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import backbones
import block
import conv
import data
import memory
import metrics
import model
import sampling
import scan
import train_step
import training
from common import Record, Settings, kernel_isa, machine_facts, other_isas, table_head

from dis_cli.scan.engines.table import allowed

SUBJECTS: dict[str, Callable[[Settings], Iterator[Record]]] = {
    "scan": scan.measure,
    "memory": memory.measure,
    "conv": conv.measure,
    "model": model.measure,
    "block": block.measure,
    "backbones": backbones.measure,
    "train_step": train_step.measure,
    "data": data.measure,
    "metrics": metrics.measure,
    "training": training.measure,
    "sampling": sampling.measure,
}
EVERY_ISA = ("scan", "conv")
RESULTS = Path(__file__).parent / "results"


def run_here(names: list[str], settings: Settings) -> dict[str, list[dict[str, object]]]:
    """Measure subjects in this process, and print every figure when it is there."""
    isa = kernel_isa(settings.engine)
    result: dict[str, list[dict[str, object]]] = {}
    for name in names:
        summary = (sys.modules[SUBJECTS[name].__module__].__doc__ or "").splitlines()[0]
        print(f"\n{name} ({isa}): {summary}", flush=True)
        result[name] = []
        for record in SUBJECTS[name](settings):
            print(record.line(isa), flush=True)
            result[name].append(record.facts(isa))
    return result


def run_with_isa(isa: str, names: list[str], settings: Settings) -> dict[str, object]:
    """Measure subjects in a process whose kernel uses another instruction set; it prints for itself."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        command = [sys.executable, __file__, "--json", str(path), "--engine", settings.engine, "--only", *names]
        command += ["--quick"] if settings.quick else []
        subprocess.run(command, check=True, env=os.environ | {"DIS_KERNEL_ISA": isa})
        return json.loads(path.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, metavar="NAME", help=f"of {', '.join(SUBJECTS)}")
    parser.add_argument("--quick", action="store_true", help="fewer turns and lengths")
    parser.add_argument(
        "--train-blocks", type=int, default=3, metavar="N", help="blocks (odd) of the training step of `model`"
    )
    parser.add_argument(
        "--run", type=Path, default=Path("runs/demo"), metavar="DIR", help="trained digits, for `sampling`"
    )
    parser.add_argument("--engine", choices=allowed(), default="auto", help="the engine under test")
    parser.add_argument("--json", type=Path, help="where to write the figures; with --only or --quick, else nowhere")
    arguments = parser.parse_args()
    settings = Settings(arguments.engine, arguments.quick, arguments.train_blocks, arguments.run)
    names = arguments.only or list(SUBJECTS)

    facts = machine_facts(settings.engine)
    if "DIS_KERNEL_ISA" not in os.environ:
        print(", ".join(f"{name} {value}" for name, value in facts.items()))
        print(table_head())
    figures: dict[str, object] = {"machine": facts, "quick": settings.quick, "subjects": run_here(names, settings)}
    # Whoever fixes the instruction set wants that one only.
    others = [] if "DIS_KERNEL_ISA" in os.environ else other_isas(settings.engine)
    repeated = [name for name in names if name in EVERY_ISA]
    if repeated:
        figures["other_isas"] = {isa: run_with_isa(isa, repeated, settings) for isa in others}

    path = arguments.json
    if path is None and not (arguments.only or arguments.quick):
        path = RESULTS / f"{facts['isa']}.json"
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
