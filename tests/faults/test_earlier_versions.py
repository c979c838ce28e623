"""What earlier versions have written opens, is continued and scores as it did; `rebuild/fixtures.py` wrote it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rebuild.fixtures import ENCODE, EXPORTS, PUBLISHED, RUNS, SAMPLE, SCORE, TRAIN, losses, weights_sha256
from safetensors.torch import load_file
from support.states import assert_equal, tensors
from support.tiny import dis, result

from dis_cli import load_model, sample_images
from dis_cli.training.state import TrainingState

FIXTURES = Path(__file__).parents[1] / "fixtures"
LAST_STEP = 9
QUICK = ["sample.sampler=ddim", "sample.steps=2"]


def versions_with(name: str) -> Any:
    """A test of every version that has written such a file."""
    return pytest.mark.parametrize("version", sorted(path.parent.name for path in FIXTURES.glob(f"*/{name}")))


@pytest.fixture
def at(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a version's files, which is the working directory."""
    monkeypatch.setenv("DIS_CACHE_DIR", str(tmp_path / "cache"))
    folder = shutil.copytree(FIXTURES / version, tmp_path / "at")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def expected(at: Path) -> dict[str, Any]:
    return json.loads((at / "expected.json").read_bytes())


def test_there_are_some() -> None:
    assert (FIXTURES / "0.1.0" / "expected.json").exists()


@pytest.mark.parametrize("version", sorted(path.name for path in FIXTURES.iterdir()))
def test_they_are_small_and_name_nobodys_machine(version: str) -> None:
    files = {path: path.read_bytes() for path in (FIXTURES / version).rglob("*") if path.is_file()}
    assert sum(map(len, files.values())) < 2_000_000
    assert [path for path, data in files.items() if any(name in data for name in (b"/work", b"/root", b"/tmp"))] == []


@pytest.mark.parametrize("name", RUNS)
@versions_with("run")
def test_a_run_is_continued(
    name: str, version: str, at: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    [checkpoint] = (at / name / "checkpoints").iterdir()
    stored = {path.stem: load_file(path) for path in checkpoint.glob("*.safetensors")}
    if name == "run":
        assert {group: weights_sha256(named) for group, named in stored.items()} == expected["weights"]
    load, loaded = TrainingState.load, []

    def loading(self: TrainingState, *arguments: Any) -> None:
        load(self, *arguments)
        loaded.append({group: {key: t.clone() for key, t in named.items()} for group, named in self.tensors().items()})

    monkeypatch.setattr(TrainingState, "load", loading)
    shutil.copytree(at / name, at / "twin")
    before = losses(at / name)
    for out in (name, "twin"):
        assert dis(*TRAIN, "--out", out, *RUNS[name]) == 0
    for state in loaded:
        assert_equal(state, stored)
    assert len(loaded) == 2
    # How a processor rounds is not told by a version: others come near, and the same comes to the same.
    now = losses(at / name)
    assert now.items() >= before.items()
    assert now == pytest.approx(expected["losses"][name], rel=1e-5)
    assert len(now) == LAST_STEP
    assert losses(at / "twin") == now
    assert_equal(tensors(at / "twin", LAST_STEP), tensors(at / name, LAST_STEP))


def pixels(out: Path) -> np.ndarray:
    records = json.loads((out / "samples.json").read_bytes())["images"]
    return np.stack([np.asarray(Image.open(out / record["file"])) for record in records])


@versions_with("samples.unfinished")
def test_samples_of_earlier_samplers_are_never_mixed_with_those_of_now(
    version: str, at: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {path: path.read_bytes() for path in at.glob("samples.unfinished/*")}
    assert dis(*SAMPLE, "--out", "samples") == 2
    told = capsys.readouterr().err
    assert "samples.unfinished` holds samples of other settings\n  samplers: 1 there, 2 now" in told
    assert "choose another `--out`" in told
    assert {path: path.read_bytes() for path in at.glob("samples.unfinished/*")} == kept
    assert not (at / "samples").exists()
    # Unless told, they go elsewhere and are new from the first on. They differ in last bits alone.
    assert dis(*SAMPLE, "--out", "fresh") == 0
    whole = np.load(at / "samples.npz")["arr_0"].squeeze(-1)
    assert np.abs(pixels(at / "fresh").astype(int) - whole).max() <= 1
    assert json.loads((at / "fresh" / "samples.json").read_bytes())["facts"]["samplers"] == 2
    # What is whole is of its samplers too.
    facts = json.loads((at / "fresh" / "samples.json").read_text())
    del facts["facts"]["samplers"]
    (at / "fresh" / "samples.json").write_text(json.dumps(facts))
    assert dis(*SAMPLE, "--out", "fresh") == 2
    assert "samplers: 1 there, 2 now" in capsys.readouterr().err


@versions_with("latents")
def test_latents_are_completed(version: str, at: Path) -> None:
    progress = at / "latents" / ".progress"
    names = [f"{path.stem}.safetensors" for path in progress.glob("shard-*.json")]
    kept = {name: ((at / "latents" / name).stat().st_ino, (at / "latents" / name).read_bytes()) for name in names}
    assert len(kept) >= 3
    assert dis(*ENCODE) == 0
    assert dis("encode-latents", "--out", "latents", "--verify", "-q") == 0
    assert {
        name: ((at / "latents" / name).stat().st_ino, (at / "latents" / name).read_bytes()) for name in kept
    } == kept
    shutil.copytree(at / "latents", at / "completed")
    shutil.rmtree(at / "latents")
    assert dis(*ENCODE) == 0
    shards = sorted(path.name for path in (at / "latents").glob("shard-*"))
    assert shards == sorted(path.name for path in (at / "completed").glob("shard-*"))
    assert len(shards) > len(kept)
    for name in shards:
        if name not in kept:
            assert (at / "completed" / name).read_bytes() == (at / "latents" / name).read_bytes()
        fresh = load_file(at / "latents" / name)
        for key, tensor in load_file(at / "completed" / name).items():
            # float16, which rounds to the other side where two processors differ in the last bit
            torch.testing.assert_close(tensor.float(), fresh[key].float(), rtol=2e-3, atol=1e-3)


@versions_with("export")
def test_exports_are_the_runs_model(version: str, at: Path, expected: dict[str, Any]) -> None:
    for overrides, names in ((QUICK, EXPORTS), ([*PUBLISHED, *QUICK], ("published.pt", "imported"))):
        images = sample_images(load_model("run", device="cpu", overrides=[*overrides, "engine=torch"]), 4)
        for name in names:
            model = load_model(name, device="cpu", overrides=[*overrides, "engine=torch"])
            assert weights_sha256(model.state_dict()) == expected["weights"]["ema"], name
            assert np.array_equal(sample_images(model, 4), images), name


@versions_with("export")
def test_what_exports_are_is_said(version: str, at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parameters = set()
    for name in ("run", *EXPORTS, "published.pt", "imported"):
        assert dis("checkpoint", "show", name, "--json") == 0, name
        parameters.add(result(capsys)["parameters"])
        assert dis("flops", "--ckpt", name, "--json") == 0, name
        parameters.add(result(capsys)["num_parameters"])
    assert len(parameters) == 1


@versions_with("run")
def test_a_score_is_the_best_and_comes_out_again(
    version: str, at: Path, expected: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    score = expected["score"]
    assert dis("runs", ".", "--json") == 0
    [best] = [run["best"] for run in result(capsys)["runs"] if Path(run["path"]).name == "run"]
    told = {"metric": "frechet_digits", "value": score["frechet_digits"], "step": score["step"], "num_samples": 16}
    assert {name: best[name] for name in told} == told
    assert dis(*SCORE, "--json") == 0
    assert result(capsys)["frechet_digits"] == pytest.approx(score["frechet_digits"], rel=1e-3)
    assert json.loads((at / score["result_file"]).read_bytes())["frechet_digits"] == score["frechet_digits"]


@versions_with("statistics.npz")
def test_statistics_are_a_reference(
    version: str, at: Path, expected: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert dis(*SCORE, "--ref", "statistics.npz", "--json") == 0
    found = result(capsys)
    assert found["reference"]["n"] == 450
    assert found["frechet_digits"] == pytest.approx(expected["score"]["frechet_digits"], rel=1e-3)
