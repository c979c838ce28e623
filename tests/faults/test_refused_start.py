"""A start that is refused leaves every byte as it was, whatever it is refused for, and its hint works when typed."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from support.latents import save_images
from support.tiny import dis, result, train
from support.vae import save_tiny_vae

from dis_cli.config.presets import load_preset
from dis_cli.errors import ConfigError

OF_FILES = (
    "data.source=folder",
    "model.num_classes=2",
    "train.steps=2",
    "train.precision=fp32",
    "train.lr_schedule=constant",
)


def content(folder: Path) -> dict[str, bytes | None]:
    """All that a folder holds, hidden files and empty folders included."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run and its images."""
    root = tmp_path_factory.mktemp("made")
    save_images(root / "imgs", 8)
    assert train(root / "run", *OF_FILES, f"data.path={root / 'imgs'}") == 0
    return root


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, to be spoilt, in the working directory."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    save_images(tmp_path / "other", 9)
    shutil.copytree(tmp_path / "imgs", tmp_path / "broken")
    (tmp_path / "broken" / "cat" / "zzz.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def again(*arguments: str) -> int:
    return train(Path("run"), *OF_FILES, "data.path=imgs", *arguments)


REFUSED = {
    "other data": ("data.path=other",),
    "no data": ("data.path=nothing",),
    "bad images": ("data.path=broken",),
    "other settings": ("train.lr=0.5",),
    "another model": ("model.embed_dim=24",),
    "other classes": ("model.num_classes=3",),
    "an average that is not kept": ("sample.ema=0.5",),
    "an impossible sampler": ("sample.sampler=heun", "sample.steps=4"),
    "an engine": ("engine=mamba_ssm",),
    "a precision": ("train.precision=bf16",),
    "a tracker that is absent": ("train.trackers=wandb",),
    "no weights to score with": ("train.evaluate_every=1", "evaluate.features=clip"),
}
OVER = {
    "over, no data": ("--fresh", "data.path=nothing"),
    "over, bad images": ("--fresh", "data.path=broken"),
    "over, other classes": ("--fresh", "model.num_classes=3"),
    "over, no weights to score with": ("--fresh", "train.evaluate_every=1", "evaluate.features=clip"),
    "over, an average that is not kept": ("--fresh", "sample.ema=0.5"),
}


@pytest.mark.parametrize("arguments", [*REFUSED.values(), *OVER.values()], ids=[*REFUSED, *OVER])
def test_nothing_of_the_run_changes(arguments, place, capsys, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(place / "no-weights"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    before = content(place)
    # Steps that would turn a finished run into an unfinished one, were they written down.
    assert again("train.steps=70", *arguments) in (1, 2)
    assert content(place) == before
    capsys.readouterr()
    assert dis("runs", "--json", ".") == 0
    assert [(run["status"], run["steps"]) for run in result(capsys)["runs"]] == [("finished", 2)]


@pytest.mark.parametrize("option", [(), ("--fresh",)], ids=["continued", "over"])
def test_a_tracker_that_cannot_open_changes_nothing(option, place, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    before = content(place)
    assert again("train.trackers=tensorboard", "train.steps=3", *option) == 1
    assert content(place) == before


def test_without_a_compiler_nothing_changes(place, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise ConfigError("torch cannot compile on this machine")

    monkeypatch.setattr("dis_cli.workflows.train.train.require_compiler", refuse)
    before = content(place)
    assert again("train.compile=true", "train.steps=3") == 2
    assert content(place) == before


def test_a_new_folder_is_not_left_behind(place) -> None:
    before = content(place)
    assert train(place / "deep" / "new", *OF_FILES, "data.path=broken") == 1
    assert content(place) == before


def test_the_suggested_command_continues_the_run(place, capsys) -> None:
    before = (place / "run" / "config.toml").read_bytes()
    assert dis("train", "--preset", "run/config.toml", "--out", "run", "--data", "other", "train.steps=3") == 2
    told = capsys.readouterr().err
    assert f"Bring those back as they were in `{load_preset(place / 'run' / 'config.toml').data.path}`" in told
    assert (place / "run" / "config.toml").read_bytes() == before
    command = next(part for part in told.split("`") if part.startswith("dis train"))
    assert dis(*shlex.split(command)[1:], "train.steps=3") == 0


def test_settings_edited_by_hand_are_noticed(place, capsys) -> None:
    config = place / "run" / "config.toml"
    text = config.read_text()
    config.write_text(text.replace("weight_decay = 0.0", "weight_decay = 0.5"))
    before = content(place)
    assert dis("train", "--preset", "run/config.toml", "--out", "run", "train.steps=3") == 2
    told = capsys.readouterr().err
    assert "train.weight_decay: 0.0 there, 0.5 asked for" in told
    assert content(place) == before
    # What is asked for is right, and the file is not: said, and put right.
    command = next(part for part in told.split("`") if part.startswith("dis train"))
    assert dis(*shlex.split(command)[1:], "train.steps=3") == 0
    assert "train.weight_decay: 0.5 in the file, 0.0 recorded" in capsys.readouterr().err
    assert load_preset(config).train.weight_decay == 0


def test_settings_are_recorded_before_the_first_checkpoint(place, capsys) -> None:
    shutil.rmtree(place / "run" / "checkpoints")
    config = place / "run" / "config.toml"
    config.write_text(config.read_text().replace("weight_decay = 0.0", "weight_decay = 0.5"))
    assert dis("train", "--preset", "run/config.toml", "--out", "run") == 2
    assert "train.weight_decay: 0.0 there, 0.5 asked for" in capsys.readouterr().err


@pytest.mark.parametrize("content_of", [b"[train\n", None], ids=["damaged", "gone"])
def test_without_readable_settings_the_record_counts(content_of, place, capsys) -> None:
    config = place / "run" / "config.toml"
    if content_of is None:
        config.unlink()
    else:
        config.write_bytes(content_of)
    assert again("train.lr=0.5") == 2
    assert "or give its settings the values that are there" in capsys.readouterr().err
    assert again("train.steps=3") == 0
    assert load_preset(config).train.steps == 3


def test_a_run_lists_what_it_was_trained_with(place, capsys) -> None:
    config = place / "run" / "config.toml"
    config.write_text(config.read_text().replace("steps = 2", "steps = 900"))
    assert dis("runs", "--json", ".") == 0
    assert [(run["status"], run["steps"]) for run in result(capsys)["runs"]] == [("finished", 2)]


def test_an_old_run_without_a_record_goes_on(place, capsys) -> None:
    record = json.loads((place / "run" / "run.json").read_text())
    del record["config"]
    (place / "run" / "run.json").write_text(json.dumps(record))
    assert again("train.steps=3") == 0
    assert "edited" not in capsys.readouterr().err


def test_a_run_that_was_imported_is_left_alone(place) -> None:
    assert dis("checkpoint", "export", "run", "--out", "model.safetensors", "-q") == 0
    assert dis("checkpoint", "import", "model.safetensors", "--out", "imported", "-q") == 0
    before = content(place)
    assert train(Path("imported"), *OF_FILES, "data.path=imgs") == 2
    assert content(place) == before


def test_other_commands_leave_what_is_there(place, monkeypatch) -> None:
    vae = save_tiny_vae(place / "vae")
    encode = ("encode-latents", "--vae", vae, "--image-size", "8", "-q")
    few = ("sample", "--ckpt", "run", "-n", "2", "-q", "sample.steps=2", "--out")
    assert dis(*encode, "--data", "imgs", "--out", "latents") == 0
    assert dis(*few, "samples") == 0
    assert dis("checkpoint", "export", "run", "--out", "model", "-q") == 0
    before = content(place)
    refused = [
        (*encode, "--data", "other", "--out", "latents"),
        (*encode, "--data", "imgs", "--out", "latents", "--no-flip"),
        (*encode, "--data", "broken", "--out", "deep/new"),
        (*encode, "--data", "imgs", "--out", "run"),
        (*few, "samples", "--seed", "3"),
        (*few, "run", "--vae", "vae"),
        ("checkpoint", "export", "run", "--out", "model", "-q"),
        ("checkpoint", "export", "run", "--out", "run", "--force", "-q"),
        ("checkpoint", "import", "model", "--out", "run", "-q"),
        ("eval-fid", "--ckpt", "run", "--features", "digits", "-n", "8", "-q", "data.path=other"),
    ]
    for arguments in refused:
        assert dis(*arguments) in (1, 2), arguments
        assert content(place) == before, arguments


def test_space_is_asked_for_before_latents_are_begun(place, monkeypatch) -> None:
    vae = save_tiny_vae(place / "vae")
    monkeypatch.setattr("dis_cli.workflows.encode_latents.free_bytes", lambda _: 10)
    before = content(place)
    assert dis("encode-latents", "--vae", vae, "--image-size", "8", "-q", "--data", "imgs", "--out", "new") == 1
    assert content(place) == before
