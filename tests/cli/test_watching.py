"""What a run does beside its steps: pictures, scores, the best checkpoint, averages, an end in time, a fresh start."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.ranks import At, CountImages, signalling, train_on
from support.states import assert_close, assert_equal, events, losses, saved_steps, tensors
from support.tiny import TINY, dis, result, train, trained

from dis_cli.config.presets import read_config
from dis_cli.runtime.faults import inject
from dis_cli.workflows.train import watch

SETTINGS = ["train.steps=6", "train.save_every=2", "train.lr_schedule=constant", "train.keep_last=1"]
QUICK = ["sample.sampler=ddim", "sample.steps=2", "sample.batch_size=8"]
PREVIEWS = ["train.preview_every=3", "train.preview_images=10", *QUICK]
SCORES = ["train.evaluate_every=6", "evaluate.num_samples=16", *QUICK]
OFTEN = [*SCORES, "train.evaluate_every=2"]
SCORE_FILE = "step-{:08d}_digits-cnn-64_ddim-2_cfg-1_n-16.json"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that looks at nothing."""
    return trained(tmp_path_factory.mktemp("plain") / "run", *SETTINGS)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that looks at everything."""
    return trained(tmp_path_factory.mktemp("watched") / "run", *SETTINGS, *PREVIEWS, *SCORES)


@pytest.fixture(scope="module")
def often(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that looks at everything often, with a score of its own."""
    run = tmp_path_factory.mktemp("often") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "score", cheap_score)
        assert train(run, *SETTINGS, *PREVIEWS, *OFTEN) == 0
    return run


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images were generated in training, each time."""
    counts: list[int] = []
    generate = watch.generate

    def counted(*arguments: Any, **options: Any) -> Any:
        counts.append(len(options["seeds"]))
        return generate(*arguments, **options)

    monkeypatch.setattr(watch, "generate", counted)
    return counts


def pictures(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "samples").iterdir())}


def scores(run: Path) -> dict[str, dict[str, Any]]:
    """Without what names the run's place."""
    results = {path.name: json.loads(path.read_bytes()) for path in sorted((run / "evaluations").iterdir())}
    return {name: {key: value for key, value in one.items() if key != "result_file"} for name, one in results.items()}


def cheap_score(images: torch.Tensor, labels: Any, *_: Any) -> dict[str, float]:
    """A score of exactly these images, in no time."""
    value = float((images.double() * torch.arange(1, images.numel() + 1).view(images.shape)).mean())
    return {"frechet_digits": value, "class_accuracy": float(labels.sum()), "floor": 0, "class_gaussians": 0} | {
        "class_accuracy_real": 0
    }


def put_scores(monkeypatch: pytest.MonkeyPatch, *values: dict[str, float]) -> None:
    """Give these scores, one after the other."""
    remaining = iter(values)
    monkeypatch.setattr(watch, "score", lambda *_: next(remaining))


def test_looking_changes_nothing_of_the_training(plain: Path, watched: Path) -> None:
    assert losses(watched) == losses(plain)
    assert_equal(tensors(watched, 6), tensors(plain, 6))


def test_pictures_are_grids_of_what_the_average_generates(watched: Path, tmp_path: Path) -> None:
    assert list(pictures(watched)) == ["preview-00000003.png", "preview-00000006.png"]
    wrote = [record for record in events(watched, "wrote") if record["what"] == "preview"]
    assert [record["path"] for record in wrote] == [str(watched / "samples" / name) for name in pictures(watched)]
    # The images of seeds 0 to 9, one of every class, as `dis sample` makes them from the checkpoint.
    ckpt = watched / "checkpoints" / "step-00000006"
    command = ["sample", "--ckpt", ckpt, "--out", tmp_path / "out", "-n", 10, "--class", "all", "-q"]
    assert dis(*command) == 0
    grid = np.asarray(Image.open(tmp_path / "out" / "grid.png"))
    assert np.array_equal(np.asarray(Image.open(watched / "samples" / "preview-00000006.png")), grid)
    assert pictures(watched)["preview-00000003.png"] != pictures(watched)["preview-00000006.png"]


def test_a_score_tells_the_sampler_that_ran_where_none_was_chosen(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(watch, "score", cheap_score)
    automatic = ["sample.sampler=auto", "sample.steps=auto"]
    assert train(tmp_path, *SETTINGS, *SCORES, *automatic, "train.steps=2", "train.evaluate_every=2") == 0
    [path] = (tmp_path / "evaluations").iterdir()
    assert path.name == "step-00000002_digits-cnn-64_dpmpp-25_cfg-1_n-16.json"
    sample = json.loads(path.read_text())["sample"]
    assert (sample["sampler"], sample["steps"]) == ("dpm++", 25)
    # What is resumed from stays open to a later choice.
    assert read_config(tmp_path / "config.toml").sample.steps == "auto"


def test_scores_are_written_told_and_those_of_the_checkpoint(watched: Path, tmp_path: Path, capsys) -> None:
    told = [(record["name"], record["step"], record["value"]) for record in events(watched, "metric")]
    written = scores(watched)
    assert list(written) == [SCORE_FILE.format(6)]
    last = written[SCORE_FILE.format(6)]
    assert told == [(name, 6, last[name]) for name in ("frechet_digits", "class_accuracy")]
    assert (last["step"], last["num_samples"]) == (6, 16)
    assert dis("eval-fid", "--ckpt", watched, "--out", tmp_path / "score.json", "--json") == 0
    again = result(capsys)
    for name in ("frechet_digits", "class_accuracy", "copy_share", "ema_decay", "data_sha256", "seed"):
        assert again[name] == last[name], name


@pytest.mark.parametrize("step", [2, 3, 5])
def test_an_interrupted_run_makes_the_same_pictures_and_scores_once(
    step: int, often: Path, generated: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "score", cheap_score)
    inject(At(step, action=signalling(15)))
    assert train(tmp_path, *SETTINGS, *PREVIEWS, *OFTEN) == 143
    inject(None)
    assert train(tmp_path, *SETTINGS, *PREVIEWS, *OFTEN) == 0
    assert pictures(tmp_path) == pictures(often)
    assert scores(tmp_path) == scores(often)
    assert list(scores(often)) == [SCORE_FILE.format(step) for step in (2, 4, 6)]
    assert sorted(generated) == [10, 10, 16, 16, 16]
    assert losses(tmp_path) == losses(often)
    assert train(tmp_path, *SETTINGS, *PREVIEWS, *OFTEN) == 0
    assert len(generated) == 5
    assert [record["step"] for record in events(tmp_path, "metric")] == [2, 2, 4, 4, 6, 6]


def test_every_rank_takes_part(watched: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fault = CountImages()
    ended = train_on(2, run, *SETTINGS, *PREVIEWS, *SCORES, "evaluate.num_samples=15", faults={0: fault, 1: fault})
    assert [rank.code for rank in ended] == [0, 0], ended
    # Ten images for each of two pictures, fifteen for the score.
    assert [rank.err.split() for rank in ended] == [["5", "5", "7"], ["5", "5", "8"]]
    assert list(pictures(run)) == list(pictures(watched))
    for name in pictures(run):
        shown, expected = (np.asarray(Image.open(one / "samples" / name)).astype(int) for one in (run, watched))
        assert np.abs(shown - expected).max() <= 1
    assert [one["num_samples"] for one in scores(run).values()] == [15]
    assert_close(tensors(run, 6), tensors(watched, 6))


@pytest.mark.parametrize(
    ("metric", "values", "kept", "best"),
    [
        ("distance", (3.0, 1.0, 2.0), [4, 6], ("frechet_digits", 1.0, 4)),
        ("distance", (1.0, 3.0, 2.0), [2, 6], ("frechet_digits", 1.0, 2)),
        # When step 6 was saved, 4 was the best; it goes in the end.
        ("distance", (3.0, 2.0, 1.0), [6], ("frechet_digits", 1.0, 6)),
        ("class_accuracy", (3.0, 1.0, 2.0), [2, 6], ("class_accuracy", 0.3, 2)),
    ],
)
def test_the_best_checkpoint_is_kept(metric, values, kept, best, tmp_path: Path, monkeypatch, capsys) -> None:
    settings = [*SETTINGS, *OFTEN, f"train.best_metric={metric}"]
    entries = [
        {
            "frechet_digits": value,
            "class_accuracy": value / 10,
            "floor": 0.0,
            "class_gaussians": 9.0,
            "class_accuracy_real": 0.9,
        }
        for value in values
    ]
    put_scores(monkeypatch, *entries)
    # In two starts: what was best so far is found again.
    assert train(tmp_path, *settings, "train.steps=4") == 0
    capsys.readouterr()
    assert dis("train", "--out", tmp_path, "--json", *TINY, *settings) == 0
    name, value, step = best
    assert result(capsys)["best"] == {
        "metric": name,
        "value": pytest.approx(value),
        "step": step,
        "checkpoint": str(tmp_path / "checkpoints" / f"step-{step:08d}"),
    }
    assert saved_steps(tmp_path) == kept
    assert train(tmp_path, *settings) == 0
    assert f"best    {tmp_path / 'checkpoints' / f'step-{step:08d}'}: {name} {value:.4g} at step {step}" in (
        capsys.readouterr().out
    )


def test_checkpoints_of_some_steps_are_kept_for_good(tmp_path: Path) -> None:
    assert train(tmp_path, *SETTINGS, "train.steps=9", "train.save_every=1", "train.keep_every=4") == 0
    assert saved_steps(tmp_path) == [4, 8, 9]


def test_a_score_is_of_a_step_that_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "score", cheap_score)
    assert train(tmp_path, *SETTINGS, *OFTEN, "train.save_every=100", "train.keep_last=9") == 0
    assert saved_steps(tmp_path) == [2, 4, 6]


def test_time_is_over(plain: Path, tmp_path: Path, capsys) -> None:
    command = ["train", "--out", tmp_path, *TINY, *SETTINGS]
    assert dis(*command, "train.max_minutes=1e-6", "--json") == 0
    captured = capsys.readouterr()
    first = json.loads(captured.out)
    assert (first["complete"], first["step"], first["steps"]) == (False, 1, 6)
    assert first["checkpoint"] == str(tmp_path / "checkpoints" / "step-00000001")
    assert saved_steps(tmp_path) == [1]
    (stopped,) = events(tmp_path, "stopped")
    assert (stopped["step"], stopped["reason"]) == (1, "time")
    assert dis(*command, "train.max_minutes=1e-6", "-q") == 0
    lines = capsys.readouterr().out
    assert "stopped after train.max_minutes at step 2 of 6; run the same command again to continue" in lines
    for _ in range(4):
        assert dis(*command, "train.max_minutes=1e-6", "--json", "-q") == 0
    # There is no time to be over when the last step is done.
    assert [json.loads(line)["complete"] for line in capsys.readouterr().out.splitlines()] == [False] * 3 + [True]
    assert losses(tmp_path) == losses(plain)
    assert_equal(tensors(tmp_path, 6), tensors(plain, 6))


def test_time_is_over_on_all_ranks(plain: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = [*SETTINGS, "train.max_minutes=1e-6"]
    ended = train_on(2, run, *settings, options=["--json", "-q"])
    assert [rank.code for rank in ended] == [0, 0], ended
    assert json.loads(ended[0].out)["complete"] is False
    assert saved_steps(run) == [1]
    assert [rank.code for rank in train_on(2, run, *SETTINGS)] == [0, 0]
    assert_close(tensors(run, 6), tensors(plain, 6))


def test_a_fresh_start_sets_the_old_run_aside(plain: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    other = [*SETTINGS, "train.lr=0.001", "seed=5"]
    assert train(run, *other) == 0
    before = {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    # Other settings are refused without it.
    assert train(run, *SETTINGS) == 2
    assert "--fresh" in capsys.readouterr().err
    assert train(run, *SETTINGS, "--fresh") == 0
    assert_equal(tensors(run, 6), tensors(plain, 6))
    assert losses(run) == losses(plain)
    aside = run / "earlier-1"
    after = {path.relative_to(aside): path.read_bytes() for path in aside.rglob("*") if path.is_file()}
    hidden = {path for path in before if path.name.startswith(".lock")}
    assert after == {path: content for path, content in before.items() if path not in hidden}
    sampled = ["-n", 2, "--steps", 2, "-q", "--out", tmp_path / "out"]
    assert dis("sample", "--ckpt", aside, *sampled) == 0
    # And once more; the run itself goes on without it.
    assert train(run, *SETTINGS, "train.steps=2", "--fresh") == 0
    assert sorted(path.name for path in run.glob("earlier-*")) == ["earlier-1", "earlier-2"]
    assert_equal(tensors(run / "earlier-2", 6), tensors(plain, 6))
    assert train(run, *SETTINGS) == 0
    assert_equal(tensors(run, 6), tensors(plain, 6))


def test_a_fresh_start_that_cannot_begin_leaves_the_old_run(tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    assert train(run, *SETTINGS) == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    away = ["data.source=folder", f"data.path={tmp_path / 'away'}"]
    assert train(run, *SETTINGS, *away, "--fresh") != 0
    assert "away" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    # What would be done can be asked for, whatever the old run's settings.
    assert train(run, *SETTINGS, "train.lr=0.001", "--fresh", "--dry-run") == 0
    assert train(run, *SETTINGS, "train.lr=0.001", "--dry-run") == 2


def test_a_fresh_start_where_nothing_was(plain: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "run", *SETTINGS, "--fresh") == 0
    assert not list((tmp_path / "run").glob("earlier-*"))
    assert_equal(tensors(tmp_path / "run", 6), tensors(plain, 6))


def test_several_ranks_start_afresh(plain: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, *SETTINGS, "seed=5") == 0
    ended = train_on(2, run, *SETTINGS, options=["-q", "--fresh"])
    assert [rank.code for rank in ended] == [0, 0], ended
    assert sorted(path.name for path in run.glob("earlier-*")) == ["earlier-1"]
    assert_close(tensors(run, 6), tensors(plain, 6))


def test_further_averages_are_saved_and_sampled(plain: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    # Small enough for the warm-up of the averages to reach them in six steps.
    settings = [*SETTINGS, *PREVIEWS, "train.ema_more=0.2,0.3"]
    assert train(run, *settings, "sample.ema=0.2") == 0
    saved = tensors(run, 6)
    assert saved.keys() == {"model", "ema", "ema_more_0", "ema_more_1", "optimizer"}
    assert_equal({group: saved[group] for group in tensors(plain, 6)}, tensors(plain, 6))
    assert not saved["ema_more_0"]["pos_embed"].equal(saved["ema_more_1"]["pos_embed"])
    sample = ["sample", "--ckpt", run, "-n", 10, "--class", "all", "-q"]
    for decay in ("0.2", "0.3", "0", "none"):
        assert dis(*sample, "--out", tmp_path / decay, f"sample.ema={decay}") == 0
    grids = {folder: (tmp_path / folder / "grid.png").read_bytes() for folder in ("0.2", "0.3", "0", "none")}
    assert len(set(grids.values())) == 4
    # A run's pictures are of the average that it is sampled from.
    assert pictures(run)["preview-00000006.png"] == grids["0.2"]
    capsys.readouterr()
    assert dis(*sample, "--out", tmp_path / "out", "sample.ema=0.7") == 2
    assert "allowed: " in capsys.readouterr().err
