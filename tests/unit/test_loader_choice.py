"""How many loader processes a run takes, and what the loop says about waiting for them."""

import pytest
import torch
from support.tiny import train

from dis_cli.config.overrides import apply_overrides
from dis_cli.config.presets import load_preset
from dis_cli.runs.folder import read_events
from dis_cli.workflows.train import build as build_training
from dis_cli.workflows.train.build import num_loader_workers


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (2, 1), (4, 3), (64, 8)])
def test_cores_that_are_free_beside_a_gpu_load_data(cores, workers, monkeypatch) -> None:
    monkeypatch.setattr(build_training, "num_cores", lambda: cores)
    config = load_preset("dis-s-cifar")
    assert num_loader_workers(config, torch.device("cuda")) == workers
    assert num_loader_workers(config, torch.device("cpu")) == 0


def test_a_number_that_is_given_stands() -> None:
    config = apply_overrides(load_preset("dis-s-cifar"), ["data.num_workers=3"])
    assert num_loader_workers(config, torch.device("cpu")) == 3


def test_the_time_spent_waiting_is_recorded(tmp_path) -> None:
    assert train(tmp_path, "train.steps=3") == 0
    steps = [event for event in read_events(tmp_path / "events.jsonl") if event["event"] == "step"]
    assert all(0 < step["data_seconds"] < step["seconds"] for step in steps)
    finished = next(event for event in read_events(tmp_path / "events.jsonl") if event["event"] == "finished")
    waited = sum(step["data_seconds"] for step in steps) / sum(step["seconds"] for step in steps)
    assert finished["result"]["data_wait_share"] == pytest.approx(waited, abs=1e-3)
