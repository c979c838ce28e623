"""A loss or gradient that is no number: on whichever rank, all stop before the step, or all leave it out."""

import math
from pathlib import Path

import pytest
from support.ranks import At, BadLoss, bad_gradient, train_on
from support.states import assert_close, assert_equal, events, losses, saved_steps, tensors
from support.tiny import TINY, dis, result, train, trained

from dis_cli.runtime.faults import inject

SETTINGS = ["train.steps=8", "train.save_every=2", "train.keep_last=9", "train.lr_schedule=constant"]
PROMPT = 5.0


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("straight") / "run", *SETTINGS)


def assert_stopped_before_step_five(run: Path, error: str, straight: Path) -> None:
    assert "at step 5" in error
    assert "train.on_nonfinite=skip:3" in error
    assert saved_steps(run) == [2, 4]
    assert_close(tensors(run, 4), tensors(straight, 4))
    assert all(tensor.isfinite().all() for group in tensors(run, 4).values() for tensor in group.values())
    assert [step for step, _ in losses(run)] == [1, 2, 3, 4]
    assert events(run, "stopped")[-1] == {
        "event": "stopped",
        "step": 4,
        "reason": "error",
        "message": error.removeprefix("error: ").splitlines()[0],
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_process_stops_before_the_step(value: float, straight: Path, tmp_path: Path, capsys) -> None:
    inject(At(5, action=bad_gradient(value)))
    assert train(tmp_path / "run", *SETTINGS) == 1
    assert_stopped_before_step_five(tmp_path / "run", capsys.readouterr().err, straight)
    inject(None)
    assert train(tmp_path / "run", *SETTINGS) == 0
    assert_equal(tensors(tmp_path / "run", 8), tensors(straight, 8))


@pytest.mark.parametrize(
    ("rank", "fault", "sharding"),
    [
        (0, BadLoss((5,)), "ddp"),
        (1, BadLoss((5,), math.inf), "ddp"),
        (1, At(5, action=bad_gradient(math.nan)), "ddp"),
        (1, BadLoss((5,)), "fsdp"),
        (1, At(5, action=bad_gradient(math.inf)), "fsdp"),
    ],
)
def test_all_ranks_stop_before_the_step(rank: int, fault, sharding: str, straight: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = train_on(2, run, *SETTINGS, f"train.sharding={sharding}", faults={rank: fault})
    assert [one.code for one in ended] == [1, 1], ended
    assert max(one.at for one in ended) - (ended[rank].fault_at or 0) < PROMPT, ended
    # All found it together: it is not the failure of one.
    assert ended[0].err.startswith("error: The loss is ")
    assert_stopped_before_step_five(run, ended[0].err, straight)


def test_updates_are_left_out_counted_and_told(straight: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    settings = [*SETTINGS, "train.on_nonfinite=skip:3"]
    inject(At(2, 5, action=bad_gradient(math.inf)))
    assert dis("train", "--out", run, "--json", *TINY, *settings, "train.steps=6") == 0
    assert result(capsys)["skipped"] == 2
    assert [record["skipped"] for record in events(run, "step")] == [False, True, False, False, True, False]
    told = [record["message"] for record in events(run, "note") if record["level"] == "warning"]
    assert told == [
        "The loss or gradient of step 2 is not finite: its update was skipped (1 so far)",
        "The loss or gradient of step 5 is not finite: its update was skipped (2 so far)",
    ]
    # Nothing but time has moved.
    assert_equal({"model": tensors(run, 2)["model"]}, {"model": after_one_step(tmp_path / "one")})
    # The count goes on in the next start: this is the third, and the fourth is too many.
    capsys.readouterr()
    inject(At(7, 8, action=bad_gradient(math.nan)))
    assert train(run, *settings) == 1
    error = capsys.readouterr().err
    assert "at step 8, after 3 updates that were left out before" in error
    assert saved_steps(run) == [2, 4, 6]
    assert [record["skipped"] for record in events(run, "step")][-1] is True
    inject(At(7, action=bad_gradient(math.nan)))
    assert train(run, *settings) == 0
    assert "skipped 3 updates were left out" in capsys.readouterr().out
    assert saved_steps(run)[-1] == 8
    assert all(tensor.isfinite().all() for group in tensors(run, 8).values() for tensor in group.values())


def after_one_step(run: Path) -> dict[str, object]:
    inject(None)
    assert train(run, *SETTINGS, "train.steps=1") == 0
    return tensors(run, 1)["model"]


@pytest.mark.parametrize("fault", [BadLoss((3, 5)), At(3, 5, action=bad_gradient(math.nan))], ids=["loss", "gradient"])
def test_ranks_leave_out_the_same_updates(fault, tmp_path: Path) -> None:
    alone, run = tmp_path / "alone", tmp_path / "run"
    settings = [*SETTINGS, "train.on_nonfinite=skip:2"]
    inject(At(3, 5, action=bad_gradient(math.nan)))
    assert train(alone, *settings) == 0
    ended = train_on(2, run, *settings, faults={1: fault})
    assert [one.code for one in ended] == [0, 0], ended
    assert [record["step"] for record in events(run, "step") if record["skipped"]] == [3, 5]
    assert "skipped 2 updates were left out" in ended[0].out
    assert saved_steps(run) == [2, 4, 6, 8]
    assert_close(tensors(run, 8), tensors(alone, 8))
