"""Sound checkpoints and files that hold something else than a model of their settings: said, and nothing is done."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.saved import DIGITS, Refusal, commands, config_of, differences, save_run
from torch import Tensor

from dis_cli.models import DiS
from dis_cli.workflows.build import build_model


@pytest.fixture
def said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refusal:
    return Refusal(tmp_path, capsys)


def without_block(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if not name.startswith("out_blocks.0.")}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model__embed_dim": 32}, ["model.embed_dim: 16 in the weights, 32 in the settings"]),
        ({"model__num_classes": 0}, ["model.num_classes: 10 in the weights, 0 in the settings"]),
        (
            {"model__depth": 5, "model__d_state": 3, "diffusion__variance": "fixed_large"},
            [
                "model.depth: 3 in the weights, 5 in the settings",
                "model.d_state: 16 in the weights, 3 in the settings",
                "diffusion.variance: learned_range in the weights, fixed in the settings",
            ],
        ),
    ],
)
def test_weights_that_are_not_of_their_settings(
    changes: dict[str, object], expected: list[str], said: Refusal, tmp_path: Path
) -> None:
    weights = build_model(config_of(DIGITS)).state_dict()
    run = save_run(tmp_path / "run", config_of(DIGITS, **changes), weights=weights)
    for command in commands(run, tmp_path):
        lines = said(*command)
        assert str(run / "checkpoints" / "step-00000001") in lines[0]
        assert differences(lines) == expected


def test_weights_of_no_model(said: Refusal, tmp_path: Path) -> None:
    weights = build_model(config_of(DIGITS)).state_dict()
    halved = save_run(tmp_path / "halved", config_of(DIGITS), weights=without_block(weights))
    assert "19 missing: `out_blocks.0.mixer.A_log`" in said(*commands(halved, tmp_path)[0])[0]
    foreign = save_run(tmp_path / "foreign", config_of(DIGITS), weights={"conv1.weight": torch.zeros(3)})
    assert "it holds 1 tensors: `conv1.weight`" in said(*commands(foreign, tmp_path)[0])[0]
    empty = save_run(tmp_path / "empty", config_of(DIGITS), weights={})
    assert "it holds 0 tensors" in said(*commands(empty, tmp_path)[0])[0]


def test_settings_that_this_version_does_not_read(said: Refusal, tmp_path: Path) -> None:
    settings = config_of(DIGITS).model_dump(mode="json")
    settings["model"] |= {"depth": 4.5} | {f"unknown_{number}": number for number in range(20)}
    later = save_run(tmp_path / "later", config_of(DIGITS), settings=settings)
    for command in commands(later, tmp_path):
        found = differences(said(*command))
        assert found[0].startswith("`model.depth`: got `4.5`, allowed: an integer")
        assert "Unknown key: `model.unknown_0`" in found
        assert found[-1] == "and 11 more"
    none = save_run(tmp_path / "none", config_of(DIGITS), settings="none")
    assert "holds no settings of a run" in said(*commands(none, tmp_path)[0])[0]


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"class_names": ["a", "b"]}, "names 2 classes, and model.num_classes in its settings is 10"),
        ({"class_names": 3}, "not a list of names: 3"),
        ({"class_names": [1] * 10}, "not a list of names"),
        ({"vae": {"name": "x"}}, "The VAE in the settings"),
        ({"vae": 3}, "The VAE in the settings"),
    ],
)
def test_records_that_are_of_something_else(
    meta: dict[str, object], message: str, said: Refusal, tmp_path: Path
) -> None:
    run = save_run(tmp_path / "run", config_of(DIGITS), **meta)
    assert message in said(*commands(run, tmp_path)[0])[0]


# Files.


def dis_weights(**changes: Any) -> dict[str, Tensor]:
    return DiS(
        **({"image_size": 8, "patch_size": 4, "in_channels": 3, "embed_dim": 16, "depth": 3} | changes)
    ).state_dict()


def u_vit() -> dict[str, Tensor]:
    """Names and shapes as U-ViT has them, of one block each."""
    names = {"pos_embed": (1, 5, 16), "patch_embed.proj.weight": (16, 3, 4, 4), "patch_embed.proj.bias": (16,)}
    for block in ("in_blocks.0", "mid_block", "out_blocks.0"):
        names |= {f"{block}.attn.qkv.weight": (48, 16), f"{block}.mlp.fc1.weight": (64, 16)}
    names |= {"decoder_pred.weight": (48, 16), "final_layer.weight": (3, 3, 3, 3)}
    return {name: torch.zeros(shape) for name, shape in names.items()}


def dit() -> dict[str, Tensor]:
    """Names and shapes as DiT has them, of one block."""
    names = {"pos_embed": (1, 4, 16), "x_embedder.proj.weight": (16, 3, 4, 4), "t_embedder.mlp.0.weight": (16, 256)}
    names |= {"y_embedder.embedding_table.weight": (11, 16), "blocks.0.attn.qkv.weight": (48, 16)}
    return {name: torch.zeros(shape) for name, shape in names.items()}


def optimizer() -> dict[str, Any]:
    model = torch.nn.Linear(3, 3)
    adam = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    adam.step()
    return adam.state_dict()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (u_vit, "does not hold a U-ViT model: 33 missing: .* and 29 more"),
        (dit, "`patch_embed.proj.weight` is missing; it holds 5 tensors: `pos_embed`, `x_embedder.proj.weight`, "),
        (lambda: {"ema": dit(), "model": dit()}, "`patch_embed.proj.weight` is missing"),
        (optimizer, "`state` is of type dict; its keys are `state`, `param_groups`"),
        (lambda: {"opt": optimizer()}, "`opt` is of type dict; its keys are `opt`"),
        (dict, "holds no weights"),
        (lambda: list(dit().values()), "holds a list"),
        (lambda: torch.zeros(3), "holds a Tensor"),
        (lambda: without_block(dis_weights()), "19 missing: `out_blocks.0.mixer.A_log`"),
        (lambda: dis_weights(embed_dim=4), "of sizes that this version does not build:"),
    ],
)
def test_files_that_hold_no_model(content: Callable[[], object], message: str, said: Refusal, tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    torch.save(content(), file)
    inception = tmp_path / "inception.pth"
    inception.write_bytes(b"")
    for command in commands(file, tmp_path):
        given = ["--inception", inception] if command[0] == "eval-fid" else []
        lines = said(*command, *given)
        assert str(file) in lines[0]
        assert re.search(message, lines[0])
        assert lines[-1].startswith("hint: ")


def test_a_file_of_another_model_than_the_preset(said: Refusal, tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    torch.save({"ema": dis_weights()}, file)
    found = differences(said("sample", "--ckpt", file, "--out", tmp_path / "out", "--preset", "dis-s-cifar"))
    assert found == [
        "model.image_size: 8 in the checkpoint, 32 in the preset",
        "model.patch_size: 4 in the checkpoint, 2 in the preset",
        "model.embed_dim: 16 in the checkpoint, 368 in the preset",
        "model.depth: 3 in the checkpoint, 25 in the preset",
    ]


def test_damaged_files_are_no_usage_error(said: Refusal, tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    torch.save({"ema": dis_weights()}, file)
    whole = file.read_bytes()
    middle = len(whole) // 2
    for data in (whole[:-100], whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :], b"hello"):
        file.unlink()
        file.write_bytes(data)
        assert "damaged" in said("sample", "--ckpt", file, "--out", tmp_path / "out", status=1)[0]
    run = save_run(tmp_path / "run", config_of(DIGITS))
    for name in ("ema.safetensors", "meta.json", "manifest.json"):
        broken = shutil.copytree(run, tmp_path / name)
        path = broken / "checkpoints" / "step-00000001" / name
        path.write_bytes(path.read_bytes()[:-1])
        assert "damaged" in said("sample", "--ckpt", broken, "--out", tmp_path / "out", status=1)[0]
