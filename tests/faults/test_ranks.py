"""Several ranks train what one process trains, stop together when one of them fails, and leave a run that continues."""

import json
import signal
from pathlib import Path

import pytest
from support.ranks import At, Ended, When, fail_with, flip_bit, signalling, start, train_on
from support.states import assert_close, assert_close_losses, events, losses, saved_steps, tensors
from support.tiny import TINY, train, trained

from dis_cli.errors import DataError

# A rate that does not depend on the last step, so that a run can be prolonged.
SETTINGS = [
    "train.steps=6",
    "train.save_every=3",
    "train.batch_size=8",
    "train.lr_schedule=constant",
    "train.ema_more=0.5",
]
# Seconds in which all ranks are to stop when one has failed.
PROMPT = 5.0


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process trains."""
    return trained(tmp_path_factory.mktemp("alone") / "run", *SETTINGS)


@pytest.fixture(scope="module")
def alone_dropping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with paths and labels dropped."""
    return trained(tmp_path_factory.mktemp("alone") / "dropping", *SETTINGS, *DROPPING)


DROPPING = ["model.drop_path=0.5", "model.label_drop=0.5"]


def assert_same_training(run: Path, expected: Path) -> None:
    assert_close_losses(run, expected)
    assert saved_steps(run) == saved_steps(expected) == [3, 6]
    for step in (3, 6):
        assert tensors(run, step).keys() == {"model", "ema", "ema_more_0", "optimizer"}
        assert_close(tensors(run, step), tensors(expected, step))


def assert_all_stopped(ended: list[Ended], code: int = 1) -> None:
    assert [rank.code for rank in ended] == [code] * len(ended), ended
    (fault_at,) = [rank.fault_at for rank in ended if rank.fault_at is not None]
    assert max(rank.at for rank in ended) - fault_at < PROMPT, ended


@pytest.mark.parametrize(
    ("count", "changes"),
    [
        (2, ["train.accumulation=1"]),
        (2, ["train.accumulation=2"]),
        (2, ["train.accumulation=4"]),
        (2, ["train.gradient_checkpointing=true"]),
        (4, []),
        (2, ["train.sharding=fsdp"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_ranks_train_what_one_process_trains(count: int, changes: list[str], alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = train_on(count, run, *SETTINGS, *changes)
    assert [rank.code for rank in ended] == [0] * count, ended
    assert [rank.out == "" for rank in ended] == [False] + [True] * (count - 1)
    assert all(rank.err == "" for rank in ended), ended
    assert_same_training(run, alone)
    assert events(run, "started")[0]["details"]["processes"] == count
    assert json.loads((run / "run.json").read_text())["processes"] == count


@pytest.mark.parametrize(
    "changes", [[], ["train.sharding=fsdp", "train.accumulation=2", "train.gradient_checkpointing=true"]]
)
def test_dropped_paths_and_labels_are_the_same(changes: list[str], alone_dropping: Path, alone: Path, tmp_path: Path):
    ended = train_on(2, tmp_path / "run", *SETTINGS, *DROPPING, *changes)
    assert [rank.code for rank in ended] == [0, 0], ended
    assert_same_training(tmp_path / "run", alone_dropping)
    assert losses(alone_dropping) != losses(alone)


def test_a_run_continues_on_another_number_of_ranks(tmp_path: Path) -> None:
    straight, run = tmp_path / "straight", tmp_path / "run"
    assert train(straight, *SETTINGS, "train.steps=12", "train.keep_last=5") == 0
    starts = [(1, []), (2, []), (2, ["train.sharding=fsdp"]), (1, [])]
    for number, (count, changes) in enumerate(starts, start=1):
        ended = train_on(count, run, *SETTINGS, f"train.steps={3 * number}", "train.keep_last=5", *changes)
        assert [rank.code for rank in ended] == [0] * count, ended
        assert_close(tensors(run, 3 * number), tensors(straight, 3 * number))
    assert_close_losses(run, straight)
    assert saved_steps(run) == [3, 6, 9, 12]


def test_a_batch_that_cannot_be_dealt_out_is_refused(tmp_path: Path) -> None:
    ended = train_on(2, tmp_path / "run", *SETTINGS, "train.batch_size=6", "train.accumulation=2", options=["--json"])
    assert [rank.code for rank in ended] == [2, 2], ended
    message = "`train.batch_size`: got 6, which cannot be divided equally among 2 processes in 2 parts each"
    assert f"error: {message}" in ended[0].err
    assert "hint: Set train.accumulation=1" in ended[0].err
    assert json.loads(ended[0].out)["error"]["exit_code"] == 2
    assert (ended[1].out, ended[1].err) == ("", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-said"]


def test_a_rank_with_other_settings_is_refused(tmp_path: Path) -> None:
    own = {1: ["train.lr=0.5", "data.num_workers=0"]}
    ended = start(
        2, "train", "--out", tmp_path / "run", "-q", *TINY, *SETTINGS, own=own, folder=tmp_path / "said"
    ).finish()
    assert [rank.code for rank in ended] == [2, 2], ended
    assert (
        'do not agree:\n  data.num_workers: "auto" on rank 0, 0 on rank 1\n  train.lr: 0.003 on rank 0, 0.5'
        in ended[0].err
    )
    assert not (tmp_path / "run").exists()


def test_a_rank_with_other_weights_is_found_before_they_are_saved(alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = train_on(2, run, *SETTINGS, faults={1: At(5, action=flip_bit)})
    assert_all_stopped(ended)
    assert "error: The processes hold different weights after step 6, which was not saved" in ended[0].err
    assert saved_steps(run) == [3]
    assert events(run, "stopped")[-1]["reason"] == "error"
    assert [rank.code for rank in train_on(2, run, *SETTINGS)] == [0, 0]
    assert_same_training(run, alone)


@pytest.mark.parametrize(
    ("error", "message", "hint", "sharding"),
    [
        (DataError("Image 7 is cut", "Bring it back"), "Image 7 is cut", "hint: Bring it back", "ddp"),
        (ValueError("broken contract"), "ValueError: broken contract", "", "fsdp"),
    ],
    ids=["known", "unexpected"],
)
def test_an_error_of_one_rank_stops_all(
    error: Exception, message: str, hint: str, sharding: str, alone: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = [*SETTINGS, f"train.sharding={sharding}"]
    ended = train_on(2, run, *settings, faults={1: At(5, action=fail_with(error))}, options=["-q", "--json"])
    assert_all_stopped(ended)
    assert f"error: Rank 1 failed: {message}\n" in ended[0].err
    assert hint in ended[0].err
    assert json.loads(ended[0].out)["error"]["message"] == f"Rank 1 failed: {message}"
    assert ended[1].out == ""
    assert ended[1].err.startswith("error: rank 1: ")
    assert saved_steps(run) == [3]
    stopped = {"event": "stopped", "step": 4, "reason": "error", "message": f"Rank 1 failed: {message}"}
    assert events(run, "stopped") == [stopped]
    assert not (run / ".lock-holder.json").exists()
    assert [rank.code for rank in train_on(2, run, *settings)] == [0, 0]
    assert_same_training(run, alone)


@pytest.mark.parametrize(("victim", "sharding"), [(0, "ddp"), (1, "ddp"), (1, "fsdp")])
def test_a_rank_that_is_killed_stops_all(victim: int, sharding: str, alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = [*SETTINGS, f"train.sharding={sharding}"]
    fault = At(5, action=signalling(signal.SIGKILL))
    ended = train_on(2, run, *settings, faults={victim: fault}, options=["-q", "--json"])
    survivor = ended[1 - victim]
    assert ended[victim].code == -signal.SIGKILL
    assert survivor.code == 1
    assert survivor.at - (ended[victim].fault_at or 0) < PROMPT, ended
    if victim == 1:
        assert "error: Another process of the job ended without a message" in survivor.err
        assert json.loads(survivor.out)["error"]["kind"] == "PeerError"
        (stopped,) = events(run, "stopped")
        assert stopped["message"].startswith("Another process of the job ended without a message")
    # The leader may have been killed while its thread was still writing that of step 3.
    assert saved_steps(run) in ([[], [3]] if victim == 0 else [[3]])
    if sharding == "ddp":
        assert [rank.code for rank in train_on(2, run, *settings)] == [0, 0]
        assert_same_training(run, alone)


def test_the_third_of_four_is_killed(tmp_path: Path) -> None:
    ended = train_on(4, tmp_path / "run", *SETTINGS, faults={2: At(5, action=signalling(signal.SIGKILL))})
    assert [rank.code for rank in ended] == [1, 1, -signal.SIGKILL, 1], ended
    assert max(rank.at for rank in ended) - (ended[2].fault_at or 0) < PROMPT, ended
    assert "ended without a message" in ended[0].err
    assert saved_steps(tmp_path / "run") == [3]


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
@pytest.mark.parametrize("place", ["build_source", "build_training_state", "_events"])
def test_an_error_of_one_rank_before_the_first_step_stops_all(place: str, sharding: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fault = When(place, fail_with(DataError("Nothing here", "Bring it")))
    ended = train_on(2, run, *SETTINGS, f"train.sharding={sharding}", faults={1: fault}, options=["-q", "--json"])
    assert_all_stopped(ended)
    assert "error: Rank 1 failed: Nothing here\n\nhint: Bring it\n" in ended[0].err
    assert json.loads(ended[0].out)["error"]["message"] == "Rank 1 failed: Nothing here"
    assert ended[1].out == ""
    assert not (run / ".lock-holder.json").exists()
    # The run begins when all have their data.
    assert run.exists() == (place != "build_source")


def test_an_error_of_the_leader_before_the_first_step_stops_all(tmp_path: Path) -> None:
    assert train(tmp_path / "run", *SETTINGS) == 0
    before = (tmp_path / "run" / "config.toml").read_bytes()
    ended = train_on(2, tmp_path / "run", *SETTINGS, "train.lr=0.5")
    assert [rank.code for rank in ended] == [2, 2], ended
    assert "train.lr: 0.003 there, 0.5 asked for" in ended[0].err
    assert ended[1].err == ""
    assert (tmp_path / "run" / "config.toml").read_bytes() == before
