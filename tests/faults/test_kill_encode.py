"""Encoding that is killed, at any moment, and started again ends with the files of one that never was."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from support.latents import SIZE, Fork, content, encode_slowly, finish, finished_shards, save_images, wait_until
from support.processes import TESTS
from support.tiny import dis
from support.vae import save_tiny_vae

from dis_cli.workflows import encode_latents as workflow
from dis_cli.workflows.encode_latents import EncodeOptions, encode

NUM_IMAGES = 46
# 12 shards, the last one smaller: 4 images of 2,056 bytes in a shard, in two batches
SETTINGS = ["--image-size", SIZE, "--shard-size", 0.009, "--device", "cpu", "-q"]
SECONDS_PER_BATCH = 0.02


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_images(tmp_path_factory.mktemp("images") / "images", NUM_IMAGES)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIS_CACHE_DIR", str(tmp_path / "cache"))


def command(images: Path, vae: Path, out: Path, *more: object) -> list[str]:
    given = ["encode-latents", "--data", images, "--vae", vae, "--out", out, *SETTINGS, *more]
    return [str(argument) for argument in given]


@pytest.fixture(scope="module")
def straight(images: Path, vae: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one uninterrupted process writes, in batches of 2."""
    out = tmp_path_factory.mktemp("straight")
    assert dis(*command(images, vae, out, "--batch-size", 2, "--no-check")) == 0
    assert len(list(out.glob("shard-*"))) == 12
    return content(out)


def records(number: int) -> Callable[[Path], bool]:
    return lambda out: len(list(out.glob(".progress/shard-*.json"))) >= number


def half_a_shard_after(number: int) -> Callable[[Path], bool]:
    """So many shards are finished, and a batch of the next one is written."""

    def come(out: Path) -> bool:
        return records(number)(out) and any(path.stat().st_size > 4000 for path in out.glob(".progress/shard-*.tmp"))

    return come


def vanishing(condition: Callable[[Path], bool], out: Path) -> bool:
    try:
        return condition(out)
    except FileNotFoundError:
        # renamed between the listing and the look
        return False


MOMENTS = [
    lambda out: (out / ".progress").is_dir(),
    lambda out: (out / ".progress" / "settings.json").exists(),
    half_a_shard_after(0),
    records(1),
    half_a_shard_after(2),
    records(3),
    half_a_shard_after(5),
    records(6),
    records(8),
    half_a_shard_after(9),
]


class Command:
    """The command as a user starts it, slow, in a process that imports everything anew."""

    def __init__(self, arguments: list[str], said: Path) -> None:
        script = (
            "import sys; from support.latents import encode_slowly; "
            f"sys.exit(encode_slowly({SECONDS_PER_BATCH}, sys.argv[1:]))"
        )
        path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
        with said.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-c", script, *arguments], env=os.environ | {"PYTHONPATH": path}, stderr=file
            )

    def kill(self) -> None:
        self._process.kill()
        assert self._process.wait() == -signal.SIGKILL


@pytest.mark.long
def test_killed_at_ten_moments(images: Path, vae: Path, straight: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number, moment in enumerate(MOMENTS):
        before = finished_shards(out)
        # the batch size of the first start that wrote anything is kept
        batch_size = 2 if number < 2 else 1 + number
        arguments = command(images, vae, out, "--batch-size", batch_size, "--num-workers", 1 + number % 3)
        if number == 3:
            process = Command(arguments, tmp_path / "said")
        else:
            process = Fork(lambda arguments=arguments: encode_slowly(SECONDS_PER_BATCH, arguments), tmp_path / "said")
        wait_until(lambda moment=moment: vanishing(moment, out))
        process.kill()
        assert not (out / "manifest.json").exists()
        assert finished_shards(out).items() >= before.items()
    before = finished_shards(out)
    assert len(before) >= 9
    assert dis(*command(images, vae, out, "--batch-size", 7)) == 0
    assert content(out) == straight
    assert finished_shards(out).items() >= before.items()


def killed_at(number: int, folder: Path, work: Callable[[], int]) -> int:
    """Do the work until just before it opens, makes, renames or removes anything in the folder for the n-th time."""
    touched = 0

    def touch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal touched
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") and str(folder) in str(arguments[0]):
            touched += 1
            if touched == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(touch)
    return work()


@pytest.fixture
def encode_few(vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], int]:
    """Encodes three images into two shards, without loading the VAE every time."""
    codec = workflow.VaeCodec(str(vae))
    monkeypatch.setattr(workflow, "VaeCodec", lambda *_, **__: codec)
    few = save_images(tmp_path / "images", 3)
    options = EncodeOptions(image_size=SIZE, batch_size=2, shard_bytes=5000, device="cpu", num_workers=1)

    def encode_into(out: Path) -> int:
        finish(encode(few, str(vae), out, options))
        return 0

    return encode_into


def test_a_kill_before_any_change_of_a_file(encode_few: Callable[[Path], int], tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    encode_few(whole)
    expected = content(whole)
    assert sorted(expected) == ["manifest.json", "shard-00000.safetensors", "shard-00001.safetensors"]
    for number in range(1, 200):
        shutil.rmtree(out, ignore_errors=True)
        process = Fork(lambda number=number: killed_at(number, out, lambda: encode_few(out)), tmp_path / "said")
        if process.wait() == 0:
            break
        before = finished_shards(out) if out.exists() else {}
        encode_few(out)
        assert content(out) == expected, f"killed before change {number}"
        assert finished_shards(out).items() >= before.items()
    # both shards, their records, the settings, the manifest
    assert number > 30


def test_a_kill_before_any_change_while_a_deleted_shard_is_encoded_again(
    encode_few: Callable[[Path], int], tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    encode_few(whole)
    for number in range(1, 200):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(whole, out)
        (out / "shard-00001.safetensors").unlink()
        kept = (out / "shard-00000.safetensors").stat()
        process = Fork(lambda number=number: killed_at(number, out, lambda: encode_few(out)), tmp_path / "said")
        if process.wait() == 0:
            break
        encode_few(out)
        assert content(out) == content(whole), f"killed before change {number}"
        assert (out / "shard-00000.safetensors").stat().st_ino == kept.st_ino
    assert number > 30


def test_a_shard_whose_holder_was_killed_is_encoded_by_another_process(
    images: Path, vae: Path, straight: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = command(images, vae, out, "--batch-size", 2)
    stuck = Fork(lambda: encode_slowly(600, arguments), tmp_path / "stuck")
    wait_until((out / ".progress" / "shard-00000.tmp").exists)
    quick = Fork(lambda: encode_slowly(0, arguments), tmp_path / "quick")
    wait_until(lambda: records(11)(out))
    # all but the one that is held
    assert not (out / ".progress" / "shard-00000.json").exists()
    assert quick.poll() is None
    stuck.kill()
    assert quick.wait() == 0, quick.errors
    assert content(out) == straight


def test_the_manifest_is_written_by_another_process_when_the_last_was_killed_before_it(
    images: Path, vae: Path, straight: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = command(images, vae, out, "--batch-size", 2)

    def die_at_the_end() -> int:
        from dis_cli.data.latents import unfinished

        unfinished.write_manifest = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        return dis(*arguments)

    assert Fork(die_at_the_end, tmp_path / "said").wait() == -signal.SIGKILL
    assert len(finished_shards(out)) == 12
    before = finished_shards(out)
    assert dis(*arguments) == 0
    assert content(out) == straight
    assert finished_shards(out) == before


@pytest.mark.parametrize("change", ["another size", "one more", "one less"])
def test_changed_images_are_refused_and_nothing_is_lost(
    change: str, vae: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    few = save_images(tmp_path / "images", 8)
    out = tmp_path / "out"
    arguments = command(few, vae, out, "--batch-size", 2)
    process = Fork(lambda: encode_slowly(SECONDS_PER_BATCH, arguments), tmp_path / "said")
    wait_until(lambda: records(1)(out))
    process.kill()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    match change:
        case "another size":
            Image.new("RGB", (SIZE, SIZE)).save(few / "cat" / "01.png")
        case "one more":
            shutil.copy(few / "cat" / "01.png", few / "cat" / "01a.png")
        case _:
            (few / "dog" / "07.png").unlink()
    capfd.readouterr()
    assert dis(*arguments) == 2
    error = capfd.readouterr().err
    there, now = re.search(r"source: '(\w{12,}\.*\w*)' there, '(\w{12,}\.*\w*)' now", error).groups()
    assert there != now
    assert str(out) in error
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
