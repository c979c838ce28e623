"""All measurements: ``python tests/bench/run.py`` (or ``make bench``), about an hour on two cores.

Prints one table of figures with their targets, and writes each subject's, when it is done, with the facts of the
machine to ``tests/bench/results/ISA/SUBJECT.json``; ``--page`` writes ``README.md`` from these files, and measures
nothing. Every figure compares contenders that take turns in one process (``common``), so that
a busy machine shows in both. The targets are those of the instruction set that the compiled kernel uses; without the
kernel, and for its baseline, there are none.

The kernel's instruction set is fixed when a process starts (``DIS_KERNEL_ISA``), so that the subjects in ``EVERY_ISA``
are run again in a process for each of the others that this CPU has.
"""

import argparse
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

from page import PAGE, RESULTS, SUBJECTS, page, read_results, write_result

EVERY_ISA = ("scan", "conv")


def run_here(names: list[str], arguments: argparse.Namespace) -> None:
    """Measure subjects in this process, print every figure when it is there, and write each subject's."""
    from common import Settings, kernel_isa, machine_facts, table_head

    settings = Settings(arguments.engine, arguments.quick, arguments.train_blocks, arguments.run)
    facts = machine_facts(settings.engine)
    isa = kernel_isa(settings.engine)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(table_head())
    for name in names:
        print(f"\n{name} ({isa}): {SUBJECTS[name]}", flush=True)
        started, records = time.monotonic(), []
        for record in importlib.import_module(name).measure(settings):
            print(record.line(isa), flush=True)
            records.append(record.facts(isa))
        seconds = time.monotonic() - started
        print(f"{name}: {seconds:.0f} s")
        if arguments.results is not None:
            print(write_result(arguments.results, name, facts, seconds, records))


def run_with_isa(isa: str, names: list[str], arguments: argparse.Namespace) -> None:
    """Measure subjects in a process whose kernel uses another instruction set; it prints and writes for itself."""
    command = [sys.executable, __file__, "--engine", arguments.engine, "--only", *names]
    command += ["--quick"] if arguments.quick else []
    command += [] if arguments.results is None else ["--results", str(arguments.results)]
    subprocess.run(command, check=True, env=os.environ | {"DIS_KERNEL_ISA": isa})


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
    parser.add_argument("--engine", default="auto", help="the engine under test")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="where to write [default: tests/bench/results; with --quick nowhere]",
    )
    parser.add_argument("--page", action="store_true", help="write README.md from the results, and measure nothing")
    arguments = parser.parse_args()
    if arguments.page:
        PAGE.write_text(page(read_results()))
        print(PAGE)
        return
    if arguments.results is None and not arguments.quick:
        arguments.results = RESULTS
    from common import other_isas

    names = arguments.only or list(SUBJECTS)
    run_here(names, arguments)
    # Whoever fixes the instruction set wants that one only.
    repeated = [name for name in names if name in EVERY_ISA]
    if repeated and "DIS_KERNEL_ISA" not in os.environ:
        for isa in other_isas(arguments.engine):
            run_with_isa(isa, repeated, arguments)


if __name__ == "__main__":
    main()
