"""The shipped presets, and reading and writing configuration files."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dis_cli.config.presets import dump_toml, load_preset, preset_dir, preset_names, read_config, validate_file
from dis_cli.config.schema import DiffusionConfig, RunConfig
from dis_cli.errors import ConfigError
from dis_cli.models.dis.flops import count
from dis_cli.models.dis.sizes import Shape

# name: recipe in the first comment, (steps, batch, lr, warm-up), parameters of the published model (None: no such row)
PRESETS: dict[str, tuple[str, tuple[int, int, float, int], int | None]] = {
    "dis-xs-digits": ("this project's own", (3600, 32, 3e-3, 100), None),
    "dis-xs-images": ("this project's own", (6000, 16, 4e-3, 100), None),
    "dis-s-images64": ("that of dis-xs-images", (100_000, 64, 3e-4, 1000), None),
    "dis-xs-mnist": ("this project's own", (9600, 16, 5e-3, 100), None),
    "dis-s-digits-latent": ("this project's own", (1600, 16, 1e-3, 100), None),
    "dis-s-cifar": ("U-ViT style", (500_000, 128, 2e-4, 2500), 28_488_008),
    "dis-m-cifar": ("U-ViT style", (500_000, 128, 2e-4, 2500), 229_454_616),
    "dis-s-celeba": ("U-ViT style", (500_000, 128, 2e-4, 5000), None),
    "dis-m-imagenet64": ("U-ViT style", (300_000, 1024, 3e-4, 0), None),
    "dis-l-imagenet64": ("U-ViT style", (300_000, 1024, 3e-4, 0), None),
    "dis-l-imagenet256": ("U-ViT style", (300_000, 1024, 2e-4, 0), 407_249_952),
    "dis-xl-imagenet256": ("U-ViT style", (500_000, 1024, 2e-4, 0), None),
    "dis-h-imagenet256": ("U-ViT style", (500_000, 1024, 2e-4, 0), 906_966_560),
    "dis-h-imagenet512": ("U-ViT style", (500_000, 128, 1e-4, 0), 907_187_840),
}


def parameters(config: RunConfig) -> int:
    model = config.model
    shape = (model.image_size, model.patch_size, model.in_channels, model.embed_dim, model.depth, model.num_classes)
    return count(Shape(*shape, config.learn_sigma, model.d_state, model.d_conv, model.expand)).parameters


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "x.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_preset_names_are_the_documented_ones() -> None:
    assert preset_names() == sorted(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_preset(name: str) -> None:
    recipe, training, published_parameters = PRESETS[name]
    config = load_preset(name)
    train = config.train
    assert config.name == name
    assert (train.steps, train.batch_size, train.lr, train.warmup_steps) == training
    if published_parameters is not None:
        assert parameters(config) == published_parameters
    first_line = (preset_dir() / f"{name}.toml").read_text().splitlines()[0]
    assert first_line.startswith(f"# Recipe: {recipe}")


@pytest.mark.parametrize(
    "name", [name for name in PRESETS if not {"digits", "images", "images64", "mnist"} & {*name.split("-")}]
)
def test_preset_keeps_the_published_diffusion(name: str) -> None:
    config = load_preset(name)
    assert config.diffusion == DiffusionConfig()
    assert (config.sample.sampler, config.sample.steps) == ("auto", "auto")


@pytest.mark.parametrize(
    ("name", "source", "grid", "classes"),
    [
        ("dis-s-cifar", "cifar10", (32, 3, 2), 0),
        ("dis-s-celeba", "auto", (64, 3, 4), 0),
        ("dis-m-imagenet64", "auto", (64, 3, 4), 1000),
        ("dis-l-imagenet256", "latents", (32, 4, 2), 1000),
        ("dis-h-imagenet512", "latents", (64, 4, 4), 1000),
    ],
)
def test_preset_data(name: str, source: str, grid: tuple[int, int, int], classes: int) -> None:
    config = load_preset(name)
    model = config.model
    assert (model.image_size, model.in_channels, model.patch_size) == grid
    assert (config.data.source, model.num_classes) == (source, classes)
    expected_codec = ("vae", "stabilityai/sd-vae-ft-ema") if source == "latents" else ("pixel", None)
    assert (config.codec.kind, config.codec.vae) == expected_codec


def test_presets_are_found_inside_an_installed_package(tmp_path: Path) -> None:
    checkout = Path(__file__).parents[2]
    package = tmp_path / "dis_cli"
    shutil.copytree(checkout / "dis_cli" / "config", package / "config")
    for name in ("__init__.py", "errors.py"):
        shutil.copy(checkout / "dis_cli" / name, package)
    shutil.copytree(checkout / "presets", package / "presets")
    # A folder of that name beside the package belongs to somebody else.
    (tmp_path / "presets").mkdir()
    code = "from dis_cli.config.presets import *; load_preset('dis-s-cifar'); print(preset_dir())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(package.resolve() / "presets")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("dis-s-cifr", "Did you mean `dis-s-cifar`? See `dis presets list`"),
        ("dis-s-cifr.toml", "Did you mean `dis-s-cifar`? See `dis presets list`"),
        ("none-such/dis-s-cifar.toml", "See `dis presets list`"),
        ("../presets/dis-s-cifar", "See `dis presets list`"),
        ("", "See `dis presets list`"),
    ],
)
def test_preset_not_found(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_preset(name)
    assert (caught.value.message, caught.value.hint) == (f"Preset not found: `{name}`", hint)


def test_a_run_s_configuration_is_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(dump_toml(load_preset("dis-xl-imagenet256")))
    for name in (str(path), path, tmp_path, f"{tmp_path}/"):
        assert load_preset(name) == load_preset("dis-xl-imagenet256")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed = 1\n[train]\nlr = = 2\n", "line 3, column 6: Invalid value"),
        ("seed = 1\n\n[train\n", "line 3, column 7: Expected"),
        ("seed = 1\nseed = 2\n", "Cannot overwrite a value"),
        ("seed = 1\nname = '", "line 2"),
        ("seed = " + "1" * 5000, "Exceeds the limit"),
        (b"seed = 1\nname = '\xff'\n", "line 2: not UTF-8"),
        ("[train]\nstep = 3", "Unknown key: `train.step` (Did you mean `train.steps`?)"),
        ("lr = 1", "Unknown key: `lr` (Did you mean `train.lr`?)"),
        ("[trian]\nlr = 1", "Unknown key: `trian` (Did you mean `train`?)"),
        ("train = 3", "`train`: got `3`, allowed: a section"),
        ("[train]\nsteps = 0", "`train.steps`: got `0`, allowed: an integer >= 1"),
        ('[train]\nsteps = "100"', '`train.steps`: got `"100"`, allowed: an integer >= 1'),
        ("[train]\nsteps = 100.0", "`train.steps`: got `100.0`, allowed: an integer >= 1"),
        ("[train]\nlr = true", "`train.lr`: got `true`, allowed: a number > 0 and <= 1"),
        ("[train]\nlr = nan", "`train.lr`: got `NaN`, allowed: a number > 0 and <= 1"),
        ("[train]\nlr = 2020-01-01", '`train.lr`: got `"2020-01-01"`'),
        ("[train]\nbetas = [0.9]", "`train.betas`: got `[0.9]`, allowed: 2 values, each a number >= 0 and < 1"),
        ("[train]\nclip_norm = -1", "`train.clip_norm`: got `-1`, allowed: a number > 0, or none"),
        ("[data]\nhflip = 1", "`data.hflip`: got `1`, allowed: true or false"),
        ("[codec]\nkind = 'vea'", '`codec.kind`: got `"vea"`, allowed: one of pixel, vae'),
        ("[model]\ndepth = 24", "`model`: depth must be odd"),
        ("[sample]\nsteps = 2000", "sample.steps 2000 exceeds diffusion.num_timesteps 1000"),
    ],
)
def test_what_is_wrong_with_a_file(text: str | bytes, problem: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    found = validate_file(path)
    assert len(found) == 1
    assert problem in found[0]
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert caught.value.message.startswith(f"`{path}`: ")
    assert caught.value.message.split(": ", 1)[1] in found[0]


def test_all_problems_are_listed(tmp_path: Path) -> None:
    path = write(tmp_path, "[train]\nsteps = 0\nlr = 'a'\nbetas = [2, 3]\nfoo = 1\n[model]\ndepth = 2\n")
    found = validate_file(path)
    assert [line.split("`")[1] for line in found] == ["model", "train.steps", "train.lr", "train.betas", "train.foo"]
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert caught.value.message.splitlines() == [f"5 problems in `{path}`:", *(f"  {line}" for line in found)]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert validate_file(tmp_path / "absent.toml") == ["Cannot be read: No such file or directory"]
    assert validate_file(tmp_path) == ["Is a folder, and no run's: it holds no config.toml"]


def test_none_is_written_only_where_it_is_not_the_default() -> None:
    text = dump_toml(RunConfig.model_validate({"train": {"clip_norm": None}}))
    assert 'clip_norm = "none"' in text
    assert "vae" not in text
    assert "num_samples" not in text


SIZES = st.integers(1, 4096)
FRACTIONS = st.floats(0, 1, exclude_max=True)
POSITIVE = st.floats(0, exclude_min=True, allow_infinity=False)
TEXT = st.text(st.characters(codec="utf-8"))
# One that begins with a tilde names a home folder, which must exist.
PLACES = TEXT.filter(lambda text: not text.startswith("~"))
SEEDS = st.integers(0, 2**31 - 1)


@st.composite
def configurations(draw: st.DrawFn) -> RunConfig:
    patch_size, parts = draw(SIZES), draw(SIZES)
    latent = draw(st.booleans())
    return RunConfig.model_validate(
        {
            "name": draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]*", fullmatch=True)),
            "description": draw(TEXT),
            "seed": draw(SEEDS),
            "model": {
                "image_size": patch_size * draw(SIZES),
                "patch_size": patch_size,
                "depth": 2 * draw(SIZES) + 1,
                "drop_path": draw(FRACTIONS),
                "init": draw(st.sampled_from(["corrected", "published"])),
            },
            "data": {
                "source": "latents" if latent else "folder",
                "path": draw(st.none() | PLACES.map(Path)),
                "hflip": draw(st.booleans()),
            },
            "codec": {"kind": "vae" if latent else "pixel", "vae": draw(st.none() | PLACES), "scale": draw(POSITIVE)},
            "train": {
                "batch_size": parts * draw(SIZES),
                "accumulation": parts,
                "betas": draw(st.tuples(FRACTIONS, FRACTIONS)),
                "clip_norm": draw(st.none() | POSITIVE),
                "ema_warmup": draw(st.booleans()),
            },
            "evaluate": {"num_samples": draw(st.none() | st.integers(2, 10**9)), "seed": draw(SEEDS)},
        }
    )


# The tables that names are checked against are type-checked in tests, by a checker that looks at items at random.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
@settings(deadline=None)
@given(config=configurations())
def test_a_configuration_survives_its_file_exactly(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.toml"
    path.write_bytes(dump_toml(config).encode())
    assert read_config(path) == config
