"""Terminals, streams and names that programs trip over: no escapes, no markup, no traceback, JSON that parses."""

import json
import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest
from support.terminal import read_all
from support.tiny import TINY

ENVIRONMENTS = {
    "pipe": {},
    "dumb": {"TERM": "dumb"},
    "no-color": {"NO_COLOR": "1", "TERM": "xterm-256color"},
    "narrow": {"COLUMNS": "40", "LINES": "10"},
    # Left to itself, Python takes UTF-8 instead of ASCII in this locale.
    "c": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
}
OWN = {"FORCE_COLOR", "NO_COLOR", "COLUMNS", "LINES", "TERM", "LC_ALL", "PYTHONIOENCODING", "PYTHONUTF8"}

# A name that markup would take for a closing tag, one that is not UTF-8, and one with an escape sequence in it.
NAMES = {"markup": b"[/x]", "bytes": b"\xff\xfe-run", "escape": b"\x1b[31mred", "accents": "h\u00e9".encode()}


def dis(*arguments: str | bytes, environment: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    inherited = {name: value for name, value in os.environ.items() if name not in OWN}
    return subprocess.run(
        [sys.executable, "-m", "dis_cli", *arguments],
        env=inherited | {"OMP_NUM_THREADS": "1"} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        check=False,
    )


def check(done: subprocess.CompletedProcess[bytes], encoding: str = "utf-8") -> tuple[str, str]:
    """Standard output and error of a command that ended as it should."""
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    stdout, stderr = done.stdout.decode(encoding), done.stderr.decode(encoding)
    for text in (stdout, stderr):
        assert "\x1b" not in text
        assert "\r" not in text
        assert "Traceback" not in text
        assert "Error" not in text
    return stdout, stderr


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_runs_and_presets(environment: str, name: str, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/" + NAMES[name]
    Path(os.fsdecode(folder), "checkpoints").mkdir(parents=True)
    Path(os.fsdecode(folder), "config.toml").write_text('name = "[/x]\\u001b[31m"\n[train]\nsteps = 3\n')
    encoding = "ascii" if environment == "c" else "utf-8"
    variables = ENVIRONMENTS[environment]

    stdout, stderr = check(dis("runs", folder, environment=variables), encoding)
    assert stderr == ""
    _, row = stdout.splitlines()
    shown = {"markup": "[/x]", "bytes": "\\udcff\\udcfe-run", "escape": "\\x1b[31mred", "accents": "h\u00e9"}
    if environment == "c":
        # There, file names are ASCII as well, and its two bytes are none.
        shown["accents"] = "h\\udcc3\\udca9"
    assert f"/{shown[name]}  " in row
    assert "  [/x]\\x1b[31m  " in row

    stdout, _ = check(dis("runs", folder, "--json", environment=variables), "ascii")
    [run] = json.loads(stdout)["runs"]
    assert os.fsencode(run["path"]) == folder
    assert run["preset"] == "[/x]\x1b[31m"


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_presets(environment: str) -> None:
    stdout, stderr = check(dis("presets", "list", environment=ENVIRONMENTS[environment]))
    assert stderr == ""
    assert len(stdout.splitlines()) > 5
    stdout, _ = check(dis("presets", "list", "--json", environment=ENVIRONMENTS[environment]), "ascii")
    assert len(json.loads(stdout)["presets"]) > 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environments", "name"),
    [
        (("dumb", "narrow"), "bytes"),
        pytest.param(("no-color",), "markup", marks=pytest.mark.long),
        pytest.param(("c", "narrow"), "escape", marks=pytest.mark.long),
    ],
)
def test_train_and_sample(environments: tuple[str, ...], name: str, tmp_path: Path) -> None:
    variables = {key: value for environment in environments for key, value in ENVIRONMENTS[environment].items()}
    encoding = "ascii" if "c" in environments else "utf-8"
    folder = os.fsencode(tmp_path) + b"/" + NAMES[name]
    train = ("train", "--out", folder, *TINY, "train.steps=3", "train.log_every=1", "sample.steps=2")

    stdout, stderr = check(dis(*train, "--json=lines", environment=variables), encoding)
    records = [json.loads(line) for line in stdout.splitlines()]
    assert stdout.isascii()
    assert [record["step"] for record in records if record["event"] == "step"] == [1, 2, 3]
    assert records[-1]["event"] == "finished"
    assert os.fsencode(records[-1]["result"]["run"]) == folder
    assert [line.split()[1] for line in stderr.splitlines() if line.startswith("step ")] == ["1/3", "2/3", "3/3"]

    stdout, _ = check(dis("sample", "--ckpt", folder, "-n", "2", "--json", environment=variables), "ascii")
    grid = json.loads(stdout)["grid"]
    assert os.fsencode(grid).startswith(folder + b"/samples/")
    assert Path(grid).is_file()


PROGRAM = """
from dis_cli.cli.display.output import Output
from dis_cli.events import Finished, Started, Step

def workflow():
    yield Started(what="train", total=3, unit="steps")
    for number in range(1, 4):
        yield Step(step=number, loss=0.5, lr=1e-3, grad_norm=1.0, seconds=0.02, images_per_second=1600.0)
    yield Finished(result={})

shown = Output(json_lines=True)
shown.result([], shown.render(workflow()))
"""


def test_lines_of_json_on_a_terminal_are_not_torn_by_a_live_line() -> None:
    terminal, ours = pty.openpty()
    inherited = {name: value for name, value in os.environ.items() if name not in OWN}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=inherited | {"TERM": "xterm-256color"},
        stdin=subprocess.DEVNULL,
        stdout=ours,
        stderr=ours,
    )
    os.close(ours)
    received = read_all(terminal)
    assert process.wait(timeout=60) == 0
    assert b"\x1b" not in received
    lines = received.decode().splitlines()
    records = [json.loads(line) for line in lines if line.startswith("{")]
    assert [record["event"] for record in records] == ["started", "step", "step", "step", "finished"]
    # What is told of the progress stays, a line at a time.
    assert [line.split()[1] for line in lines if line.startswith("step ")] == ["1/3", "3/3"]


LOST = """
import os, signal, sys
from dis_cli.cli.display import output
from dis_cli.cli.display.output import Output
from dis_cli.errors import Interrupted
from dis_cli.events import Finished, Saved, Started, Step
from dis_cli.runtime.signals import stop_on_signals
from pathlib import Path

def workflow(stop):
    yield Started(what="train", total=99, unit="steps")
    for number in range(1, 99):
        yield Step(step=number, loss=0.5, lr=1e-3, grad_norm=1.0, seconds=0.02, images_per_second=1600.0)
        if number == 2:
            # What was drawn is gone with the terminal; the signal may come a little later.
            Path(sys.argv[1]).write_text("ready")
            sys.stdin.read()
        if number == 4:
            os.kill(os.getpid(), signal.SIGHUP)
        if stop.requested:
            Path(sys.argv[1]).write_text(f"saved {number}")
            yield Saved(step=number, path=Path("x"), size_bytes=1)
            stop.obey("saved")

with stop_on_signals() as stop:
    try:
        Output(json_lines="lines" in sys.argv).render(workflow(stop))
    except Interrupted as failure:
        output.error(failure, False, json_lines=True)
        sys.exit(failure.code)
"""


@pytest.mark.parametrize("lines", [[], ["lines"]], ids=["text", "lines"])
def test_a_terminal_that_is_closed_stops_nothing_from_being_saved(lines: list[str], tmp_path: Path) -> None:
    terminal, ours = pty.openpty()
    inherited = {name: value for name, value in os.environ.items() if name not in OWN}
    process = subprocess.Popen(
        [sys.executable, "-c", LOST, str(tmp_path / "said"), *lines],
        env=inherited | {"TERM": "xterm-256color"},
        stdin=subprocess.PIPE,
        stdout=ours,
        stderr=ours,
    )
    os.close(ours)
    while not (tmp_path / "said").exists():
        if select.select([terminal], [], [], 0.1)[0]:
            os.read(terminal, 4096)
    os.close(terminal)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=60) == 129
    assert (tmp_path / "said").read_text() == "saved 4"


def test_a_reader_that_ends_with_the_job_stops_nothing_from_being_saved(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    # The reader is gone when the signal is heard, and not before.
    program = LOST.replace("if number == 4:", "if number == 2:").replace(
        "os.kill(", "os.close(int(sys.argv[2])) or os.kill("
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "said"), str(reader), "lines"],
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=subprocess.DEVNULL,
        pass_fds=[reader],
    )
    os.close(writer)
    os.close(reader)
    assert process.wait(timeout=60) == 129
    assert (tmp_path / "said").read_text() == "saved 2"
