"""Paths mean the same in every working directory and wherever they are written, and data are known by their content."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import typer
from support.latents import save_images
from support.tiny import TINY, dis, result, train
from support.vae import save_tiny_vae

from dis_cli.cli.app import app
from dis_cli.cli.options import path_to_write
from dis_cli.config.overrides import apply_overrides
from dis_cli.config.presets import load_preset, read_config
from dis_cli.config.schema import RunConfig
from dis_cli.errors import UsageError
from dis_cli.metrics.extractors.locate import torch_cache
from dis_cli.paths import expand_home, home_path
from dis_cli.runtime.machine import cache_folder
from dis_cli.workflows.load.identity import with_absolute_paths

SCORED = ("--features", "digits", "-n", "8", "--json", "sample.steps=2")
OF_FILES = ("data.source=folder", "model.num_classes=2", "train.steps=2", "train.precision=fp32")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_tilde_is_the_home_folder(home) -> None:
    assert expand_home("~/a") == str(home / "a")
    assert home_path(Path("~")) == home
    assert expand_home("a/~/b") == "a/~/b"
    assert expand_home("./~a") == "./~a"
    assert path_to_write("~/a.npz") == home / "a.npz"
    with pytest.raises(UsageError, match="no home folder of a user `nobody-of-this-name`") as caught:
        expand_home("~nobody-of-this-name/x")
    assert "`./~nobody-of-this-name/x`" in str(caught.value.hint)


def test_every_option_that_takes_a_path_knows_it() -> None:
    """By its parser; what typer reads as a path itself, or a text that is called a path, is a door left open."""

    def of(command, name: str):
        for parameter in command.params:
            # Typer keeps what was declared under this name; its own --help has nothing there.
            if (declared := getattr(parameter, "type_descriptor", None)) is not None:
                yield f"{name} {parameter.opts[0]}", parameter, declared
        for sub, inner in getattr(command, "commands", {}).items():
            yield from of(inner, f"{name} {sub}")
        for word in getattr(command, "words", ()):
            yield from of(command.form([word]), f"{name} {word}")

    found = [*of(typer.main.get_command(app), "dis")]
    words = ("PATH", "DIR", "FILE")
    paths = {
        name: declared.parameter_info.parser
        for name, parameter, declared in found
        if parameter.name == "preset"
        or any(word in (parameter.metavar or "") for word in words)
        or declared.annotation is Path
    }
    assert len(paths) > 25
    assert [name for name, parser in paths.items() if parser not in (expand_home, home_path, path_to_write)] == []


@pytest.mark.parametrize("key", ["data.path", "codec.vae", "evaluate.inception"])
def test_settings_know_it(key, home) -> None:
    section, _, leaf = key.partition(".")

    def value(config: RunConfig) -> str:
        return str(getattr(getattr(config, section), leaf))

    assert value(apply_overrides(RunConfig(), [f"{key}=~/x"])) == str(home / "x")
    (home / "p.toml").write_text(f'[{section}]\n{leaf} = "~/x"\n')
    assert value(read_config(home / "p.toml")) == str(home / "x")
    assert value(load_preset("~/p.toml")) == str(home / "x")
    assert value(RunConfig.model_validate({section: {leaf: "~/x"}})) == str(home / "x")
    with pytest.raises(UsageError, match="no home folder of a user `nobody-of-this-name`"):
        apply_overrides(RunConfig(), [f"{key}=~nobody-of-this-name/x"])


def test_the_environment_knows_it(home, monkeypatch) -> None:
    monkeypatch.setenv("DIS_CACHE_DIR", "~/cache")
    monkeypatch.setenv("TORCH_HOME", "~/torch")
    assert cache_folder() == home / "cache"
    assert torch_cache() == home / "torch" / "hub"


def test_no_folder_is_called_so(home, capsys) -> None:
    save_images(home / "imgs", 8)
    arguments = (*TINY, *OF_FILES)
    assert dis("train", "-q", "--out", "~/run", "--data", "~/imgs", *arguments) == 0
    assert dis("train", "-q", "--out=~/again", "data.path=~/imgs", "--preset", "~/run/config.toml") == 0
    assert dis("sample", "-q", "--ckpt", "~/run", "-n", "2", "--out", "~/few", "sample.steps=2") == 0
    assert dis("checkpoint", "export", "~/run", "--out", "~/model", "-q") == 0
    assert (
        dis("checkpoint", "show", "~/model") == dis("runs", "~") == dis("presets", "validate", "~/run/config.toml") == 0
    )
    assert (
        dis("eval-fid", "--images", "~/few", "--ref", "~/imgs", "--features", "digits", "--out", "~/s.json", "-q") == 0
    )
    import dis_cli

    assert dis_cli.load_model("~/run").step == 2
    assert dis("train", "-q", "--out", "~nobody-of-this-name/run", *arguments) == 2
    assert "no home folder of a user" in capsys.readouterr().err
    assert {path.name for path in home.parent.iterdir()} == {"home"}
    assert {path.name for path in home.iterdir()} == {"imgs", "run", "again", "few", "model", "s.json"}


@pytest.fixture(scope="module")
def trained_in_a(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``a/run``, trained there on ``imgs``, of which ``b`` has others."""
    root = tmp_path_factory.mktemp("places")
    save_images(root / "a" / "imgs", 12)
    save_images(root / "b" / "imgs", 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root / "a")
        assert train(Path("run"), *OF_FILES, "data.path=imgs") == 0
    return root


@pytest.fixture
def places(trained_in_a: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In ``b``."""
    monkeypatch.chdir(trained_in_a / "b")
    return trained_in_a


def free(name: str) -> str:
    """A file of its own for each score: none takes the place of another."""
    return next(file for number in itertools.count() if not Path(file := f"../{name}-{number}.json").exists())


def scored(capsys, *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    status = dis("eval-fid", "--ckpt", "../a/run", *SCORED, "--out", free("score"), *arguments)
    told = capsys.readouterr()
    return status, told.out if status == 0 else json.loads(told.out)["error"]["message"] + told.err


def test_paths_are_recorded_so_that_any_folder_will_do(places, capsys) -> None:
    assert read_config(Path("../a/run/config.toml")).data.path == places / "a" / "imgs"
    status, told = scored(capsys)
    assert status == 0
    assert json.loads(told)["reference"]["n"] == 12
    # Trained further from elsewhere, too.
    shutil.copytree(places / "a" / "run", "run2")
    assert dis("train", "-q", "--preset", "run2/config.toml", "--out", "run2", "train.steps=3") == 0


def test_absolute_is_every_path_and_no_name(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vae").mkdir()
    (tmp_path / "owner" / "folder").mkdir(parents=True)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")

    def absolute(*settings: str) -> RunConfig:
        return with_absolute_paths(apply_overrides(RunConfig(), settings))

    for vae in ("digits", "owner/name", "owner/name@main"):
        assert absolute(f"codec.vae={vae}").codec.vae == vae
    for vae in ("vae", "./vae", "owner/folder", "absent"):
        assert absolute(f"codec.vae={vae}").codec.vae == str(tmp_path / vae)
    config = absolute("data.path=link/../imgs", "evaluate.inception=w.pth")
    # The parent of a link is that of what it leads to.
    assert config.data.path == tmp_path / "link" / ".." / "imgs"
    assert config.evaluate.inception == tmp_path / "w.pth"


def test_other_data_are_refused_with_both_values(places, capsys) -> None:
    for arguments in (["data.path=imgs"], ["--data", "imgs"], ["--data", "imgs", "--sweep", "steps=2,3"]):
        status, told = scored(capsys, *arguments)
        assert status == 2
        assert f"The data {places / 'b' / 'imgs'} are not those that `../a/run/" in told
    assert scored(capsys, "--ref", "imgs")[0] == 0


def test_data_that_have_moved_are_found_by_content(places, capsys) -> None:
    (places / "a" / "imgs").rename(places / "b" / "moved")
    try:
        status, told = scored(capsys)
        assert status == 1
        assert f"are not there: `{places / 'a' / 'imgs'}`" in told
        assert scored(capsys, "--data", "moved")[0] == 0
    finally:
        (places / "b" / "moved").rename(places / "a" / "imgs")


def test_an_old_run_is_looked_for_where_it_says_and_is_not_compared(places, capsys) -> None:
    from dis_cli.checkpoints.store import latest_checkpoint, write_checkpoint

    old, _ = latest_checkpoint(places / "a" / "run" / "checkpoints")
    assert old is not None
    meta = {key: value for key, value in old.meta.items() if key not in ("data_fingerprint", "images_fingerprint")}
    meta["config"]["data"]["path"] = "imgs"
    write_checkpoint(Path("old") / "checkpoints", old.step, old.tensors, meta)
    arguments = ("eval-fid", "--ckpt", "old", *SCORED, "--out", "../old.json")
    capsys.readouterr()
    assert dis(*arguments) == 0
    assert result(capsys)["reference"]["n"] == 20
    Path("imgs").rename("gone")
    try:
        assert dis(*arguments) == 1
        told = capsys.readouterr().out
        assert f"`{places / 'b' / 'imgs'}` (recorded as `imgs`, and taken from the working directory)" in told
    finally:
        Path("gone").rename("imgs")


def test_bad_images_that_were_left_out_do_not_make_it_other_data(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_images(tmp_path / "imgs", 8)
    (tmp_path / "imgs" / "cat" / "zzz.png").write_bytes(b"no picture")
    arguments = (*OF_FILES, "data.path=imgs", "data.on_bad=skip")
    assert train(Path("run"), *arguments) == 0
    capsys.readouterr()
    assert dis("eval-fid", "--ckpt", "run", *SCORED, "--dry-run") == 0
    assert train(Path("run"), *arguments, "train.steps=3") == 0


def test_a_vae_is_recorded_by_its_folder_and_exported_by_its_name(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny_vae(tmp_path / "vae")
    save_images(tmp_path / "imgs", 8)
    settings = ("codec.kind=vae", "codec.vae=vae", "codec.downsample=2", "model.in_channels=4", "data.hflip=false")
    assert train(Path("run"), *OF_FILES, *settings, "data.path=imgs") == 0
    assert read_config(Path("run/config.toml")).codec.vae == str(tmp_path / "vae")
    assert dis("checkpoint", "export", "run", "--out", "model", "-q") == 0
    assert str(tmp_path) not in (tmp_path / "model" / "config.json").read_text()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert dis("sample", "-q", "--ckpt", "../run", "-n", "2", "--out", "few", "sample.steps=2") == 0
    assert dis("encode-latents", "--decode", "../run/latents", "-n", "2", "-q") == 0
    # Its images are known, though it was trained on their latents.
    save_images(tmp_path / "other", 9)
    for data, status in (("../imgs", 0), ("../other", 2)):
        assert dis("eval-fid", "--ckpt", "../run", *SCORED, "--dry-run", "--data", data) == status


def test_a_run_as_a_preset_is_compared_too(trained_in_a, tmp_path, capsys, monkeypatch) -> None:
    shutil.copytree(trained_in_a / "a", tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "a" / "run" / "config.toml"
    config.write_text(config.read_text().replace(str(trained_in_a / "a" / "imgs"), str(trained_in_a / "b" / "imgs")))
    of_preset = ("--preset", config, "--features", "digits", "--dry-run", "-q")
    statistics = ("eval-fid", "stats", "--out", "s.npz", *of_preset)
    images = ("eval-fid", "--images", trained_in_a / "b" / "imgs", "--ref", "data", *of_preset)
    for command in (statistics, images):
        assert dis(*command) == 2
        assert "are not those that" in capsys.readouterr().err
        # Others are asked for by name.
        assert dis(*command, f"data.path={tmp_path / 'a' / 'imgs'}") == 0
