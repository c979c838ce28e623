"""`dis train --json=lines`: every event as a line while it runs, the result or the error as the last."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from support.tiny import TINY, dis, result

from dis_cli.cli.display.output import Output
from dis_cli.errors import StorageError
from dis_cli.events import Finished, Note, Started, Step
from dis_cli.runs.folder import read_events


def lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("flags", [[], ["-q"], ["--no-progress"]], ids=str)
def test_every_event_then_the_result(flags, tmp_path, capsys) -> None:
    assert dis("train", "--json=lines", "--out", tmp_path, *flags, *TINY, "train.steps=3") == 0
    *events, last = lines(capsys)
    # The same records as in the run's own file.
    assert events == [event for event in read_events(tmp_path / "events.jsonl") if event["event"] != "finished"]
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2, 3]
    assert (last["event"], last["schema"], last["result"]["step"]) == ("finished", 1, 3)


def test_alone_it_stays_one_object_wherever_it_stands(tmp_path, capsys) -> None:
    assert dis("train", "--out", tmp_path, *TINY, "--json", "train.steps=2", "-q") == 0
    data = result(capsys)
    assert (data["schema"], data["step"]) == (1, 2)
    assert "event" not in data


def test_the_last_one_given_counts(tmp_path, capsys) -> None:
    assert dis("train", "--json=lines", "--json", "--out", tmp_path, "train.stps=2") == 2
    assert set(result(capsys)) == {"schema", "error"}
    assert dis("train", "--json", "--json=lines", "--out", tmp_path, "train.stps=2") == 2
    assert set(result(capsys)) == {"event", "schema", "error"}


def test_a_plan_is_a_last_line_too(tmp_path, capsys) -> None:
    assert dis("train", "--json=lines", "--dry-run", "--out", tmp_path / "run") == 0
    [plan] = lines(capsys)
    assert (plan["event"], plan["result"]["images"]) == ("finished", 1347)


@pytest.mark.parametrize(
    ("arguments", "status", "kind"),
    [
        (["--nope"], 2, "UsageError"),
        (["train.stps=2"], 2, "ConfigError"),
        (["data.source=folder", "--data", "/nonexistent"], 1, "DataError"),
    ],
    ids=["option", "key", "data"],
)
def test_an_error_is_the_last_line(arguments, status, kind, tmp_path, capsys) -> None:
    assert dis("train", "--json=lines", "--out", tmp_path / "run", *arguments) == status
    captured = capsys.readouterr()
    [last] = [json.loads(line) for line in captured.out.splitlines()]
    assert (last["event"], last["schema"], last["error"]["exit_code"]) == ("error", 1, status)
    assert last["error"]["kind"] == kind
    assert captured.err.startswith(f"error: {last['error']['message']}\n")


def test_an_error_on_the_way_follows_the_events(tmp_path, capsys, monkeypatch) -> None:
    from dis_cli.runs.folder import RunDir

    append = RunDir.append_event

    def interrupt_at_step_two(self, event) -> None:
        append(self, event)
        if event.to_json().get("step") == 2 and event.kind == "step":
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(RunDir, "append_event", interrupt_at_step_two)
    assert dis("train", "--json=lines", "--out", tmp_path, "-q", *TINY, "train.steps=50") == 143
    *events, last = lines(capsys)
    assert [event["step"] for event in events if event["event"] == "step"][:2] == [1, 2]
    assert (last["event"], last["error"]["kind"], last["error"]["exit_code"]) == ("error", "Interrupted", 143)


@pytest.mark.parametrize("value", ["xyz", "object", "Lines"])
def test_another_form_is_a_clear_error(value, capsys) -> None:
    assert dis("train", f"--json={value}") == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: Unknown form of --json: got `{value}`, allowed: lines\n\nhint: ")
    assert captured.out == ""


def test_other_commands_have_one_object_only(capsys) -> None:
    assert dis("presets", "list", "--json=lines") == 2
    captured = capsys.readouterr()
    assert "'--json' does not take a value" in captured.err
    assert json.loads(captured.out)["error"]["exit_code"] == 2


def test_help_shows_it_and_a_mistyped_one_is_named(capsys) -> None:
    assert dis("train", "--help") == 0
    assert "--json [=lines]" in capsys.readouterr().out
    assert dis("train", "--jsn=lines") == 2
    assert "Did you mean `--json`?" in capsys.readouterr().err


def test_after_a_double_dash_it_is_a_setting(capsys) -> None:
    assert dis("train", "--", "--json") == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: Not of the form KEY=VALUE: `--json`\n")
    assert captured.out == ""


def test_what_json_has_no_way_for_becomes_null(capsys) -> None:
    step = Step(step=1, loss=float("nan"), lr=1e-3, grad_norm=float("inf"), seconds=0.1, images_per_second=1.0)
    output = Output(json_lines=True)
    output.result([], output.render([step, Note(message="\udcff[/x]\n"), Finished(result={"loss": float("nan")})]))
    stdout = capsys.readouterr().out
    assert stdout.isascii()
    records = [json.loads(line) for line in stdout.splitlines()]
    assert [record.get("loss", 0) for record in records] == [None, 0, 0]
    assert records[0]["grad_norm"] is None
    assert records[1]["message"] == "\udcff[/x]\n"
    assert records[2]["result"] == {"loss": None}


class Pipe:
    """Standard output that says when it was flushed."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.waiting, self.arrived = "", ""

    def write(self, text: str) -> None:
        self.waiting += text

    def flush(self) -> None:
        self.arrived, self.waiting = self.arrived + self.waiting, ""

    def isatty(self) -> bool:
        return False


def test_every_line_arrives_before_the_next_event_is_made(monkeypatch) -> None:
    pipe = Pipe()
    monkeypatch.setattr(sys, "stdout", pipe)

    def workflow():
        for number in range(1, 4):
            assert pipe.arrived.count("\n") == number - 1
            yield Started(what="x", total=number, unit="steps")
        assert pipe.arrived.count("\n") == 3
        yield Finished(result={})

    Output(json_lines=True, quiet=True).render(workflow())


def test_a_full_standard_output_ends_the_work(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(StorageError, match="Standard output"):
        Output(json_lines=True, quiet=True).render([Note(message="x"), Finished(result={})])


def test_a_reader_that_stops_early_ends_the_training_quietly(tmp_path) -> None:
    command = [sys.executable, "-m", "dis_cli", "train", "--json=lines", "--out", str(tmp_path / "run"), "-q", *TINY]
    process = subprocess.Popen(
        [*command, "train.steps=100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert json.loads(process.stdout.readline())["event"] == "started"
    process.stdout.close()
    begun = time.monotonic()
    assert (process.wait(timeout=60), process.stderr.read()) == (141, b"")
    assert time.monotonic() - begun < 30
    process.stderr.close()
