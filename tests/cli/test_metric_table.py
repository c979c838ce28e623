"""A metric more: one row, and every command knows it. What the rows say of those that there are."""

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import python
from support.states import events, saved_steps
from support.tiny import TINY, dis, result, trained
from support.toy_metric import ALONE, add_toy_metric, remove_toy_metric
from torch import Tensor

from dis_cli.config.overrides import apply_overrides, describe_keys
from dis_cli.config.schema import RunConfig
from dis_cli.dotted import load
from dis_cli.errors import ConfigError, DataError
from dis_cli.events import Finished
from dis_cli.metrics import inception_score, precision_recall, table
from dis_cli.metrics.extractors.base import FunctionFeatures
from dis_cli.metrics.scores import require_enough
from dis_cli.workflows.eval_fid.evaluate import Request, evaluate
from dis_cli.workflows.load.opened import open_checkpoint

QUICK = ["sample.sampler=ddim", "sample.steps=2", "sample.precision=fp32", "evaluate.num_samples=20"]
NAME = "toy_distance_digits"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("trained") / "run", "train.steps=1", *QUICK)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    add_toy_metric(monkeypatch)
    yield
    monkeypatch.undo()
    remove_toy_metric()


def test_the_table_is_right_about_what_imports_torch() -> None:
    rows = table.METRICS
    assert rows["inception_score"].fewest == inception_score.NUM_SPLITS
    for name in ("precision", "recall", "density", "coverage"):
        assert rows[name].fewest == 1 + max(precision_recall.NUM_NEIGHBOURS, precision_recall.NUM_NEIGHBOURS_DENSITY)
    for row in rows.values():
        for place in (row.compute, row.facts, row.notes):
            assert place is None or callable(load(place))
    names = table.scores_in_results()
    assert len({score.label for score in names.values()}) == len(names)
    assert not names["kernel_distance_clip"].higher_is_better
    assert names["coverage_digits"].higher_is_better
    for score in table.DIGIT_SCORES.values():
        assert set(score.beside) <= table.DIGIT_SCORES.keys()
        assert bool(score.label) == (score.higher_is_better is not None)


@pytest.mark.usefixtures("toy")
def test_settings_name_it() -> None:
    rows = {key: allowed for key, allowed, *_ in describe_keys()}
    assert rows["evaluate.metrics"].endswith("precision, recall, density, coverage, denoising_loss, toy, or none")
    assert rows["train.best_metric"].endswith("coverage, denoising_loss, toy")
    config = apply_overrides(RunConfig(), ["evaluate.metrics=fid,toy", "train.best_metric=toy"])
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ConfigError) as caught:
        apply_overrides(RunConfig(), ["evaluate.metrics=tyo"])
    assert "`evaluate.metrics`: got `tyo`, allowed: any number of values, each one of all, fid, " in str(caught.value)
    assert "Did you mean `toy`?" in (caught.value.hint or "")


def test_without_its_row_it_is_unknown() -> None:
    with pytest.raises(ConfigError, match=r"`train\.best_metric`: got `toy`, allowed: one of distance, class_accuracy"):
        apply_overrides(RunConfig(), ["train.best_metric=toy"])


@pytest.mark.long
@pytest.mark.usefixtures("toy")
def test_it_is_measured_bounded_swept_and_shown(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval-fid", "--ckpt", run, "--json"]
    for number, words in enumerate(("t", "toy", "fid,toy", "all")):
        assert dis(*command, "--metrics", words, "--out", tmp_path / f"{number}.json") == 0
        data = result(capsys)
        assert data[NAME] > 0
        assert data["toy_images"] == [20, 450]
        assert data["notes"].count("toys of 20 and 450 images") == 1
    assert data["metrics"][-1] == "toy"
    value = data[NAME]
    assert dis(*command, "--metrics", "toy", "--fail-above", f"toy={value / 2}", "-o", tmp_path / "1.json") == 3
    assert f"{NAME} is {value:.4g}, above" in capsys.readouterr().err
    for bound in (f"{NAME}={value}", f"t={value}", value):
        assert dis(*command, "--metrics", "toy", "--fail-above", bound, "-o", tmp_path / "1.json") == 0
    capsys.readouterr()
    out = tmp_path / "sweep.json"
    assert dis("eval-fid", "--ckpt", run, "--metrics", "toy", "--sweep", "steps=1,2,3", "--out", out) == 0
    swept = json.loads(out.read_text())
    values = [point[NAME] for point in swept["points"]]
    assert (swept["judged_by"], values[swept["best"]]) == (NAME, max(values))
    assert NAME in capsys.readouterr().out
    with pytest.raises(DataError, match="toy needs 3 images or more, but there are 2 here"):
        require_enough(["toy"], 2, "here")


@pytest.mark.usefixtures("toy")
def test_a_training_watches_it_and_keeps_the_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["train.steps=3", "train.evaluate_every=1", "train.save_every=1", "train.keep_last=1", "train.lr=0.01"]
    asked = [*TINY, *QUICK, *settings, "evaluate.metrics=toy", "train.best_metric=toy"]
    folder = tmp_path / "runs" / "a"
    assert dis("train", "--out", folder, "--json", *asked) == 0
    best = result(capsys)["best"]
    told = {record["step"]: record["value"] for record in events(folder, "metric") if record["name"] == NAME}
    assert (best["metric"], best["value"], best["step"]) == (NAME, max(told.values()), max(told, key=told.__getitem__))
    assert saved_steps(folder) == sorted({3, best["step"]})
    assert dis("runs", tmp_path / "runs", "--json") == 0
    shown = result(capsys)["runs"][0]["best"]
    assert (shown["metric"], shown["value"], shown["step"]) == (NAME, best["value"], best["step"])
    assert dis("checkpoint", "export", folder, "--step", best["step"], "--out", tmp_path / "model") == 0
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"| toy distance, digits | {best['value']:.6g} | 20 | digits, test (450 images) |" in card
    assert "| Frechet distance, digits |" in card
    capsys.readouterr()
    assert dis("train", "--out", tmp_path / "b", *asked, "evaluate.metrics=kid") == 2
    error = capsys.readouterr().err
    assert "`train.best_metric`: got `toy`, and evaluate.metrics is kid" in error
    assert "evaluate.metrics=kid,toy" in error


@pytest.mark.usefixtures("toy")
def test_one_of_the_scored_images_alone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dis("sample", "--ckpt", run, "-n", 4, "--out", tmp_path / "images.npz", *QUICK[:3]) == 0
    command = ["eval-fid", "--images", tmp_path / "images.npz", "--features", "digits", "--json"]
    command += ["--out", tmp_path / "score.json"]
    capsys.readouterr()
    assert dis(*command, "--metrics", "fid") == 2
    assert "Only the Inception Score (`--metrics is`) needs none" in capsys.readouterr().out
    add_toy_metric(monkeypatch, "norm", ALONE)
    assert dis(*command, "--metrics", "norm,toy") == 2
    assert "Only the Inception Score and the toy norm (`--metrics is,norm`) need none" in capsys.readouterr().out
    assert dis(*command, "--metrics", "norm") == 0
    assert result(capsys)["norm_digits"] > 0


def test_help_and_completion_list_it() -> None:
    told = python("-m", "support.toy_metric", "eval-fid", "--help", COLUMNS="200")
    assert told.returncode == 0, told.stderr
    assert "fid, sfid, is, kid, precision, recall, density, coverage, denoising_loss, t, or all" in " ".join(
        told.stdout.split()
    )
    words = {"COMP_WORDS": "dis eval-fid --metrics fid,t", "COMP_CWORD": "3", "_DIS_COMPLETE": "complete_bash"}
    complete = "import sys; sys.argv[0] = 'dis'; from support.toy_metric import METRICS, ROW; METRICS['toy'] = ROW; "
    told = python("-c", f"{complete}from dis_cli.cli.app import app; app(prog_name='dis')", **words)
    assert told.stdout.split() == ["fid,t"]


def of_published_inception(batch: Tensor) -> Tensor:
    return batch.double().flatten(1)[:, :8].float() + torch.arange(8)


def test_the_metric_precision_and_that_of_the_computation_are_both_written_down(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = FunctionFeatures(of_published_inception, num_features=8, sha256="0" * 64, name="like-published")
    own.label = None

    def measured() -> dict[str, Any]:
        request = Request(opened=open_checkpoint(run, ["evaluate.metrics=fid,precision"]), extractor=own)
        finished = list(evaluate(request))[-1]
        assert isinstance(finished, Finished)
        return finished.result

    data = measured()
    file = Path(data["result_file"])
    assert isinstance(data["precision"], float)
    assert data["compute_precision"]["name"] == "fp32"
    # As 0.1 wrote it: the metric, or without it the precision of the computation.
    old = {key: value for key, value in data.items() if key != "compute_precision"}
    for precision in (old["precision"], {"name": "fp32", "reason": "chosen in the settings"}):
        file.write_text(json.dumps(old | {"precision": precision}))
        assert dis("runs", run.parent, "--json") == 0
        assert result(capsys)["runs"][0]["best"]["metric"] == "fid"
        out = tmp_path / type(precision).__name__
        assert dis("checkpoint", "export", run, "--out", out) == 0
        capsys.readouterr()
        card = (out / "README.md").read_text()
        assert "| FID | " in card
        assert ("| precision | " in card) == isinstance(precision, float)
        assert measured()["result_file"] == str(file)
