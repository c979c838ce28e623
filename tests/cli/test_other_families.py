"""DiT, U-ViT and U-Net through the commands: killed and continued, sampled, taken elsewhere, on two ranks, refused."""

import hashlib
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from support.families import OTHERS, SMALL, digits_config
from support.ranks import At, signalling, start
from support.saved import save_run
from support.states import Tensors, assert_close, assert_close_losses, tensors
from support.tiny import dis, result

import dis_cli
from dis_cli.config.other_backbone import describe_change
from dis_cli.config.overrides import apply_overrides
from dis_cli.config.presets import DEFAULT_PRESET, dump_toml, load_preset
from dis_cli.data.batches import TrainingSet
from dis_cli.errors import ConfigError
from dis_cli.models.families import FAMILIES
from dis_cli.workflows.build import build_model, build_source
from dis_cli.workflows.load.opened import open_checkpoint
from dis_cli.workflows.load.saved import read_saved


@pytest.fixture(params=OTHERS)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


KILL = signalling(signal.SIGKILL)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert dis(*arguments) == 2
    return capsys.readouterr().err


def test_killed_twice_it_ends_bit_equal(family: str, tmp_path: Path) -> None:
    preset = tmp_path / "tiny.toml"
    preset.write_text(dump_toml(digits_config(family, train__save_every=8)))
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert dis("train", "--preset", preset, "--out", straight, "-q") == 0
    command = ["train", "--preset", preset, "--out", killed, "-q"]
    # Counted from 1 in the whole run.
    for step in (13, 30):
        [ended] = start(1, *command, folder=tmp_path / "said", faults={0: At(step, action=KILL)}).finish()
        assert ended.code == -signal.SIGKILL, ended
    assert dis("train", "--preset", preset, "--out", killed, "-q") == 0
    one, other = (tensors(folder, 40) for folder in (straight, killed))
    assert one.keys() == other.keys() == {"model", "ema", "optimizer"}
    for name, group in one.items():
        assert all(tensor.equal(other[name][key]) for key, tensor in group.items()), name


def test_it_is_sampled_scored_shown_and_taken_elsewhere(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save_run(tmp_path / "run", digits_config(family))
    sums: set[str] = set()
    for size in (1, 3, 8):
        out = tmp_path / f"images-{size}.npz"
        command = ["sample", "--ckpt", run, "--out", out, "-n", 8, "--cfg-scale", 2, f"sample.batch_size={size}"]
        assert dis(*command, "--format", "npz") == 0
        with np.load(out) as arrays:
            sums.add(hashlib.sha256(arrays["arr_0"].tobytes()).hexdigest())
    assert len(sums) == 1
    model = dis_cli.load_model(run, device="cpu")
    for name in ("x.safetensors", "x.pt", "x"):
        file = tmp_path / name
        assert dis("checkpoint", "export", run, "--out", file) == 0
        assert dis("checkpoint", "import", file, "--out", tmp_path / f"{name}-run") == 0
        for place in (file, tmp_path / f"{name}-run"):
            loaded = dis_cli.load_model(place, device="cpu")
            assert all(tensor.equal(loaded.state_dict()[key]) for key, tensor in model.state_dict().items())
    capsys.readouterr()
    assert dis("flops", "--ckpt", run, "--json") == 0
    assert result(capsys)["num_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert dis("checkpoint", "show", run) == 0
    other = save_run(tmp_path / "other", digits_config("dis"), weights=model.state_dict())
    message = refused(capsys, "sample", "--ckpt", other)
    assert f"does not hold a DiS model: these are weights of a {FAMILIES[family].title}" in message


def test_weights_of_one_family_do_not_go_on_in_a_run_of_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save_run(tmp_path / "run", digits_config("dit"))
    message = refused(capsys, "sample", "--ckpt", run, "--preset", "dis-xs-digits")
    assert "model.backbone: dit in the checkpoint, dis in the preset" in message


def moved(run: Path) -> Tensors:
    """The weights that gradients move. No softmax depends on the bias of its keys: its gradient is rounding alone."""
    state = tensors(run, 3)
    return {
        group: {name: tensor for name, tensor in named.items() if not name.endswith("to_k.bias")}
        for group, named in state.items()
    }


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_ranks_train_what_one_trains(family: str, sharding: str, tmp_path: Path) -> None:
    preset = tmp_path / "tiny.toml"
    preset.write_text(
        dump_toml(digits_config(family, train__steps=3, train__lr=1e-4, train__gradient_checkpointing=True))
    )
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert dis("train", "--preset", preset, "--out", alone, "-q") == 0
    command = ["train", "--preset", str(preset), "--out", str(together), "-q", f"train.sharding={sharding}"]
    for ended in start(2, *command, folder=tmp_path / "said").finish():
        assert ended.code == 0, ended
    assert_close_losses(together, alone)
    assert_close(moved(together), moved(alone))


def test_a_preset_of_dis_trains_another_family_with_nothing_else(family: str) -> None:
    preset = load_preset(DEFAULT_PRESET)
    config = apply_overrides(preset, [f"model.backbone={family}"])
    assert config.model.model_dump(include={"image_size", "in_channels", "num_classes", "label_drop"}) == (
        preset.model.model_dump(include={"image_size", "in_channels", "num_classes", "label_drop"})
    )
    assert config.model.patch_size == (1 if family == "unet" else 2)
    parameters = [sum(p.numel() for p in build_model(one).parameters()) for one in (preset, config)]
    assert parameters[1] == pytest.approx(parameters[0], rel=0.01)
    change = describe_change(preset, config)
    assert change is not None
    assert f"model.backbone={family}: " in change
    assert f"{parameters[1]:,} parameters where dis had {parameters[0]:,}" in change
    assert "d_state, d_conv, expand, drop_path, init, final_init" in change
    assert describe_change(preset, preset) is None
    for typed in ("model.d_state=8", "model.drop_path=0"):
        with pytest.raises(ConfigError, match="Unknown key"):
            apply_overrides(preset, [f"model.backbone={family}", typed])


def test_a_typed_size_leaves_the_rest_at_its_defaults() -> None:
    config = apply_overrides(load_preset(DEFAULT_PRESET), ["model.backbone=dit", "model.embed_dim=768"])
    assert (config.model.model_dump()["depth"], config.model.model_dump()["num_heads"]) == (12, None)
    with pytest.raises(ConfigError, match="num_heads 5 does not divide embed_dim 384"):
        apply_overrides(load_preset(DEFAULT_PRESET), ["model.backbone=dit", "model.num_heads=5"])
    with pytest.raises(ConfigError, match="got `2`, allowed: an integer >= 1 and <= 1"):
        apply_overrides(load_preset(DEFAULT_PRESET), ["model.backbone=unet", "model.patch_size=2"])


def test_seeds_give_the_same_batches_to_every_family() -> None:
    batches = {}
    for name in SMALL:
        config = digits_config(name, **({"model__drop_path": 0.0} if name == "dis" else {}))
        model = build_model(config)
        assert model.num_drop_path == 0
        dataset = TrainingSet(build_source(config), seed=7, num_timesteps=1000, num_drop_path=model.num_drop_path)
        batches[name] = dataset.batch([5, 900, 12345])
    for batch in batches.values():
        for field in ("x_0", "noise", "t", "labels", "label_drop_uniform"):
            assert getattr(batch, field).equal(getattr(batches["dis"], field)), field


def test_a_published_dit_asks_for_heads_guides_three_channels_and_samples_through_a_vae(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"image_size": 8, "patch_size": 2, "in_channels": 4, "num_classes": 3, "learn_sigma": True}
    model = FAMILIES["dit"].build(**settings, embed_dim=16, depth=2, num_heads=2)
    file = tmp_path / "dit.pt"
    torch.save({"ema": model.state_dict()}, file)
    message = refused(capsys, "sample", "--ckpt", file)
    assert "its attention heads are not known: set model.num_heads" in message.replace("\n", " ")
    digits = ["model.num_heads=2", "codec.vae=digits", "codec.downsample=4", "sample.sampler=ddim", "sample.steps=2"]
    opened = open_checkpoint(file, digits)
    saved = read_saved(opened)
    assert saved.config.sample.cfg_channels == "first3"
    assert (saved.config.codec.kind, saved.config.diffusion.variance) == ("vae", "learned_range")
    images = dis_cli.sample_images(dis_cli.load_model(file, overrides=digits, device="cpu"), n=2)
    assert images.shape == (2, 32, 32, 3)
    # A named width knows its heads.
    torch.save(FAMILIES["dit"].build(**settings, embed_dim=384, depth=1).state_dict(), file)
    assert read_saved(open_checkpoint(file)).config.model.model_dump()["embed_dim"] == 384


def test_a_published_uvit_of_latents_is_sampled_as_it_was_trained(tmp_path: Path) -> None:
    model = FAMILIES["uvit"].build(
        image_size=8, patch_size=2, in_channels=4, embed_dim=512, depth=1, num_classes=3, learn_sigma=False
    )
    file = tmp_path / "uvit.pt"
    torch.save(model.state_dict(), file)
    digits = ["codec.vae=digits", "codec.downsample=4", "sample.sampler=ddim", "sample.steps=2"]
    diffusion = read_saved(open_checkpoint(file, digits)).config.diffusion
    assert (diffusion.schedule, diffusion.timestep_offset) == ("scaled_linear", 1)
    told: list[int] = []
    loaded = dis_cli.load_model(file, overrides=digits, device="cpu")
    loaded.register_forward_pre_hook(lambda _, inputs: told.extend(inputs[1].tolist()))
    images = dis_cli.sample_images(loaded, n=1)
    assert images.shape == (1, 32, 32, 3)
    # Its timesteps begin at 1.
    assert told == [501, 1]


def test_a_published_uvit_of_pixels_is_not_sampled_as_it_was_not_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = FAMILIES["uvit"].build(image_size=8, patch_size=2, in_channels=3, embed_dim=512, depth=1, learn_sigma=False)
    file = tmp_path / "uvit.pt"
    torch.save(model.state_dict(), file)
    assert dis("flops", "--ckpt", file) == 0
    for command in (["sample", "--ckpt", file], ["checkpoint", "import", file, "--out", tmp_path / "run"]):
        message = refused(capsys, *command)
        assert "holds a published U-ViT that cannot be sampled as it was trained" in message
        assert "diffusion.timesteps=continuous" in message
