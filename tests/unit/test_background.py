"""Saving while training goes on: what is written is the state of the moment at which saving began."""

import threading
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dis_cli.checkpoints import background
from dis_cli.checkpoints.background import CheckpointWriter, Snapshot
from dis_cli.checkpoints.store import list_checkpoints, read_checkpoint, write_checkpoint
from dis_cli.errors import StorageError


def unchanged(tensor: Tensor) -> Tensor:
    return tensor


@pytest.fixture
def state() -> dict[str, dict[str, Tensor]]:
    return {"model": {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1)}, "ema": {"a": torch.zeros(2, 3)}}


@pytest.fixture
def writer(tmp_path: Path) -> Generator[CheckpointWriter]:
    writer = CheckpointWriter(tmp_path, keep_last=2, keep=lambda step: step % 10 == 0, whole=unchanged)
    yield writer
    writer.close()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Generator[threading.Event]:
    """Nothing is written before it is set."""
    gate = threading.Event()

    def write(*arguments):
        assert gate.wait(60)
        return write_checkpoint(*arguments)

    monkeypatch.setattr(background, "write_checkpoint", write)
    yield gate
    gate.set()


def test_a_snapshot_does_not_change_with_what_it_is_of(state) -> None:
    taken = Snapshot(unchanged).take(state)
    state["model"]["a"].add_(1)
    state["ema"]["a"].fill_(7)
    assert taken["model"]["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert taken["ema"]["a"].sum() == 0
    assert taken["model"]["b"].dtype == torch.int64


def test_a_snapshot_is_taken_into_the_memory_of_the_one_before(state) -> None:
    snapshot = Snapshot(unchanged)
    first = snapshot.take(state)
    places = {(group, name): tensor.data_ptr() for group in first for name, tensor in first[group].items()}
    state["model"]["a"].add_(1)
    second = snapshot.take(state)
    assert second["model"]["a"].equal(state["model"]["a"])
    assert places == {(group, name): tensor.data_ptr() for group in second for name, tensor in second[group].items()}
    # Another shape, and what is new, get memory of their own; what is gone is gone.
    third = snapshot.take({"model": {"a": torch.ones(5)}, "optimizer": {"c": torch.ones(1)}})
    assert {group: {name: tuple(t.shape) for name, t in named.items()} for group, named in third.items()} == {
        "model": {"a": (5,)},
        "optimizer": {"c": (1,)},
    }


def test_a_rank_that_only_helps_keeps_nothing(state) -> None:
    asked: list[Tensor] = []

    def whole(tensor: Tensor) -> Tensor:
        asked.append(tensor)
        return torch.cat([tensor.flatten()] * 2)

    assert Snapshot(whole).take(state, keep=False) == {"model": {}, "ema": {}}
    assert [tensor is own for tensor, own in zip(asked, [*state["model"].values(), state["ema"]["a"]], strict=True)]
    assert Snapshot(whole).take(state)["model"]["a"].tolist() == [0, 1, 2, 3, 4, 5] * 2


def test_training_goes_on_while_a_checkpoint_is_written(state, writer: CheckpointWriter, gate, tmp_path: Path) -> None:
    meta = {"num_skipped": 0}
    writer.begin(4, state, meta)
    state["model"]["a"].mul_(100)
    meta["num_skipped"] = 9
    assert writer.finished(wait=False) is None
    assert list_checkpoints(tmp_path) == []
    with pytest.raises(ValueError, match="was not waited for"):
        writer.begin(5, state, {})
    gate.set()
    path = writer.finished(wait=True)
    assert path is not None
    saved = read_checkpoint(path)
    assert (saved.step, saved.meta["num_skipped"]) == (4, 0)
    assert saved.tensors["model"]["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert writer.finished(wait=True) is None


def test_old_checkpoints_go_but_those_that_are_kept(state, writer: CheckpointWriter, tmp_path: Path) -> None:
    for step in (1, 10, 11, 12, 13):
        writer.begin(step, state, {})
        assert writer.finished(wait=True) == tmp_path / f"step-{step:08d}"
    assert [read_checkpoint(folder).step for folder in list_checkpoints(tmp_path)] == [10, 12, 13]


def test_an_error_of_the_thread_is_raised_where_it_is_waited_for(
    state, writer: CheckpointWriter, tmp_path: Path, monkeypatch
) -> None:
    def write(*arguments):
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(background, "write_checkpoint", write)
        writer.begin(1, state, {})
        with pytest.raises(StorageError, match="the disk is full"):
            writer.finished(wait=True)
        # It is told once, and the next save has nothing to do with it.
        assert writer.finished(wait=True) is None
        writer.begin(2, state, {})
        writer.close()
        with pytest.raises(StorageError, match="the disk is full"):
            writer.finished(wait=False)
    assert writer.finished(wait=True) is None


def test_closing_waits_for_what_is_under_way(state, writer: CheckpointWriter, gate, tmp_path: Path) -> None:
    writer.begin(1, state, {})
    threading.Timer(0.2, gate.set).start()
    writer.close()
    assert read_checkpoint(tmp_path / "step-00000001").step == 1


def test_a_helper_writes_nothing(state, tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep_last=1, keep=bool, whole=unchanged, writes=False)
    writer.begin(1, state, {})
    assert writer.finished(wait=True) is None
    writer.begin(2, state, {})
    writer.close()
    assert list(tmp_path.iterdir()) == []
