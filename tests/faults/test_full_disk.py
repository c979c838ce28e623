"""A disk that is full: the command fails and names the file and the bytes, and what was there before stays whole.

Encoding is tested beside its other tests, in tests/cli/test_encode_latents.py.
"""

import ctypes
import re
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
from support.faulty import SMALL, assert_same_run, curve, saved, score_quickly, start
from support.latents import Fork
from support.tiny import dis, train, trained

from dis_cli.runs.folder import read_events
from dis_cli.workflows.sample.output import GRID_FILE, SETTINGS_FILE

SETTINGS = ["train.save_every=2", "train.keep_last=20", "data.num_workers=0"]
FULL = re.compile(r"error: Cannot write `([^`]+)`: (File too large|No space left on device) \(needs ([\d,]+) bytes,")
CLONE_NEWNS = 0x20000


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("golden") / "run", *SMALL, *SETTINGS, "train.steps=12")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("begun") / "run", *SMALL, *SETTINGS, "train.steps=6")


def limit_files(size: int) -> None:
    """No file of this process may grow beyond so many bytes; which fails as a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def assert_told(text: str, path: Path, size: int | None = None) -> None:
    """The one error names the path and what it needs."""
    found = FULL.search(" ".join(text.split()))
    assert found, text
    assert found[1] == str(path)
    assert size is None or int(found[3].replace(",", "")) == size
    assert text.count("hint: ") == 1


def files(folder: Path) -> dict[Path, bytes]:
    hidden = {folder / ".lock"}
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path not in hidden}


def assert_all_that_was_saved_is_there(run: Path) -> None:
    steps = [event["step"] for event in read_events(run / "events.jsonl") if event["event"] == "saved"]
    # reads and verifies every one
    assert {f"step-{step:08d}" for step in steps} <= saved(run).keys()
    assert list((run / "checkpoints").glob(".tmp-*")) == []


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("continued", [False, True])
def test_no_room_for_a_checkpoint(continued: bool, name: str, begun: Path, golden: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    if continued:
        shutil.copytree(begun, run)
    before = saved(run)
    size = (begun / "checkpoints" / "step-00000006" / name).stat().st_size
    process = start(run, *SETTINGS, "train.steps=12", prepare=lambda: limit_files(size - 1))
    assert process.wait() == 1
    step = 8 if continued else 2
    assert_told(process.errors, run / "checkpoints" / f"step-{step:08d}" / name, size)
    assert saved(run) == before
    assert_all_that_was_saved_is_there(run)
    # It ended soon: the next save would have waited for this one.
    assert len(curve(run)) <= step + 2
    [stopped] = [event for event in read_events(run / "events.jsonl") if event["event"] == "stopped"]
    assert (stopped["reason"], "File too large" in stopped["message"]) == ("error", True)
    assert train(run, *SMALL, *SETTINGS, "train.steps=12") == 0
    assert_same_run(run, golden)


def test_no_room_for_a_line_of_the_record(golden: Path, tmp_path: Path) -> None:
    # Of so many steps that the record is the largest text in the folder.
    run = trained(tmp_path / "run", *SMALL, *SETTINGS, "train.steps=10")
    size = (run / "events.jsonl").stat().st_size + 60
    assert all((run / name).stat().st_size < size for name in ("config.toml", "run.json", "log.txt"))
    before = saved(run)
    process = start(run, *SETTINGS, "train.steps=12", prepare=lambda: limit_files(size))
    assert process.wait() == 1
    assert_told(process.errors, run / "events.jsonl")
    assert saved(run) == before
    assert train(run, *SMALL, *SETTINGS, "train.steps=12") == 0
    assert_same_run(run, golden)


def test_no_room_to_begin(begun: Path, tmp_path: Path) -> None:
    run = shutil.copytree(begun, tmp_path / "run")
    before = files(run)
    size = (run / "config.toml").stat().st_size
    process = start(run, *SETTINGS, "train.steps=6", prepare=lambda: limit_files(size - 1))
    assert process.wait() == 1
    # It comes first, and holds the settings too.
    assert_told(process.errors, run / "run.json")
    assert files(run) == before


def mount(folder: Path, size: str, *, again: bool = False) -> None:
    options = f"size={size}" + (",remount" if again else "")
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, capture_output=True)


def own_mounts() -> None:
    """Mounts of this process are seen by it and its children only, and end with them."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True, capture_output=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A folder where a process with mounts of its own can mount a disk."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def attempt() -> None:
        own_mounts()
        mount(folder, "64k")

    process = Fork(attempt, tmp_path / "attempt")
    if process.wait() != 0:
        pytest.skip(f"this process may not mount a disk: {process.errors.splitlines()[-1]}")
    return folder


@pytest.mark.parametrize("kilobytes", [60, 240, 252, 264, 276])
def test_a_disk_that_fills_up(kilobytes: int, small_disk: Path, golden: Path, tmp_path: Path) -> None:
    run, kept = small_disk / "run", tmp_path / "kept"

    def work() -> int:
        own_mounts()
        mount(small_disk, f"{kilobytes}k")
        status = train(run, *SMALL, *SETTINGS, "train.steps=12")
        shutil.copytree(run, kept / "full")
        mount(small_disk, "8m", again=True)
        # the same command goes on where there is room
        assert train(run, *SMALL, *SETTINGS, "train.steps=12") == 0
        shutil.copytree(run, kept / "end")
        return status

    process = Fork(work, tmp_path / "said")
    assert process.wait() == 1
    found = FULL.search(" ".join(process.errors.split()))
    assert found, process.errors
    assert found[1].startswith(str(run))
    assert "No space left" in found[2]
    assert_all_that_was_saved_is_there(kept / "full")
    assert len(saved(kept / "full")) == (0 if kilobytes == 60 else 2)
    assert_same_run(kept / "end", golden)


SAMPLER = ["sample.sampler=ddim", "sample.steps=2"]


# So many that the file is the largest one.
@pytest.mark.parametrize(("name", "count"), [(GRID_FILE, 60), (SETTINGS_FILE, 1)])
def test_no_room_for_samples(name: str, count: int, begun: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sample = ["sample", "--ckpt", begun, "--out", out, "-q", "-n", count, *SAMPLER]
    assert dis(*sample) == 0
    size = (out / name).stat().st_size
    before = files(out)
    shutil.rmtree(out)

    def work() -> int:
        limit_files(size - 1)
        return dis(*sample)

    process = Fork(work, tmp_path / "said")
    assert process.wait() == 1
    assert_told(process.errors, out / name, size)
    assert not out.exists()
    # The images are kept, and nothing half-written beside them.
    unfinished = tmp_path / "out.unfinished"
    assert sorted(path.name for path in unfinished.iterdir()) == ["part-00000000.npz", "settings.json"]
    assert dis(*sample) == 0
    assert files(out) == before
    assert not unfinished.exists()


def test_no_room_for_finished_images(begun: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    sample = ["sample", "--ckpt", begun, "--out", out, "-q", "-n", 40, "sample.batch_size=40", *SAMPLER]

    def work() -> int:
        limit_files(2500)
        return dis(*sample)

    process = Fork(work, tmp_path / "said")
    assert process.wait() == 1
    assert_told(process.errors, tmp_path / "out.npz.unfinished" / "part-00000000.npz")
    assert not out.exists()
    assert dis(*sample) == 0
    assert out.is_file()


@pytest.mark.parametrize("there", [False, True])
def test_no_room_for_a_score(there: bool, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "score.json"
    score_quickly(monkeypatch)
    command = ["eval-fid", "--ckpt", begun, "--out", out, "-q", "--num-samples", 2, *SAMPLER]
    assert dis(*command) == 0
    before = out.read_bytes()
    if not there:
        out.unlink()

    def work() -> int:
        limit_files(len(before) - 1)
        return dis(*command)

    process = Fork(work, tmp_path / "said")
    assert process.wait() == 1
    assert_told(process.errors, out, len(before))
    assert (out.read_bytes() if out.exists() else None) == (before if there else None)
    names = {path.name for path in tmp_path.iterdir()} - {"said", "said.err"}
    assert names == ({"score.json"} if there else set())
