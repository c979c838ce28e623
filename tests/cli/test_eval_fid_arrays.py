"""`dis eval-fid` and arrays: every door takes what any of them takes, and refuses the rest with advice that works."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.tiny import dis, result

COUNT = 70


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (COUNT, 10, 10, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for index, image in enumerate(pixels):
        Image.fromarray(255 - image // 2).save(root / f"{index:03d}.png")
    return root


def command(*arguments: object) -> list[object]:
    return ["eval-fid", *arguments, "--features", "digits", "--json", "-q"]


def test_every_door_reads_the_same_arrays(pixels: np.ndarray, folder: Path, tmp_path: Path, capsys: Any) -> None:
    np.savez(tmp_path / "plain.npz", pixels)
    np.savez(
        tmp_path / "first.npz", images=np.asfortranarray(pixels.transpose(0, 3, 1, 2)).astype(">i4"), y=np.arange(COUNT)
    )
    scores: list[float] = []
    for name in ("plain.npz", "first.npz"):
        arguments = command(
            "--images", tmp_path / name, "--ref", folder, "--out", (tmp_path / name).with_suffix(".json")
        )
        assert dis(*arguments) == 0
        scores.append(result(capsys)["frechet_digits"])
        arguments = command("--images", folder, "--ref", tmp_path / name, "--out", tmp_path / f"b-{name}.json")
        assert dis(*arguments) == 0
        scores.append(result(capsys)["frechet_digits"])
        statistics = tmp_path / f"stats-{name}"
        assert dis("eval-fid", "stats", "--data", tmp_path / name, "--features", "digits", "-o", statistics) == 0
        capsys.readouterr()
        assert dis(*command("--images", folder, "--ref", statistics, "--out", tmp_path / f"c-{name}.json")) == 0
        scores.append(result(capsys)["frechet_digits"])
    assert scores[0] > 1
    assert scores == pytest.approx([scores[0]] * 6, rel=1e-9)


def test_floats_are_refused_at_every_door_before_any_work(
    pixels: np.ndarray, folder: Path, tmp_path: Path, capsys: Any
) -> None:
    path, out = tmp_path / "floats.npz", tmp_path / "out.npz"
    np.savez(path, np.float32(pixels / 255))
    for arguments in (
        command("--images", path, "--ref", folder, "--out", tmp_path / "a.json"),
        command("--images", folder, "--ref", path, "--out", tmp_path / "a.json"),
        ["eval-fid", "stats", "--data", path, "--features", "digits", "-o", out, "--json"],
    ):
        assert dis(*arguments) == 2
        error = json.loads(capsys.readouterr().out)["error"]
        assert "arr_0 is float32 (70, 10, 10, 3): its values are 0 to 1" in error["message"]
        assert error["hint"] == "Save `(images * 255).round().astype('uint8')`"
    assert [found.name for found in tmp_path.iterdir()] == ["floats.npz"]


def test_a_bare_array_is_refused_with_a_command_that_makes_it_readable(
    pixels: np.ndarray, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("bare.npy", pixels)
    hint = ""
    for arguments in (
        command("--images", "bare.npy", "--ref", folder),
        command("--images", folder, "--ref", "bare.npy"),
        ["eval-fid", "stats", "--data", "bare.npy", "--features", "digits", "-o", "s.npz", "--json"],
    ):
        assert dis(*arguments) == 2
        error = json.loads(capsys.readouterr().out)["error"]
        assert error["message"] == "`bare.npy` is one bare array, and images are read from .npz files"
        hint = error["hint"]
    advice = hint.split("`")[1]
    subprocess.run(advice.replace("python", sys.executable, 1), shell=True, check=True)
    assert dis(*command("--images", "bare.npz", "--ref", folder, "--out", "a.json")) == 0


def test_what_was_done_to_the_images_is_told_of_those_it_was_done_to(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    rgba = np.random.default_rng(0).integers(0, 255, (8, 8, 4), dtype=np.uint8)
    Image.fromarray(rgba[..., :3]).save(folder / "rgb.png")
    Image.fromarray(rgba).save(folder / "transparent.png")
    Image.fromarray(rgba[..., 0]).save(folder / "grey.png")
    deep = rgba[..., 0].astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / "deep.png", transparency=int(deep[0, 0]))
    arguments = ["eval-fid", "--images", folder, "--ref", folder, "--features", "digits", "--json"]
    assert dis(*arguments, "--out", tmp_path / "a.json") == 0
    notes = " ".join(result(capsys)["notes"])
    assert "2 scored images are grey: their one channel is used for all three colours" in notes
    assert "2 scored images are transparent, and are laid on white" in notes
