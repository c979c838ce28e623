"""Everything that only a GPU can tell, in one prepared run: ``python tests/gpu/probe.py --budget 230``.

Writes JSON to ``tests/gpu/probe.json`` (``--out``), after every part, so that a run that is killed leaves what it had.
Sections in the order of their worth: parity of every engine; scan, mixer and block by engine; whole training steps of
DiS-L/2 and XL/2 beside a DiT-XL/2; sampling; `dis train`, killed and continued. A part that no longer fits into the
budget is left out by name.

All but the last section need Python 3.11, torch, Triton, numpy and jaxtyping only. The last needs what `dis train`
imports: installed, or as wheels in ``--wheels``, which ``tests/gpu/wheels.sh`` gathers. No network is used.

``--dry`` runs all of it on the CPU, tiny, Triton's kernels in its interpreter: its times mean nothing.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

STARTED = time.monotonic()
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE), str(ROOT / "tests"), str(ROOT / "tests" / "bench")]


def main() -> None:
    """Measure what the budget allows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=230, metavar="S", help="seconds for all of it [default: 230]")
    parser.add_argument("--out", type=Path, default=HERE / "probe.json", metavar="FILE", help="JSON file")
    parser.add_argument("--wheels", type=Path, default=HERE / "wheels", metavar="DIR", help="wheels for `dis train`")
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="sections to run, such as parity")
    parser.add_argument("--dry", action="store_true", help="tiny, on the CPU, in Triton's interpreter")
    arguments = parser.parse_args()
    if arguments.dry:
        # Read when kernels are defined, so before anything is imported.
        os.environ["TRITON_INTERPRET"] = "1"

    import torch
    from cards import card_named
    from end_to_end import end_to_end_parts
    from kernels import Machine, parity_parts, timed_parts
    from plan import Report, run_parts
    from steps import sampling_parts, training_parts

    if not arguments.dry and not torch.cuda.is_available():
        parser.error("no CUDA device; --dry runs the same path on the CPU")
    device = torch.device("cpu" if arguments.dry else "cuda")
    # Shares of a card's bounds are computed in a dry run, too: whatever only runs on the card may fail there.
    name = "H200" if arguments.dry else torch.cuda.get_device_name()
    machine = Machine(device, card_named(name), dry=arguments.dry)
    parts = [
        *parity_parts(machine),
        *timed_parts(machine),
        *training_parts(machine),
        *sampling_parts(machine),
        *end_to_end_parts(machine, arguments.wheels),
    ]
    sections = list(dict.fromkeys(part.section for part in parts))
    if unknown := set(arguments.only or ()) - set(sections):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(sections)}")
    report = Report(arguments.out, {"dry": arguments.dry, "budget": arguments.budget, "machine": _machine_facts()})
    run_parts(
        [part for part in parts if not arguments.only or part.section in arguments.only],
        report,
        budget=arguments.budget,
        started=STARTED,
        say=lambda line: print(line, flush=True),
    )
    print(arguments.out)


def _machine_facts() -> dict[str, object]:
    """Versions, and what the driver says about the GPU."""
    import importlib.util
    from datetime import UTC, datetime

    import torch

    facts: dict[str, object] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _output("git", "-C", str(ROOT), "rev-parse", "HEAD"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    if importlib.util.find_spec("triton") is not None:
        import triton

        facts["triton"] = triton.__version__
    if torch.cuda.is_available():
        own = torch.cuda.get_device_properties(0)
        query = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit"
        facts |= {"gpu": own.name, "multiprocessors": own.multi_processor_count}
        facts["memory_gib"] = round(own.total_memory / 2**30, 1)
        facts["nvidia_smi"] = {query: _output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")}
    return facts


def _output(*command: str) -> str | None:
    """What a command prints; None where it is not there or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    main()
