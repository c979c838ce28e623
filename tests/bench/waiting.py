"""How long OpenMP's threads spin at a barrier: training steps on two threads, quiet and with one core busy.

Two steps: the digits preset (18 tokens, batch 32), and one block more of the width of DiS-S/2 on 66 tokens, batch 4.
The library reads the count when it is loaded, so that each turn is a process of its own; the counts take turns, and the
medians of their turns are compared. Wall time: on a machine that does anything else, the figures are of that.

``python tests/bench/waiting.py`` prints them (some minutes) and, with ``--json FILE``, writes them.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

COUNTS = (None, 300, 1000, 3000)
THREADS = 2
SECONDS = {False: 2.0, True: 0.3}
ROUNDS = {False: 5, True: 1}
NAMES = {"digits": "digits step, 18 tokens", "tokens-66": "step of 3 blocks of width 368, 66 tokens"}

BUSY = "while True: pass"


def time_steps(subject: str, seconds: float) -> float:
    """Median seconds of a step in this process."""
    import torch
    from train_step import digits, dis, steps

    from dis_cli.models.dis.backbone import DiS

    torch.set_num_threads(THREADS)
    config = digits()
    if subject == "digits":
        taken = steps(config, dis(config, "auto"))

        def step() -> float:
            return next(taken).seconds

    else:
        from model import train_step

        torch.manual_seed(0)
        run = train_step(DiS(16, 2, 3, 368, 3), torch.randn(4, 3, 16, 16), torch.tensor([0, 250, 500, 999]))

        def step() -> float:
            started = time.perf_counter()
            run()
            return time.perf_counter() - started

    for _ in range(3):
        step()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < until:
        times.append(step())
    return median(times)


def measure_in_process(subject: str, count: int | None, *, busy: bool, seconds: float) -> float:
    """Median seconds of a step in a process that spins so often; ``busy`` keeps one core from it."""
    own = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    variables = {name: value for name, value in os.environ.items() if name not in own}
    variables |= {} if count is None else {"GOMP_SPINCOUNT": str(count)}
    other = subprocess.Popen([sys.executable, "-c", BUSY]) if busy else None
    try:
        command = [sys.executable, __file__, "--one", subject, "--seconds", str(seconds)]
        done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=True)
    finally:
        if other is not None:
            other.kill()
            other.wait()
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one turn each, to see that it works")
    parser.add_argument("--json", type=Path, help="where to write the figures; else nowhere")
    parser.add_argument("--one", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(time_steps(arguments.one, arguments.seconds))
        return

    from common import Record, clock_name, kernel_isa, machine_facts, table_head

    print(table_head())
    isa = kernel_isa("auto")
    records: list[Record] = []
    for subject, title in NAMES.items():
        for busy in (False, True):
            times: dict[int | None, list[float]] = {count: [] for count in COUNTS}
            for _ in range(ROUNDS[arguments.quick]):
                for count, own in times.items():
                    own.append(measure_in_process(subject, count, busy=busy, seconds=SECONDS[arguments.quick]))
            for count, own in times.items():
                spins = "spin count not set" if count is None else f"{count} turns"
                name = f"{title}, {'one core busy' if busy else 'quiet'}: {spins}"
                records.append(Record(name, median(own) * 1e3, "ms", clock_name(THREADS)))
                print(records[-1].line(isa), flush=True)
    if arguments.json is not None:
        figures = [record.facts(isa) for record in records]
        facts = {"machine": machine_facts("auto"), "quick": arguments.quick, "subjects": {"waiting": figures}}
        arguments.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
