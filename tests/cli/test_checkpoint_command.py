"""`dis checkpoint` and ``--step``: what a checkpoint is, and models that come back the same from every form."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from support.exports import FORMS, NAMES, exported, sampled, save_averages, weights_file, weights_of
from support.saved import DIGITS, LATENTS, config_of, save_run
from support.tiny import dis, result
from support.vae import save_tiny_vae

from dis_cli.checkpoints.store import read_checkpoint
from dis_cli.config.presets import read_config
from dis_cli.runs.summary import summarize_run
from dis_cli.workflows.load.opened import open_checkpoint
from dis_cli.workflows.load.saved import read_saved

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_averages(tmp_path_factory.mktemp("runs") / "run", 3, 7)


def shown(capsys: Capture, path: Path, *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert dis("checkpoint", "show", path, "--json", *arguments) == 0
    return result(capsys)


# Steps.


def test_a_checkpoint_is_chosen_by_its_step(run: Path, tmp_path: Path) -> None:
    assert sampled(run, tmp_path / "a", "--step", 3) == sampled(run / "checkpoints" / "step-00000003", tmp_path / "b")
    assert sampled(run, tmp_path / "c", "--step", 7) == sampled(run, tmp_path / "d")
    assert sampled(run, tmp_path / "e", "--step", 3) != sampled(run, tmp_path / "f")


def test_a_step_is_scored(run: Path, tmp_path: Path, capsys: Capture) -> None:
    command = ["eval-fid", "--ckpt", run, "--num-samples", 4, "--out", tmp_path / "score.json", "--json"]
    assert dis(*command, "--step", 3) == 0
    assert result(capsys)["step"] == 3


@pytest.mark.parametrize("command", [["sample", "--dry-run", "--ckpt"], ["eval-fid", "--dry-run", "--ckpt"]])
def test_a_step_that_is_not_there_is_refused(command: list[str], run: Path, tmp_path: Path, capsys: Capture) -> None:
    assert dis(*command, run, "--step", 5) == 2
    assert "has no checkpoint of step 5: there are 3, 7\n" in capsys.readouterr().err
    assert dis(*command, run / "checkpoints" / "step-00000003", "--step", 7) == 2
    assert "has no checkpoint of step 7: there are 3\n" in capsys.readouterr().err
    file = exported(run, tmp_path, "safetensors")
    assert dis(*command, file, "--step", 7) == 2
    assert "is one model" in capsys.readouterr().err


def test_of_many_steps_the_last_are_listed(tmp_path: Path, capsys: Capture) -> None:
    for step in range(100, 130):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    assert dis("checkpoint", "show", tmp_path, "--step", 5) == 2
    error = capsys.readouterr().err
    assert "the last are 110, 111" in error
    assert "129\n" in error


def test_a_damaged_step_is_not_replaced_by_another(tmp_path: Path, capsys: Capture) -> None:
    run = save_averages(tmp_path / "run", 3, 7)
    weights = run / "checkpoints" / "step-00000007" / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert dis("checkpoint", "show", run, "--step", 7) == 1
    assert str(weights) in capsys.readouterr().err
    assert shown(capsys, run)["step"] == 3


# Show.


def test_show_says_what_a_run_is(run: Path, capsys: Capture) -> None:
    found = shown(capsys, run)
    assert (found["kind"], found["step"], found["steps"]) == ("run", 7, [3, 7])
    assert found["checkpoint"] == str(run / "checkpoints" / "step-00000007")
    assert found["parameters"] == sum(tensor.numel() for tensor in weights_of(0).values())
    assert (found["averages"], found["ema_decay"]) == ([0.9999, 0.9, 0.0], 0.9999)
    assert found["class_names"] == NAMES
    assert found["config"]["model"]["embed_dim"] == 16
    files = {file["file"]: file for file in found["files"]}
    assert set(files) == {path.name for path in Path(found["checkpoint"]).iterdir()}
    assert all(file["verified"] for file in files.values())
    assert found["size_bytes"] == sum(path.stat().st_size for path in Path(found["checkpoint"]).iterdir())
    assert shown(capsys, run / "checkpoints" / "step-00000003")["kind"] == "checkpoint"
    assert dis("checkpoint", "show", run, "sample.ema=0.9") == 0
    text = capsys.readouterr().out
    assert "3 blocks of width 16, patch 4, on pixels 8x8x1, 10 classes" in text
    assert "taken        average of decay 0.9\n" in text
    assert "epsilon, linear, 1000 timesteps, learned_range" in text
    assert "digit 0, digit 1" in text


def test_show_says_the_vae(tmp_path: Path, capsys: Capture) -> None:
    vae = save_tiny_vae(tmp_path / "vae")
    record = {"name": str(vae), "config_sha256": "1" * 64, "weights_sha256": "2" * 64, "scaling_factor": None}
    run = save_run(tmp_path / "run", config_of(LATENTS, codec__vae=str(vae)), vae=record)
    assert shown(capsys, run)["vae"] == record
    for form in FORMS:
        # Where it lies on this machine says nothing elsewhere.
        assert shown(capsys, exported(run, tmp_path, form))["vae"] == record | {"name": "vae"}
    assert dis("checkpoint", "show", run) == 0
    assert f"{vae} (weights of sha256 {'2' * 12})" in capsys.readouterr().out


def test_show_names_a_damaged_file_beside_sound_weights(tmp_path: Path, capsys: Capture) -> None:
    run = save_averages(tmp_path / "run")
    optimizer = run / "checkpoints" / "step-00000007" / "optimizer.safetensors"
    data = bytearray(optimizer.read_bytes())
    data[-1] ^= 1
    optimizer.write_bytes(data)
    assert dis("checkpoint", "show", run, "--json") == 1
    captured = capsys.readouterr()
    files = {file["file"]: file["verified"] for file in json.loads(captured.out)["files"]}
    assert [name for name, sound in files.items() if not sound] == ["optimizer.safetensors"]
    assert "is damaged: optimizer.safetensors" in captured.err


# Export.


@pytest.mark.parametrize("form", FORMS)
def test_what_is_exported_comes_back_bit_equal(form: str, run: Path, tmp_path: Path, capsys: Capture) -> None:
    images = {"": sampled(run, tmp_path / "own"), "0.9": sampled(run, tmp_path / "own-0.9", "sample.ema=0.9")}
    assert images[""] != images["0.9"]
    for decay, expected in images.items():
        asked = [f"sample.ema={decay}"] if decay else []
        out = exported(run, tmp_path, form, "--force", *asked)
        back, saved = read_saved(open_checkpoint(out)), read_saved(open_checkpoint(run, asked))
        assert back.weights.keys() == saved.weights.keys()
        assert all(back.weights[name].equal(tensor) for name, tensor in saved.weights.items())
        assert (back.step, back.average.decay, back.class_names) == (7, saved.average.decay, tuple(NAMES))
        assert sampled(out, tmp_path / f"samples-{decay}") == expected
    found = shown(capsys, out)
    assert found["averages"] == [0.9]
    assert found["versions"].keys() == {"dis", "torch", "python"}
    # What was left behind cannot be asked for.
    assert dis("sample", "--ckpt", out, "--dry-run", "sample.ema=0") == 2
    assert "got `0.0`, allowed: 0.9, the only weights that were exported" in capsys.readouterr().err
    assert dis("sample", "--ckpt", out, "--dry-run", "sample.ema=0.9", "-q") == 0


def test_one_model_has_one_sha256_in_every_form(run: Path, tmp_path: Path, capsys: Capture) -> None:
    files = [exported(run, tmp_path, form) for form in FORMS]
    assert len({shown(capsys, file)["sha256"] for file in files}) == 1
    # From one form to another, too.
    again = exported(files[1], tmp_path / "again", "safetensors")
    assert again.read_bytes() == files[0].read_bytes()


def test_other_libraries_read_the_files(run: Path, tmp_path: Path) -> None:
    expected = read_saved(open_checkpoint(run)).weights
    for out in (exported(run, tmp_path, "safetensors"), exported(run, tmp_path, "diffusers")):
        with safe_open(weights_file(out), "pt") as file:
            assert file.metadata()["format"] == "pt"
            assert all(file.get_tensor(name).equal(tensor) for name, tensor in expected.items())
    # As the published code does it.
    content = torch.load(exported(run, tmp_path, "pt"), map_location="cpu", weights_only=True)["ema"]
    assert content.keys() == expected.keys()
    assert all(content[name].equal(tensor) for name, tensor in expected.items())
    raw = exported(run, tmp_path, "pt", "--force", "sample.ema=0")
    assert "model" in torch.load(raw, weights_only=True)


def test_a_folder_has_settings_and_a_model_card(run: Path, tmp_path: Path, capsys: Capture) -> None:
    assert dis("eval-fid", "--ckpt", run, "--num-samples", 4, "-q", "--json") == 0
    score = result(capsys)["frechet_digits"]
    folder = exported(run, tmp_path, "diffusers")
    settings = json.loads((folder / "config.json").read_text())
    assert (settings["_class_name"], settings["embed_dim"], settings["learn_sigma"]) == ("DiS", 16, True)
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense:\n")
    assert f"{score:.6g}" in card
    assert "dis sample --ckpt x --class 0 -n 16" in card
    assert "digit 9" in card
    other = exported(run, tmp_path / "other", "diffusers", "sample.ema=0")
    assert f"{score:.6g}" not in (other / "README.md").read_text()
    assert "None were found" in (other / "README.md").read_text()
    # Settings in two places that differ are of nobody.
    settings["dis"]["config"]["sample"]["steps"] = 3
    (folder / "config.json").write_text(json.dumps(settings))
    assert dis("sample", "--ckpt", folder, "--dry-run") == 1
    assert "their settings differ" in capsys.readouterr().err
    (folder / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    assert dis("sample", "--ckpt", folder, "--dry-run") == 2
    assert "is of a UNet2DModel" in capsys.readouterr().err
    (folder / "config.json").unlink()
    assert dis("sample", "--ckpt", folder, "--dry-run") == 1


def test_settings_are_baked_in_and_paths_left_out(run: Path, tmp_path: Path) -> None:
    out = exported(run, tmp_path, "safetensors", "sample.steps=5", "sample.cfg_scale=2", "data.path=/home/secret")
    config = read_saved(open_checkpoint(out)).config
    assert (config.sample.steps, config.sample.cfg_scale, config.data.path) == (5, 2.0, None)
    assert b"secret" not in out.read_bytes()
    assert dis("checkpoint", "export", run, "--out", tmp_path / "y.pt", "model.embed_dim=32") == 2


@pytest.mark.parametrize(("dtype", "bits"), [("bf16", 8), ("fp16", 11)])
def test_smaller_numbers_are_rounded_once(dtype: str, bits: int, run: Path, tmp_path: Path, capsys: Capture) -> None:
    out = exported(run, tmp_path, "safetensors", "--dtype", dtype)
    assert shown(capsys, out)["dtype"] == {"bf16": "bfloat16", "fp16": "float16"}[dtype]
    expected = read_saved(open_checkpoint(run)).weights
    for name, tensor in read_saved(open_checkpoint(out)).weights.items():
        assert tensor.dtype == torch.float32
        assert torch.allclose(tensor, expected[name], rtol=2**-bits, atol=1e-7), name
    assert sampled(out, tmp_path / "samples")


def test_numbers_that_a_type_does_not_have_are_refused(tmp_path: Path, capsys: Capture) -> None:
    weights = weights_of(1)
    weights["norm_f.weight"][0] = 1e6
    run = save_run(tmp_path / "run", config_of(DIGITS), weights=weights)
    assert dis("checkpoint", "export", run, "--out", tmp_path / "x.pt", "--dtype", "fp16") == 2
    assert "fp16 is too small for `norm_f.weight`" in capsys.readouterr().err
    assert not (tmp_path / "x.pt").exists()


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_overwritten_unasked(form: str, run: Path, tmp_path: Path, capsys: Capture) -> None:
    out = exported(run, tmp_path, form)
    before = weights_file(out).read_bytes()
    assert dis("checkpoint", "export", run, "--out", out, "sample.ema=0") == 2
    assert "--force" in capsys.readouterr().err
    assert weights_file(out).read_bytes() == before
    assert exported(run, tmp_path, form, "--force", "sample.ema=0") == out
    assert weights_file(out).read_bytes() != before
    assert read_saved(open_checkpoint(out)).average.decay == 0
    assert {path.name for path in tmp_path.iterdir()} == {out.name}


def test_foreign_things_are_not_replaced(run: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_text("precious")
    for arguments in ([], ["--force"], ["--force", "--format", "pt"]):
        assert dis("checkpoint", "export", run, "--out", tmp_path / "thesis", *arguments) == 2
    assert dis("checkpoint", "export", run, "--out", tmp_path / "x.onnx") == 2
    assert "its suffix is `.onnx`, allowed: .safetensors, .pt" in capsys.readouterr().err
    assert dis("checkpoint", "export", run, "--out", tmp_path / "x.onnx", "--format", "pt", "--dry-run") == 0
    assert [path.name for path in tmp_path.rglob("*")] == ["thesis", "text"]


@pytest.mark.parametrize("form", FORMS)
def test_dry_run_writes_nothing(form: str, run: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / FORMS[form]
    assert dis("checkpoint", "export", run, "--out", out, "--dry-run", "--json") == 0
    planned = result(capsys)
    assert list(tmp_path.iterdir()) == []
    exported(run, tmp_path, form)
    assert planned["size_bytes"] == sum(f.stat().st_size for f in [out, *out.glob("*")] if f.is_file())


def test_files_can_be_read_by_others(run: Path, tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        for form in FORMS:
            assert weights_file(exported(run, tmp_path, form)).stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(mask)


# Import.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("asked", "decay"), [("none", 0.9999), ("0.9", 0.9), ("0", 0.0)])
def test_an_exported_model_becomes_a_run(form: str, asked: str, decay: float, run: Path, tmp_path: Path) -> None:
    out = exported(run, tmp_path, form, f"sample.ema={asked}")
    assert dis("checkpoint", "import", out, "--out", tmp_path / "imported", "-q") == 0
    saved = read_saved(open_checkpoint(tmp_path / "imported"))
    assert (saved.step, saved.average.decay, saved.held, saved.class_names) == (7, decay, (decay,), tuple(NAMES))
    assert sampled(tmp_path / "imported", tmp_path / "samples") == sampled(out, tmp_path / "same")
    assert read_config(tmp_path / "imported" / "config.toml") == saved.config
    facts = json.loads((tmp_path / "imported" / "run.json").read_text())
    assert facts["from"]["sha256"] == read_saved(open_checkpoint(out)).sha256
    assert summarize_run(tmp_path / "imported").status == "imported"


def test_both_weights_of_a_published_file_are_kept(tmp_path: Path, capsys: Capture) -> None:
    config = config_of(DIGITS)
    torch.save({"model": weights_of(1, config), "ema": weights_of(2, config)}, tmp_path / "x.pt")
    assert dis("checkpoint", "import", tmp_path / "x.pt", "--out", tmp_path / "run", "--json", "sample.steps=2") == 0
    assert result(capsys)["averages"] == [0.9999, 0.0]
    tensors = read_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000000").tensors
    assert tensors.keys() == {"ema", "model"}
    for name, tensor in weights_of(1, config).items():
        assert tensors["model"][name].equal(tensor)
    for asked in ("none", "0"):
        own = sampled(tmp_path / "run", tmp_path / f"own-{asked}", f"sample.ema={asked}")
        assert own == sampled(tmp_path / "x.pt", tmp_path / asked, "sample.steps=2", f"sample.ema={asked}")


def test_the_decay_of_an_import_is_that_of_its_weights(tmp_path: Path) -> None:
    torch.save({"model": weights_of(1), "ema": weights_of(2)}, tmp_path / "x.pt")
    asked = ["train.ema_decay=0.5", "sample.ema=0"]
    assert dis("checkpoint", "import", tmp_path / "x.pt", "--out", tmp_path / "run", "-q", *asked) == 0
    saved = read_saved(open_checkpoint(tmp_path / "run"))
    assert (saved.held, saved.average.decay, saved.config.train.ema_decay) == ((0.9999, 0.0), 0.0, 0.9999)


def test_a_bare_state_dict_becomes_a_run(tmp_path: Path) -> None:
    torch.save(weights_of(1), tmp_path / "x.pt")
    assert dis("checkpoint", "import", tmp_path / "x.pt", "--out", tmp_path / "run", "-q", "sample.steps=2") == 0
    assert read_saved(open_checkpoint(tmp_path / "run")).held == (0.0,)
    assert sampled(tmp_path / "run", tmp_path / "own")


def test_an_imported_model_is_not_trained_further(run: Path, tmp_path: Path, capsys: Capture) -> None:
    imported = tmp_path / "run"
    assert dis("checkpoint", "import", exported(run, tmp_path, "pt"), "--out", imported, "-q") == 0
    assert dis("train", "--preset", imported / "config.toml", "--out", imported) == 2
    assert "holds weights only" in capsys.readouterr().err


def test_import_overwrites_nothing(run: Path, tmp_path: Path, capsys: Capture) -> None:
    file = exported(run, tmp_path, "pt")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "text").write_text("precious")
    for out in (tmp_path / "full", file):
        assert dis("checkpoint", "import", file, "--out", out) == 2
        assert "exists" in capsys.readouterr().err
    assert dis("checkpoint", "import", run, "--out", tmp_path / "new") == 2
    assert "is a run of `dis train` already" in capsys.readouterr().err
    assert dis("checkpoint", "import", file, "--out", tmp_path / "new", "--dry-run") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"x.pt", "full"}
