import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
from support.terminal import read_all

from dis_cli.cli.display import output
from dis_cli.cli.display.live import fit
from dis_cli.cli.display.meter import Meter
from dis_cli.cli.display.output import Output
from dis_cli.cli.display.text import duration, jsonable, printable, size, table
from dis_cli.errors import DisError, StorageError, UsageError
from dis_cli.events import Finished, Metric, Note, Progress, Saved, Started, Step, Wrote


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def step(number, **values):
    fields = {"loss": 0.5, "lr": 1e-3, "grad_norm": 2.0, "seconds": 0.1, "images_per_second": 320.4}
    return Step(step=number, **fields | values)


def training(clock, num_steps, seconds_a_step):
    yield Started(what="train", total=num_steps, unit="steps")
    for number in range(1, num_steps + 1):
        clock.now += seconds_a_step
        yield step(number)
    yield Finished(result={"steps": num_steps})


def shown_steps(text):
    return [int(number) for number in re.findall(r"^step (\d+)/", text, flags=re.MULTILINE)]


@pytest.fixture(autouse=True)
def no_earlier_results():
    output.start()


@pytest.mark.parametrize(
    ("seconds_a_step", "log_every", "expected"),
    [
        (0.1, None, [1, 100]),
        (0.1, 40, [1, 41, 81, 100]),
        (1.0, None, [1, 31, 61, 91, 100]),
        (1.0, 50, [1, 31, 61, 91, 100]),
        (1.0, 20, [1, 21, 41, 61, 81, 100]),
    ],
)
def test_plain_lines_come_every_thirty_seconds_or_log_every_steps(seconds_a_step, log_every, expected, capsys):
    clock = Clock()
    result = Output(clock=clock).render(training(clock, 100, seconds_a_step), log_every=log_every)
    captured = capsys.readouterr()
    assert result == {"steps": 100}
    assert shown_steps(captured.err) == expected
    assert captured.out == ""
    assert "\x1b" not in captured.err


def test_plain_lines_show_what_and_how_far(capsys):
    clock = Clock()
    events = [
        Started(what="train", total=200, unit="steps", first=100, details={"preset": "a", "device": "cpu"}),
        step(101, loss=0.123456),
        Saved(step=101, path=Path("runs/x"), size_bytes=12_345_678),
        Wrote(what="grid", path=Path("g.png")),
        Metric(name="fid", value=3.25, context={"floor": 2.0}),
        Note(message="all well"),
        Note(message="odd", level="warning"),
        Started(what="sample", total=3, unit="images"),
        Progress(done=3, total=3, unit="images"),
        Finished(result={}),
    ]
    Output(clock=clock).render(events)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train: continuing at 100 of 200 steps (preset a, device cpu)"
    assert re.fullmatch(r"step 101/200  loss 0\.1235  320 images/s  \d[\d.]* [MG]B", lines[1])
    assert lines[2:8] == [
        "saved step 101: runs/x (12.3 MB)",
        "wrote grid: g.png",
        "fid: 3.25 (floor 2)",
        "all well",
        "warning: odd",
        "sample: 3 images",
    ]
    assert lines[8].startswith("3/3 images")
    assert len(lines) == 9


def test_quiet_shows_nothing_but_results(capsys):
    clock = Clock()
    shown = Output(quiet=True, clock=clock)
    shown.render(training(clock, 5, 60))
    shown.warning("odd")
    shown.result(["done"], {})
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("done\n", "")


def test_verbose_shows_every_step_with_its_gradient(capsys):
    clock = Clock()
    Output(verbose=True, clock=clock).render(training(clock, 4, 0.1))
    stderr = capsys.readouterr().err
    assert shown_steps(stderr) == [1, 2, 3, 4]
    assert stderr.count("lr 0.001  grad_norm 2") == 4


def test_without_progress_notes_stay(capsys):
    Output(progress=False).render([step(1), Note(message="odd", level="warning"), Finished(result={})])
    assert capsys.readouterr().err == "warning: odd\n"


def test_quiet_and_verbose_exclude_each_other():
    with pytest.raises(UsageError, match="exclude"):
        Output(quiet=True, verbose=True)


def test_a_failing_workflow_tells_its_last_step_and_is_closed(capsys):
    closed = []

    def workflow():
        try:
            for number in (1, 2, 3):
                yield step(number)
            yield Saved(step=3, path=None, size_bytes="three")
        finally:
            closed.append(True)

    # The error is the sink's own: the workflow is left in the middle and must release what it holds at once, not when
    # it is collected.
    events = workflow()
    with pytest.raises(TypeError):
        Output().render(events)
    assert closed == [True]
    assert re.findall(r"^step (\d)", capsys.readouterr().err, flags=re.MULTILINE) == ["1", "3"]


def test_a_workflow_without_a_result_is_a_defect():
    with pytest.raises(RuntimeError, match="without a result"):
        Output().render([step(1)])


class GoneStream:
    encoding = "utf-8"

    def write(self, _):
        raise BrokenPipeError

    def flush(self):
        raise BrokenPipeError

    def isatty(self):
        return False


@pytest.mark.parametrize("stream", [GoneStream(), None], ids=["gone", "closed"])
def test_losing_standard_error_does_not_end_the_work(stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    assert Output().render([step(1), Finished(result={"steps": 1})]) == {"steps": 1}
    output.error(DisError("x"), as_json=False)


def test_json_result_is_one_strict_line(capsys):
    data = {
        "fid": float("nan"),
        "bounds": (float("inf"), -1.5),
        "path": Path("a/b"),
        "count": np.int64(3),
        "mean": np.array([1.0, np.nan]),
        "name": "\udcff[/x]é",
    }
    Output(as_json=True).result(["text"], data)
    stdout = capsys.readouterr().out
    assert stdout.isascii()
    assert stdout.endswith("}\n")
    assert stdout.count("\n") == 1
    assert list(json.loads(stdout)) == ["schema", *data]

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(stdout, parse_constant=refuse) == {
        "schema": 1,
        "fid": None,
        "bounds": [None, -1.5],
        "path": "a/b",
        "count": 3,
        "mean": [1.0, None],
        "name": "\udcff[/x]é",
    }


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(TypeError):
        output.result([], {"value": object()}, as_json=True)
    assert jsonable(True) is True


def test_an_error_after_a_json_result_leaves_that_the_only_object(capsys):
    output.result([], {"fid": 9.0}, as_json=True)
    output.error(DisError("FID 9 is above 5", "Train longer"), as_json=True)
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"schema": 1, "fid": 9.0}
    assert captured.err == "error: FID 9 is above 5\n\nhint: Train longer\n"


def test_an_error_without_a_hint(capsys):
    output.error(DisError("no"), as_json=False)
    assert capsys.readouterr().err == "error: no\n"


def test_closed_standard_output_is_a_storage_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(StorageError, match="Standard output"):
        output.result(["x"], {}, as_json=False)


class AsciiStream:
    encoding = "ascii"


def test_printable_keeps_text_and_defuses_the_rest():
    text = "a\tb\nc é [/x]"
    assert printable(text, None) == text
    assert printable("\x1b[31m\r\x7f\x9b\udcff", None) == "\\x1b[31m\\x0d\\x7f\\x9b\\udcff"
    assert printable("é", AsciiStream()) == "\\xe9"


def test_meter_takes_the_speed_of_the_recent_past():
    clock = Clock()
    meter = Meter(Started(what="train", total=1000, unit="steps", first=100), clock)
    assert meter.seconds_left is None
    # 60 s for the first step, then 1 s and 3 s in turn: the slow start is forgotten, the jitter is evened out.
    clock.now = 60
    meter.update(step(101))
    assert meter.seconds_left == pytest.approx(899 * 60)
    for number in range(102, 152):
        clock.now += 1 + 2 * (number % 2)
        meter.update(step(number))
    assert meter.seconds_left == pytest.approx((1000 - 151) * 2, rel=0.1)
    assert meter.fraction == pytest.approx(0.151)


@pytest.mark.parametrize("unit", ["images", "files"])
def test_meter_starts_again_with_a_new_count(unit):
    clock = Clock()
    meter = Meter(Started(what="sample", total=8, unit="images"), clock)
    clock.now = 10
    meter.update(Progress(done=2, total=8, unit="images"))
    clock.now = 11
    meter.update(Progress(done=1 if unit == "images" else 3, total=5, unit=unit))
    assert meter.seconds_left is None
    clock.now = 13
    meter.update(Progress(done=4, total=5, unit=unit))
    assert meter.seconds_left == pytest.approx({"images": 2 / 3, "files": 2}[unit])


@pytest.mark.parametrize("seconds_before", [0.0, 1.8])
def test_the_first_second_tells_no_speed(seconds_before):
    clock = Clock()
    meter = Meter(Started(what="score", total=450, unit="images"), clock)
    clock.now = seconds_before
    # Neither the moment between two lines of the program nor the time to get ready is a speed.
    for done in (3, 6):
        meter.update(Progress(done=done, total=450, unit="images"))
        assert (meter.units_per_second, meter.seconds_left) == (None, None)
        assert not any("ETA" in part or "/s" in part for part in meter.parts())
        clock.now += 2e-6
    clock.now = seconds_before + 2
    meter.update(Progress(done=153, total=450, unit="images"))
    assert meter.units_per_second == pytest.approx(75)
    assert meter.seconds_left == pytest.approx((450 - 153) / 75)


def test_steps_that_take_milliseconds_tell_no_speed_at_first():
    clock = Clock()
    meter = Meter(Started(what="train", total=100, unit="steps"), clock)
    clock.now = 0.001
    meter.update(step(1))
    assert meter.seconds_left is None
    clock.now = 1.25
    meter.update(step(5))
    assert meter.seconds_left == pytest.approx(95 / 4)


def test_meter_without_a_total():
    meter = Meter(Started(what="work", total=0, unit="steps"))
    meter.update(step(7))
    assert meter.parts()[:2] == ["step 7", "loss 0.5"]
    assert meter.fraction == 0


def test_meter_shows_the_memory_and_the_utilisation_that_a_step_reports():
    clock = Clock()
    meter = Meter(Started(what="train", total=9, unit="steps"), clock)
    clock.now += 6
    meter.update(step(3, memory_bytes=2_340_000_000, mfu=0.428))
    assert meter.parts() == ["step 3/9", "loss 0.5", "ETA 0:12", "320 images/s", "2.34 GB", "mfu 43 %"]
    meter.update(step(4, memory_bytes=1_000_000, mfu=0.00363))
    assert meter.parts()[-2:] == ["1 MB", "mfu 0.36 %"]
    meter.update(step(5, memory_bytes=1_000_000, mfu=None))
    assert meter.parts()[-1] == "1 MB"


def test_a_loss_that_is_no_number_is_shown_as_it_is():
    meter = Meter(Started(what="train", total=9, unit="steps"))
    meter.update(step(3, loss=float("nan"), grad_norm=float("inf"), skipped=True))
    assert meter.parts(verbose=True)[:2] == ["step 3/9", "loss nan"]
    assert meter.parts(verbose=True)[-1] == "grad_norm inf"


def test_images_made_between_two_steps_do_not_disturb_the_count_of_steps(capsys):
    clock = Clock()

    def workflow():
        yield Started(what="train", total=1000, unit="steps")
        for number in range(1, 7):
            clock.now += 1
            yield step(number, seconds=1.0)
            if number == 3:
                for done in range(1, 101):
                    clock.now += 2
                    yield Progress(done=done, total=100, unit="images")
                yield Metric(name="frechet_digits", value=5.75, step=3)
        yield Finished(result={})

    Output(clock=clock).render(workflow())
    lines = capsys.readouterr().err.splitlines()
    shown = [line.split("  ")[0] for line in lines]
    assert shown[:4] == ["train: 1000 steps", "step 1/1000", "step 3/1000", "1/100 images"]
    assert shown[-4:] == ["100/100 images", "frechet_digits: 5.75 at step 3", "step 4/1000", "step 6/1000"]
    assert re.search(r"0\.5 images/s", lines[5])
    # A second a step, whatever the images have taken.
    assert "ETA 16:36" in lines[-2]
    assert "ETA 16:34" in lines[-1]


def test_texts():
    assert [duration(s) for s in (0, 59.6, 3599, 3600, 90061)] == ["0:00", "1:00", "59:59", "1:00:00", "1 d 1 h"]
    assert [size(n) for n in (0, 999, 1000, 12_345_678, 999_600_000, 5e12)] == [
        "0 B",
        "999 B",
        "1 kB",
        "12.3 MB",
        "1 GB",
        "5 TB",
    ]
    assert table([["NAME", "N"], ["a", "10"], ["bcdefg", "7"]]) == ["NAME    N", "a       10", "bcdefg   7"]


def test_a_narrow_line_drops_its_last_parts():
    parts = ["step 1/2", "loss 0.5", "名前"]
    assert fit(parts, 80) == "step 1/2  loss 0.5  名前"
    # The last part is four cells wide.
    assert fit(parts, 23) == "step 1/2  loss 0.5"
    assert fit(parts, 24).endswith("名前")
    assert fit(parts, 1) == "step 1/2"


PROGRAM = """
import sys, time
from pathlib import Path
from dis_cli.cli.display.output import Output
from dis_cli.events import Finished, Saved, Started, Step

def workflow():
    yield Started(what="train", total=40, unit="steps", details={"preset": "[/x]"})
    print("from a library")
    for number in range(1, 41):
        time.sleep(0.02)
        yield Step(step=number, loss=0.5, lr=1e-3, grad_norm=1.0, seconds=0.02, images_per_second=1600.0)
        if number == 20:
            yield Saved(step=20, path=Path("runs/" + 30 * "long" + "/[/x]\\udcff\\x1b[31m"), size_bytes=1000)
    yield Finished(result={"path": Path("\\udcff")})

shown = Output(as_json=True)
shown.result([], shown.render(workflow()))
"""


def in_terminal(columns, **environment):
    """Standard output, and what a terminal of that width received on standard error."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    terminal, stderr = pty.openpty()
    fcntl.ioctl(stderr, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=stderr, env=inherited | environment
    )
    os.close(stderr)
    received = read_all(terminal)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return stdout.decode(), received.decode()


LONG_LINE = "saved step 20: runs/" + 30 * "long" + "/[/x]\\udcff\\x1b[31m (1 kB)"


@pytest.mark.parametrize("columns", [40, 100])
def test_live_line(columns):
    stdout, received = in_terminal(columns, TERM="xterm-256color")
    first, last = stdout.splitlines()
    assert first == "from a library"
    assert json.loads(last) == {"schema": 1, "path": "\udcff"}
    # One line, drawn again and again: each frame begins with "erase the line".
    frames = [re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", frame) for frame in re.split(r"\r\x1b\[2K|\r\n", received)]
    live = [frame for frame in frames if re.search(r"step \d+/40", frame) and "40/40" not in frame]
    assert len(live) >= 3
    assert all(len(frame) <= columns for frame in live)
    assert ("━" in "".join(live)) == (columns == 100)
    # What lasts is whole, in order, and copied as it is.
    assert "train: 40 steps (preset [/x])" in frames
    assert LONG_LINE in frames
    assert [frame for frame in frames if frame.strip()][-1].startswith("step 40/40  loss 0.5")
    # The cursor comes back.
    assert received.rindex("\x1b[?25h") > received.rindex("\x1b[?25l")


def test_no_color_draws_without_colour():
    _, received = in_terminal(100, TERM="xterm-256color", NO_COLOR="1")
    assert "step 40/40" in received
    assert not re.search(r"\x1b\[[\d;]*m", received)


def test_dumb_terminal_gets_plain_lines():
    _, received = in_terminal(40, TERM="dumb")
    lines = received.split("\r\n")
    assert "\x1b" not in received
    assert lines[0] == "train: 40 steps (preset [/x])"
    assert lines[1].startswith("step 1/40")
    assert lines[2] == LONG_LINE
    assert lines[3].startswith("step 40/40")
