"""KEY=VALUE settings."""

from pathlib import Path

import pytest

from dis_cli.config.backbones import BACKBONES
from dis_cli.config.overrides import apply_overrides, describe_keys
from dis_cli.config.presets import load_preset, preset_names
from dis_cli.config.schema import RunConfig
from dis_cli.config.settings import settings
from dis_cli.errors import ConfigError


def value_of(config: RunConfig, key: str) -> object:
    value: object = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def failure(*overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(RunConfig(), overrides)
    return caught.value


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.steps=2", 2),
        ("train.steps=1_000", 1000),
        (" train.steps =2", 2),
        ("train.lr=3e-4", 3e-4),
        ("train.lr=1", 1.0),
        ("train.betas=0.5, .75", (0.5, 0.75)),
        ("train.clip_norm=none", None),
        ("train.clip_norm=2", 2.0),
        ("data.hflip=false", False),
        ("data.hflip=True", True),
        ("data.path=a=b", Path("a=b")),
        ("data.path=none", None),
        ("codec.vae=org/name", "org/name"),
        ("sample.sampler=dpm++", "dpm++"),
        ("name=007", "007"),
        ("description=none", "none"),
        ("description=", ""),
        ("description=__import__('os')", "__import__('os')"),
        ("seed=5", 5),
        ("evaluate.num_samples=none", None),
    ],
)
def test_value_is_read_by_the_declared_type(override: str, expected: object) -> None:
    key = override.partition("=")[0].strip()
    got = value_of(apply_overrides(RunConfig(), [override]), key)
    assert (got, type(got)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("train.step=2", "Unknown key: `train.step`", "Did you mean `train.steps`?"),
        ("trian.steps=2", "Unknown key: `trian.steps`", "Did you mean `train.steps`?"),
        ("lr=2", "Unknown key: `lr`", "Did you mean `train.lr`?"),
        ("model.lr=2", "Unknown key: `model.lr`", "Did you mean `train.lr`?"),
        ("batch_size=2", "Unknown key: `batch_size`", "`train.batch_size` or `sample.batch_size`"),
        ("codec.zzzzzz=2", "Unknown key: `codec.zzzzzz`", "Keys of `codec`: kind, vae, scale, downsample"),
        ("zzz.zzz=2", "Unknown key: `zzz.zzz`", "Sections: model, diffusion, data"),
        ("train.steps.x=2", "Unknown key: `train.steps.x`", "`train.steps`"),
        ("codec=vae", "`codec` is a section", "Keys of `codec`: kind, vae, scale, downsample"),
        ("train.steps", "`train.steps` has no value", "`train.steps=VALUE`: an integer >= 1"),
        ("digits", "Not of the form KEY=VALUE: `digits`", "train.steps=1000"),
        ("=3", "No key in front of `=` in `=3`", "KEY=VALUE"),
        ("train.steps=0", "`train.steps`: got `0`, allowed: an integer >= 1", "default 500000"),
        ("trian.x=2", "Unknown key: `trian.x`", "Keys of `train`: steps, batch_size"),
        ("trian.lr=2", "Unknown key: `trian.lr`", "Did you mean `train.lr`?"),
        ("tarin.batch=2", "Unknown key: `tarin.batch`", "Did you mean `train.batch_size`?"),
        ("step=2", "Unknown key: `step`", "Did you mean `train.steps` or `sample.steps`?"),
        ("trian=2", "Unknown key: `trian`", "Did you mean `train`?"),
        ("sample.sampler=dpmpp", "`sample.sampler`: got `dpmpp`", "Did you mean `dpm++`? "),
        ("sample.sampler=dpmpp_sde", "`sample.sampler`: got `dpmpp_sde`", "Did you mean `dpm++sde`? "),
        ("sample.sampler=DDIM", "`sample.sampler`: got `DDIM`", "Did you mean `ddim`? "),
        ("sample.sampler=ddpm", "`sample.sampler`: got `ddpm`", "Did you mean `ancestral`? "),
        ("data.source=CIFAR-10", "`data.source`: got `CIFAR-10`", "Did you mean `cifar10`? "),
        ("train.trackers=wnadb", "`train.trackers`: got `wnadb`", "Did you mean `wandb`? "),
        ("sample.steps=atuo", "`sample.steps`: got `atuo`", "Did you mean `auto`? "),
        ("train.steps=2.5", "`train.steps`: got `2.5`, allowed: an integer >= 1", "optimizer steps"),
        ("train.steps=", "`train.steps`: got ``, allowed: an integer >= 1", "optimizer steps"),
        ("train.lr=nan", "`train.lr`: got `nan`, allowed: a number > 0 and <= 1", "peak learning rate"),
        ("train.lr=none", "`train.lr`: got `none`, allowed: a number > 0 and <= 1", "peak learning rate"),
        ("train.betas=.5", "`train.betas`: got `.5`, allowed: 2 values, each a number >= 0 and < 1", "0.9,0.999"),
        ("train.betas=1,2", "`train.betas`: got `1,2`, allowed: 2 values", "0.9,0.999"),
        ("train.clip_norm=-1", "`train.clip_norm`: got `-1`, allowed: a number > 0, or none", "default 1.0"),
        ("data.hflip=1", "`data.hflip`: got `1`, allowed: true or false", "default true"),
        ("data.path=", "`data.path`: got ``, allowed: a path, or none", "folder or archive of the images"),
        ("codec.kind=vea", "`codec.kind`: got `vea`, allowed: one of pixel, vae", "default pixel"),
        (
            "data.num_workers=x",
            "`data.num_workers`: got `x`, allowed: auto or an integer >= 0 and <= 256",
            "default auto",
        ),
        (
            "data.background=pink",
            "`data.background`: got `pink`, allowed: one of white, black, gray or text",
            "#rrggbb",
        ),
        ("name=a/b", "`name`: got `a/b`, allowed: text that matches", "name of the preset"),
    ],
)
def test_what_is_wrong_with_an_override(override: str, message: str, hint: str) -> None:
    error = failure(override)
    assert error.message.startswith(message)
    assert hint in (error.hint or "")
    assert "\n" not in error.message


@pytest.mark.parametrize(
    ("preset", "override", "value"),
    [
        ("dis-xs-digits", "train.batch_size=0", "32"),
        ("dis-xs-digits", "train.steps=x", "3600"),
        ("dis-xs-digits", "train.lr=", "0.003"),
        ("dis-xs-digits", "data.hflip=yes", "false"),
        ("dis-xs-digits", "data.source=rar", "digits"),
        ("dis-m-cifar", "train.batch_size=0", "128"),
        ("dis-s-digits-latent", "codec.kind=x", "vae"),
    ],
)
def test_the_default_in_a_hint_is_that_of_the_preset(preset: str, override: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(load_preset(preset), ["train.steps=7", override])
    assert (caught.value.hint or "").endswith(f"; default {value}")


def test_rules_between_settings_see_all_overrides_together() -> None:
    overrides = ["model.image_size=9", "model.patch_size=3", "codec.kind=vae", "data.source=latents"]
    config = apply_overrides(RunConfig(), overrides)
    assert (config.model.image_size, config.model.patch_size, config.data.source) == (9, 3, "latents")
    assert failure("model.image_size=9").message == "`model`: patch_size 2 does not divide image_size 9"
    assert failure("data.source=latents").message == "data.source 'latents' needs codec.kind = 'vae'"


def test_of_two_values_the_later_counts() -> None:
    assert apply_overrides(RunConfig(), ["train.steps=2", "train.steps=3"]).train.steps == 3


def test_all_problems_are_listed_with_their_hints() -> None:
    lines = failure("train.step=1", "foo", "train.steps=0", "model.depth=2").message.splitlines()
    assert lines[0] == "4 problems:"
    assert lines[1] == "  Unknown key: `train.step` (Did you mean `train.steps`?)"
    assert [line.split("`")[1] for line in lines[2:]] == ["foo", "model", "train.steps"]


def test_a_wrong_override_changes_nothing() -> None:
    config = RunConfig()
    with pytest.raises(ConfigError):
        apply_overrides(config, ["train.steps=2", "train.lr=x"])
    assert config == RunConfig()


@pytest.mark.parametrize("name", preset_names())
def test_defaults_as_described_are_valid_overrides(name: str) -> None:
    # What is another with another backbone comes after them.
    overrides = [f"{key}={default}" for key, _, default, _ in describe_keys()[: len(settings())]]
    assert apply_overrides(load_preset(name), overrides) == RunConfig()


def test_every_key_is_described() -> None:
    keys = describe_keys()
    dumped = RunConfig().model_dump()
    expected = [f"{s}.{k}" if k else s for s, v in dumped.items() for k in (v if isinstance(v, dict) else [""])]
    assert [key for key, _, _, _ in keys][: len(expected)] == expected
    others = {key for name in BACKBONES for key in settings(name)} - set(expected)
    assert {key for key, _, _, _ in keys[len(expected) :]} >= others
    assert all(allowed and description for _, allowed, _, description in keys)
    assert ("train.betas", "2 values, each a number >= 0 and < 1", "0.9,0.999") in [row[:3] for row in keys]
