"""`dis flops`: options, tables, formats, bad input, and that it starts fast."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.saved import DIGITS, LATENTS, config_of, save_run
from support.speed import least_seconds, limit

from dis_cli.cli.app import run
from dis_cli.models.dis.backbone import DiS
from dis_cli.models.dis.sizes import SIZES, Shape
from dis_cli.workflows.build import build_model


@pytest.fixture
def flops(capsys):
    """Runs `dis flops` and gives its status and what it printed."""

    def call(*arguments: str) -> tuple[int, str, str]:
        status = run(["flops", *arguments])
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def report(flops):
    """Runs `dis flops --json` and gives what it printed."""

    def call(*arguments: str):
        status, out, err = flops(*arguments, "--json")
        assert (status, err) == (0, "")
        data = json.loads(out)
        assert data.pop("schema") == 1
        return data

    return call


def test_shows_parameters_parts_conventions_work_and_memory(flops) -> None:
    status, out, err = flops("--size", "s", "--patch", "2")
    assert (status, err) == (0, "")
    assert out.startswith("DiS-S/2: 29.1 M parameters; 32x32x4 latents of 256x256 pixels, 1000 classes, 258 tokens\n")
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    parts = ["embeddings", "norms", "in_proj", "conv", "x_proj", "dt_proj", "scan", "gate", "out_proj", "skip", "head"]
    assert [name for name in lines if name in parts] == parts
    shares = [[float(share) for share in re.findall(r"([0-9.]+)%", lines[name])] for name in parts]
    assert [sum(column) for column in zip(*shares, strict=True)] == pytest.approx([100, 100], abs=0.5)
    for name, number in [
        ("MACs", "7.1772"),
        ("FLOPs", "14.3544"),
        ("+ elementwise", "7.5000"),
        ("as published", "0.8446"),
        ("as printed", "1.6893"),
        ("one evaluation", "14.3544"),
        ("one training step", "21.5296"),
        ("one image sampled", "3,588.6050"),
    ]:
        assert number in lines[name], name
    for name in ("weights", "optimizer (AdamW)", "activations", "activations, checkpointed", "training", "sampling"):
        assert len(re.findall(r"[0-9.]+ [kMGT]?B", lines[name])) == 2, name


def test_xl_has_677_million_parameters(flops) -> None:
    assert flops("--size", "xl", "--patch", "2")[1].startswith("DiS-XL/2: 677.0 M parameters")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--size l", {"grid_size": 32, "in_channels": 4, "num_classes": 1000, "num_parameters": 407_249_952}),
        ("--size H --patch 4 --image-size 512", {"grid_size": 64, "num_parameters": 907_187_840}),
        ("--size m --pixel --classes 0", {"grid_size": 32, "num_parameters": 229_454_616}),
        ("--preset dis-s-cifar", {"size": "s", "num_parameters": 28_488_008, "latent": False}),
        ("--preset dis-s-cifar --classes 10", {"num_parameters": 28_764_008}),
        ("--preset dis-l-imagenet256 --size h", {"size": "h", "num_parameters": 906_966_560}),
        ("--preset dis-s-cifar --latent --image-size 256", {"grid_size": 32, "in_channels": 4}),
        ("--preset dis-l-imagenet256 --pixel", {"grid_size": 256, "in_channels": 3}),
        ("--preset dis-xs-digits --pixel", {"grid_size": 8, "in_channels": 1, "learn_sigma": False}),
        ("--preset dis-s-digits-latent", {"latent": True, "name": "DiS-S/2"}),
    ],
)
def test_resolves_its_options(report, options: str, expected: dict[str, object]) -> None:
    data = report(*options.split())
    assert {name: data[name] for name in expected} == expected


def test_batch_steps_and_guidance_scale_the_work(report) -> None:
    one, many = report("--size", "s"), report("--size", "s", "--batch", "8", "--steps", "20", "--cfg")
    assert one["image_sampled"]["macs"] == 250 * one["macs"]
    assert many["image_sampled"]["macs"] == 2 * 20 * one["macs"]
    assert many["training_step"]["macs"] == 8 * one["training_step"]["macs"]
    for step in (one["training_step"], many["training_step"]):
        assert step["flops"] == 2 * step["macs"]
        assert step["macs"] < step["checkpointed_macs"] < 1.34 * step["macs"]
    memory, more = one["memory"]["fp32"], many["memory"]["fp32"]
    assert more["activations_bytes"] == 8 * memory["activations_bytes"]
    assert more["sampling_work_bytes"] == 16 * memory["sampling_work_bytes"]
    assert memory["weights_bytes"] == more["weights_bytes"] == 4 * one["num_parameters"]
    state = sum(memory[f"{name}_bytes"] for name in ("weights", "gradients", "optimizer", "ema"))
    assert memory["training_bytes"] == state + memory["activations_bytes"]
    assert memory["checkpointed_training_bytes"] == state + memory["checkpointed_activations_bytes"]


def test_all_has_every_size_and_patch(flops, report) -> None:
    models = report("--all")["models"]
    expected = [f"DiS-{size.upper()}/{patch}" for size in SIZES for patch in (2, 4, 8)]
    assert [model["name"] for model in models] == expected
    by_name = {model["name"]: model for model in models}
    assert f"{by_name['DiS-H/4']['macs'] / 1e9:.4f}" == "58.4829"
    out = flops("--all", "--patch", "4", "--pixel", "--classes", "0")[1]
    # The figures that the published test prints: patch 4 on 32x32 pixels, without classes.
    rows = {line.split()[0]: line.split() for line in out.splitlines()[2:]}
    assert list(rows) == [f"DiS-{size.upper()}/4" for size in SIZES]
    assert (rows["DiS-S/4"][3], rows["DiS-S/4"][6]) == ("1.8112", "0.2158")


def test_compare_counts_attention_and_says_from_where_dis_is_cheaper(flops, report) -> None:
    models = report("--compare", "--size", "xl", "--resolutions", "512,256")["comparisons"][0]["models"]
    assert [model["name"] for model in models] == ["DiS-XL/2", "DiT-XL/2"]
    dit = models[1]
    assert [cost["image_size_pixels"] for cost in dit["costs"]] == [256, 512]
    assert f"{dit['costs'][0]['macs'] / 1e9:.1f}" == "118.6"
    start = dit["dis_cheaper_from"]
    assert start["num_tokens"] == start["num_patches"] + 2
    # At the resolution it names DiS is cheaper, and not at the one before.
    grid = 16
    for side, is_cheaper in ((start["image_size_pixels"], True), (start["image_size_pixels"] - grid, False)):
        ours, theirs = (
            model["costs"][0]["macs"]
            for model in report("--compare", "--size", "xl", "--resolutions", str(side))["comparisons"][0]["models"]
        )
        assert (ours < theirs) == is_cheaper
    out = flops("--compare")[1]
    for name in ("DiT-S/2", "U-ViT-S/2", "DiT-B/2", "U-ViT-M/2", "DiT-L/2", "U-ViT-L/2", "DiT-XL/2", "U-ViT-H/2"):
        assert f"\n{name} " in out
    assert "3,424 tokens (944 px)" in out
    assert "always" in next(line for line in out.splitlines() if line.startswith("U-ViT-S/2"))


def near(image: Image.Image, color: tuple[int, int, int]) -> int:
    """How many pixels have about this colour."""
    shown = image.getcolors(image.width * image.height) or []
    return sum(count for count, other in shown if max(abs(a - b) for a, b in zip(color, other, strict=True)) < 24)


def test_plot_has_a_line_for_each_model_and_a_legend(flops, tmp_path) -> None:
    path = tmp_path / "plots" / "flops.png"
    status, out, err = flops("--size", "l", "--plot", str(path))
    assert (status, err) == (0, f"wrote plot: {path}\n")
    assert "U-ViT-L/2" in out
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = image.convert("RGB")
    lines, legend = pixels.crop((85, 57, 843, 575)), pixels.crop((856, 0, 1000, 150))
    for color in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)):
        assert near(lines, color) > 300
        assert near(legend, color) > 5


def test_plot_replaces_nothing_but_itself(flops, tmp_path) -> None:
    path = tmp_path / "flops.png"
    for _ in range(2):
        assert flops("--size", "l", "--plot", str(path))[0] == 0
    drawn = path.read_bytes()
    status, _, err = flops("--size", "s", "--plot", str(path))
    assert status == 2
    assert f"`{path}` exists and holds something else" in err
    assert f"`--plot {tmp_path / 'flops_2.png'}`" in err
    assert path.read_bytes() == drawn


def test_a_plot_needs_no_folder_that_can_be_written(tmp_path) -> None:
    nowhere = {"HOME": "/dev/null", "DIS_CACHE_DIR": "/dev/null/cache"}
    environment = {name: value for name, value in os.environ.items() if name != "MPLCONFIGDIR"} | nowhere
    command = [sys.executable, "-m", "dis_cli", "flops", "--size", "l", "--plot", "x.png"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "wrote plot: x.png\n")
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_csv_is_one_table(flops) -> None:
    for options, key, count in (
        (["--size", "s"], "part", 12),
        (["--all"], "name", 21),
        (["--compare"], "name", 14 * 4),
    ):
        status, out, _ = flops(*options, "--csv")
        rows = list(csv.DictReader(io.StringIO(out)))
        assert (status, len(rows)) == (0, count)
        assert all(row[key] and int(row["macs"]) >= 0 for row in rows)


def test_markdown_has_a_rule_under_each_heading(flops) -> None:
    out = flops("--size", "s", "--markdown")[1]
    lines = out.splitlines()
    rules = [number for number, line in enumerate(lines) if line.startswith("| ---")]
    assert len(rules) == 4
    for number in rules:
        assert lines[number - 1].count("|") == lines[number].count("|") == lines[number + 1].count("|")
    assert "| scan | 625,600 | 2.1% |" in out


def test_a_published_checkpoint(report, tmp_path) -> None:
    weights = DiS(**asdict(Shape(8, 2, 4, 48, 7, 10))).state_dict()
    torch.save({"ema": weights}, tmp_path / "published.pt")
    data = report("--ckpt", str(tmp_path / "published.pt"))
    assert (data["num_parameters"], data["image_size_pixels"], data["latent"]) == (220_256, 64, True)


@pytest.mark.parametrize(("base", "pixels"), [(DIGITS, 8), (LATENTS, 16)], ids=["pixels", "latents"])
def test_a_run_folder(report, tmp_path, base, pixels: int) -> None:
    config = config_of(base)
    folder = save_run(tmp_path / "run", config)
    data = report("--ckpt", str(folder))
    assert data["num_parameters"] == sum(p.numel() for p in build_model(config).parameters())
    assert (data["image_size_pixels"], data["grid_size"]) == (pixels, 8)
    # The other options change it, as they change a preset.
    assert report("--ckpt", str(folder), "--patch", "2")["num_tokens"] == data["num_tokens"] + 12


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ("--size xxl", "got `xxl`, allowed: xs, s, b, m, l, xl, h", "Did you mean `xl`?"),
        ("", "need --size (xs, s, b, m, l, xl, h), --preset or --ckpt", "dis flops --size xl"),
        ("--size s --image-size 250", "got an image size of `250`, allowed: a multiple of 16", "--image-size 256"),
        ("--size s --patch 3", "allowed: a multiple of 24 pixels (8 per latent x patch 3)", "--image-size 264"),
        ("--size s --image-size 260 --patch 1", "a multiple of 8 pixels", "--image-size 256"),
        ("--size s --pixel --image-size 1", "a multiple of 2 pixels", "--image-size 2`"),
        ("--all --patch 3", "a multiple of 24 pixels", "--image-size 264"),
        ("--all --size s", "--all and --size exclude each other", ""),
        ("--all --compare", "--all and --compare exclude each other", ""),
        ("--size s --csv --json", "--json and --csv exclude each other", ""),
        ("--preset dis-s-cifar --ckpt x", "--preset and --ckpt exclude each other", ""),
        ("--ckpt nowhere", "No checkpoint at `nowhere`", "run folder"),
        ("--compare --size xs", "got DiS-XS/2, allowed: s, b, m, l, xl, h", "--size xl"),
        ("--size s --resolutions 256,big", "--resolutions: got `256,big`, allowed: sides in pixels", "256,512"),
        ("--size s --resolutions 256,0", "--resolutions: got `256,0`", ""),
        ("--size s --resolutions 250", "an image size of `250`", ""),
        ("--size s --plot x.jpg", "--plot: got `x.jpg`, allowed: a name that ends in .png", ""),
        ("--size s --classes 0 --cfg", "Guidance needs classes", "--classes 1000"),
        ("--size s --batch 0", "--batch", ""),
        ("--size h --time --batch 100000000 --device cpu", "allowed: a batch of up to", "Try `--batch"),
        ("--size h --time --image-size 65536 --device cpu", "GB free on cpu, allowed: ", "smaller model"),
        ("--size s --time --device gpu", "Unknown device: `gpu`", ""),
    ],
)
def test_bad_input_says_what_is_allowed(flops, options: str, message: str, hint: str) -> None:
    status, out, err = flops(*options.split())
    assert (status, out if "--json" not in options else "") == (2, "")
    assert message in err
    assert hint in err
    assert len(err.splitlines()) <= 15


def test_time_measures_this_machine(flops, monkeypatch) -> None:
    monkeypatch.setattr("dis_cli.workflows.flops.timing.MIN_SECONDS", 0.2)
    model = ["--preset", "dis-xs-digits", "--batch", "4", "--device", "cpu", "--time"]
    status, out, err = flops(*model)
    assert status == 0
    assert "engine " in err
    table = out.partition("On this machine, ")[2].splitlines()
    assert [line.split("  ")[0] for line in table[2:]] == ["forward", "training step"]
    assert all(line.endswith("%") for line in table[2:])
    status, out, _ = flops(*model, "--json")
    data = json.loads(out)
    time = data["time"]
    assert status == 0
    for what, macs in (("forward", 4 * data["macs"]), ("training_step", data["training_step"]["macs"])):
        timing = time["timings"][what]
        assert timing["images_per_second"] == pytest.approx(4 / timing["seconds"])
        assert timing["gflops_per_second"] == pytest.approx(2e-9 * macs / timing["seconds"])
        rate = timing["gflops_per_second"] / time["matmul_gflops_per_second"]
        assert timing["utilisation"] == pytest.approx(rate)
        assert 0 < rate < 1
    assert time["timings"]["training_step"]["seconds"] > time["timings"]["forward"]["seconds"]


def test_answers_in_less_than_three_tenths_of_a_second() -> None:
    command = [sys.executable, "-m", "dis_cli", "flops", "--size", "xl", "--patch", "2"]
    assert least_seconds(command, enough=limit(0.3)) < limit(0.3)


def test_imports_neither_torch_nor_rich(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "run", config_of(DIGITS))
    options = ["--size s", "--preset dis-s-cifar", "--all", "--compare --json", f"--size l --plot {tmp_path}/x.png"]
    options.append(f"--ckpt {folder}")
    code = f"""
import sys
from dis_cli.cli.app import run
for options in {options}:
    assert run(["flops", *options.split()]) == 0, options
    assert not {{"torch", "rich"}} & set(sys.modules), options
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ, stdout=subprocess.DEVNULL, timeout=60)


def test_the_page_shows_what_the_commands_print(flops) -> None:
    page = (Path(__file__).parents[2] / "dis_cli" / "models" / "README.md").read_text()
    shown = re.findall(r"```console\n\$ dis flops ([^\n]*)\n(.*?)```", page, re.DOTALL)
    assert len(shown) == 3
    for arguments, printed in shown:
        status, out, _ = flops(*arguments.split())
        assert status == 0
        assert out.strip() == printed.strip()
