import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import load_file
from support.vae import save_tiny_vae
from typer.testing import CliRunner

from dis_cli.cli.encode_latents import encode_latents
from dis_cli.data import shards
from dis_cli.data.latents import LatentSource
from dis_cli.errors import DataError, Interrupted, MismatchError, MissingResourceError, StorageError, UsageError
from dis_cli.events import Event, Finished, Note, Progress, Wrote
from dis_cli.runtime.run_dir import RunDir
from dis_cli.workflows import encode as workflow
from dis_cli.workflows.encode import encode

NUM_IMAGES = 11
SMALL = {"image_size": 16, "shard_size": 4, "batch_size": 3, "device": "cpu", "num_workers": 2}


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_vae(tmp_path_factory.mktemp("vae")))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(NUM_IMAGES):
        path = folder / ("cat" if index < 6 else "dog") / f"{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def golden(data: Path, vae: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The latents that one uninterrupted run writes."""
    out = tmp_path_factory.mktemp("golden")
    finish(encode(data, vae, out, **SMALL))
    return out


def finish(events: Iterator[Event]) -> dict[str, object]:
    *_, last = events
    assert isinstance(last, Finished)
    return last.result


def content(folder: Path) -> dict[str, bytes]:
    """Every file that is not hidden; and nothing else may be there but the lock."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}
    assert not [name for name in files if name.startswith(".")]
    return files


def finished_shards(folder: Path) -> dict[str, tuple[int, int]]:
    names = [record.file for record in shards.read_manifest(folder).shards]
    return {name: ((folder / name).stat().st_ino, (folder / name).stat().st_mtime_ns) for name in names}


def test_latents_are_what_diffusers_computes(data: Path, vae: str, golden: Path):
    from diffusers import AutoencoderKL

    module = AutoencoderKL.from_pretrained(vae, low_cpu_mem_usage=False)
    files = sorted(data.glob("*/*.png"), key=lambda path: path.name)
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files])
    images = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    stored = [load_file(golden / f"shard-{number:05d}.safetensors") for number in range(3)]
    assert [len(shard["labels"]) for shard in stored] == [4, 4, 3]
    together = {name: torch.cat([shard[name] for shard in stored]) for name in stored[0]}
    with torch.no_grad():
        plain, mirrored = module.encode(images).latent_dist, module.encode(images.flip(3)).latent_dist
    torch.testing.assert_close(together["mean"], plain.mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(together["logvar"], plain.logvar, atol=1e-5, rtol=0)
    torch.testing.assert_close(together["mirrored_mean"], mirrored.mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(together["mirrored_logvar"], mirrored.logvar, atol=1e-5, rtol=0)
    assert (plain.mean - mirrored.mean).abs().max() > 0.01

    source = LatentSource(golden, image_size=8, channels=4)
    source.verify()
    assert source.class_names == ("cat", "dog")
    assert source.labels.tolist() == [0] * 6 + [1] * 5
    for index in range(NUM_IMAGES):
        torch.testing.assert_close(source.load(index, None), 0.18215 * plain.mean[index], atol=1e-5, rtol=0)


def test_running_again_changes_nothing(data: Path, vae: str, golden: Path):
    before, files = content(golden), finished_shards(golden)
    result = finish(encode(data, vae, golden, **SMALL))
    assert (result["shards_kept"], result["shards_written"]) == (3, 0)
    assert content(golden) == before
    assert finished_shards(golden) == files


@pytest.mark.parametrize("after", [1, 3, 4, 5, 7, 8, 9])
def test_a_kill_loses_one_shard_at_most(data: Path, vae: str, golden: Path, tmp_path: Path, after: int):
    out = tmp_path / "out"
    events = encode(data, vae, out, check=False, **SMALL)
    done = 0
    for event, _ in zip(events, range(after), strict=False):
        done = event.done if isinstance(event, Progress) else done
    events.close()
    (out / ".tmp-0123").write_bytes(b"half a shard")
    before = finished_shards(out)
    # what was encoded and is lost is less than a shard, or a whole one that was not yet written
    assert len(before) * 4 >= done - 4

    changed = SMALL | {"batch_size": 5, "num_workers": 1}
    again = list(encode(data, vae, out, **(changed if before else SMALL)))
    assert content(out) == content(golden)
    assert {name: place for name, place in finished_shards(out).items() if name in before} == before
    if before:
        assert any(isinstance(event, Note) and "batch size of 3, not 5" in event.message for event in again)


def test_a_kill_between_a_shard_and_its_record(
    data: Path, vae: str, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    events = encode(data, vae, tmp_path, **SMALL)
    next(event for event in events if isinstance(event, Wrote))
    with monkeypatch.context() as patch:
        patch.setattr(workflow, "write_manifest", die)
        with pytest.raises(KeyboardInterrupt):
            finish(events)
    assert (tmp_path / "shard-00001.safetensors").exists()
    assert len(finished_shards(tmp_path)) == 1
    finish(encode(data, vae, tmp_path, **SMALL))
    assert content(tmp_path) == content(golden)


def test_damaged_and_deleted_shards_are_encoded_again(data: Path, vae: str, golden: Path, tmp_path: Path):
    out = shutil.copytree(golden, tmp_path / "out")
    with (out / "shard-00000.safetensors").open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"\x55")
    (out / "shard-00002.safetensors").unlink()
    kept = finished_shards(golden).keys() - {"shard-00000.safetensors", "shard-00002.safetensors"}
    times = {name: (out / name).stat().st_mtime_ns for name in kept}
    events = list(encode(data, vae, out, **SMALL))
    warned = [event.message for event in events if isinstance(event, Note) and event.level == "warning"]
    assert ["shard-00000" in warned[0], "shard-00002" in warned[1], len(warned)] == [True, True, 2]
    assert content(out) == content(golden)
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == times


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_in_order(data: Path, vae: str, golden: Path, tmp_path: Path, number: signal.Signals):
    events = encode(data, vae, tmp_path, **SMALL)

    def signalled() -> None:
        for event in events:
            if isinstance(event, Wrote):
                os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match="1 of 3 shards") as caught:
        signalled()
    assert caught.value.code == 128 + number
    assert len(finished_shards(tmp_path)) == 1
    finish(encode(data, vae, tmp_path, **SMALL))
    assert content(tmp_path) == content(golden)


def other_images(data: Path, vae: str, tmp_path: Path) -> dict[str, object]:
    changed = shutil.copytree(data, tmp_path / "changed")
    Image.new("RGB", (16, 16)).save(changed / "dog" / "10.png")
    return {"data": changed}


def other_vae(data: Path, vae: str, tmp_path: Path) -> dict[str, object]:
    return {"vae": str(save_tiny_vae(tmp_path / "other", seed=1))}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (other_images, "source"),
        (other_vae, "vae"),
        (lambda *_: {"image_size": 32}, "image_size: 16 there, 32 now"),
        (lambda *_: {"shard_size": 5}, "shard_size: 4 there, 5 now"),
        (lambda *_: {"mirrored": False}, "mirrored: True there, False now"),
        (lambda *_: {"dtype": "float16"}, "dtype: 'float32' there, 'float16' now"),
        (lambda *_: {"scale": 1.0}, "scale: 0.18215 there, 1.0 now"),
    ],
)
def test_other_images_or_settings_are_refused(
    data: Path, vae: str, golden: Path, tmp_path: Path, change: Callable[..., dict[str, object]], field: str
):
    before = content(golden)
    arguments = {"data": data, "vae": vae, "out": golden} | SMALL | change(data, vae, tmp_path)
    with pytest.raises(MismatchError) as caught:
        finish(encode(**arguments))
    assert field in caught.value.message
    assert content(golden) == before


def test_bad_images_are_all_listed_before_the_work(data: Path, vae: str, tmp_path: Path):
    images = shutil.copytree(data, tmp_path / "images")
    whole = (images / "dog" / "09.png").read_bytes()
    (images / "dog" / "09.png").write_bytes(whole[: len(whole) // 2])
    (images / "cat" / "02.png").write_text("not an image")
    with pytest.raises(DataError) as caught:
        finish(encode(images, vae, tmp_path / "out", **SMALL))
    assert caught.value.message.startswith("2 of 11 images")
    assert "02.png" in caught.value.message
    assert "09.png" in caught.value.message
    assert finished_shards(tmp_path / "out") == {}


def test_a_full_disk_leaves_whole_shards_only(data: Path, vae: str, golden: Path, tmp_path: Path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    events = encode(data, vae, tmp_path, **SMALL)
    next(event for event in events if isinstance(event, Wrote))
    try:
        # more than the manifest's size, less than a shard's
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
        with pytest.raises(StorageError, match=r"shard-00001.*needs 16,784 bytes"):
            finish(events)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert content(tmp_path).keys() == {"manifest.json", "shard-00000.safetensors"}
    finish(encode(data, vae, tmp_path, **SMALL))
    assert content(tmp_path) == content(golden)


def test_too_little_space_is_noticed_at_the_start(
    data: Path, vae: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match=r"1,000 bytes free"):
        finish(encode(data, vae, tmp_path / "out", **SMALL))


def test_one_process_at_a_time(data: Path, vae: str, tmp_path: Path):
    with RunDir(tmp_path).lock(), pytest.raises(StorageError, match=str(os.getpid())):
        finish(encode(data, vae, tmp_path, **SMALL))


def test_places_that_would_mix_files_are_refused(data: Path, vae: str, tmp_path: Path):
    with pytest.raises(UsageError, match="inside"):
        finish(encode(data, vae, data / "latents", **SMALL))
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(UsageError, match="other files"):
        finish(encode(data, vae, tmp_path, **SMALL))
    assert not (data / "latents").exists()


def test_image_size_must_fit_the_vae(data: Path, vae: str, tmp_path: Path):
    with pytest.raises(UsageError, match="multiple of 2") as caught:
        finish(encode(data, vae, tmp_path, **(SMALL | {"image_size": 17})))
    assert "--image-size 16" in (caught.value.hint or "")


def test_a_vae_that_gives_nan_is_noticed(data: Path, vae: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    nan = torch.full((3, 4, 8, 8), torch.nan)
    monkeypatch.setattr(workflow.VaeCodec, "moments", lambda *_: (nan, nan))
    with pytest.raises(DataError, match="images 0 to 2"):
        finish(encode(data, vae, tmp_path, **SMALL))
    assert finished_shards(tmp_path) == {}


def invoke(*arguments: object) -> tuple[int, str, str, BaseException | None]:
    app = typer.Typer()
    app.command()(encode_latents)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr, result.exception


def test_command_line(data: Path, vae: str, tmp_path: Path):
    options = ["--data", data, "--vae", vae, "--out", tmp_path / "out", "--image-size", 16, "--dtype", "float16"]
    options += ["--no-flip", "--shard-size", 8, "--scale", 0.5, "--device", "cpu"]
    status, stdout, _, _ = invoke(*options, "--dry-run", "--json")
    plan = json.loads(stdout)
    assert status == 0
    assert (plan["schema"], plan["num_images"], plan["num_shards"], plan["latent_shape"]) == (1, 11, 2, [4, 8, 8])
    # mean and logvar of 4 x 8 x 8 in 2 bytes, and an 8-byte label
    assert plan["bytes_to_write"] == 11 * (2 * 256 * 2 + 8)
    assert not (tmp_path / "out").exists()

    status, stdout, stderr, _ = invoke(*options)
    assert status == 0
    assert "4x8x8 float16, without mirrors, scale 0.5" in stdout
    assert "11/11 images" in stderr
    source = LatentSource(tmp_path / "out", hflip=False, scale=0.5)
    assert len(source) == NUM_IMAGES
    files = sum(path.stat().st_size for path in (tmp_path / "out").glob("shard-*"))
    assert plan["bytes_to_write"] < files < plan["bytes_to_write"] + 1000

    status, stdout, stderr, _ = invoke(*options, "--quiet", "--json")
    assert (status, json.loads(stdout)["shards_written"]) == (0, 0)
    assert stderr == ""


def test_command_line_without_a_vae_imports_no_torch(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import builtins

    original = builtins.__import__

    def refuse(name: str, *rest: object) -> object:
        assert name.partition(".")[0] not in ("torch", "diffusers"), "a mistyped VAE must not wait for torch"
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    _, _, _, exception = invoke("--data", data, "--vae", tmp_path / "none", "--out", tmp_path / "out")
    assert isinstance(exception, MissingResourceError)
    assert not (tmp_path / "out").exists()
