import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from support.speed import least_seconds, limit

from dis_cli import __version__
from dis_cli.cli.app import explain, run
from dis_cli.errors import CheckpointError, Interrupted, NegativeVerdict

# torch's compiler is a part of it that takes as long again.
SLOW_BESIDE_TORCH = {"torch._dynamo", "diffusers", "torchvision", "sklearn", "scipy", "pandas", "matplotlib"}
HEAVY = ("torch", "torchvision", "diffusers", "sklearn", "rich")


def dis(*arguments: str | bytes, env: dict[str, str] | None = None, **streams: object):
    # Buffered, as users have it: an unbuffered standard output keeps nothing that could fail again at exit.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    command = [sys.executable, "-m", "dis_cli", *arguments]
    return subprocess.run(command, env=inherited | (env or {}), timeout=60, **streams)


@pytest.fixture
def failing(monkeypatch):
    """A command that fails as told: `presets show NAME` raises what this is called with."""

    def fail_with(exception):
        def load_preset(name):
            raise exception

        monkeypatch.setattr("dis_cli.config.presets.load_preset", load_preset)
        return ["presets", "show", "dis-xs-digits"]

    return fail_with


LIGHT_COMMANDS = [
    "--help",
    "--version",
    "train --help",
    "sample --help",
    "encode-latents --help",
    "eval-fid --help",
    "doctor --help",
    "doctor --devise cpu",
    "runs --help",
    "runs .",
    "runs /nonexistent",
    "train --json=xyz",
    "train --json=lines train.stps=3",
    "flops --size xl --patch 2",
    "presets list",
    "presets validate",
    "trian",
    "train --prest x",
    "train --batch-size 4",
    "train --preset no-such",
    "train --preset dis-xs-digits train.stps=3",
    "sample",
    "eval-fid",
    "encode-latents --nope",
]


def test_help_flops_presets_and_usage_errors_import_nothing_heavy():
    program = f"""
import contextlib, io, sys
from dis_cli.cli.app import explain, run
for command in {LIGHT_COMMANDS}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run(command.split())
    for name in {HEAVY}:
        if name in sys.modules:
            sys.exit(f"{{command}} imports {{name}}")
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, text=True)
    assert (process.returncode, process.stderr) == (0, "")


def test_sampling_imports_nothing_slow_beside_torch(tmp_path):
    run_folder = Path(__file__).parents[1] / "fixtures" / "0.1.0" / "run"
    command = ["sample", "--ckpt", str(run_folder), "-n", "1", "--out", str(tmp_path / "out"), "-q", "--device", "cpu"]
    program = f"""
import sys
from dis_cli.cli.app import run
status = run({command})
print('slow:', *sorted({SLOW_BESIDE_TORCH} & sys.modules.keys()))
sys.exit(status)
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120, text=True)
    assert (process.returncode, process.stdout.splitlines()[-1]) == (0, "slow:"), process.stderr


def test_help_takes_less_than_three_tenths_of_a_second():
    assert least_seconds([sys.executable, "-m", "dis_cli", "--help"], enough=limit(0.3)) < limit(0.3)


def test_help_lists_every_command_on_stdout(capsys):
    assert run(["--help"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    commands = [line.split()[0] for line in captured.out.partition("Commands:\n")[2].splitlines() if line[:3].strip()]
    assert commands[:8] == ["train", "sample", "encode-latents", "eval-fid", "runs", "report", "flops", "doctor"]


def test_version(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"dis {__version__}\n"


def test_bare_command_is_a_usage_error_that_shows_the_help(capsys):
    assert run([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Commands:" in captured.err


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["trian"], "No such command 'trian'", "Did you mean `train`? See `dis --help`"),
        (["zzz"], "No such command 'zzz'", "See `dis --help`"),
        (["--nope"], "No such option: --nope", "See `dis --help`"),
        (["train", "--prest", "x"], "No such option: --prest", "Did you mean `--preset`? See `dis train --help`"),
        (
            ["train", "--batch-size", "4"],
            "No such option: --batch-size",
            "Settings are given as KEY=VALUE: `train.batch_size=VALUE` or `sample.batch_size=VALUE`. "
            "See `dis train --help`",
        ),
        (["presets", "show"], "Missing argument 'NAME'", "See `dis presets show --help`"),
        (["presets"], "Missing command", "See `dis presets --help`"),
        (["presets", "lst"], "No such command 'lst'", "Did you mean `list`? See `dis presets --help`"),
        (["presets", "list", "--json=3"], "Option '--json' does not take a value", "See `dis --help`"),
        (
            ["presets", "show", "dis-s-cifr"],
            "Preset not found: `dis-s-cifr`",
            "Did you mean `dis-s-cifar`? See `dis presets list`",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors(arguments, error, hint, capsys):
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"error: {error}\n\nhint: {hint}\n"


def test_json_also_gives_the_error_as_one_object(capsys):
    assert run(["presets", "show", "dis-s-cifr", "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: Preset not found")
    assert json.loads(captured.out) == {
        "schema": 1,
        "error": {
            "kind": "ConfigError",
            "message": "Preset not found: `dis-s-cifr`",
            "hint": "Did you mean `dis-s-cifar`? See `dis presets list`",
            "exit_code": 2,
        },
    }


def test_json_reports_usage_errors_too(capsys):
    assert run(["presets", "list", "--jsn", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 2


def test_json_after_a_double_dash_is_a_name(capsys):
    assert run(["presets", "show", "--", "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Preset not found: `--json`" in captured.err


class OutOfMemoryError(RuntimeError):
    """Named as torch's own."""


@pytest.mark.parametrize(
    ("exception", "status", "error"),
    [
        (CheckpointError("It is damaged", "Take another"), 1, "It is damaged"),
        (NegativeVerdict("No"), 3, "No"),
        (Interrupted("Stopped at step 3", 15), 143, "Stopped at step 3"),
        (KeyboardInterrupt(), 130, "Interrupted"),
        (typer.Abort(), 130, "Interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 1, "No space left on device: `/x/y`"),
        (
            OSError(errno.EMFILE, "Too many open files", "/x/y"),
            1,
            "The system allows no more open files, processes or threads: ",
        ),
        (
            BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
            1,
            "The system allows no more open files, processes or",
        ),
        (RuntimeError("can't start new thread"), 1, "The system allows no more open files, processes or threads: "),
        (OSError(errno.EFBIG, "File too large"), 1, "File too large"),
        (PermissionError(errno.EACCES, "Permission denied", b"/x\xff"), 1, "Permission denied: `/x\\udcff`"),
        (MemoryError(), 1, "Out of memory: no message"),
        (
            OutOfMemoryError("CUDA out of memory. Tried 2 GiB\nmore"),
            1,
            "Out of memory: CUDA out of memory. Tried 2 GiB",
        ),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate"), 1, "Out of memory: [enforce fail]"),
        (ZeroDivisionError("division by zero"), 1, "unexpected ZeroDivisionError: division by zero"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, "unexpected BrokenPipeError: [Errno 32] Broken pipe"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_failure_has_a_message_and_a_status(exception, status, error, failing, capsys, monkeypatch):
    monkeypatch.delenv("DIS_DEBUG", raising=False)
    assert run(failing(exception)) == status
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {error}")
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train", "train.accumulation=4"),
        ("sample", "sample.batch_size=1"),
        ("eval-fid", "sample.batch_size=1"),
        ("encode-latents", "`--batch-size 1`"),
        ("flops", "Take a smaller model"),
    ],
)
def test_what_needs_less_memory_depends_on_the_command(command, words):
    assert words in explain(MemoryError(), [command, "--data", "train"]).hint


def test_debug_shows_the_traceback(failing, capsys, monkeypatch):
    monkeypatch.setenv("DIS_DEBUG", "1")
    assert run(failing(ZeroDivisionError("division by zero"))) == 1
    stderr = capsys.readouterr().err
    assert stderr.startswith("Traceback")
    assert "\nerror: unexpected ZeroDivisionError: division by zero\n" in stderr


def test_unexpected_errors_say_how_to_see_more(failing, capsys):
    run(failing(ZeroDivisionError()))
    assert "hint:" in (stderr := capsys.readouterr().err)
    assert "DIS_DEBUG=1" in stderr


@pytest.mark.parametrize("environment", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("arguments", [["presets", "list"], ["--help"]], ids=" ".join)
def test_a_reader_that_stops_early_ends_the_command_quietly(arguments, environment):
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = dis(*arguments, env=environment, stdout=write_end)
    os.close(write_end)
    assert (process.returncode, process.stderr) == (141, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
@pytest.mark.parametrize("arguments", [["presets", "list", "--json"], ["--help"]], ids=" ".join)
def test_a_full_standard_output_is_told_once(arguments):
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        process = dis(*arguments, stdout=full)
    assert process.returncode == 1
    assert process.stderr.startswith(b"error: ")
    assert process.stderr.count(b"No space left on device") == 1


@pytest.mark.parametrize(("closed", "status"), [(">&-", 1), ("2>&-", 0), (">&- 2>&-", 1)])
def test_closed_streams_do_not_crash(closed, status):
    command = f'"{sys.executable}" -m dis_cli presets list {closed}'
    process = subprocess.run(["sh", "-c", command], capture_output=True, timeout=60)
    assert process.returncode == status
    assert b"Traceback" not in process.stderr


def test_names_that_are_not_utf8_and_escapes_reach_neither_terminal_nor_json():
    process = dis("presets", "show", b"\xff[/x]\x1b[31m.toml", "--json", env={"COLUMNS": "40"})
    assert process.returncode == 2
    assert b"\x1b" not in process.stdout + process.stderr
    assert b"`\\udcff[/x]\\x1b[31m.toml`" in process.stderr
    assert json.loads(process.stdout)["error"]["message"] == "Preset not found: `\udcff[/x]\x1b[31m.toml`"


def test_completion_offers_presets():
    words = {"_DIS_COMPLETE": "complete_bash", "COMP_WORDS": "dis presets show dis-xs-d", "COMP_CWORD": "3"}
    process = dis(env=words)
    assert process.stdout.split() == [b"dis-xs-digits"]
