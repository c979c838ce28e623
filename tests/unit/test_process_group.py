"""What ranks tell each other, and that none waits for one that is gone."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.ranks import call_on, start_calls

from dis_cli.errors import DataError, DisError, Interrupted, MismatchError, UsageError
from dis_cli.runtime import process_group
from dis_cli.runtime.process_group import ProcessGroup, join_process_group, meet
from dis_cli.runtime.signals import StopRequest

CPU = torch.device("cpu")
A_FLOAT32 = torch.tensor(0.1).item()


def talk(folder: Path) -> dict[str, Any]:
    """What one rank hears."""
    with join_process_group(CPU) as group:
        calls: list[int] = []

        def make() -> dict[str, Any]:
            calls.append(group.rank)
            return {"from": group.rank, "path": folder}

        heard: dict[str, Any] = {
            "rank": (group.rank, group.world_size, group.is_leader),
            "sum": group.sum([group.rank, 0.1]),
            "maximum": group.maximum([group.rank, -group.rank]),
            "mean": group.mean([group.rank, A_FLOAT32]),
            "bad mean": group.mean([math.nan if group.rank == 1 else 0.0, math.inf if group.rank == 2 else 0.0]),
            "leader's": group.from_leader(make),
            "calls": calls,
            "gathered": group.gather("abc"[group.rank]),
        }
        group.require_agreement({"same": [1, 2]})
        try:
            group.require_agreement({"same": 1, "data": f"sha {min(group.rank, 1)}"})
        except MismatchError as error:
            heard["disagreement"] = error.message
        for place in ("first", "second"):
            if group.is_leader:
                time.sleep(0.3)
                (folder / place).touch()
            group.wait_for_leader(StopRequest(), "")
            heard[place] = (folder / place).exists()
        if not group.is_leader:
            stop = StopRequest(signal.SIGTERM)
            try:
                group.wait_for_leader(stop, "so far")
            except Interrupted as error:
                heard["interrupted"] = error.message
        group.barrier()
        return heard


def test_what_three_ranks_hear(tmp_path: Path) -> None:
    heard = call_on(3, talk, tmp_path, folder=tmp_path / "said")
    assert [one["rank"] for one in heard] == [(0, 3, True), (1, 3, False), (2, 3, False)]
    for rank, one in enumerate(heard):
        assert one["sum"] == [3, pytest.approx(0.3)]
        assert one["maximum"] == [2, 0]
        # The mean of equal numbers of 32 bits is the number.
        assert one["mean"] == [1, A_FLOAT32]
        assert math.isnan(one["bad mean"][0])
        assert one["bad mean"][1] == math.inf
        assert one["leader's"] == {"from": 0, "path": tmp_path}
        assert one["calls"] == ([0] if rank == 0 else [])
        assert one["gathered"] == (["a", "b", "c"] if rank == 0 else None)
        lines = ['data: "sha 0" on rank 0, "sha 1" on rank 1', 'data: "sha 0" on rank 0, "sha 1" on rank 2']
        assert one["disagreement"] == "The processes of the job do not agree:\n  " + "\n  ".join(lines)
        assert one["first"] is one["second"] is True
        assert one.get("interrupted") == (None if rank == 0 else "Interrupted; so far")
    # Every bit: what is decided by it is decided alike.
    assert heard[0]["sum"] == heard[1]["sum"] == heard[2]["sum"]


def test_one_process_hears_itself() -> None:
    with join_process_group(CPU) as group:
        assert (group.rank, group.world_size, group.is_leader) == (0, 1, True)
        assert group.sum([1, 2]) == group.mean([1, 2]) == group.maximum([1, 2]) == [1, 2]
        assert group.from_leader(lambda: "own") == "own"
        assert group.gather("own") == ["own"]
        group.wait_for_leader(StopRequest(), "")
        group.barrier()
        group.require_agreement({"anything": 1})


def test_a_launcher_that_says_too_little_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DisError, match="Rank 1 of 2 cannot reach the others") as caught, join_process_group(CPU):
        pass
    assert "torchrun" in (caught.value.hint or "")


def fail_beside(deaf: bool) -> str:
    """Rank 1 fails, while the others wait for it or, when deaf, for something that does not end."""
    with join_process_group(CPU) as group:
        group.barrier()
        if group.rank == 1:
            Path(os.environ["DIS_TEST_FAULT"]).write_text(str(time.monotonic()))
            raise DataError("no such image", "look again")
        if deaf:
            time.sleep(60)
        group.barrier()
    return "not reached"


@pytest.mark.parametrize("deaf", [False, True])
def test_no_rank_outlives_one_that_failed(deaf: bool, tmp_path: Path) -> None:
    ended = start_calls(3, fail_beside, deaf, folder=tmp_path).finish()
    assert [rank.code for rank in ended] == [1, 1, 1]
    assert "DataError: no such image" in ended[1].err
    for rank in (ended[0], ended[2]):
        # A deaf one is ended where it is, without a word.
        assert ("PeerError: Rank 1 failed: no such image" in rank.err) is not deaf
    assert max(rank.at for rank in ended) - (ended[1].fault_at or 0) < 5


def leave_early(folder: Path) -> None:
    """Rank 1 is done before the leader, which needs nobody any more and then fails."""
    with join_process_group(CPU) as group:
        group.barrier()
        if group.is_leader:
            time.sleep(0.5)
            raise DataError("too late")


def test_a_rank_that_is_done_is_not_concerned(tmp_path: Path) -> None:
    started = time.monotonic()
    ended = start_calls(2, leave_early, tmp_path, folder=tmp_path / "said").finish()
    assert [rank.code for rank in ended] == [1, 0]
    assert ended[1].err == ""
    # Nobody is left who would have to be waited for.
    assert ended[0].at - ended[1].at < 2
    assert started < ended[1].at


def test_group_of_its_own_needs_no_others() -> None:
    assert ProcessGroup().mean([math.pi]) == [math.pi]


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("MASTER_ADDR", None, "MASTER_ADDR is not set"),
        ("MASTER_PORT", None, "MASTER_PORT is not set"),
        ("MASTER_PORT", "x", "MASTER_PORT must be a number from 0 to 65535, got x"),
        ("MASTER_PORT", "65536", "MASTER_PORT must be a number from 0 to 65535, got 65536"),
    ],
)
def test_a_meeting_place_that_is_not_said_is_wrong_usage(name: str, value: str | None, problem: str, monkeypatch):
    variables = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29511"}
    for key, text in variables.items():
        monkeypatch.setenv(key, text)
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"RANK=0 and WORLD_SIZE=2 are set, but {problem}") as caught:
        next(meet(StopRequest()))
    assert "torchrun" in (caught.value.hint or "")
    assert "`unset RANK WORLD_SIZE`" in (caught.value.hint or "")


@pytest.mark.parametrize("rank", [0, 1])
def test_whoever_waits_for_others_says_so_once(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29511"}
    for key, text in variables.items():
        monkeypatch.setenv(key, text)
    monkeypatch.setattr(process_group, "_SILENT_SECONDS", 0.2)
    # Nobody comes; the real thing would wait beyond the end of this test.
    came = threading.Event()

    def rendezvous(url: str) -> Iterator[None]:
        came.wait(60)
        raise ValueError("nobody came")
        yield

    monkeypatch.setattr(process_group, "rendezvous", rendezvous)
    stop = StopRequest()
    waiting = meet(stop)
    said = next(waiting).message
    assert f"RANK={rank} and WORLD_SIZE=2 are set, so 2 must meet at localhost:29511" in said
    assert "`unset RANK WORLD_SIZE`" in said
    threading.Timer(0.5, came.set).start()
    with pytest.raises(DisError, match=f"Rank {rank} of 2 cannot reach the others: nobody came") as caught:
        next(waiting)
    assert "`unset RANK WORLD_SIZE`" in (caught.value.hint or "")


def test_whoever_works_alone_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(StopIteration) as end:
        next(meet(StopRequest()))
    assert end.value.value is None
