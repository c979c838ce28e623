"""What `dis train` says at its end, and what it looks for before it begins."""

import importlib.util

import pytest
from support.processes import python
from support.tiny import TINY, dis

from dis_cli.events import Finished

RESULT = {"run": "runs/x", "step": 40, "steps": 100, "complete": True, "loss": 0.5, "skipped": 0, "best": None}
BEST = {"metric": "frechet_digits", "value": 5.7531, "step": 30, "checkpoint": "runs/x/checkpoints/step-00000030"}
COMMANDS = ["sample  dis sample --ckpt runs/x -n 64", "score   dis eval-fid --ckpt runs/x"]


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ({}, ["trained runs/x: step 40, loss 0.5000"]),
        ({"loss": None}, ["trained runs/x: step 40"]),
        (
            {"complete": False},
            [
                "trained runs/x: step 40, loss 0.5000",
                "stopped after train.max_minutes at step 40 of 100; run the same command again to continue",
            ],
        ),
        (
            {"skipped": 1, "best": BEST},
            [
                "trained runs/x: step 40, loss 0.5000",
                "skipped 1 update was left out: the loss or a gradient was not finite",
                "best    runs/x/checkpoints/step-00000030: frechet_digits 5.753 at step 30",
            ],
        ),
        (
            {"skipped": 3},
            [
                "trained runs/x: step 40, loss 0.5000",
                "skipped 3 updates were left out: the loss or a gradient was not finite",
            ],
        ),
    ],
)
def test_the_last_lines_say_how_it_ended(values, lines, capsys, monkeypatch, tmp_path) -> None:
    def training(*_, **__):
        yield Finished(result=RESULT | values)

    monkeypatch.setattr("dis_cli.workflows.train.train.train", training)
    assert dis("train", "--out", tmp_path) == 0
    assert capsys.readouterr().out.splitlines() == [*lines, *COMMANDS]


def test_an_absent_tracker_is_told_before_anything_is_written(capsys, monkeypatch, tmp_path) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find_spec(name))
    assert dis("train", "--out", tmp_path / "run", "train.trackers=tensorboard,wandb", *TINY) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: train.trackers asks for wandb, which is not installed\n")
    assert "`pip install 'dis-cli[wandb]'`" in error
    assert not (tmp_path / "run").exists()


def test_it_is_told_without_torch(tmp_path) -> None:
    program = f"""
import importlib.util, sys
importlib.util.find_spec = lambda name: None
from dis_cli.cli.app import run
status = run(["train", "--out", {str(tmp_path / "run")!r}, "train.trackers=wandb"])
sys.exit("torch" if "torch" in sys.modules else status)
"""
    assert python("-c", program).returncode == 1


def test_a_run_is_shown_in_tensorboard_each_step_once(tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    command = ["train", "--out", tmp_path, "-q", *TINY, "train.trackers=tensorboard", "train.save_every=2"]
    assert dis(*command, "train.steps=2") == 0
    assert dis(*command, "train.steps=4") == 0
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [point.step for point in events.Scalars("loss")] == [1, 2, 3, 4]
