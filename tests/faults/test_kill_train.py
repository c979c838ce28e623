"""A run that is killed and started again ends bit-equal to one that never was."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from support.tiny import TINY, train

from dis_cli.checkpoints.store import list_checkpoints, read_checkpoint
from dis_cli.runtime.run_dir import read_events

SETTINGS = ["train.steps=300", "train.save_every=10", "train.keep_last=2"]


def start(run: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "dis_cli", "train", "--out", str(run), "-q", *TINY, *SETTINGS]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def wait_for_step(run: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(event.get("step", 0) >= step for event in read_events(run / "events.jsonl")):
            return
        time.sleep(0.002)
    raise AssertionError(f"step {step} was not reached: {process.stderr.read().decode()}")


def test_killed_three_times(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert train(straight, *SETTINGS) == 0
    for step in (5, 47, 120):
        process = start(killed)
        wait_for_step(killed, step, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = start(killed)
    _, error = process.communicate()
    assert process.returncode == 0, error.decode()

    expected, got = (read_checkpoint(run / "checkpoints" / "step-00000300") for run in (straight, killed))
    for group, tensors in expected.tensors.items():
        for name, tensor in tensors.items():
            assert tensor.equal(got.tensors[group][name]), (group, name)
    losses = {
        run: [(event["step"], event["loss"]) for event in read_events(run / "events.jsonl") if event["event"] == "step"]
        for run in (straight, killed)
    }
    assert losses[killed] == losses[straight]
    assert [step for step, _ in losses[killed]] == list(range(1, 301))
    assert len(list_checkpoints(killed / "checkpoints")) == 2
    assert not list(killed.rglob(".tmp-*"))
