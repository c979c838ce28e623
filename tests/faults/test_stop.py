"""SIGINT and SIGTERM at any moment, to one rank or all: the step is saved, and the same command goes on from there."""

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.ranks import At, Ended, When, signalling, start_training, train_on
from support.states import assert_close, assert_close_losses, assert_equal, events, losses, saved_steps, tensors
from support.tiny import TINY, train, trained

from dis_cli.runtime.faults import inject

SETTINGS = ["train.steps=8", "train.save_every=4", "train.lr_schedule=constant", "train.batch_size=8"]
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
PROMPT = 10.0


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("straight") / "run", *SETTINGS)


@pytest.mark.parametrize(
    ("number", "step", "point", "saved"),
    [
        (signal.SIGTERM, 1, "gradients", [1]),
        (signal.SIGINT, 4, "gradients", [4]),
        (signal.SIGTERM, 4, "saving", [4, 5]),
        (signal.SIGINT, 7, "gradients", [4, 7]),
        (signal.SIGHUP, 3, "gradients", [3]),
        (signal.SIGHUP, 4, "saving", [4, 5]),
    ],
)
def test_one_process_saves_the_step(number, step, point, saved, straight: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    inject(At(step, action=signalling(number), point=point))
    assert train(run, *SETTINGS) == STATUS[number]
    assert saved_steps(run) == saved
    message = f"Stopped at step {saved[-1]} of 8, which is saved"
    assert f"error: {message}\n\nhint: Run the same command again to continue" in capsys.readouterr().err
    stopped = {"event": "stopped", "step": saved[-1], "reason": "signal", "message": message}
    assert events(run, "stopped") == [stopped]
    inject(None)
    assert train(run, *SETTINGS) == 0
    assert losses(run) == losses(straight)
    assert_equal(tensors(run, 8), tensors(straight, 8))


def test_a_signal_in_the_last_step_does_not_undo_the_work(straight: Path, tmp_path: Path) -> None:
    inject(At(8, action=signalling(signal.SIGTERM)))
    assert train(tmp_path / "run", *SETTINGS) == 0
    assert_equal(tensors(tmp_path / "run", 8), tensors(straight, 8))


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_interrupt_stops_at_once(first, straight: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    inject(At(6, action=signalling(first, signal.SIGINT)))
    assert train(run, *SETTINGS) == 130
    assert "error: Interrupted\n" in capsys.readouterr().err
    assert saved_steps(run) == [4]
    inject(None)
    assert train(run, *SETTINGS) == 0
    assert losses(run) == losses(straight)
    assert_equal(tensors(run, 8), tensors(straight, 8))


def assert_stopped(ended: list[Ended], status: int) -> None:
    assert [rank.code for rank in ended] == [status] * len(ended), ended
    began = min(rank.fault_at for rank in ended if rank.fault_at is not None)
    assert max(rank.at for rank in ended) - began < PROMPT, ended
    # Of several, only the leader speaks.
    assert [rank.err for rank in ended[1:]] == [""] * (len(ended) - 1)


@pytest.mark.parametrize(
    ("number", "step", "ranks", "saved"),
    [
        (signal.SIGTERM, 1, (0, 1), [1]),
        (signal.SIGINT, 3, (1,), [3]),
        (signal.SIGTERM, 4, (0,), [4]),
        (signal.SIGINT, 7, (0, 1), [4, 7]),
        (signal.SIGHUP, 3, (1,), [3]),
    ],
)
def test_all_ranks_save_the_same_step(number, step, ranks, saved, straight: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fault = At(step, action=signalling(number))
    ended = train_on(2, run, *SETTINGS, faults=dict.fromkeys(ranks, fault))
    assert_stopped(ended, STATUS[number])
    assert f"error: Stopped at step {saved[-1]} of 8, which is saved" in ended[0].err
    assert saved_steps(run) == saved
    assert [rank.code for rank in train_on(2, run, *SETTINGS)] == [0, 0]
    assert_close_losses(run, straight)
    assert_close(tensors(run, 8), tensors(straight, 8))


@pytest.mark.parametrize("ranks", [(0,), (1,), (0, 1)])
def test_a_second_interrupt_stops_all_ranks_at_once(ranks: tuple[int, ...], tmp_path: Path) -> None:
    run = tmp_path / "run"
    fault = At(6, action=signalling(signal.SIGINT, signal.SIGINT))
    ended = train_on(2, run, *SETTINGS, faults=dict.fromkeys(ranks, fault))
    assert [rank.code for rank in ended] == [130, 130], ended
    began = min(rank.fault_at for rank in ended if rank.fault_at is not None)
    assert max(rank.at for rank in ended) - began < 5, ended
    assert "Interrupted" in ended[0].err
    assert saved_steps(run) == [4]


# Before the run's folder has anything in it. A rank that goes before it has met the others cannot tell them: that is
# for `torchrun`, which ends them all.
@pytest.mark.parametrize(
    ("ranks", "place"), [(None, "pick_device"), *((ranks, "build_source") for ranks in (None, (0,), (1,), (0, 1)))]
)
def test_a_signal_before_the_run_begins_leaves_nothing(place, ranks, tmp_path: Path) -> None:
    fault = When(place, signalling(signal.SIGTERM))
    ended = train_on(2 if ranks else 1, tmp_path / "run", *SETTINGS, faults=dict.fromkeys(ranks or (0,), fault))
    assert_stopped(ended, 143)
    assert "nothing was trained" in ended[0].err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-said"]


def test_a_signal_while_the_others_have_not_come(tmp_path: Path) -> None:
    # Rank 1 of 2 is late for ever.
    late = When("pick_device", functools.partial(time.sleep, 600))
    ranks = start_training(2, tmp_path / "run", *SETTINGS, faults={1: late})
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / ".lock").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    at = ranks.send(signal.SIGTERM, 0)
    ranks.processes[0].join(60)
    ranks.send(signal.SIGKILL, 1)
    ended = ranks.finish()
    assert ended[0].code == 143
    assert ended[0].at - at < PROMPT
    assert "the other processes have not arrived" in ended[0].err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-said"]


@pytest.mark.parametrize("ranks", [None, (1,)])
def test_a_signal_while_the_model_is_built_ends_the_first_step(ranks, straight: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fault = When("build_training_state", signalling(signal.SIGTERM))
    ended = train_on(2 if ranks else 1, run, *SETTINGS, faults=dict.fromkeys(ranks or (0,), fault))
    assert_stopped(ended, 143)
    assert "Stopped at step 1 of 8, which is saved" in ended[0].err
    assert saved_steps(run) == [1]
    assert train(run, *SETTINGS) == 0
    assert_close(tensors(run, 8), tensors(straight, 8))


@pytest.mark.parametrize(("count", "rank"), [(1, 0), (2, 1)])
def test_a_signal_while_images_are_generated(count: int, rank: int, straight: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sampling = ["sample.sampler=ddim", "sample.steps=4", "sample.batch_size=4", "evaluate.num_samples=16"]
    settings = [*SETTINGS, *sampling, "train.preview_images=10"]
    fault = When("generate", signalling(signal.SIGTERM), module="train.watch")
    for step, looking in ((3, ["train.preview_every=3"]), (6, ["train.evaluate_every=6"])):
        ended = train_on(count, run, *settings, *looking, faults={rank: fault})
        assert_stopped(ended, 143)
        # No matter what save_every says.
        assert f"Stopped at step {step} of 8, which is saved" in ended[0].err
        assert saved_steps(run)[-1] == step
    assert list((run / "samples").iterdir()) == []
    assert events(run, "metric") == []
    # The next start makes first what was under way.
    both = ["train.preview_every=3", "train.evaluate_every=6"]
    assert [rank.code for rank in train_on(count, run, *settings, *both)] == [0] * count
    assert [path.name for path in (run / "samples").iterdir()] == ["preview-00000006.png"]
    assert [record["step"] for record in events(run, "metric")] == [6, 6]
    assert [path.name[:13] for path in (run / "evaluations").iterdir()] == ["step-00000006"]
    assert_close(tensors(run, 8), tensors(straight, 8))


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 2])
def test_ten_moments(count: int, tmp_path: Path) -> None:
    settings = ["train.steps=1000", "train.save_every=100", "train.lr_schedule=constant", "train.batch_size=8"]
    straight, run = tmp_path / "straight", tmp_path / "run"
    assert [rank.code for rank in train_on(count, straight, *settings)] == [0] * count
    draw, stopped = random.Random(0), 0
    for _ in range(10):
        before = len(events(run, "started"))
        ranks = start_training(count, run, *settings)
        deadline = time.monotonic() + 60
        while len(events(run, "started")) == before and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.5))
        number = draw.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
        at = ranks.send(number, draw.randrange(count))
        ended = ranks.finish()
        assert {rank.code for rank in ended} in ({0}, {STATUS[number]}), ended
        assert max(rank.at for rank in ended) - at < PROMPT
        assert losses(run)[-1][0] == saved_steps(run)[-1]
        stopped += ended[0].code != 0
    assert stopped >= 3
    assert [rank.code for rank in train_on(count, run, *settings)] == [0] * count
    assert losses(run) == losses(straight)
    assert_equal(tensors(run, 1000), tensors(straight, 1000))


def torchrun(run: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "-m", "dis_cli", "train", "--json"]
    return subprocess.Popen(
        [*command, "--out", str(run), *TINY, *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.long
def test_torchrun(straight: Path, tmp_path: Path) -> None:
    process = torchrun(tmp_path / "run", *SETTINGS)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert json.loads(out)["step"] == 8
    assert_close_losses(tmp_path / "run", straight)
    assert_close(tensors(tmp_path / "run", 8), tensors(straight, 8))
    assert events(tmp_path / "run", "started")[0]["details"]["processes"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(other, marks=pytest.mark.long) for other in (signal.SIGINT, signal.SIGHUP))],
)
def test_a_signal_to_torchrun(number: signal.Signals, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ["train.steps=100000", "train.save_every=50000", "train.lr_schedule=constant", "train.batch_size=8"]
    process = torchrun(run, *settings)
    deadline = time.monotonic() + 120
    while not events(run, "step") and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    at = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=100)
    assert time.monotonic() - at < 20
    assert process.returncode != 0
    assert "which is saved" in err
    (step,) = saved_steps(run)
    assert losses(run)[-1][0] == step
    assert train(run, *settings, f"train.steps={step + 2}") == 0
    assert saved_steps(run) == [step, step + 2]
