"""Which sampler runs with how many steps, what "auto" stands for, and what is refused before anything runs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dis_cli.config.overrides import apply_overrides
from dis_cli.config.presets import dump_toml, load_preset, read_config
from dis_cli.config.schema import RunConfig
from dis_cli.diffusion.samplers.table import SAMPLERS, nearest_steps
from dis_cli.workflows.build import build_guidance, build_sampler

FLOW = {"schedule": "rectified_flow", "prediction": "velocity", "variance": "fixed_small"}
COSINE = {"schedule": "cosine", "prediction": "v", "variance": "fixed_small"}


def make(diffusion: dict[str, object] | None = None, num_classes: int = 0, **sample: object) -> RunConfig:
    sections = {"diffusion": diffusion or {}, "sample": sample, "model": {"num_classes": num_classes}}
    return RunConfig.model_validate(sections)


@pytest.mark.parametrize(
    ("diffusion", "sample", "runs"),
    [
        ({}, {}, ("dpm++", 25)),
        ({}, {"steps": 40}, ("dpm++", 40)),
        ({}, {"sampler": "ancestral"}, ("ancestral", 250)),
        # As a configuration was saved when these were the defaults.
        ({}, {"sampler": "ancestral", "steps": 250}, ("ancestral", 250)),
        ({}, {"sampler": "ddim"}, ("ddim", 50)),
        ({}, {"sampler": "unipc"}, ("unipc", 25)),
        ({}, {"sampler": "heun"}, ("heun", 25)),
        ({"num_timesteps": 24}, {"sampler": "ancestral"}, ("ancestral", 24)),
        # Strides of 21 timesteps.
        ({"num_timesteps": 1013}, {"sampler": "ddim"}, ("ddim", 49)),
        (COSINE | {"num_timesteps": 4}, {"sampler": "heun"}, ("heun", 3)),
        (COSINE | {"num_timesteps": 4}, {}, ("dpm++", 4)),
        (FLOW, {}, ("heun", 25)),
        (FLOW, {"steps": 15}, ("heun", 15)),
        (FLOW, {"steps": 16}, ("euler", 16)),
        (FLOW, {"sampler": "euler"}, ("euler", 50)),
    ],
)
def test_what_runs(diffusion: dict[str, object], sample: dict[str, object], runs: tuple[str, int]) -> None:
    config = make(diffusion, **sample)

    settled = config.settled()

    assert config.sampling == runs
    assert (settled.sample.sampler, settled.sample.steps) == runs
    assert settled == settled.settled()
    assert {name: getattr(config.sample, name) for name in sample} == sample
    assert len(build_sampler(config).timesteps) == runs[1]


@given(sampler=st.sampled_from([*SAMPLERS]), steps=st.integers(1, 70), num_timesteps=st.integers(2, 70))
def test_the_nearest_possible_steps(sampler: str, steps: int, num_timesteps: int) -> None:
    possible = set(range(1, num_timesteps + 1))
    if sampler == "ddim":
        possible = {len(range(0, num_timesteps, stride)) for stride in range(1, num_timesteps + 1)}
    elif sampler == "heun":
        possible = set(range(1, num_timesteps + 1, 2))
    wanted = min(steps, num_timesteps)
    below, above = max(n for n in possible if n <= wanted), min((n for n in possible if n > wanted), default=None)

    expected = [below] if below == wanted or above is None else [below, above]

    assert nearest_steps(sampler, steps, num_timesteps) == expected


@pytest.mark.parametrize(
    ("diffusion", "sample", "message"),
    [
        ({}, {"steps": 1001}, "sample.steps 1001 exceeds diffusion.num_timesteps 1000"),
        ({}, {"sampler": "ddim", "steps": 300}, r"300 steps, .* integer stride .* sample.steps .* to 250 or 334"),
        ({}, {"sampler": "heun", "steps": 20}, r"20 steps, .* odd number .* to 19 or 21"),
        ({}, {"eta": 0.5}, r"sample.eta 0.5 is for sample.sampler 'ddim', got 'dpm\+\+': set sample.eta to 0"),
        ({}, {"sampler": "ddim", "eta": 1.5}, "less than or equal to 1"),
        (FLOW, {"sampler": "unipc"}, "'unipc' cannot sample diffusion.schedule 'rectified_flow'"),
        ({}, {"cfg_scale": 2}, r"has none \(model.num_classes 0\): set it .* to 1"),
        ({}, {"cfg_interval": (0.5, 0.5)}, "lower end of cfg_interval must be below the upper one, got 0.5 and 0.5"),
        ({}, {"cfg_interval": (-0.1, 0.5)}, "greater than or equal to 0"),
        ({}, {"cfg_channels": "4"}, "'all' or 'first3'"),
        ({}, {"steps": 0}, "greater than or equal to 1"),
        ({}, {"steps": "many"}, "'auto'"),
    ],
)
def test_what_would_be_wrong_silently_is_refused(
    diffusion: dict[str, object], sample: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        make(diffusion, **sample)


def test_a_model_that_never_went_without_a_class_is_not_guided() -> None:
    model = {"num_classes": 10, "label_drop": 0.0}
    with pytest.raises(ValidationError, match=r"never trained without them \(model.label_drop 0\)"):
        RunConfig.model_validate({"model": model, "sample": {"cfg_scale": 2}})
    assert RunConfig.model_validate({"model": model}).sample.cfg_scale == 1


@pytest.mark.parametrize("written", ["3", 3, "first3"])
def test_three_channels_are_written_as_a_number_or_a_word(written: object) -> None:
    assert make(cfg_channels=written).sample.cfg_channels == "first3"


def test_settings_are_read_from_text_and_from_a_file(tmp_path) -> None:
    texts = ["cfg_interval=0.2,0.75", "cfg_schedule=power-cosine", "cfg_power=2", "cfg_channels=3", "cfg_scale=3"]
    config = apply_overrides(load_preset("dis-xs-digits"), [f"sample.{text}" for text in [*texts, "steps=auto"]])
    (tmp_path / "config.toml").write_text(dump_toml(config))

    assert read_config(tmp_path / "config.toml") == config
    assert config.sampling == ("dpm++", 25)
    guidance = build_guidance(config)
    assert (guidance.cfg_interval, guidance.cfg_schedule, guidance.cfg_power) == ((0.2, 0.75), "power-cosine", 2.0)
    assert (guidance.cfg_scale, guidance.cfg_channels, guidance.num_timesteps) == (3.0, "first3", 1000)


def test_eta_reaches_the_sampler() -> None:
    assert build_sampler(make(sampler="ddim", eta=0.3)).eta == 0.3


@pytest.mark.parametrize(
    ("sample", "parts"),
    [
        ({}, ()),
        ({"cfg_scale": 2}, ()),
        ({"sampler": "ddim", "eta": 0.5}, ("eta-0.5",)),
        # Without guidance they change nothing.
        ({"cfg_channels": "first3", "cfg_interval": (0, 0.5), "cfg_schedule": "linear"}, ()),
        ({"cfg_scale": 2, "cfg_channels": "first3", "cfg_interval": (0, 0.5)}, ("first3", "from-0-to-0.5")),
        ({"cfg_scale": 2, "cfg_schedule": "linear"}, ("linear",)),
        ({"cfg_scale": 2, "cfg_schedule": "power-cosine", "cfg_power": 3}, ("power-cosine-3",)),
    ],
)
def test_names_tell_settings_apart(sample: dict[str, object], parts: tuple[str, ...]) -> None:
    assert make(num_classes=10, **sample).sample.name_parts == parts
