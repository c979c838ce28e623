"""A second family of backbones: two rows, and every command knows it."""

import copy
import json
import pickle
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from support.saved import DIGITS, config_of, save_run
from support.tiny import dis, result
from support.toy import Toy, ToyConfig, add_toy, remove_toy

import dis_cli
from dis_cli.config import backbones
from dis_cli.config.overrides import apply_overrides, describe_keys
from dis_cli.config.presets import load_preset
from dis_cli.config.schema import RunConfig
from dis_cli.errors import ConfigError
from dis_cli.models import DiS, families
from dis_cli.workflows.build import build_model
from dis_cli.workflows.cost import model_shape

PRESET = """
name = "toy-digits"
[model]
backbone = "toy"
image_size = 8
in_channels = 1
num_classes = 10
hidden = 12
[data]
source = "digits"
hflip = false
[train]
steps = 2
batch_size = 4
[sample]
sampler = "ddim"
steps = 2
[evaluate]
num_samples = 20
"""


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    add_toy(monkeypatch)
    yield
    monkeypatch.undo()
    remove_toy()


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    path = tmp_path / "toy.toml"
    path.write_text(PRESET)
    return path


@pytest.fixture
def run(preset: Path, tmp_path: Path) -> Path:
    assert dis("train", "--preset", preset, "--out", tmp_path / "run", "-q") == 0
    return tmp_path / "run"


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert dis(*arguments) == 2
    return capsys.readouterr().err


def test_settings_and_families_have_the_same_names() -> None:
    assert list(backbones.BACKBONES) == list(families.FAMILIES) == ["dis", "dit", "uvit", "unet", "toy"]
    assert backbones.DEFAULT == families.DEFAULT == RunConfig().model.backbone
    for name, section in backbones.BACKBONES.items():
        config = RunConfig(model=section(backbone=name))
        built = build_model(config)
        assert type(built).__name__ == families.FAMILIES[name].class_name
        # Its network takes all its settings, and its shape is among them.
        assert model_shape(config).image_size == built.image_size == 32


def test_keys_are_those_of_its_section(preset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dis("presets", "validate", preset) == 0
    assert dis("presets", "show", preset) == 0
    shown = capsys.readouterr().out
    assert 'backbone = "toy"' in shown
    assert "hidden = 12" in shown
    assert "d_state" not in shown
    rows = {key: (allowed, default, meaning) for key, allowed, default, meaning in describe_keys()}
    assert rows["model.backbone"][:2] == ("one of dis, dit, uvit, unet, toy", "dis")
    assert rows["model.hidden"] == ("an integer >= 1", "8", "channels between the convolutions (model.backbone=toy)")
    config = load_preset(preset)
    with pytest.raises(ConfigError, match=r"Unknown key: `model\.depth`"):
        apply_overrides(config, ["model.depth=3"])
    with pytest.raises(ConfigError, match=r"Unknown key: `model\.hidden`"):
        apply_overrides(RunConfig(), ["model.hidden=3"])
    preset.write_text(PRESET.replace("hidden", "hiden"))
    assert "Unknown key: `model.hiden` (Did you mean `model.hidden`?)" in "".join(_problems(preset, capsys))


def _problems(preset: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    assert dis("presets", "validate", preset, "--json") == 3
    return json.loads(capsys.readouterr().out)["presets"][0]["problems"]


def test_the_backbone_can_be_chosen_on_the_command_line() -> None:
    config = apply_overrides(config_of(DIGITS), ["model.hidden=5", "model.backbone=toy", "model.patch_size=2"])
    assert config.model == ToyConfig(
        backbone="toy", image_size=8, patch_size=2, in_channels=1, num_classes=10, hidden=5
    )
    back = apply_overrides(config, ["model.backbone=dis", "model.depth=3"])
    assert back.model.model_dump() == RunConfig().model.model_dump() | {
        "image_size": 8,
        "in_channels": 1,
        "num_classes": 10,
        "depth": 3,
    }


@pytest.mark.parametrize("name", ["tyo", "", "DiS"])
def test_an_unknown_backbone_is_told(name: str, preset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(RunConfig(), [f"model.backbone={name}"])
    assert caught.value.message.startswith(f"`model.backbone`: got `{name}`, allowed: ")
    preset.write_text(f"[model]\nbackbone = '{name}'\n")
    assert _problems(preset, capsys)[0].startswith(
        f"`model.backbone`: got `{name}`, allowed: dis, dit, uvit, unet, toy"
    )
    if name == "tyo":
        assert "Did you mean `toy`?" in caught.value.message


def test_a_run_is_trained_continued_looked_at_and_not_mixed_up(
    preset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    look = [
        "train.preview_every=2",
        "train.preview_images=4",
        "train.evaluate_every=4",
        "train.gradient_checkpointing=true",
    ]
    assert dis("train", "--preset", preset, "--out", straight, "-q", "train.steps=4", *look) == 0
    assert dis("train", "--preset", preset, "--out", stopped, "-q", "train.steps=2") == 0
    assert dis("train", "--preset", preset, "--out", stopped, "-q", "train.steps=4", *look) == 0
    assert {path.name for path in (straight / "samples").iterdir()} == {"preview-00000002.png", "preview-00000004.png"}
    assert len(list((straight / "evaluations").iterdir())) == 1
    one, other = (dis_cli.load_model(folder, device="cpu") for folder in (straight, stopped))
    assert isinstance(one, Toy)
    assert isinstance(one, dis_cli.TrainedDiS)
    assert pickle.loads(pickle.dumps(one)).config == copy.deepcopy(one).config == one.config
    assert all(tensor.equal(other.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert dis("train", "--preset", preset, "--out", tmp_path / "x", "--dry-run") == 0
    assert dis("runs", tmp_path) == 0
    for change in ("model.hidden=3", "model.backbone=dis"):
        message = refused(capsys, "train", "--preset", preset, "--out", stopped, change)
        assert f"{change.split('=')[0]}: " in message
        assert "holds a run with other settings" in message


def test_it_is_sampled_scored_shown_and_taken_elsewhere(
    run: Path, preset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["-n", 2, "sample.precision=fp32"]
    assert dis("sample", "--ckpt", run, "--preset", preset, "--out", tmp_path / "a", *common, "--cfg-scale", 2) == 0
    assert dis("eval-fid", "--ckpt", run, "--out", tmp_path / "score.json") == 0
    capsys.readouterr()
    assert dis("checkpoint", "show", run, "--json") == 0
    shown = result(capsys)
    assert shown["config"]["model"]["hidden"] == 12
    model = dis_cli.load_model(run, device="cpu")
    images = dis_cli.sample_images(model, n=2)
    for name in ("x.safetensors", "x.pt", "x"):
        file = tmp_path / name
        assert dis("checkpoint", "export", run, "--out", file) == 0
        assert dis("checkpoint", "import", file, "--out", tmp_path / f"{name}-run") == 0
        for place in (file, tmp_path / f"{name}-run"):
            assert (dis_cli.sample_images(dis_cli.load_model(place, device="cpu"), n=2) == images).all()
    settings = json.loads((tmp_path / "x" / "config.json").read_text())
    assert settings["_class_name"] == "Toy"
    assert Toy(**{key: value for key, value in settings.items() if key not in ("_class_name", "dis")})
    assert "It is a Toy: two convolutions." in (tmp_path / "x" / "README.md").read_text()
    assert "hidden: 12 in the checkpoint, 3 asked for" in refused(capsys, "sample", "--ckpt", run, "model.hidden=3")
    refusal = refused(capsys, "sample", "--ckpt", run, "--preset", "dis-xs-digits")
    assert "model.backbone: toy in the checkpoint, dis in the preset" in refusal


def test_it_is_counted_on_the_meta_device(
    run: Path, preset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dis("checkpoint", "export", run, "--out", tmp_path / "x.pt") == 0
    # 4 x 4 patches: patches, time, two convolutions, pixels.
    macs = 16 * 4 * 12 + 12 + 2 * 16 * 12 * 12 * 9 + 16 * 12 * 8
    parameters = sum(parameter.numel() for parameter in build_model(load_preset(preset)).parameters())
    for given in (["--preset", preset], ["--ckpt", run], ["--ckpt", tmp_path / "x.pt"]):
        capsys.readouterr()
        assert dis("flops", *given, "--json") == 0
        report = result(capsys)
        assert (report["name"], report["macs"], report["num_parameters"]) == ("Toy-12/2", macs, parameters)
        assert report["num_tokens"] == 16
    assert dis("flops", "--preset", preset, "--size", "m", "--classes", 3, "--image-size", 16, "--patch", 4) == 0
    assert "Toy-16/4" in capsys.readouterr().out
    assert dis("flops", "--preset", preset, "--all") == 0
    assert dis("flops", "--preset", preset, "--time", "--device", "cpu") == 0
    assert "No transformer" in refused(capsys, "flops", "--preset", preset, "--compare")


def test_weights_are_told_apart(preset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy, small = load_preset(preset), config_of(DIGITS)
    torch.save(build_model(toy).state_dict(), tmp_path / "x.pt")
    model = dis_cli.load_model(tmp_path / "x.pt", device="cpu")
    assert isinstance(model, Toy)
    assert model.config.model.backbone == "toy"
    save_run(tmp_path / "one", toy, weights=build_model(small).state_dict())
    message = refused(capsys, "sample", "--ckpt", tmp_path / "one")
    assert "does not hold a Toy model: these are weights of a DiS" in message
    save_run(tmp_path / "other", small, weights=build_model(toy).state_dict())
    assert "does not hold a DiS model: these are weights of a Toy" in refused(
        capsys, "sample", "--ckpt", tmp_path / "other"
    )
    torch.save({"weight": torch.zeros(3)}, tmp_path / "y.pt")
    message = refused(capsys, "sample", "--ckpt", tmp_path / "y.pt")
    assert "does not hold a DiS model: " in message
    assert "; nor a Toy model: `patches.weight` is missing" in message


def test_settings_of_before_there_was_a_choice_are_of_a_dis(tmp_path: Path) -> None:
    config = config_of(DIGITS)
    settings = config.model_dump(mode="json")
    del settings["model"]["backbone"]
    run = save_run(tmp_path / "run", config, settings=settings)
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace('backbone = "dis"\n', ""))
    assert load_preset(run / "config.toml") == config
    model = dis_cli.load_model(run, device="cpu")
    assert isinstance(model, DiS)
    assert model.config.model.backbone == "dis"
