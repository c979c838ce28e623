"""Memory that runs out while training: one paragraph says what to lower, and the run is as it was."""

from pathlib import Path

import pytest
import torch
from support.ranks import At, When, fail_with, limit_memory, train_on
from support.states import assert_close, assert_equal, events, saved_steps, tensors
from support.tiny import TINY, dis, result, train, trained

from dis_cli.runtime.faults import inject

SETTINGS = ["train.steps=6", "train.save_every=2", "train.batch_size=8", "train.lr_schedule=constant"]
ON_A_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has a total of 1 GiB")
ON_A_CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: 9 bytes")
IN_NUMPY = MemoryError("Unable to allocate 1.00 TiB for an array with shape (8,)")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("straight") / "run", *SETTINGS)


def assert_told(error: str, *, batch: int = 8, step: int = 4) -> None:
    """In one paragraph and a hint."""
    message, empty, hint = error.splitlines()
    assert message.startswith(f"error: Out of memory in step {step}, with train.batch_size {batch} in 1 parts of 8x8 ")
    assert "3 blocks of width 16" in message
    assert empty == ""
    assert hint.startswith("hint: ")
    for setting in (
        "train.accumulation=2",
        "train.gradient_checkpointing=true",
        "train.batch_size",
        "model.image_size",
    ):
        assert setting in hint
    assert "Traceback" not in error


@pytest.mark.parametrize("error", [ON_A_GPU, ON_A_CPU, IN_NUMPY], ids=["gpu", "cpu", "numpy"])
def test_one_process(error: Exception, straight: Path, tmp_path: Path, capsys) -> None:
    inject(At(4, action=fail_with(error)))
    assert dis("train", "--out", tmp_path, "-q", "--json", *TINY, *SETTINGS) == 1
    captured = capsys.readouterr()
    assert_told(captured.err)
    assert str(error).splitlines()[0] in captured.err
    assert '"exit_code": 1' in captured.out
    assert saved_steps(tmp_path) == [2]
    assert events(tmp_path, "stopped")[-1]["reason"] == "error"
    inject(None)
    # As the hint says.
    assert dis("train", "--out", tmp_path, "--json", *TINY, *SETTINGS, "train.accumulation=2") == 0
    assert result(capsys)["complete"] is True
    assert_close(tensors(tmp_path, 6), tensors(straight, 6))


@pytest.mark.parametrize(("batch", "parts"), [(8, "=2)"), (9, "=3)"), (5, "=5)"), (1, "")])
def test_the_parts_that_are_named_divide_the_batch(batch: int, parts: str, tmp_path: Path, capsys) -> None:
    inject(At(1, action=fail_with(ON_A_CPU)))
    assert dis("train", "--out", tmp_path, "-q", *TINY, *SETTINGS, f"train.batch_size={batch}") == 1
    hint = capsys.readouterr().err.partition("hint: ")[2]
    assert f"(train.accumulation{parts}" in hint if parts else "train.accumulation" not in hint


def test_another_error_is_not_taken_for_it(tmp_path: Path, capsys) -> None:
    inject(At(4, action=fail_with(RuntimeError("something else"))))
    assert train(tmp_path, *SETTINGS) == 1
    assert "error: unexpected RuntimeError: something else" in capsys.readouterr().err


@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_of_two(rank: int, straight: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = train_on(2, run, *SETTINGS, faults={rank: At(4, action=fail_with(ON_A_GPU))})
    assert [one.code for one in ended] == [1, 1], ended
    error = ended[0].err
    assert error.startswith("error: Out of memory" if rank == 0 else "error: Rank 1 failed: Out of memory"), error
    assert_told(error.replace("Rank 1 failed: ", ""))
    assert saved_steps(run) == [2]
    assert [one.code for one in train_on(2, run, *SETTINGS)] == [0, 0]
    assert_close(tensors(run, 6), tensors(straight, 6))


def test_a_limit_of_the_system(tmp_path: Path) -> None:
    # A batch that needs some 200 MB, in a process that gets little more than the model does.
    settings = [*SETTINGS, "train.batch_size=4096"]
    run = tmp_path / "run"
    assert [one.code for one in train_on(1, run, *settings, "train.steps=2")] == [0]
    before = tensors(run, 2)
    (ended,) = train_on(1, run, *settings, faults={0: When("build_training_state", limit_memory(40))})
    assert ended.code == 1, ended
    assert_told(ended.err, batch=4096, step=3)
    assert saved_steps(run) == [2]
    assert not list(run.rglob(".tmp-*"))
    (ended,) = train_on(1, run, *settings)
    assert ended.code == 0, ended
    assert saved_steps(run) == [2, 4, 6]
    assert_equal(tensors(run, 2), before)
