"""Options of other trainers are answered by what stands for them here, in words that work when they are typed."""

import re

import pytest
import typer
from support.hints import check_command, check_setting

from dis_cli.cli.app import app, run
from dis_cli.cli.hints.fitted import Taken, command_of, fitted, taken_by
from dis_cli.cli.hints.other_options import ROWS, answer

COMMANDS = (
    "train", "sample", "encode-latents", "eval-fid", "eval-fid stats", "flops", "runs", "doctor", "presets show",
    "checkpoint show", "checkpoint export", "checkpoint import",
)  # fmt: skip
# What each needs to be complete.
NEEDED = {
    "sample": "--ckpt RUN",
    "eval-fid stats": "--out FILE.npz",
    "presets show": "NAME",
    "checkpoint show": "PATH",
    "checkpoint export": "PATH --out PATH",
    "checkpoint import": "PATH --out DIR",
}
NAMES = [name for names, _ in ROWS for name in names.split()]


def taken(command: str) -> Taken:
    return taken_by(*command_of(typer.main.get_command(app), command.split()))


def test_no_name_is_there_twice() -> None:
    assert sorted(NAMES) == sorted(set(NAMES))


@pytest.mark.parametrize(("names", "answers"), ROWS, ids=[names.split()[0] for names, _ in ROWS])
def test_every_answer_is_understood_when_it_is_typed(names: str, answers: object) -> None:
    found = {command: answer(f"--{names.split()[0]}", taken(command)) for command in COMMANDS}
    assert any(found.values())
    for command, text in found.items():
        for piece in re.findall(r"`([^`]+)`", text or ""):
            if piece.startswith("torchrun"):
                line = f"{piece} {NEEDED.get(command, '')}"
            else:
                line = f"dis {command} {NEEDED.get(command, '')} {piece}"
            assert check_command(line) is None, text
        for key in re.findall(r"\b(?:train|model|data|sample|codec)\.[a-z_]+", text or ""):
            assert check_setting(key) is None, text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("train --lr 3e-4", "`train.lr=VALUE`"),
        ("train --lr=3e-4", "`train.lr=VALUE`"),
        ("train -lr 3e-4", "`train.lr=VALUE`"),
        ("train --learning_rate 3e-4", "`train.lr=VALUE`"),
        ("train --Learning-Rate 3e-4", "`train.lr=VALUE`"),
        ("train --epochs 3", "epochs x images / train.batch_size: `train.steps=VALUE`"),
        ("train --steps 3", "`train.steps=VALUE`. "),
        ("train --max_steps 3", "`train.steps=VALUE`. "),
        ("train --resume", "The same command continues what it began"),
        ("train --resume-from-checkpoint x", "The same command continues what it began"),
        ("train --pretrained x", "`--init PATH`"),
        ("train --from x", "`--init PATH`"),
        ("train --ckpt x", "`--init PATH`"),
        ("train --batch 3", "`train.batch_size=VALUE`. "),
        ("train --num_workers 3", "`data.num_workers=VALUE`"),
        ("train --workers=3", "`data.num_workers=VALUE`"),
        ("train --wandb", "`train.trackers=wandb`"),
        ("train --tensorboard", "`train.trackers=tensorboard`"),
        ("train --name x", "`name=NAME`"),
        ("train --gpus 8", "`torchrun --nproc-per-node VALUE -m dis_cli train`"),
        ("train --fp16", "`train.precision=bf16`"),
        ("train --mixed_precision bf16", "`train.precision=bf16`"),
        ("train --output_dir x", "`--out PATH`"),
        ("train --data-dir x", "`--data PATH`"),
        ("train --dataset cifar10", "`data.source=NAME`"),
        ("train --resolution 64", "`model.image_size=VALUE`"),
        ("train --num-classes 3", "`model.num_classes=VALUE`"),
        ("train --cfg 2", "`sample.cfg_scale=VALUE`"),
        ("train --save-every 2", "`train.save_every=VALUE`"),
        ("train --log-interval 2", "`train.log_every=VALUE`"),
        ("train --ema 0.9", "`train.ema_decay=VALUE`"),
        ("train --compile", "`train.compile=true`"),
        ("train --on-bad skip", "`data.on_bad=VALUE`"),
        ("train --vae x", "`codec.vae=DIR`"),
        ("sample --cfg 2", "`--cfg-scale VALUE`"),
        ("sample --guidance-scale 2", "`--cfg-scale VALUE`"),
        ("sample --model x", "--help`"),
        ("sample --model-path x", "`--ckpt PATH`"),
        ("sample --resume x", "`--ckpt PATH`"),
        ("sample --num_inference_steps 3", "`--steps VALUE`"),
        ("sample --num-samples 3", "`-n VALUE`"),
        ("sample --labels 3", "`--class CLASS`"),
        ("sample --batch-size 3", "`sample.batch_size=VALUE`"),
        ("sample --output x", "`--out PATH`"),
        ("sample --solver x", "`--sampler NAME`"),
        ("sample --half", "`sample.precision=bf16`"),
        ("sample --gpus 2", "`torchrun --nproc-per-node VALUE -m dis_cli sample`"),
        ("eval-fid --real x", "`--ref PATH`"),
        ("eval-fid --generated x", "`--images PATH`"),
        ("eval-fid --batch-size 3", "`sample.batch_size=VALUE`"),
        ("eval-fid stats --output x", "`--out PATH`"),
        ("encode-latents --resolution 64", "`--image-size PIXELS`"),
        ("encode-latents --workers 3", "`--num-workers VALUE`"),
        ("encode-latents --output-dir x", "`--out PATH`"),
        ("encode-latents --fp16", "`--dtype float16`"),
        ("flops --guidance", "`--cfg`"),
        ("checkpoint export x --output y", "`--out PATH`"),
        ("checkpoint export x --bf16", "`--dtype bf16`"),
        ("doctor --gpu 0", "`--device cuda:0`"),
    ],
)
def test_options_of_other_programs(arguments: str, expected: str, capsys) -> None:
    assert run(arguments.split()) == 2
    error = capsys.readouterr().err
    assert "error: No such option: -" in error
    assert expected in error


@pytest.mark.parametrize("name", ["from", "lr", "resume", "steps", "ckpt", "name"])
def test_no_other_option_is_suggested_for_them(name: str, capsys) -> None:
    assert run(["train", f"--{name}", "x"]) == 2
    assert "Did you mean" not in capsys.readouterr().err


def test_short_names_are_not_alike_by_their_dashes(capsys) -> None:
    assert run(["doctor", "--sort"]) == 2
    assert "Did you mean" not in capsys.readouterr().err
    assert run(["train", "--prset", "x"]) == 2
    assert "Did you mean `--preset`?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("encode-latents data.on_bad=skip", "Write `--on-bad skip`."),
        ("encode-latents data.download=true", "Write `--download`."),
        ("encode-latents codec.vae=x", "Write `--vae x`."),
        ("encode-latents train.lr=1", "`dis encode-latents` takes options only, no KEY=VALUE."),
        ("flops train.lr=1", "`dis flops` takes options only, no KEY=VALUE."),
        ("doctor b", "See `dis doctor --help`"),
    ],
)
def test_settings_for_a_command_that_takes_none(arguments: str, expected: str, capsys) -> None:
    assert run(arguments.split()) == 2
    error = capsys.readouterr().err
    assert f"Got unexpected extra argument(s) ({arguments.split()[-1]})" in error
    assert f"hint: {expected}" in error


EITHER = "Leave them out: `--on-bad skip` (or data.on_bad=skip)"


@pytest.mark.parametrize(
    ("command", "text", "expected"),
    [
        ("train", EITHER, "Leave them out: data.on_bad=skip"),
        ("encode-latents", EITHER, "Leave them out: `--on-bad skip`"),
        ("train", "Give `--data DIR` (or data.path=DIR)", "Give `--data DIR` (or data.path=DIR)"),
        ("encode-latents", "Give `--data DIR` (or data.path=DIR)", "Give `--data DIR`"),
        ("sample", "Give `--vae DIR` (or codec.vae=DIR); bye", "Give `--vae DIR` (or codec.vae=DIR); bye"),
        ("train", "Give `--vae DIR` (or codec.vae=DIR); bye", "Give codec.vae=DIR; bye"),
        ("eval-fid stats", "set sample.steps (`--steps`) to 25", "set sample.steps to 25"),
        ("eval-fid", "set sample.steps (`--steps`) to 25", "set sample.steps (`--steps`) to 25"),
        ("encode-latents", "Set data.source=folder.", "Set `--source folder`."),
        ("encode-latents", "Set `data.download=true`, or not", "Set `--download`, or not"),
        ("train", "Set data.source=folder.", "Set data.source=folder."),
        ("encode-latents", "takes data.source=latents", "takes data.source=latents"),
    ],
)
def test_a_hint_names_what_the_command_takes(command: str, text: str, expected: str) -> None:
    assert fitted(text, taken(command)) == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_only_dis_itself_installs_completion(command: str, capsys) -> None:
    assert run([*command.split(), "--help"]) == 0
    assert "completion" not in capsys.readouterr().out
