"""Facts about the machine: read where the system tells them, and never an error where it does not."""

import os
from pathlib import Path

import pytest

from dis_cli.runtime import machine


def test_this_machine() -> None:
    assert machine.cpu_name().strip() == machine.cpu_name() != ""
    assert 1 <= machine.num_cores() <= (os.cpu_count() or 1)
    total, free = machine.memory()
    assert total is not None
    assert total > 10**8
    assert free is None or 0 < free < total


def test_a_system_without_proc(monkeypatch) -> None:
    total = machine.memory().total_bytes
    monkeypatch.setattr(machine, "_lines", lambda _: [])
    assert machine.cpu_name()
    assert machine.memory() == (pytest.approx(total, rel=0.01), None)
    monkeypatch.setattr(os, "sysconf", lambda name: (_ for _ in ()).throw(ValueError(name)))
    assert machine.memory() == (None, None)
    assert machine._lines(Path("/proc/no/such/file")) == []


def test_versions() -> None:
    assert machine.package_version("pytest") == pytest.__version__
    assert machine.package_version("no-such-distribution-here") is None
