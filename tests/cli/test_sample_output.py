"""What `dis sample` writes and for which seeds and classes; the same images in every form, batch, order and number."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import ranks
from support.sampling import arrays, beside, command, content, record, sampled
from support.saved import LATENTS, config_of, save_run
from support.tiny import dis, result, save_latent_run, trained
from support.vae import save_tiny_vae


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("sampled") / "run", "train.steps=1")


def images(out: Path) -> dict[int, bytes]:
    """The pixels of each seed."""
    found = {}
    for entry in record(out)["images"]:
        with Image.open(out / entry["file"]) as image:
            found[entry["seed"]] = np.array(image).tobytes()
    return found


def sha256(found: dict[int, bytes]) -> str:
    return hashlib.sha256(b"".join(found[seed] for seed in sorted(found))).hexdigest()[:16]


def test_same_seed_same_image_whatever_it_is_made_with(
    run: Path, tmp_path: Path, tally: Callable[[str, object], None]
) -> None:
    straight = images(sampled(run, tmp_path / "straight", "-n", 13, "--class", 4))
    ways = {
        **{f"batch size {size}": ("-n", 13, f"sample.batch_size={size}") for size in (1, 2, 3, 5, 7, 8, 13)},
        "other order": ("--seeds", "12,3-11,2,0-1", "sample.batch_size=5"),
        "more images": ("-n", 29, "sample.batch_size=16"),
    }
    for name, arguments in ways.items():
        found = images(sampled(run, tmp_path / name, "--class", 4, *arguments))
        found = {seed: found[seed] for seed in straight}
        tally(f"images of 13 seeds, {name}: sha256", sha256(found))
        assert found == straight, name
    for seed in (0, 7):
        alone = images(sampled(run, tmp_path / f"alone-{seed}", "--class", 4, "-n", 1, "--seed", seed))
        assert alone == {seed: straight[seed]}
    # Guided, two inputs an image.
    guided = [
        images(sampled(run, tmp_path / f"guided-{size}", "--cfg-scale", 3, "-n", 5, f"sample.batch_size={size}"))
        for size in (1, 2, 5)
    ]
    assert guided[0] == guided[1] == guided[2]


@pytest.mark.parametrize("form", ["png", "npz", "zip"])
def test_two_ranks_write_what_one_process_writes(
    form: str, run: Path, tmp_path: Path, tally: Callable[[str, object], None]
) -> None:
    name = "out" if form == "png" else f"out.{form}"
    arguments = ("-n", 21, "sample.batch_size=4", "--class", "all")
    (tmp_path / "one").mkdir()
    one = content(sampled(run, tmp_path / "one" / name, *arguments))
    ended = ranks.start(2, *command(run, tmp_path / "two" / name, *arguments), folder=tmp_path / "said").finish()
    assert [rank.code for rank in ended] == [0, 0], ended
    assert content(tmp_path / "two" / name) == one
    assert beside(tmp_path / "two" / name) == []
    assert ended[1].out == ended[1].err == ""
    tally(f"{form} of two ranks: sha256", hashlib.sha256(b"".join(one.values())).hexdigest()[:16])


def test_ranks_end_together_with_one_message(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = ranks.start(
        2, *command(run, out, "-n", 8), folder=tmp_path / "said", own={1: ["--cfg-scale", "2"]}
    ).finish()
    assert [rank.code for rank in ended] == [2, 2], ended
    assert "sample" in ended[0].err
    assert "on rank 1" in ended[0].err
    assert not out.exists()


def test_png_carries_how_it_was_made(run: Path, tmp_path: Path) -> None:
    out = sampled(run, tmp_path / "out", "-n", 2, "--class", "3", "--cfg-scale", 1.5, "--seed", 7)
    assert sorted(content(out)) == ["000007_class-3.png", "000008_class-3.png", "grid.png", "samples.json"]
    with Image.open(out / "000008_class-3.png") as image:
        texts = image.text
    facts = json.loads(texts.pop("dis"))
    assert (facts["seed"], facts["class"], facts["class_name"]) == (8, 3, "3")
    assert len(facts["checkpoint_sha256"]) == 64
    assert facts["sample"] | {"sampler": "ddim", "steps": 2, "cfg_scale": 1.5} == facts["sample"]
    wanted = {"Seed": "8", "Class": "3", "Sampler": "ddim", "Steps": "2", "Guidance scale": "1.5"}
    assert texts | wanted == texts
    assert texts["Checkpoint"] == f"sha256 {facts['checkpoint_sha256']}"
    assert texts["Software"].startswith("dis ")


def test_npz_and_zip_hold_the_images_of_the_folder(run: Path, tmp_path: Path) -> None:
    arguments = ("--seeds", "5-9,2", "--class", "8,1")
    folder = sampled(run, tmp_path / "out", *arguments)
    pixels, labels = arrays(sampled(run, tmp_path / "out.npz", *arguments))
    assert (pixels.shape, pixels.dtype, labels.dtype) == ((6, 8, 8, 1), np.uint8, np.int64)
    assert labels.tolist() == [8, 1, 8, 1, 8, 1]
    by_seed = images(folder)
    assert [image.tobytes() for image in pixels] == [by_seed[seed] for seed in (5, 6, 7, 8, 9, 2)]
    packed = sampled(run, tmp_path / "out.zip", *arguments)
    assert record(packed)["images"] == record(folder)["images"]
    with zipfile.ZipFile(packed) as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.testzip() is None
        for entry in record(packed)["images"]:
            with Image.open(io.BytesIO(archive.read(entry["file"]))) as image:
                assert np.array(image).tobytes() == by_seed[entry["seed"]]


def test_an_unconditional_latent_model(tmp_path: Path) -> None:
    run = save_latent_run(tmp_path / "run", str(save_tiny_vae(tmp_path / "vae")))
    results = [arrays(sampled(run, tmp_path / f"{size}.npz", "-n", 5, f"sample.batch_size={size}")) for size in (1, 5)]
    assert [labels for _, labels in results] == [None, None]
    assert results[0][0].shape == (5, 16, 16, 3)
    assert np.array_equal(results[0][0], results[1][0])


@pytest.mark.parametrize("form", ["strip", "gif"])
def test_trajectory(form: str, run: Path, tmp_path: Path) -> None:
    out = sampled(run, tmp_path / "out", "-n", 3, "--steps", 4, "--class", 2, "--trajectory", form)
    with Image.open(out / f"trajectory.{'png' if form == 'strip' else 'gif'}") as image:
        if form == "strip":
            # The noise and four steps beside each other, three images below each other, named at the left and on top.
            left, above, tile = image.width - 5 * 68 - 4, 16, 68
            assert left > 8
            assert image.height == above + 4 + 3 * tile
            with Image.open(out / "000002_class-2.png") as last:
                corner = (left + 4 + 4 * tile, above + 4 + 2 * tile)
                shown = image.crop((*corner, corner[0] + 64, corner[1] + 64)).convert("L")
                assert np.array_equal(np.array(shown), np.array(last.resize((64, 64), Image.Resampling.NEAREST)))
            # Of the same seed it is the same noise, whatever the model makes of it.
            other = sampled(run, tmp_path / "other", "-n", 3, "--steps", 2, "--class", 3, "--trajectory", form)
            with Image.open(other / "trajectory.png") as second:
                noise, first = (np.array(strip)[above:, left : left + 4 + 68] for strip in (second, image))
            assert np.array_equal(noise, first)
            assert noise.std() > 80
        else:
            assert image.n_frames == 5


def test_the_same_again_is_there_already_and_other_settings_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("out", "out.npz", "out.zip"):
        out = sampled(run, tmp_path / name, "-n", 3)
        before = content(out)
        assert dis(*[part for part in command(run, out, "-n", 3) if part != "-q"]) == 0
        assert "holds these samples already" in capsys.readouterr().err
        assert dis(*command(run, out, "-n", 4)) == 2
        assert 'seeds: "0-2" there, "0-3" now' in capsys.readouterr().err
        assert content(out) == before
    (tmp_path / "thesis.npz").write_bytes(b"precious")
    assert dis(*command(run, tmp_path / "thesis.npz")) == 2
    assert "holds no samples" in capsys.readouterr().err
    assert (tmp_path / "thesis.npz").read_bytes() == b"precious"


def test_classes_and_seeds_as_lists_and_ranges(run: Path, tmp_path: Path) -> None:
    out = sampled(run, tmp_path / "a", "--seeds", "3-4,9", "--class", "2-4,7", "--class", "0")
    entries = record(out)["images"]
    assert [(entry["seed"], entry["class"]) for entry in entries] == [(3, 2), (4, 3), (9, 4)]
    entries = record(sampled(run, tmp_path / "b", "-n", 6, "--class", "2-4,7", "--class", "0"))["images"]
    assert [entry["class"] for entry in entries] == [2, 3, 4, 7, 0, 2]


def test_dry_run_says_how_much(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dis(*command(run, tmp_path / "out", "-n", 100, "--dry-run", "--json")) == 0
    told = result(capsys)
    assert (told["num_files"], told["result_bytes"]) == (102, 6400)
    assert told["batch_size"] >= 1
    assert dis(*command(run, tmp_path / "out", "-n", 100, "--dry-run")) == 0
    assert "102 files" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--class", "9-3"], 2, "the range `9-3` runs backwards"),
        (["--class", "8-12"], 2, "Class 12 is out of range: the model has 10 classes, 0 to 9"),
        (["--class", ","], 2, "names no class"),
        (["--seeds", "9-3"], 2, "the range `9-3` runs backwards"),
        (["--seeds", "1,x"], 2, "`--seeds`: got `x`"),
        (["--seeds", "1-3,2"], 2, "names seed 2 twice"),
        (["--seeds", ","], 2, "names no seed"),
        (["--seeds", "4294967296"], 2, "Seed 4294967296 is out of range"),
        (["--seeds", "0-2147483647"], 2, "at most 10000000"),
        (["--seeds", "0-99999999999"], 2, "Seed 99999999999 is out of range"),
        (["--seed", "2147483647", "-n", "2"], 2, "Seed 2147483648 of the last image is out of range"),
        (["--seeds", "0-3", "--seed", "1"], 2, "exclude each other"),
        (["--seeds", "0-3", "-n", "5"], 2, "`-n` is 5, but `--seeds` names 4"),
        (["--format", "npz"], 2, "does not end in .npz"),
        (["--format", "jpg"], 2, "jpg"),
        (["--trajectory", "film"], 2, "film"),
    ],
)
def test_bad_input_is_one_clear_error(
    arguments: list[str], status: int, message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dis(*command(run, tmp_path / "out", *arguments)) == status
    error = capsys.readouterr().err
    assert message in error
    assert error.count("error:") == 1
    assert list(tmp_path.iterdir()) == []


def test_forms_and_trajectories_that_contradict(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in {
        ("out.zip", "--format", "npz"): "contradicts `--out",
        ("out.npz", "--trajectory", "gif"): "the format is npz",
    }.items():
        assert dis(*command(run, tmp_path / arguments[0], *arguments[1:])) == 2
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_class_of_an_unconditional_model_and_another_vae(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vae = save_tiny_vae(tmp_path / "vae")
    run = save_latent_run(tmp_path / "run", str(vae))
    assert dis(*command(run, tmp_path / "out", "--class", 1)) == 2
    assert "unconditional and has no class 1" in capsys.readouterr().err
    record = {"name": "other", "config_sha256": "0" * 64, "weights_sha256": "1" * 64, "downsample": 2}
    other = save_run(tmp_path / "other", config_of(LATENTS, codec__vae=str(vae)), class_names=[], vae=record)
    assert dis(*command(other, tmp_path / "out")) == 2
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.unfinished").exists()
