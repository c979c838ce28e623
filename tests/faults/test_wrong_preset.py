"""Presets, VAEs and settings that a sound checkpoint is not of: both values of what differs, and nothing is done."""

import json
import re
import shutil
from pathlib import Path

import pytest
from support.saved import DIGITS, LATENTS, MOST_LINES, Refusal, commands, config_of, differences, save_preset, save_run
from support.tiny import dis
from support.vae import save_tiny_vae

from dis_cli.codecs.locate import locate_vae


@pytest.fixture
def said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refusal:
    return Refusal(tmp_path, capsys)


# Presets.


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model__embed_dim": 32}, ["model.embed_dim: 16 in the checkpoint, 32 in the preset"]),
        ({"model__depth": 5}, ["model.depth: 3 in the checkpoint, 5 in the preset"]),
        ({"model__num_classes": 0}, ["model.num_classes: 10 in the checkpoint, 0 in the preset"]),
        ({"model__patch_size": 2}, ["model.patch_size: 4 in the checkpoint, 2 in the preset"]),
        ({"diffusion__schedule": "cosine"}, ["diffusion.schedule: linear in the checkpoint, cosine in the preset"]),
        (
            {"diffusion__variance": "fixed_small"},
            ["diffusion.variance: learned_range in the checkpoint, fixed in the preset"],
        ),
        (
            {"codec__kind": "vae", "codec__vae": "digits", "model__in_channels": 4},
            [
                "model.in_channels: 1 in the checkpoint, 4 in the preset",
                "codec.kind: pixel in the checkpoint, vae in the preset",
            ],
        ),
    ],
)
def test_a_preset_of_another_model(
    changes: dict[str, object], expected: list[str], said: Refusal, tmp_path: Path
) -> None:
    run = save_run(tmp_path / "run", config_of(DIGITS))
    preset = save_preset(tmp_path / "other.toml", DIGITS, **changes)
    for command in commands(run, tmp_path):
        lines = said(*command, "--preset", preset)
        assert "is not a checkpoint of tiny" in lines[0]
        assert differences(lines) == expected


def test_a_preset_that_trains_otherwise_fits(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", config_of(DIGITS, diffusion__variance="fixed_small"))
    changes: dict[str, object] = {
        "model__drop_path": 0.5,
        "model__label_drop": 0.5,
        "model__init": "published",
        "model__final_init": "zero",
        "diffusion__variance": "fixed_large",
        "diffusion__loss_weight": "min_snr",
        "diffusion__min_snr_gamma": 3.0,
        "codec__scale": 3.0,
        "train__steps": 7,
    }
    preset = save_preset(tmp_path / "other.toml", DIGITS, **changes)
    for command in commands(run, tmp_path):
        assert dis(*command, "--preset", preset, "--dry-run", "-q") == 0


def test_of_many_differences_the_first_and_the_count_of_the_rest_are_told(said: Refusal, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", config_of(LATENTS, codec__vae="owner/one", codec__scale=0.5))
    changes: dict[str, object] = {
        "model__image_size": 6,
        "model__patch_size": 3,
        "model__in_channels": 2,
        "model__embed_dim": 32,
        "model__depth": 5,
        "model__num_classes": 7,
        "model__d_state": 4,
        "model__d_conv": 3,
        "model__expand": 1,
        "codec__vae": "owner/two",
        "codec__scale": 1.5,
        "codec__downsample": 4,
        "diffusion__num_timesteps": 500,
        "diffusion__schedule": "cosine",
        "diffusion__prediction": "v",
        "diffusion__variance": "fixed_small",
    }
    preset = save_preset(tmp_path / "other.toml", LATENTS, **changes)
    found = differences(said("sample", "--ckpt", run, "--vae", "digits", "--preset", preset))
    assert [line.split(":")[0] for line in found[:9]] == [key.replace("__", ".") for key in list(changes)[:9]]
    assert found[9:] == ["codec.vae: owner/one in the checkpoint, owner/two in the preset", "and 6 more"]


@pytest.fixture(scope="module")
def vaes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("vaes")
    return save_tiny_vae(root / "one", seed=0), save_tiny_vae(root / "two", seed=1)


def record_of(vae: Path) -> dict[str, object]:
    config, weights = locate_vae(str(vae)).identity
    return {"name": str(vae), "config_sha256": config, "weights_sha256": weights, "scaling_factor": None}


def test_a_preset_of_another_vae(
    vaes: tuple[Path, Path], said: Refusal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = vaes
    run = save_run(tmp_path / "run", config_of(LATENTS, codec__vae=str(one)), vae=record_of(one))
    command = ["sample", "--ckpt", run, "--dry-run", "-n", 1]

    def preset(vae: object) -> Path:
        return save_preset(tmp_path / "other.toml", LATENTS, codec__vae=str(vae))

    assert differences(said(*command, "--preset", preset(two))) == [
        f"codec.vae: {one} in the checkpoint, {two} in the preset"
    ]
    assert differences(said(*command, "--preset", preset("digits")))[0].startswith("codec.vae: ")
    # The same one in another place, and one whose content is not known here.
    moved = shutil.copytree(one, tmp_path / "moved")
    for vae in (moved, tmp_path / "absent", "none"):
        assert dis(*command, "--preset", preset(vae), "-q") == 0, capsys.readouterr().err


def test_latents_and_a_preset_of_pixels(said: Refusal, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", config_of(LATENTS, codec__vae="digits", codec__scale=0.5))
    changes: dict[str, object] = {"codec__kind": "pixel", "data__source": "folder"}
    preset = save_preset(tmp_path / "other.toml", LATENTS, **changes)
    lines = said("sample", "--ckpt", run, "--dry-run", "--preset", preset)
    assert differences(lines) == ["codec.kind: vae in the checkpoint, pixel in the preset"]


def test_names_of_vaes_that_mean_the_same_everywhere_are_compared(
    vaes: tuple[Path, Path], said: Refusal, tmp_path: Path
) -> None:
    run = save_run(tmp_path / "run", config_of(LATENTS, codec__vae="owner/one"))
    preset = save_preset(tmp_path / "other.toml", LATENTS, codec__vae="owner/two")
    lines = said("sample", "--ckpt", run, "--dry-run", "--preset", preset)
    assert differences(lines) == ["codec.vae: owner/one in the checkpoint, owner/two in the preset"]


def test_decoding_with_another_vae(vaes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = vaes
    run = save_run(tmp_path / "run", config_of(LATENTS, codec__vae=str(one)), vae=record_of(one))
    assert dis("sample", "--ckpt", run, "--vae", two, "--out", tmp_path / "out", "-n", 1) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= MOST_LINES
    ours, theirs = (locate_vae(str(vae)).identity[1][:12] for vae in (two, one))
    assert differences(lines) == [f"weights: sha256 {theirs} then, {ours} in `{two}`"]
    assert not (tmp_path / "out").exists()


# Settings.


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.image_size=16", "model.image_size: 8 in the checkpoint, 16 asked for"),
        ("model.num_classes=3", "model.num_classes: 10 in the checkpoint, 3 asked for"),
        ("diffusion.variance=fixed_small", "diffusion.variance: learned_range in the checkpoint, fixed asked for"),
    ],
)
def test_settings_that_need_other_weights(override: str, expected: str, said: Refusal, tmp_path: Path) -> None:
    # Of a folder of images, for the bundled digits fix the model's grid themselves.
    config = config_of(DIGITS, data__source="folder", data__path=str(tmp_path), model__label_drop=0.2)
    run = save_run(tmp_path / "run", config)
    assert differences(said("sample", "--ckpt", run, "--dry-run", override)) == [expected]


# Runs.


def test_a_run_is_not_continued_with_another_preset(said: Refusal, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", config_of(DIGITS, train__precision="fp32"))
    changes: dict[str, object] = {"model__embed_dim": 32, "train__lr": 0.5, "train__precision": "fp32"}
    preset = save_preset(tmp_path / "other.toml", DIGITS, **changes)
    lines = said("train", "--out", run, "--preset", preset)
    assert str(run) in lines[0]
    assert differences(lines) == ["model.embed_dim: 16 there, 32 asked for", "train.lr: 0.0001 there, 0.5 asked for"]
    assert any(line.startswith("hint: ") and f"--preset {run / 'config.toml'}" in line for line in lines)
    # So much differs that not all of it is shown.
    much = ["seed=1", "train.lr=0.5", "train.ema_decay=0.5", "train.warmup_steps=5", "train.batch_size=2"]
    much += ["diffusion.num_timesteps=500", "model.drop_path=0.5", "model.init=published", "train.clip_norm=none"]
    found = differences(said("train", "--out", run, "--preset", "dis-h-imagenet512", *much))
    assert "model.image_size: 8 there, 64 asked for" in found
    assert "model.embed_dim: 16 there, 1536 asked for" in found
    assert re.fullmatch(r"and \d+ more", found[-1])


def test_both_values_are_in_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = save_run(tmp_path / "run", config_of(DIGITS))
    assert dis("sample", "--ckpt", run, "--preset", "dis-m-cifar", "--json") == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["kind"], error["exit_code"]) == ("MismatchError", 2)
    assert "model.embed_dim: 16 in the checkpoint, 768 in the preset" in error["message"]
