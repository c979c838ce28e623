"""`dis report`, `train.report`, and the page and picture beside an export."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.reports import write_run
from support.tiny import dis, result, trained

from dis_cli.runs.folder import read_events


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(
        tmp_path_factory.mktemp("report") / "run",
        "train.steps=4",
        "train.preview_every=2",
        "train.preview_images=12",
        "train.evaluate_every=4",
        "evaluate.num_samples=20",
        "train.report=true",
        "sample.steps=2",
    )


def test_training_writes_its_page(run: Path) -> None:
    text = (run / "report.html").read_text()
    assert "<dd><bdi>finished, step 4 of 4</bdi></dd>" in text
    assert text.count('<div class="frame"') == 2
    assert [event["what"] for event in read_events(run / "events.jsonl") if event["event"] == "wrote"] == [
        "preview",
        "preview",
        "result",
        "report",
        "report",
    ]


def test_the_command_writes_one_file(run: Path, tmp_path: Path, capsys: Any) -> None:
    assert dis("report", run, "--out", tmp_path / "a.html", "--samples", "12", "--nearest", "--json") == 0
    told = result(capsys)
    text = (tmp_path / "a.html").read_text()
    assert told["size_bytes"] == (tmp_path / "a.html").stat().st_size < 5_000_000
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]
    titles = ["Class by seed", "Class by guidance", "Nearest training images of run"]
    assert re.findall(r"<h3>([^<]*)</h3>\n<img class", text) == titles
    assert "and training images beside the samples nearest to them" in text
    assert dis("report", run, "--out", tmp_path / "a.html", "-q") == 0
    assert "and training images beside" not in (tmp_path / "a.html").read_text()


def test_an_export_has_the_page_and_the_picture(run: Path, tmp_path: Path) -> None:
    assert dis("checkpoint", "export", run, "--out", tmp_path / "model", "-q") == 0
    folder = tmp_path / "model"
    assert (folder / "samples.png").read_bytes() == (run / "samples" / "preview-00000004.png").read_bytes()
    assert Image.open(io.BytesIO((folder / "samples.png").read_bytes())).width > 1
    assert "](samples.png)" in (folder / "README.md").read_text()
    text = (folder / "report.html").read_text()
    assert str(run) not in text
    assert "dis sample --ckpt model --class all -n 10 --out preview-00000004" in text


def test_a_file_that_is_no_report_is_not_replaced(tmp_path: Path, capsys: Any) -> None:
    run = write_run(tmp_path / "run", steps=2, every=1)
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    assert dis("report", run, "--out", tmp_path / "mine.html") == 2
    assert "exists and is no report" in capsys.readouterr().err
    assert (tmp_path / "mine.html").read_text() == "<p>mine</p>"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "There is no folder"),
        (["."], "is no run of `dis train`"),
        (["run", "run"], "is named twice"),
        (["run", "--nearest"], "`--nearest` needs samples"),
        (["run", "--out", "x.png"], "the result is .html"),
    ],
)
def test_wrong_requests_are_refused(arguments: list[str], said: str, tmp_path: Path, monkeypatch: Any, capsys: Any):
    write_run(tmp_path / "run", steps=1)
    monkeypatch.chdir(tmp_path)
    assert dis("report", *arguments) == 2
    assert said in capsys.readouterr().err
