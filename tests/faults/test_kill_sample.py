"""Sampling that is killed or stopped, at any moment, and started again ends with the bytes of one that never was."""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.latents import Fork, wait_until
from support.sampling import beside, command, content, sampled
from support.tiny import dis, trained

from dis_cli.runtime import files
from dis_cli.workflows.load.opened import open_checkpoint
from dis_cli.workflows.sample import sample as workflow

FORMS = ("png", "npz", "zip")
SLOW = 0.03


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("sampled") / "run", "train.steps=1")


def path_of(folder: Path, form: str) -> Path:
    folder.mkdir(exist_ok=True)
    return folder / ("out" if form == "png" else f"out.{form}")


def killed_at(number: int, folder: Path, work: Callable[[], int]) -> int:
    """Do the work until just before the n-th change to files in the folder."""
    touched = 0

    def change() -> None:
        nonlocal touched
        touched += 1
        if touched == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def touch(event: str, arguments: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")) and str(folder) in str(arguments[0]):
            change()

    fsync = os.fsync

    def dying_fsync(descriptor: int) -> None:
        change()
        fsync(descriptor)

    files.os.fsync = dying_fsync
    sys.addaudithook(touch)
    return work()


@pytest.mark.parametrize("form", [FORMS[0], *(pytest.param(form, marks=pytest.mark.long) for form in FORMS[1:])])
def test_a_kill_before_any_change_of_a_file(
    form: str, run: Path, tmp_path: Path, tally: Callable[[str, object], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Loaded once, instead of by every process.
    loaded = workflow.load_model(
        open_checkpoint(run, ["sample.sampler=ddim", "sample.steps=2", "sample.batch_size=2"]),
        workflow.pick_device("cpu"),
    )
    monkeypatch.setattr(workflow, "load_model", lambda *_: loaded)
    arguments = ("-n", 5, "--class", "3,4", "sample.batch_size=2")
    whole = content(sampled(run, path_of(tmp_path / "whole", form), *arguments))
    out = path_of(tmp_path / "out", form)
    survived = 0
    for number in range(1, 200):
        shutil.rmtree(out.parent)
        out.parent.mkdir()
        work = command(run, out, *arguments)
        process = Fork(
            lambda number=number, work=work: killed_at(number, out.parent, lambda: dis(*work)), tmp_path / "s"
        )
        if process.wait() == 0:
            break
        # A result that is there is whole.
        assert not out.exists() or content(out) == whole, number
        assert dis(*work) == 0, number
        assert content(out) == whole, f"killed before change {number}"
        assert beside(out) in ([], [f".{out.name}.lock"]), number
        survived += 1
    assert survived > 20
    tally(f"{form}: kills survived", f"{survived}/{survived}")


def slowly(work: list[object]) -> int:
    quick = workflow.generate

    def generate(*arguments: object, **options: object) -> object:
        for step in quick(*arguments, **options):
            time.sleep(SLOW)
            yield step

    workflow.generate = generate
    return dis(*work)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_keeps_what_is_finished(number: int, status: int, run: Path, tmp_path: Path) -> None:
    whole = content(sampled(run, path_of(tmp_path / "whole", "npz"), "-n", 24, "sample.batch_size=2"))
    out = path_of(tmp_path / "out", "npz")
    unfinished = out.with_name("out.npz.unfinished")
    work = command(run, out, "-n", 24, "sample.batch_size=2")
    process = Fork(lambda: slowly(work), tmp_path / "said")
    wait_until(lambda: len(list(unfinished.glob("part-*"))) >= 3)
    process.signal(number)
    assert process.wait() == status
    assert f"of 24 images are finished and kept in `{unfinished}`" in process.errors
    assert "Run the same command again to continue" in process.errors
    kept = {path: path.stat().st_mtime_ns for path in unfinished.glob("part-*")}
    assert len(kept) >= 3
    # Other settings are refused, and nothing is lost.
    said = Fork(lambda: dis(*work, "--cfg-scale", 2, "--seed", 1), tmp_path / "other")
    assert said.wait() == 2
    assert 'seeds: "0-23" there, "1-24" now' in said.errors
    assert "sample.cfg_scale: 1.0 there, 2.0 now" in said.errors
    assert {path: path.stat().st_mtime_ns for path in unfinished.glob("part-*")} == kept
    # What is finished is not made again; a damaged part is.
    sorted(kept)[0].write_bytes(b"PK damaged")
    assert dis(*command(run, out, "-n", 24, "sample.batch_size=3")) == 0
    assert content(out) == whole
    assert beside(out) == []


def test_finished_batches_are_not_generated_again(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = path_of(tmp_path / "out", "zip")
    work = command(run, out, "-n", 24, "sample.batch_size=2")
    process = Fork(lambda: slowly(work), tmp_path / "said")
    wait_until(lambda: len(list(out.with_name("out.zip.unfinished").glob("part-*"))) >= 4)
    process.kill()
    kept = 2 * len(list(out.with_name("out.zip.unfinished").glob("part-*")))
    quick, made = workflow.generate, []

    def generate(*arguments: object, **options: object) -> object:
        made.extend(options["seeds"])
        return quick(*arguments, **options)

    monkeypatch.setattr(workflow, "generate", generate)
    assert dis(*work) == 0
    assert made == list(range(kept, 24))


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_memory_does_not_grow_with_the_number_of_images(
    run: Path, tmp_path: Path, tally: Callable[[str, object], None]
) -> None:
    peaks = {}
    for count in (200, 2000):
        said = tmp_path / f"said-{count}"

        def work(count: int = count) -> int:
            # What is loaded once is not what is measured; and the peak of the process that this one is a copy of.
            assert dis(*command(run, tmp_path / f"first-{count}.npz", "-n", 100, "sample.batch_size=50")) == 0
            Path("/proc/self/clear_refs").write_text("5")
            status = dis(*command(run, tmp_path / f"{count}.npz", "-n", count, "sample.batch_size=50"))
            [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
            print(line.split()[1])  # noqa: T201  read by the test from another process
            return status

        process = Fork(work, said)
        assert process.wait() == 0, process.errors
        peaks[count] = int(process.output.split()[-1])
    growth = (peaks[2000] - peaks[200]) / 1024
    tally("peak memory from 200 to 2000 images grows by", f"{growth:.2f} MB of {peaks[200] / 1024:.0f} MB")
    assert growth < 4
