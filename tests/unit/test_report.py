"""The page of runs: what it holds, what it leaves out, and that nothing in it can act."""

import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from support.reports import HOSTILE, SHARP, png, write_run

from dis_cli.errors import UsageError
from dis_cli.events import Metric, Note, Stopped
from dis_cli.report.charts import figures
from dis_cli.report.compare import differing, fit_to_log, names_of
from dis_cli.report.embed import embed, spread
from dis_cli.report.record import read_run, without_places
from dis_cli.report.svg import Line, curves_svg
from dis_cli.runs.folder import RunDir
from dis_cli.workflows.run_facts import open_run
from dis_cli.workflows.run_page import page_of


class Elements(HTMLParser):
    """The names of all attributes of a page, as a browser would find them."""

    def __init__(self) -> None:
        super().__init__()
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002 - its signature
        self.attributes += [name for name, _ in attrs]


COMMAND = ["dis", "report", "RUN"]


def page(*folders: Path, full: bool = False) -> str:
    return page_of([open_run(folder) for folder in folders], COMMAND, full=full)


def test_a_page_shows_what_the_run_has(tmp_path: Path) -> None:
    events = (Note(message="watch out", level="warning"), Stopped(step=40, reason="time", message="enough"))
    run = write_run(tmp_path / "run", events=events)
    text = page(run)
    assert page(run) == text
    assert text.count('<div class="frame"') == 4
    assert re.findall(r"<h3>([^<]*)</h3>", text) == [
        "Loss",
        "Learning rate",
        "Gradient norm",
        "Speed",
        "Frechet distance, digits",
    ]
    # Three axes, linear and logarithmic.
    assert text.count('class="drawn"') == 5 * 6
    assert "warning: watch out" in text
    assert "stopped at step 40 (time): enough" in text
    assert text.count("is gone; train.keep_every keeps") == 4
    assert "<td><bdi>40</bdi></td><td><bdi>3600</bdi></td>" in text


def test_a_preview_whose_checkpoint_is_there_has_its_command(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run with space")
    RunDir(run).checkpoint(20).mkdir()
    text = page(run)
    command = f"dis sample --ckpt '{run}' --step 20 --class all -n 60 --out preview-00000020"
    assert html.escape(command, quote=True).replace("&#x27;", "&#39;") in text
    assert text.count("is gone;") == 3


def test_axes_count_steps_images_and_operations(tmp_path: Path) -> None:
    record = open_run(write_run(tmp_path / "run"))
    assert record.images_a_step == 32
    assert record.macs == 10_438_656
    steps = np.array([1.0, 40.0])
    assert record.images_at(steps).tolist() == [32, 1280]
    assert record.flops_at(steps).tolist() == [6 * 10_438_656 * 32, 6 * 10_438_656 * 1280]
    # A branch with another batch: up to its first step the images are those of the run before.
    branch = replace(record, facts={"lineage": {"kind": "branch", "step": 10, "images": 50}})
    assert branch.images_at(steps[1:]).tolist() == [50 + 30 * 32]
    (figure,) = [one for one in figures([record], ["run"], tmp_path) if one.key == "loss"]
    assert figure.told == "run: 1 at step 1, lowest 0.025 at 40, 0.025 at 40"
    assert len(set(figure.drawn.values())) == 6


def test_held_out_losses_are_shown_by_quarter(tmp_path: Path) -> None:
    quarters = {f"quarter_{place}": float(place) for place in range(1, 5)}
    events = tuple(Metric(name="eps_mse", value=2.5, context=quarters, step=step) for step in (10, 20))
    record = open_run(write_run(tmp_path / "run", events=events))
    (figure,) = [one for one in figures([record], ["run"], tmp_path) if one.key == "held-out"]
    assert [entry.name for entry in figure.legend] == ["mean", "quarter 1", "quarter 2", "quarter 3", "quarter 4"]
    assert "quarter 4: 4 at step 10, lowest 4 at 10, 4 at 20" in figure.told


def test_an_imported_run_has_no_curves(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=1)
    (run / "events.jsonl").unlink()
    (run / "run.json").write_text('{"schema": 1, "imported": "2026-01-01", "from": {"file": "x.pt"}}')
    text = page(run)
    assert "There are no curves: the run was imported, not trained." in text
    assert "x.pt" in text


def test_curves_carry_no_style_and_no_name(tmp_path: Path) -> None:
    x = np.arange(1.0, 5)
    line = Line(x, x**2, marks=True, interval=x)
    svg = curves_svg([line], cache=tmp_path, key="k", x_label="$x", y_label="\\frac", log=True, levels=[3.0])
    assert "style" not in svg
    assert "<metadata" not in svg
    assert "#00000" not in svg
    assert "stroke-s0" in svg
    assert all(found.startswith("k-") for found in re.findall(r' id="([^"]*)"', svg))
    assert re.findall(r'href="#([^"]*)"', svg)
    assert set(re.findall(r'href="#([^"]*)"', svg)) <= set(re.findall(r' id="([^"]*)"', svg))
    assert svg == curves_svg([line], cache=tmp_path, key="k", x_label="$x", y_label="\\frac", log=True, levels=[3.0])


def test_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    notes = tuple(Note(message=name, level="warning") for name in HOSTILE)
    run = write_run(tmp_path / f"a{SHARP[:60].replace('/', '-')}", events=notes, steps=10)
    facts = json.loads((run / "run.json").read_text())
    facts["config"]["description"] = facts["device"] = SHARP
    (run / "run.json").write_text(json.dumps(facts))
    (run / "samples" / "preview-00000020.png").write_text(SHARP)
    other = write_run(tmp_path / "other", lr=1e-3, steps=10)
    text = page(run)
    for each in (text, page(run, other)):
        assert each.count("<script") == 1
        elements = Elements()
        elements.feed(each)
        assert len(elements.attributes) > 100
        assert [name for name in elements.attributes if name.startswith("on") or name == "style"] == []
    for name in HOSTILE:
        assert name in html.unescape(text)
    assert "<bdi>warning: {{ 7*7 }} $" in text


def test_the_policy_lets_only_the_own_script_and_style_run(tmp_path: Path) -> None:
    import base64
    import hashlib

    text = page(write_run(tmp_path / "run", steps=10))
    policy = html.unescape(re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[0])
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "style=" not in text.replace("<style>", "")
    assert not re.search(r"(?:src|href)=\"(?!data:image/|#)", text)


@pytest.mark.parametrize("missing", ["run.json", "events.jsonl", "samples"])
def test_what_is_missing_is_said(missing: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=10)
    path = run / missing
    if path.is_dir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    else:
        path.unlink()
    text = page(run)
    said = {"run.json": "run.json is missing", "events.jsonl": "No step was taken", "samples": "There are no previews"}
    assert said[missing] in text


def test_files_of_nonsense_are_passed_over(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=10)
    (run / "run.json").write_text('{"schema": 9, "config": {"train": 3, "new": {"deep": [1, {"x": 2}]}}, "command": 7}')
    with (run / "events.jsonl").open("a") as file:
        file.write('{"event": "step", "step": "x"}\n{"event": "metric", "name": [], "step": 1}\nnonsense\n[]\n')
        file.write('{"event": "step", "step": 11, "loss": 1e400, "lr": null}\n')
    (run / "evaluations" / "x.json").write_text('{"frechet_digits": "many", "points": 3, "reference": 7, "sample": 1}')
    (run / "evaluations" / "y.png").write_bytes(png(1))
    text = page(run)
    assert "another version of dis (schema 9)" in text
    assert "The settings are not those of this version" in text
    assert "Its command was not recorded." in text


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no run of `dis train`"):
        read_run(tmp_path)
    with pytest.raises(UsageError, match="There is no folder"):
        read_run(tmp_path / "nowhere")


def test_three_runs_are_compared(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"run{depth}", depth=depth) for depth in (3, 5, 7)]
    text = page(*runs)
    assert "<bdi>depth 3</bdi>" in text
    assert text.count('<div class="frame"') == 4
    assert text.count("<figcaption>") == 3 * 4
    assert re.findall(r'<td class="number">([^<]*)</td>', text) == ["3.55", "5.55", "7.55"]
    assert "Spearman&#39;s rank correlation +1.000" in text
    assert '<tr><th scope="row"><bdi>model.depth</bdi></th><td><bdi>3</bdi></td><td><bdi>5</bdi></td>' in text


def test_fifty_runs_are_compared_without_pictures(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=2, every=1)
    text = page(*[run] * 50)
    assert "<h1><bdi>50 runs</bdi></h1>" in text
    assert "<img" not in text
    assert len(text) < 2_000_000


def test_names_tell_what_differs() -> None:
    settings = [{"name": "a", "train.lr": "1"}, {"name": "b", "train.lr": "2", "seed": "0"}]
    assert differing(settings) == {"train.lr": ["1", "2"], "seed": ["-", "0"]}
    assert names_of(["x", "y"], differing(settings)) == ["lr 1, seed -", "lr 2, seed 0"]
    assert names_of(["x", "x"], {}) == ["x (1)", "x (2)"]
    assert len(names_of(["n" * 300], {})[0]) == 60


def test_the_rank_correlation_is_scipys() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(1, 9, 30).astype(float), rng.integers(0, 5, 30).astype(float)
    fit = fit_to_log(x, y)
    assert fit is not None
    assert fit.spearman == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    line = fit_to_log(np.array([1.0, 10.0, 100.0]), np.array([1.0, 3.0, 5.0]))
    assert line is not None
    assert (line.slope, line.at_one) == pytest.approx((2, 1))
    assert fit_to_log(np.array([1.0, 10.0]), np.array([1.0, 3.0])) is None


def test_pictures_fit_the_page() -> None:
    big = png(0, 1200)
    small = embed(big, full=False, pictures=20)
    assert small is not None
    assert len(small.uri) * 20 < 5_000_000
    assert (small.width, small.height) == (1200, 1200)
    whole = embed(big, full=True, pictures=20)
    assert whole is not None
    assert whole.uri.startswith("data:image/png;base64,")
    assert len(whole.uri) > len(big)
    assert embed(b"nonsense", full=True, pictures=1) is None
    assert spread(range(100), 3) == [0, 50, 99]


def test_places_of_the_machine_are_left_out() -> None:
    assert without_places("see /home/me/data/cats.zip, and a/b") == "see …/cats.zip, and a/b"
    assert without_places("https://example.org/a/b") == "https://example.org/a/b"
