"""The page of the measurements: ``python tests/bench/run.py --page`` writes ``tests/bench/README.md`` from the results.

A result is one file for each subject and instruction set, ``results/ISA/SUBJECT.json``, as ``run.py`` writes it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RESULTS, PAGE = FOLDER / "results", FOLDER / "README.md"

# The subjects in the order of the page; each is a file of this folder with a function `measure`.
SUBJECTS = {
    "scan": "Selective scan, against three ways of writing it in torch",
    "conv": "Convolution and SiLU, against torch's convolution and its transposes",
    "memory": "Memory of a scan",
    "block": "A block, against the least that it could take",
    "model": "DiS-S/2, against the published loop",
    "train_step": "A training step of the digits preset, against its floor and a DiT",
    "training": "Training: memory, gradient checkpointing, and what is spent beside the model",
    "sampling": "Sampling: guidance, and samplers on the digits",
    "backbones": "DiS against transformers with as many parameters",
    "data": "Data: encoding, latents, loaders and checks",
    "metrics": "Scores",
}
# The baseline is the kernel without vector instructions, which is there to compare with.
ISAS = {"avx512": "AVX-512", "avx2": "AVX2", "neon": "NEON", "baseline": "no vectors", "torch": "plain PyTorch"}

HEAD = """\
# What was measured

<!-- Written by `python tests/bench/run.py --page` from results/; a test compares. -->

Each figure is the median of contenders that take turns in one process, so that a busy machine shows in all of them.
On one thread the clock is the processor's time, on several it is wall time. An aim that was missed is in bold. What a
figure means stands at the top of the file that measures it; `ns/el` is nanoseconds for one batch, channel, state and
token, and `x` means times.

`make bench` measures everything anew, in about an hour, and writes `results/`, one file for each subject and
instruction set; it wants a quiet machine. `make bench BENCH="--only scan conv"` takes some subjects, `--quick` only
tries them, and `--page` writes this page. Nothing here was measured on a GPU.
"""


@dataclass(frozen=True)
class Result:
    """What one subject gave with one instruction set.

    Args:
        machine: Facts of the machine, with "date" and "commit".
        seconds: What it took; None where that was not written down.
        records: The figures (``common.Record.facts``).
    """

    machine: dict[str, Any]
    seconds: float | None
    records: list[dict[str, Any]]


def read_results(folder: Path = RESULTS) -> dict[str, dict[str, Result]]:
    """The results by subject and instruction set.

    Raises:
        ValueError: A file is of no known subject or instruction set, or does not say machine, date and commit.
    """
    found: dict[str, dict[str, Result]] = {}
    for path in sorted(folder.glob("*/*.json")):
        isa, name = path.parent.name, path.stem
        if name not in SUBJECTS or isa not in ISAS:
            raise ValueError(f"{path}: no subject {name!r} with {isa!r}")
        content = json.loads(path.read_text())
        if missing := {"cpu", "cores", "torch", "date", "commit"} - content["machine"].keys():
            raise ValueError(f"{path}: the machine says no {', '.join(sorted(missing))}")
        found.setdefault(name, {})[isa] = Result(content["machine"], content.get("seconds"), content["records"])
    return found


def write_result(
    folder: Path, name: str, machine: dict[str, object], seconds: float, records: list[dict[str, object]]
) -> Path:
    """Write what one subject gave, in the place of what it gave before."""
    path = folder / str(machine["isa"]) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"subject": name, "machine": machine, "seconds": round(seconds, 1), "records": records}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def page(results: dict[str, dict[str, Result]]) -> str:
    """The whole page."""
    parts = [HEAD, _sources(results)]
    parts += [_section(name, results[name]) for name in SUBJECTS if name in results]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _sources(results: dict[str, dict[str, Result]]) -> str:
    """Where the figures come from: a line for each machine, day and commit, with what was measured and its seconds."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for name in SUBJECTS:
        for isa, result in _ordered(results.get(name, {})):
            machine = result.machine
            torch = str(machine["torch"]).partition("+")[0]
            key = (ISAS[isa], f"{machine['cpu']}, {machine['cores']} cores", torch, machine["date"], machine["commit"])
            seconds = "" if result.seconds is None else f" ({result.seconds:.0f} s)"
            lines.setdefault(key, []).append(f"[{name}]({name}.py){seconds}")
    heads = ["instruction set", "machine", "PyTorch", "date", "commit", "subjects"]
    return _table([heads, *([*key, ", ".join(names)] for key, names in lines.items())])


def _ordered(results: dict[str, Result]) -> list[tuple[str, Result]]:
    return [(isa, results[isa]) for isa in ISAS if isa in results]


def _section(name: str, results: dict[str, Result]) -> str:
    """A table whose rows are figures, with a column for each instruction set."""
    columns = _ordered(results)
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for isa, result in columns:
        for record in result.records:
            if record["value"] is not None:
                rows.setdefault(record["name"], {})[isa] = record
    heads = ["", *(ISAS[isa] for isa, _ in columns), "aim", "clock"]
    lines = [heads]
    for title, by_isa in rows.items():
        clocks = dict.fromkeys(record["clock"] for record in by_isa.values() if record["clock"])
        cells = [_figure(by_isa[isa]) if isa in by_isa else "" for isa, _ in columns]
        lines.append([title, *cells, _aims(by_isa), "; ".join(clocks)])
    return f"## {SUBJECTS[name]}\n\n{_table(lines)}"


def _table(lines: list[list[str]]) -> str:
    """A table in Markdown; the first line is its head."""
    head, *rows = lines
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _figure(record: dict[str, Any]) -> str:
    text = _with_unit(record["value"], record["unit"])
    return f"**{text}**" if record["met"] is False else text


def _aims(by_isa: dict[str, dict[str, Any]]) -> str:
    """The aim of a figure; those of each instruction set where they differ."""
    aims = {ISAS[isa]: _aim(record) for isa, record in by_isa.items() if record["target"]}
    if len(set(aims.values())) < 2:
        return next(iter(aims.values()), "")
    return "; ".join(f"{aim} ({isa})" for isa, aim in aims.items())


def _aim(record: dict[str, Any]) -> str:
    sense, value = record["target"].split()
    return f"{'at least' if sense == '>=' else 'at most'} {_with_unit(float(value), record['unit'])}"


def _with_unit(value: float, unit: str) -> str:
    """Three digits, all of larger whole numbers, and the unit."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{text}{unit}" if unit == "x" else f"{text} {unit}".rstrip()
