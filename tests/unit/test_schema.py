"""The schema: its defaults, its bounds, and the rules between settings."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from dis_cli.config.schema import RunConfig
from dis_cli.config.settings import settings
from dis_cli.diffusion.samplers.table import AUTO, SAMPLERS, SamplerRow


def make(**sections: object) -> RunConfig:
    return RunConfig.model_validate(sections)


def test_defaults_are_the_published_code_s() -> None:
    config = RunConfig()
    train, model, diffusion = config.train, config.model, config.diffusion
    assert (train.lr, train.weight_decay, train.batch_size, train.clip_norm) == (1e-4, 0, 128, 1)
    assert (train.ema_decay, train.ema_warmup, train.warmup_steps, train.lr_schedule) == (0.9999, False, 0, "constant")
    assert (model.drop_path, model.label_drop, config.data.hflip) == (0.1, 0.1, True)
    assert (model.d_state, model.d_conv, model.expand) == (16, 4, 2)
    assert (diffusion.num_timesteps, diffusion.schedule, diffusion.prediction) == (1000, "linear", "epsilon")
    assert (diffusion.variance, config.learn_sigma) == ("learned_range", True)


def test_images_are_made_in_few_steps_unless_the_paper_s_are_asked_for() -> None:
    assert RunConfig().sampling == ("dpm++", 25)
    assert make(sample={"sampler": "ancestral"}).sampling == ("ancestral", 250)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"depth": 24}}, "depth must be odd"),
        ({"model": {"patch_size": 3}}, "patch_size 3 does not divide image_size 32"),
        ({"diffusion": {"prediction": "v"}}, "needs a fixed variance"),
        ({"train": {"batch_size": 10, "accumulation": 4}}, "accumulation 4 does not divide batch_size 10"),
        ({"sample": {"steps": 1001}}, "sample.steps 1001 exceeds diffusion.num_timesteps 1000"),
        ({"data": {"source": "latents"}}, "needs codec.kind = 'vae'"),
        ({"data": {"source": "digits"}}, "8x8 grey"),
    ],
)
def test_rules_between_settings(sections: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make(**sections)


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"lr": 0}},
        {"train": {"lr": float("nan")}},
        {"train": {"lr": float("inf")}},
        {"train": {"steps": 0}},
        {"train": {"betas": (0.9, 1.0)}},
        {"train": {"clip_norm": 0}},
        {"model": {"label_drop": 1}},
        {"model": {"num_classes": -1}},
        {"diffusion": {"schedule": "Linear"}},
        {"seed": 2**31},
        {"name": "../x"},
        {"name": ""},
        {"train": {"step": 3}},
        {"trian": {}},
    ],
    ids=str,
)
def test_values_out_of_bounds_and_unknown_keys_are_refused(sections: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        make(**sections)


def test_a_configuration_cannot_be_changed() -> None:
    config = RunConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.train.steps = 3


def test_the_word_none_empties_optional_settings_only() -> None:
    words = {"data": {"path": "none"}, "codec": {"vae": "None"}, "train": {"clip_norm": "none"}}
    config = make(**words, evaluate={"num_samples": "none"}, name="none")
    assert (config.data.path, config.codec.vae, config.train.clip_norm, config.evaluate.num_samples) == (None,) * 4
    assert config.name == "none"
    assert make(data={"path": "none/such"}).data.path == Path("none/such")


def test_size_of_an_image_in_pixels() -> None:
    pixel = make(model={"image_size": 8, "in_channels": 1})
    latent = make(model={"image_size": 32, "in_channels": 4}, codec={"kind": "vae"})
    assert (pixel.pixel_size, pixel.pixel_channels) == (8, 1)
    assert (latent.pixel_size, latent.pixel_channels) == (256, 3)


def test_samplers_are_those_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings()["sample.sampler"].choices == (AUTO, *SAMPLERS)
    for name in (AUTO, *SAMPLERS):
        assert make(sample={"sampler": name}).sample.sampler == name
    # A row is all that another one takes.
    monkeypatch.setitem(SAMPLERS, "leap", SamplerRow(title="Leap", step="math:sqrt", usual_steps=3))
    assert make(sample={"sampler": "leap"}).sampling == ("leap", 3)
    with pytest.raises(ValidationError, match=r"Input should be auto, .*, leap"):
        make(sample={"sampler": "plms"})


def test_engines_are_those_that_exist() -> None:
    from dis_cli.scan.engines.table import ENGINES

    assert settings()["engine"].choices == ("auto", *ENGINES)
    for name in ("auto", *ENGINES):
        assert make(engine=name).engine == name
    with pytest.raises(ValidationError, match="must be one of"):
        make(engine="cuda")
