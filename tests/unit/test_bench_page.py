"""The page of the measurements is what the result files say."""

import json
from pathlib import Path

import pytest
from bench import page as bench

MACHINE = {"isa": "avx2", "cpu": "AMD EPYC", "cores": 2, "torch": "2.14.1+cu130", "date": "2026-11-24", "commit": "abc"}


def _record(name: str, value: float | None, unit: str, target: str | None = None, *, met: bool | None = None) -> dict:
    return {"name": name, "value": value, "unit": unit, "clock": "wall", "target": target, "met": met, "note": ""}


def test_the_page_is_what_would_be_written() -> None:
    assert bench.PAGE.read_text() == bench.page(bench.read_results()), "run `python tests/bench/run.py --page`"


def test_every_subject_is_a_file_with_a_measurement() -> None:
    assert [name for name in bench.SUBJECTS if "def measure(" not in (bench.FOLDER / f"{name}.py").read_text()] == []


def test_figures_stand_in_a_column_for_each_instruction_set(tmp_path) -> None:
    figures = {
        "avx512": [_record("block", 1234.4, "ms"), _record("loop / ours", 17.5, "x", ">= 18", met=False)],
        "avx2": [_record("block", 0.12345, "ms"), _record("loop / ours", 9.4, "x", ">= 9", met=True)],
    }
    for isa, records in figures.items():
        records += [_record("not run", None, "x")]
        bench.write_result(tmp_path, "scan", MACHINE | {"isa": isa}, 61.2, records)
    lines = bench.page(bench.read_results(tmp_path)).splitlines()
    assert "|  | AVX-512 | AVX2 | aim | clock |" in lines
    assert "| block | 1,234 ms | 0.123 ms |  | wall |" in lines
    assert "| loop / ours | **17.5x** | 9.4x | at least 18x (AVX-512); at least 9x (AVX2) | wall |" in lines
    assert "| AVX2 | AMD EPYC, 2 cores | 2.14.1 | 2026-11-24 | abc | [scan](scan.py) (61 s) |" in lines
    assert not any("not run" in line for line in lines)


@pytest.mark.parametrize(
    ("folder", "name", "machine", "told"),
    [
        ("avx2", "scan", {key: value for key, value in MACHINE.items() if key != "commit"}, "says no commit"),
        ("avx2", "scans", MACHINE, "no subject 'scans' with 'avx2'"),
        ("sse", "scan", MACHINE, "no subject 'scan' with 'sse'"),
    ],
)
def test_a_result_that_says_too_little_is_refused(folder, name, machine, told, tmp_path: Path) -> None:
    path = tmp_path / folder / f"{name}.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"machine": machine, "records": []}))
    with pytest.raises(ValueError, match=told):
        bench.read_results(tmp_path)
