"""A shell is offered what may be typed next, by the protocol that its completion script speaks."""

import subprocess
import sys
from pathlib import Path

import pytest

from dis_cli.cli.app import run
from dis_cli.diffusion.samplers.table import SAMPLERS
from dis_cli.models.families import FAMILIES

SAVED = Path(__file__).parents[1] / "fixtures" / "0.1.0"


class Shell:
    """Asks for completions as one shell does."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.name = name
        self.monkeypatch = monkeypatch
        self.capsys = capsys

    def __call__(self, *words: str) -> list[str]:
        """The values offered for the last of the words, or as bash splits them, without what is said of them."""
        self.monkeypatch.setenv("_DIS_COMPLETE", f"complete_{self.name}")
        self.monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
        self.monkeypatch.setenv("_TYPER_COMPLETE_ARGS", " ".join(["dis", *words]))
        self.monkeypatch.setenv("COMP_WORDS", "\n".join(["dis", *words]))
        self.monkeypatch.setenv("COMP_CWORD", str(len(words)))
        with pytest.raises(SystemExit):
            run([])
        text = self.capsys.readouterr().out
        if self.name == "zsh":
            return [line.partition('"')[2].partition('"')[0] for line in text.splitlines() if '"' in line]
        return [line.partition("\t")[0] for line in text.splitlines() if line]


@pytest.fixture(params=["bash", "zsh", "fish"])
def shell(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(request.param, monkeypatch, capsys)


def test_names(shell: Shell) -> None:
    for words, offered in (
        (("sample", "--sampler", "d"), [name for name in ("auto", *SAMPLERS) if name.startswith("d")]),
        (("eval-fid", "--sampler", "au"), ["auto"]),
        (("flops", "--backbone", "di"), ["dis", "dit"]),
        (("flops", "--size", "l"), ["l"]),
        (("flops", "--backbone", "unet", "--size", "x"), [name for name in FAMILIES["unet"].sizes if name[0] == "x"]),
        (("flops", "--match", "dis-xs-d"), ["dis-xs-digits"]),
        (("train", "--device", "c"), ["cpu", "cuda"]),
        (("eval-fid", "--metrics", "fid,i"), ["fid,is"]),
        (("eval-fid", "--metrics", "precision,fid,p"), []),
    ):
        assert shell(*words) == offered, words


def test_every_key_is_offered_and_a_single_one_with_its_value(shell: Shell) -> None:
    assert shell("train", "train.pre") == ["train.precision=", "train.preview_every=", "train.preview_images="]
    assert shell("train", "train.precis") == [f"train.precision={name}" for name in ("auto", "fp32", "bf16")]
    assert shell("train", "data.hf") == ["data.hflip=true", "data.hflip=false"]
    assert shell("train", "train.step") == ["train.steps=3600"]
    assert shell("train", "--preset", "dis-m-imagenet256", "train.step") != ["train.steps=3600"]
    assert shell("train", "trian.") == []


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("model.backbone=d", ["dis", "dit"]),
        ("model.backbone=", list(FAMILIES)),
        ("train.trackers=tensorboard,", ["tensorboard,wandb"]),
        ("data.hflip=t", ["true"]),
        ("no.such=t", []),
    ],
)
def test_values(typed: str, values: list[str], shell: Shell) -> None:
    if shell.name == "bash":
        key, equals, value = typed.partition("=")
        assert shell("train", "train.lr", "=", "1", key, equals, *([value] if value else [])) == values
    else:
        key = typed.partition("=")[0]
        assert shell("train", "train.lr=1", typed) == [f"{key}={value}" for value in values]


def test_a_branch_has_the_steps_and_settings_of_its_run(shell: Shell) -> None:
    run = str(SAVED / "run")
    assert shell("train", "--branch", run, "--at", "") == ["5"]
    assert shell("train", "--at", "") == []
    assert shell("train", "--branch", str(SAVED / "absent"), "--at", "") == []
    assert shell("train", "--branch", run, "train.step") == ["train.steps=9"]


def test_another_backbone_brings_its_own_settings(shell: Shell) -> None:
    asked = ("model.backbone", "=", "uvit") if shell.name == "bash" else ("model.backbone=uvit",)
    assert shell("train", "model.d_st") == ["model.d_state=8"]
    assert shell("train", *asked, "model.d_st") == []


@pytest.mark.parametrize("saved", ["run", "run/checkpoints/step-00000005", "export", "export.safetensors"])
def test_classes_are_those_of_the_checkpoint(saved: str, shell: Shell) -> None:
    path = str(SAVED / saved)
    assert shell("sample", "--ckpt", path, "--class", "7") == ["7"]
    assert shell("sample", path, "--class", "3,a") == ["3,all"]
    assert len(shell("sample", "--ckpt", path, "--class", "3,")) == 10


def test_a_line_that_cannot_run_is_completed_as_far_as_it_goes(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "bad.safetensors"):
        assert shell("sample", "--ckpt", str(path), "--class", "a") == ["all"]
    assert shell("train", "--preset", str(tmp_path / "no.toml"), "train.prec")[0] == "train.precision=auto"
    assert shell("flops", "--backbone", "mlp", "--size", "s") == []


def test_nothing_imports_torch() -> None:
    lines = [
        "dis train model.backbone=d",
        f"dis sample --ckpt {SAVED / 'run'} --class 7",
        f"dis sample --ckpt {SAVED / 'export.safetensors'} --class 7",
        "dis flops --size x",
        "dis eval-fid --metrics f",
        "dis sample --sampler d",
        "dis train --device c",
        f"dis train --branch {SAVED / 'run'} --at ",
        f"dis train --branch {SAVED / 'run'} train.step",
    ]
    code = f"""
import os, sys
from dis_cli.cli.app import run
os.environ["_DIS_COMPLETE"] = "complete_zsh"
for line in {lines!r}:
    os.environ["_TYPER_COMPLETE_ARGS"] = line
    try:
        run([])
    except SystemExit:
        pass
assert "torch" not in sys.modules
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("_arguments") == len(lines)
