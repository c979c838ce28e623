"""The spin count is set before torch is loaded, and never against the user."""

import os
import subprocess
import sys

import pytest

from dis_cli.runtime import openmp
from dis_cli.runtime.openmp import SPIN_COUNT, Waiting, limit_spinning, waiting

OWN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OWN:
        # Set first, so that what a test sets is taken away again.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(openmp, "_set_by_dis", [])


def test_it_is_set_where_nobody_says_anything(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert waiting() == Waiting("GOMP_SPINCOUNT", None, None)
    limit_spinning()
    assert waiting() == Waiting("GOMP_SPINCOUNT", str(SPIN_COUNT), "dis")


@pytest.mark.parametrize(("name", "value"), [("GOMP_SPINCOUNT", "77"), ("OMP_WAIT_POLICY", "active"), (OWN[1], "")])
def test_what_the_user_sets_stands(name: str, value: str, monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setenv(name, value)
    limit_spinning()
    assert {key: os.environ[key] for key in OWN if key in os.environ} == {name: value}
    assert waiting() == Waiting(name, value, "environment")


def test_it_is_not_set_when_it_would_come_too_late(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", os)
    limit_spinning()
    assert waiting() == Waiting("GOMP_SPINCOUNT", None, None)


PROGRAM = """
import sys
sys.argv = ["dis", "--version"]
from dis_cli.cli.app import main
try:
    main()
except SystemExit:
    import torch
"""


@pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP comes with torch on Linux")
@pytest.mark.parametrize(("environment", "count"), [({}, str(SPIN_COUNT)), ({"GOMP_SPINCOUNT": "77"}, "77")])
def test_openmp_reads_it(environment: dict[str, str], count: str) -> None:
    variables = {name: value for name, value in os.environ.items() if name not in OWN}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=variables | environment | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert f"GOMP_SPINCOUNT = '{count}'" in done.stderr
