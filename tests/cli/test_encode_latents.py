import builtins
import dataclasses
import errno
import json
import os
import resource
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.archives import pack, png, write_archive
from support.cifar import make_cifar10
from support.latents import SIZE, Fork, content, finish, finished_shards, save_images, wait_until
from support.tiny import dis, result
from support.vae import LATENT_CHANNELS, mode, save_tiny_vae

from dis_cli.codecs.pixel import to_uint8
from dis_cli.codecs.vae import VaeCodec
from dis_cli.data.latents import agreement, unfinished
from dis_cli.data.latents.format import read_manifest
from dis_cli.data.latents.source import LatentSource
from dis_cli.data.published.digits import DigitsSource
from dis_cli.errors import DataError, Interrupted, MismatchError, StorageError, UsageError
from dis_cli.events import Note, Progress, Started, Wrote
from dis_cli.runtime.distributed import WorkShare
from dis_cli.workflows import encode_latents as workflow
from dis_cli.workflows.encode_latents import EncodeOptions, encode

NUM_IMAGES = 11
# 4 images of 2,056 bytes in a shard
SMALL = EncodeOptions(image_size=SIZE, shard_bytes=9000, batch_size=2, device="cpu", num_workers=2)
OPTIONS = ["--image-size", SIZE, "--shard-size", 0.009, "--batch-size", 2, "--device", "cpu"]


def changed(**changes: object) -> EncodeOptions:
    return dataclasses.replace(SMALL, **changes)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_vae(tmp_path_factory.mktemp("vae")))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_images(tmp_path_factory.mktemp("data") / "images", NUM_IMAGES)


@pytest.fixture(scope="module")
def golden(data: Path, vae: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The latents that one uninterrupted process writes."""
    out = tmp_path_factory.mktemp("golden")
    finish(encode(data, vae, out, changed(check=False)))
    return out


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIS_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *rest: object) -> object:
        assert name.partition(".")[0] not in ("torch", "diffusers"), "a wrong VAE must not wait for torch"
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def everything(folder: Path) -> dict[str, torch.Tensor]:
    """The shards' tensors one after the other, as safetensors' own function reads them."""
    shards = [load_file(path) for path in sorted(folder.glob("shard-*"))]
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}


# What is written


def test_latents_are_what_diffusers_computes(data: Path, vae: str, golden: Path, tmp_path: Path):
    from diffusers import AutoencoderKL

    module = AutoencoderKL.from_pretrained(vae, low_cpu_mem_usage=False)
    files = sorted(data.glob("*/*.png"), key=lambda path: path.name)
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files])
    images = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        plain, mirrored = module.encode(images).latent_dist, module.encode(images.flip(3)).latent_dist
    assert (plain.mean - mirrored.mean).abs().max() > 0.01
    finish(encode(data, vae, tmp_path, changed(dtype="float32", shard_bytes=18000)))
    stored = everything(tmp_path)
    for name, expected in {
        "mean": plain.mean,
        "std": plain.std,
        "mirrored_mean": mirrored.mean,
        "mirrored_std": mirrored.std,
    }.items():
        torch.testing.assert_close(stored[name], expected, atol=1e-5, rtol=0)
        # the default is half precision of the same
        assert torch.equal(everything(golden)[name], stored[name].half())
    source = LatentSource(tmp_path, image_size=8, channels=4)
    assert source.class_names == ("cat", "dog")
    assert source.labels.tolist() == [0] * 6 + [1] * 5
    for index in range(NUM_IMAGES):
        torch.testing.assert_close(source.load(index, None), 0.18215 * plain.mean[index], atol=1e-5, rtol=0)
        assert source.sample_name(index) == f"{'cat' if index < 6 else 'dog'}/{index:02d}.png"


def test_a_shard_holds_whole_batches_and_at_least_an_image(data: Path, vae: str, golden: Path, tmp_path: Path):
    assert [len(load_file(path)["labels"]) for path in sorted(golden.glob("shard-*"))] == [4, 4, 3]
    for name, batch_size, shard_bytes, per_shard in (("a", 3, 9000, 3), ("b", 8, 9000, 4), ("c", 2, 100, 1)):
        options = changed(batch_size=batch_size, shard_bytes=shard_bytes)
        planned = finish(encode(data, vae, tmp_path / name, options, dry_run=True))
        assert planned["images_per_shard"] == per_shard, name


def test_shards_can_be_mapped(golden: Path):
    for path in golden.glob("shard-*"):
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        assert size % 8 == 0
        header = json.loads(content[8 : 8 + size])
        assert list(header) == ["labels", "mean", "std", "mirrored_mean", "mirrored_std", "names"]
        assert max(entry["data_offsets"][1] for entry in header.values()) == len(content) - 8 - size


def test_statistics_are_those_of_the_stored_moments(data: Path, vae: str, tmp_path: Path):
    for name, options in {"half": SMALL, "single": changed(dtype="float32", mirrored=False)}.items():
        out = tmp_path / name
        statistics = finish(encode(data, vae, out, options))["statistics"]
        stored = {key: value.double().numpy() for key, value in everything(out).items()}
        prefixes = ("", "mirrored_") if options.mirrored else ("",)
        mean = np.concatenate([stored[f"{prefix}mean"] for prefix in prefixes])
        variance = np.concatenate([stored[f"{prefix}std"] for prefix in prefixes]) ** 2
        # of all draws: the variance of the means, and the mean of the variances
        std = np.sqrt(mean.var(axis=(0, 2, 3)) + variance.mean(axis=(0, 2, 3)))
        np.testing.assert_allclose(statistics["mean"], mean.mean(axis=(0, 2, 3)), rtol=0, atol=1e-12)
        np.testing.assert_allclose(statistics["std"], std, rtol=1e-12)
        assert json.loads((out / "manifest.json").read_text())["statistics"] == statistics


def test_names_that_are_not_utf_8_come_back(vae: str, tmp_path: Path):
    images = save_images(tmp_path / "images", 4)
    strange = os.fsdecode(b"cat/0\xff\n\xe9.png")
    (images / "cat" / "00.png").rename(images / strange)
    finish(encode(images, vae, tmp_path / "out", SMALL))
    source = LatentSource(tmp_path / "out")
    names = [source.sample_name(index) for index in range(4)]
    assert sorted(names) == sorted([strange, "cat/01.png", "dog/02.png", "dog/03.png"])
    assert [name[:3] for name in names] == ["cat", "cat", "dog", "dog"]


# Sources


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_archives_give_what_their_folder_gives(suffix: str, data: Path, vae: str, golden: Path, tmp_path: Path):
    archive = pack(data, tmp_path / f"images.{suffix}")
    finish(encode(archive, vae, tmp_path / "out", SMALL))
    assert everything(tmp_path / "out").keys() == everything(golden).keys()
    for name, tensor in everything(tmp_path / "out").items():
        assert torch.equal(tensor, everything(golden)[name]), name
    assert LatentSource(tmp_path / "out").class_names == ("cat", "dog")


def test_images_without_classes(vae: str, tmp_path: Path):
    archive = write_archive(tmp_path / "flat.zip", [(f"{seed}.png", png(seed)) for seed in range(3)])
    assert finish(encode(archive, vae, tmp_path / "out", SMALL))["num_classes"] == 0
    source = LatentSource(tmp_path / "out")
    assert (source.num_classes, source.class_names, source.labels.tolist()) == (0, (), [0, 0, 0])
    assert source.sample_name(2) == "2.png"


def test_digits_need_no_folder_and_are_never_mirrored(vae: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--image-size", 8, "--batch-size", 128, "--device", "cpu"]
    assert dis("encode-latents", "--source", "digits", "--vae", vae, "--out", tmp_path / "out", *options) == 0
    assert "Digits are never mirrored" in capsys.readouterr().err
    source = LatentSource(tmp_path / "out", hflip=False)
    assert (len(source), source.settings.mirrored, source.settings.data) == (1347, False, "digits")
    assert source.class_names == tuple("0123456789")
    assert np.array_equal(source.labels, DigitsSource().labels)
    assert source.sample_name(5) == DigitsSource().sample_name(5)
    assert everything(tmp_path / "out").keys() == {"labels", "mean", "std", "names"}
    arguments = ["encode-latents", "--source", "digits", "--data", tmp_path / "out", "--vae", vae]
    assert dis(*arguments, "--out", tmp_path / "other", *options) == 2
    assert "take no folder" in capsys.readouterr().err


def test_cifar10_is_known_by_its_files(vae: str, tmp_path: Path):
    images, labels = make_cifar10(tmp_path / "cifar")["train"]
    finish(encode(tmp_path / "cifar", vae, tmp_path / "out", changed(image_size=32, shard_bytes=10**6)))
    source = LatentSource(tmp_path / "out")
    assert source.labels.tolist() == labels.tolist()
    assert source.class_names[:2] == ("airplane", "automobile")
    assert source.sample_name(7) == "cifar10/train/00007"
    codec = VaeCodec(vae)
    seventh = torch.from_numpy(images[7]).permute(2, 0, 1)[None].float() / 127.5 - 1
    torch.testing.assert_close(source.load(7, None), mode(codec, seventh)[0], atol=1e-3, rtol=1e-3)


# Running again


def test_running_again_changes_nothing(data: Path, vae: str, golden: Path):
    before, files = content(golden), finished_shards(golden)
    result = finish(encode(data, vae, golden, SMALL))
    assert (result["shards_kept"], result["shards_written"], result["complete"]) == (3, 0, True)
    assert content(golden) == before
    assert finished_shards(golden) == files


@pytest.mark.parametrize("after", [1, 2, 3, 4, 6, 7, 8])
def test_a_stop_after_any_event_loses_one_shard_at_most(data: Path, vae: str, golden: Path, tmp_path: Path, after: int):
    out = tmp_path / "out"
    events = encode(data, vae, out, changed(check=False))
    done = 0
    for event, _ in zip(events, range(after), strict=False):
        done = event.done if isinstance(event, Progress) else done
    events.close()
    before = finished_shards(out)
    assert len(before) * 4 >= done - 4
    assert not list(out.rglob("*.tmp*"))

    again = list(encode(data, vae, out, changed(batch_size=5, num_workers=1)))
    assert content(out) == content(golden)
    assert finished_shards(out).items() >= before.items()
    assert [event.message for event in again if isinstance(event, Note)] == [
        "Continuing with a batch size of 2, not 5: it decides last bits"
    ]


def test_a_stop_between_a_shard_and_its_record(
    data: Path, vae: str, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    events = encode(data, vae, tmp_path / "out", SMALL)
    next(event for event in events if isinstance(event, Wrote))
    with monkeypatch.context() as patch:
        patch.setattr(unfinished.Unfinished, "add", die)
        with pytest.raises(KeyboardInterrupt):
            finish(events)
    assert (tmp_path / "out" / "shard-00001.safetensors").exists()
    assert len(finished_shards(tmp_path / "out")) == 1
    finish(encode(data, vae, tmp_path / "out", SMALL))
    assert content(tmp_path / "out") == content(golden)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def test_damaged_and_deleted_shards_are_encoded_again(data: Path, vae: str, golden: Path, tmp_path: Path):
    out = shutil.copytree(golden, tmp_path / "out")
    shorten(out / "shard-00000.safetensors")
    (out / "shard-00002.safetensors").unlink()
    kept = finished_shards(out)["shard-00001.safetensors"]
    events = list(encode(data, vae, out, SMALL))
    warned = [event.message for event in events if isinstance(event, Note) and event.level == "warning"]
    assert ["shard-00000" in warned[0], "shard-00002" in warned[1], len(warned)] == [True, True, 2]
    assert content(out) == content(golden)
    assert finished_shards(out)["shard-00001.safetensors"] == kept


@pytest.mark.parametrize("part", [WorkShare(), WorkShare(0, 2, together=False)])
def test_damaged_and_deleted_shards_of_an_unfinished_folder_are_encoded_again(
    data: Path, vae: str, golden: Path, tmp_path: Path, part: WorkShare
):
    out = tmp_path / "out"
    finish(encode(data, vae, out, SMALL, part=WorkShare(0, 2, together=False)))
    assert finished_shards(out).keys() == {"shard-00000.safetensors", "shard-00002.safetensors"}
    shorten(out / "shard-00000.safetensors")
    (out / ".progress" / "shard-00002.json").write_text("{")
    done = finish(encode(data, vae, out, SMALL, part=part))
    assert (done["shards_kept"], done["shards_written"]) == (0, 2 if part.count == 2 else 3)
    finish(encode(data, vae, out, SMALL))
    assert content(out) == content(golden)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_in_order(data: Path, vae: str, golden: Path, tmp_path: Path, number: signal.Signals):
    out = tmp_path / "out"
    events = encode(data, vae, out, SMALL)

    def signalled() -> None:
        for event in events:
            if isinstance(event, Wrote):
                os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match="1 of 3 shards") as caught:
        signalled()
    assert caught.value.code == 128 + number
    assert len(finished_shards(out)) == 1
    assert not list(out.rglob("*.tmp*"))
    finish(encode(data, vae, out, SMALL))
    assert content(out) == content(golden)


def other_images(data: Path, vae: str, tmp_path: Path) -> dict[str, object]:
    changed = shutil.copytree(data, tmp_path / "changed")
    Image.new("RGB", (SIZE, SIZE)).save(changed / "dog" / "10.png")
    return {"data": changed}


def other_vae(data: Path, vae: str, tmp_path: Path) -> dict[str, object]:
    return {"vae": str(save_tiny_vae(tmp_path / "other", seed=1))}


def option(**changes: object) -> Callable[..., dict[str, object]]:
    return lambda *_: {"options": changed(**changes)}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (other_images, "source: '"),
        (other_vae, "vae.weights_sha256: '"),
        (option(image_size=32), "image_size: 16 there, 32 now"),
        (option(shard_bytes=13000), "images_per_shard: 4 there, 6 now"),
        (option(mirrored=False), "mirrored: True there, False now"),
        (option(dtype="float32"), "dtype: 'float16' there, 'float32' now"),
        (option(scale=1.0), "scale: 0.18215 there, 1.0 now"),
        (option(background="black"), "background: 'white' there, 'black' now"),
    ],
)
def test_other_images_or_settings_are_refused(
    data: Path, vae: str, golden: Path, tmp_path: Path, change: Callable[..., dict[str, object]], field: str
):
    before = content(golden)
    arguments = {"data": data, "vae": vae, "out": golden, "options": SMALL} | change(data, vae, tmp_path)
    for dry_run in (True, False):
        with pytest.raises(MismatchError) as caught:
            finish(encode(**arguments, dry_run=dry_run))
        assert f"\n  {field}" in caught.value.message
    shutil.rmtree(golden / ".progress", ignore_errors=True)
    assert content(golden) == before


def test_the_same_vae_and_images_elsewhere_are_the_same(data: Path, vae: str, golden: Path, tmp_path: Path):
    before = content(golden)
    copies = [shutil.copytree(folder, tmp_path / name) for name, folder in {"images": data, "vae": Path(vae)}.items()]
    config = json.loads((copies[1] / "config.json").read_text())
    (copies[1] / "config.json").write_text(json.dumps(config | {"_name_or_path": "elsewhere"}))
    assert finish(encode(copies[0], str(copies[1]), golden, SMALL))["shards_written"] == 0
    assert content(golden) == before


# Bad images


def spoil(data: Path, folder: Path) -> Path:
    """A copy of the images, of which two are bad and one cannot be an image."""
    images = shutil.copytree(data, folder)
    whole = (images / "dog" / "09.png").read_bytes()
    (images / "dog" / "09.png").write_bytes(whole[: len(whole) // 2])
    (images / "cat" / "02.png").write_text("not an image")
    (images / "dog" / "broken.png").symlink_to("nowhere.png")
    return images


def test_bad_images_are_all_listed_and_nothing_is_written(
    data: Path, vae: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    images = spoil(data, tmp_path / "images")
    assert dis("encode-latents", "--data", images, "--vae", vae, "--out", tmp_path / "out", *OPTIONS) == 1
    error = capsys.readouterr().err
    assert "3 of 12 images" in error
    assert all(name in error for name in ("02.png", "09.png", "broken.png", "--on-bad skip"))
    assert list((tmp_path / "out").rglob("*")) == []


def test_bad_images_are_left_out_when_asked(data: Path, vae: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images, out = spoil(data, tmp_path / "images"), tmp_path / "out"
    events = encode(images, vae, out, changed(on_bad="skip"))
    seen = []
    for event in events:
        seen.append(event)
        if isinstance(event, Wrote):
            break
    events.close()
    assert any(isinstance(event, Note) and "3 of 12 images" in event.message for event in seen)

    # the list is kept: not checked again, even where bad images would stop the work
    with monkeypatch.context() as patch:
        patch.setattr(agreement, "check_images", None)
        done = finish(encode(images, vae, out, SMALL))
    assert (done["num_images"], done["skipped"]) == (9, 2)
    skipped = json.loads((out / "manifest.json").read_text())["skipped"]
    assert skipped == [{"index": 2, "name": "cat/02.png"}, {"index": 9, "name": "dog/09.png"}]
    source = LatentSource(out)
    kept = [index for index in range(NUM_IMAGES) if index not in (2, 9)]
    assert [source.sample_name(index)[-6:] for index in range(9)] == [f"{index:02d}.png" for index in kept]
    assert source.labels.tolist() == [0] * 5 + [1] * 4

    # the same as if they had never been there
    for name in ("cat/02.png", "dog/09.png", "dog/broken.png"):
        (images / name).unlink()
    finish(encode(images, vae, tmp_path / "without", SMALL))
    for name, tensor in everything(tmp_path / "without").items():
        assert torch.equal(everything(out)[name], tensor), name
    # now they are other images
    with pytest.raises(MismatchError, match="source: "):
        finish(encode(images, vae, out, SMALL))


def test_a_bad_image_met_without_a_check_is_named(data: Path, vae: str, golden: Path, tmp_path: Path):
    images, out = shutil.copytree(data, tmp_path / "images"), tmp_path / "out"
    whole = (images / "dog" / "09.png").read_bytes()
    # of the same size, so that it can be repaired
    (images / "dog" / "09.png").write_bytes(whole[:-40] + bytes(40))
    with pytest.raises(DataError, match=r"dog/09\.png.*image 9 of 11"):
        finish(encode(images, vae, out, changed(check=False)))
    assert len(finished_shards(out)) == 2
    (images / "dog" / "09.png").write_bytes(whole)
    finish(encode(images, vae, out, changed(check=False)))
    assert everything(out).keys() == everything(golden).keys()
    assert torch.equal(everything(out)["mean"], everything(golden)["mean"])


# Several processes


def encode_in_forks(tmp_path: Path, count: int, work: Callable[[int], int]) -> list[Fork]:
    forks = [Fork(lambda number=number: work(number), tmp_path / f"said-{number}") for number in range(count)]
    for fork in forks:
        assert fork.wait() == 0, fork.errors
    return forks


@pytest.mark.parametrize("count", [2, 3])
def test_processes_at_once_write_what_one_writes(
    data: Path, vae: str, golden: Path, tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
):
    # as many as processes meet, a shard for each image
    codec = VaeCodec(vae)
    monkeypatch.setattr(workflow, "VaeCodec", lambda *_, **__: codec)
    options = changed(shard_bytes=2500, batch_size=1)
    finish(encode(data, vae, tmp_path / "straight", options))
    for round_number in range(4):
        out = tmp_path / f"out-{round_number}"
        encode_in_forks(tmp_path, count, lambda _, out=out: finish(encode(data, vae, out, options)) and 0)
        assert content(out) == content(tmp_path / "straight")


def test_processes_that_all_find_a_shard_missing(data: Path, vae: str, golden: Path, tmp_path: Path):
    out = shutil.copytree(golden, tmp_path / "out")
    (out / "shard-00001.safetensors").unlink()
    encode_in_forks(tmp_path, 3, lambda _: finish(encode(data, vae, out, SMALL)) and 0)
    assert content(out) == content(golden)


def test_parts_one_after_the_other(
    data: Path, vae: str, golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = ["encode-latents", "--data", data, "--vae", vae, "--out", tmp_path / "out", *OPTIONS, "-q", "--json"]
    assert dis(*command, "--part", "2/2") == 0
    first = result(capsys)
    assert (first["complete"], first["shards_written"], first["num_shards"]) == (False, 1, 3)
    assert finished_shards(tmp_path / "out").keys() == {"shard-00001.safetensors"}
    assert "statistics" not in first
    assert dis(*command, "--part", "2/2") == 0
    again = result(capsys)
    assert (again["complete"], again["shards_kept"], again["shards_written"]) == (False, 1, 0)
    assert dis(*command, "--part", "1/2") == 0
    assert result(capsys)["complete"] is True
    assert content(tmp_path / "out") == content(golden)


def test_parts_at_once(data: Path, vae: str, golden: Path, tmp_path: Path):
    command = ["encode-latents", "--data", data, "--vae", vae, "--out", tmp_path / "out", *OPTIONS, "-q", "--json"]
    forks = encode_in_forks(tmp_path, 2, lambda number: dis(*command, "--part", f"{number + 1}/2"))
    assert content(tmp_path / "out") == content(golden)
    outcomes = [json.loads(fork.output) for fork in forks]
    assert [outcome["shards_written"] for outcome in outcomes] == [2, 1]
    # whoever was last wrote the manifest; in the same moment both may have
    assert any(outcome["complete"] for outcome in outcomes)


def test_more_parts_than_shards(data: Path, vae: str, golden: Path, tmp_path: Path):
    for number in (6, 2, 0, 1):
        finish(encode(data, vae, tmp_path / "out", SMALL, part=WorkShare(number, 7, together=False)))
    assert content(tmp_path / "out") == content(golden)


def test_the_processes_of_torchrun(data: Path, vae: str, golden: Path, tmp_path: Path):
    command = ["encode-latents", "--data", data, "--vae", vae, "--out", tmp_path / "out", *OPTIONS]
    forks = [
        Fork(lambda: dis(*command), tmp_path / f"said-{rank}", RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
        for rank in range(2)
    ]
    for fork in forks:
        assert fork.wait() == 0, fork.errors
    assert content(tmp_path / "out") == content(golden)
    # one speaks, and says what became of the whole
    assert "shards   3 of up to 4 images" in forks[0].output
    assert "not complete" not in forks[0].output
    assert forks[0].errors
    assert (forks[1].output, forks[1].errors) == ("", "")


def test_a_process_waits_for_the_check_of_another(data: Path, vae: str, golden: Path, tmp_path: Path):
    out = tmp_path / "out"
    first = encode(data, vae, out, SMALL)
    assert isinstance(next(first), Started)
    # it holds the beginning; the other waits, and takes over when it gives up
    other = Fork(lambda: dis("encode-latents", "--data", data, "--vae", vae, "--out", out, *OPTIONS), tmp_path / "said")
    wait_until(lambda: "Waiting for the process that checks the images" in other.errors)
    assert not (out / ".progress" / "settings.json").exists()
    first.close()
    assert other.wait() == 0, other.errors
    assert content(out) == content(golden)


@pytest.mark.parametrize("part", ["0/2", "3/2", "x", "1/0", "1/2/3", "-1/2", "1.0/2"])
def test_impossible_parts(data: Path, vae: str, tmp_path: Path, part: str, capsys: pytest.CaptureFixture[str]):
    status = dis("encode-latents", "--data", data, "--vae", vae, "--out", tmp_path / "out", "--part", part)
    assert status == 2
    error = capsys.readouterr().err
    assert f"--part must be i/n with i from 1 to n, got `{part}`" in error
    assert "--part 1/2" in error
    assert not (tmp_path / "out").exists()


# What stops the work


def limit_file_size(number: int) -> tuple[int, int]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, limits[1]))
    return limits


def test_a_full_disk_leaves_whole_shards_only(data: Path, vae: str, golden: Path, tmp_path: Path):
    out = tmp_path / "out"
    events = encode(data, vae, out, SMALL)
    next(event for event in events if isinstance(event, Wrote))
    size = (golden / "shard-00001.safetensors").stat().st_size
    # more than a record's size, less than a shard's
    limits = limit_file_size(6000)
    try:
        with pytest.raises(StorageError, match=rf"shard-00001\.safetensors.*needs {size:,} bytes.*bytes free"):
            finish(events)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in out.iterdir() if path.name != ".progress"] == ["shard-00000.safetensors"]
    assert not list(out.rglob("*.tmp*"))
    finish(encode(data, vae, out, SMALL))
    assert content(out) == content(golden)


def test_too_little_space_is_noticed_at_the_start(
    data: Path, vae: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match=r"needs 22,616 bytes, 1,000 bytes free"):
        finish(encode(data, vae, tmp_path / "out", SMALL))
    assert finished_shards(tmp_path / "out") == {}


def test_a_disk_that_becomes_read_only(
    data: Path, vae: str, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    events = encode(data, vae, out, SMALL)
    next(event for event in events if isinstance(event, Wrote))
    original = os.open

    def refuse(path: str | Path, flags: int, *rest: int) -> int:
        if flags & os.O_CREAT and str(path).endswith(".tmp"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return original(path, flags, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(StorageError, match=r"shard-00001\.safetensors`: Read-only file system"):
            finish(events)
    finish(encode(data, vae, out, SMALL))
    assert content(out) == content(golden)


@pytest.mark.parametrize("place", ["below a file", "in a folder that may not be written"])
def test_a_place_that_cannot_be_written_is_named(data: Path, vae: str, tmp_path: Path, place: str):
    if place == "below a file":
        (tmp_path / "file").write_text("mine")
        out = tmp_path / "file" / "out"
    elif os.geteuid() == 0:
        # root may write anywhere, but not here
        out = Path("/proc/self/out")
    else:
        (tmp_path / "locked").mkdir(mode=0o500)
        out = tmp_path / "locked" / "out"
    with pytest.raises(StorageError, match=f"Cannot create `{out}`"):
        finish(encode(data, vae, out, SMALL))


def test_places_that_would_mix_files_are_refused(
    data: Path, vae: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / ".DS_Store").write_text("")
    for out, words in {
        data / "latents": "inside the folder of the images",
        data: "inside the folder of the images",
        tmp_path / "full": "holds other files and no latents",
        tmp_path / "full" / "letter.txt": "is a file",
    }.items():
        assert dis("encode-latents", "--data", data, "--vae", vae, "--out", out, *OPTIONS) == 2
        assert words in capsys.readouterr().err
    assert sorted(path.name for path in data.iterdir()) == ["cat", "dog"]
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["letter.txt"]
    finish(encode(data, vae, tmp_path / "hidden", SMALL))
    assert len(LatentSource(tmp_path / "hidden")) == NUM_IMAGES


def test_image_size_must_fit_the_vae(data: Path, vae: str, tmp_path: Path):
    with pytest.raises(UsageError, match="multiple of 2") as caught:
        finish(encode(data, vae, tmp_path / "out", changed(image_size=17)))
    assert "--image-size 16" in (caught.value.hint or "")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 70_000.0])
def test_latents_that_cannot_be_stored(
    data: Path, vae: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
):
    moments = VaeCodec.moments

    def spoilt(codec: VaeCodec, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mean, std = moments(codec, images)
        mean[-1] = value
        return mean, std

    monkeypatch.setattr(VaeCodec, "moments", spoilt)
    with pytest.raises(DataError, match=r"beyond float16 \(or NaN\) for the images 0 to 1.*`cat/00\.png`") as caught:
        finish(encode(data, vae, tmp_path / "half", SMALL))
    assert "--dtype float32, in another --out" in (caught.value.hint or "")
    assert finished_shards(tmp_path / "half") == {}
    assert not list((tmp_path / "half").rglob("*.tmp*"))
    events = encode(data, vae, tmp_path / "single", changed(dtype="float32"))
    if np.isfinite(value):
        finish(events)
    else:
        with pytest.raises(DataError, match="beyond float32") as caught:
            finish(events)
        assert caught.value.hint == "Use another VAE"


# A finished folder looked at


def test_verify_names_every_damaged_file(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = shutil.copytree(golden, tmp_path / "out")
    assert dis("encode-latents", "--verify", "--out", out, "--json", "-q") == 0
    whole = result(capsys)
    size = sum(path.stat().st_size for path in out.glob("shard-*"))
    assert (whole["complete"], whole["verified"], whole["num_shards"], whole["size_bytes"]) == (True, 3, 3, size)
    assert dis("encode-latents", "--verify", "--out", out) == 0
    assert "3 of 3 shards" in capsys.readouterr().out

    spoilt = bytearray((out / "shard-00001.safetensors").read_bytes())
    spoilt[-50] ^= 1
    (out / "shard-00001.safetensors").write_bytes(spoilt)
    (out / "shard-00002.safetensors").unlink()
    before = sorted(out.iterdir())
    assert dis("encode-latents", "--verify", "--out", out) == 1
    error = capsys.readouterr().err
    assert "2 of 3 shards are damaged" in error
    assert "shard-00000" not in error
    assert f"expected sha256 {read_manifest(golden).shards[1].sha256}" in error
    assert f"`{out / 'shard-00002.safetensors'}` is missing" in error
    assert "Delete these files" in error
    assert sorted(out.iterdir()) == before


def test_what_verify_advises_helps(
    data: Path, vae: str, golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = shutil.copytree(golden, tmp_path / "out")
    spoilt = (out / "shard-00001.safetensors").read_bytes()
    (out / "shard-00001.safetensors").write_bytes(spoilt[:-50] + bytes([spoilt[-50] ^ 1]) + spoilt[-49:])
    # of the same size: not noticed but by reading all of it
    assert finish(encode(data, vae, out, SMALL))["shards_written"] == 0
    (out / "shard-00001.safetensors").unlink()
    assert finish(encode(data, vae, out, SMALL))["shards_written"] == 1
    assert content(out) == content(golden)


def test_verify_of_an_unfinished_folder(data: Path, vae: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    finish(encode(data, vae, out, SMALL, part=WorkShare(0, 2, together=False)))
    assert dis("encode-latents", "--verify", "--out", out, "--json") == 0
    captured = capsys.readouterr()
    outcome = json.loads(captured.out)
    assert (outcome["complete"], outcome["verified"], outcome["num_shards"]) == (False, 2, 3)
    assert "2 of 3 shards are finished. Run the same `dis encode-latents` again" in captured.err
    shorten(out / "shard-00002.safetensors")
    before = sorted(out.rglob("*"))
    assert dis("encode-latents", "--verify", "--out", out) == 1
    error = capsys.readouterr().err
    assert "1 of 2 shards are damaged" in error
    assert "shard-00002" in error
    assert sorted(out.rglob("*")) == before


@pytest.mark.parametrize("option", ["--verify", "--decode"])
def test_what_holds_no_latents_cannot_be_looked_at(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    given = ["--verify", "--out", tmp_path] if option == "--verify" else ["--decode", tmp_path]
    assert dis("encode-latents", *given) == 1
    assert f"No encoded latents in `{tmp_path}`" in capsys.readouterr().err


def test_decode_draws_what_the_vae_makes_of_the_means(
    vae: str, golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out, picture = shutil.copytree(golden, tmp_path / "out"), tmp_path / "picture.png"
    assert dis("encode-latents", "--decode", out, "--out", picture, "--json", "-q") == 0
    outcome = result(capsys)
    # there are fewer than were asked for
    assert (outcome["num_images"], outcome["grid"]) == (NUM_IMAGES, str(picture))
    codec = VaeCodec(vae)
    means = everything(golden)["mean"].float()
    expected = to_uint8(codec.decode(codec.scale * means)).numpy()
    with Image.open(picture) as image:
        tiles = np.asarray(image)
    # each class in a row, an image in four times its size, 4 pixels between
    assert tiles.shape[0] == 4 + 2 * 68
    left = tiles.shape[1] - 6 * 68
    places = [(0, column) for column in range(6)] + [(1, column) for column in range(5)]
    for image, (row, column) in zip(expected, places, strict=True):
        tile = tiles[4 + row * 68 :, left + column * 68 :][:64:4, :64:4]
        assert np.abs(tile.astype(int) - image).max() <= 1

    assert dis("encode-latents", "--decode", out, "-n", 2) == 0
    assert str(out / "grid.png") in capsys.readouterr().out
    with Image.open(out / "grid.png") as image:
        assert image.height == 4 + 2 * 68
    # Another number of images is another picture; a repeat is not.
    shown = (out / "grid.png").read_bytes()
    assert dis("encode-latents", "--decode", out, "-n", 2, "--out", picture, "-q") == 2
    assert f"`{picture}` exists and holds something else" in capsys.readouterr().err
    for _ in range(2):
        assert dis("encode-latents", "--decode", out, "-n", 3) == 0
        assert str(out / "grid_2.png") in capsys.readouterr().out
    assert (out / "grid.png").read_bytes() == shown
    for name in ("grid.png", "grid_2.png"):
        (out / name).unlink()
    assert content(out) == content(golden)


def test_decode_refuses_another_vae(vae: str, golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    other = save_tiny_vae(tmp_path / "other", seed=1)
    assert dis("encode-latents", "--decode", golden, "--vae", other, "--out", tmp_path / "grid.png") == 2
    error = capsys.readouterr().err
    for folder in (vae, str(other)):
        assert f"`{folder}`" in error
        assert VaeCodec(folder).files.identity[1][:12] in error
    assert "configuration" not in error
    assert not (tmp_path / "grid.png").exists()


# The command line


def test_command_line(data: Path, vae: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    options = ["encode-latents", "--data", data, "--vae", vae, "--out", out, "--image-size", SIZE, "--dtype", "float32"]
    options += ["--no-flip", "--shard-size", 0.02, "--batch-size", 4, "--scale", 0.5, "--device", "cpu"]
    assert dis(*options, "--dry-run", "--json") == 0
    plan = result(capsys)
    assert (plan["schema"], plan["num_images"], plan["num_shards"], plan["latent_shape"]) == (1, 11, 2, [4, 8, 8])
    assert (plan["shards_kept"], plan["shards_to_write"], plan["dry_run"]) == (0, 2, True)
    # mean and std of 4 x 8 x 8 in 4 bytes, and an 8-byte label
    assert plan["bytes_to_write"] == 11 * (2 * 256 * 4 + 8)
    assert dis(*options, "--dry-run") == 0
    assert "to write" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == []

    assert dis(*options) == 0
    captured = capsys.readouterr()
    assert "4x8x8 float32, without mirrors, scale 0.5" in captured.out
    assert "11/11 images" in captured.err
    source = LatentSource(out, hflip=False, scale=0.5)
    assert len(source) == NUM_IMAGES
    files = sum(path.stat().st_size for path in out.glob("shard-*"))
    assert plan["bytes_to_write"] < files < plan["bytes_to_write"] + 1000

    assert dis(*options, "--quiet", "--json") == 0
    captured = capsys.readouterr()
    again = json.loads(captured.out)
    assert (again["shards_written"], again["shards_kept"], again["images_per_second"]) == (0, 2, 0)
    assert again["statistics"] == json.loads((out / "manifest.json").read_text())["statistics"]
    assert captured.err == ""


def test_json_tells_how_fast_it_was(data: Path, vae: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["encode-latents", "--data", data, "--vae", vae, "--out", tmp_path / "out", *OPTIONS]
    assert dis(*command, "--json") == 0
    outcome = result(capsys)
    assert 0 < outcome["images_per_second"] < 1e6
    assert outcome["seconds"] > 0
    assert outcome["shards_written"] == 3
    assert outcome["size_bytes"] == sum(path.stat().st_size for path in (tmp_path / "out").glob("shard-*"))


@pytest.mark.parametrize("missing", ["--data", "--vae", "--out"])
def test_what_is_missing_is_said(
    missing: str, data: Path, vae: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    options = {"--data": data, "--vae": vae, "--out": tmp_path / "out"}
    del options[missing]
    assert dis("encode-latents", *[part for option in options.items() for part in option]) == 2
    assert missing in capsys.readouterr().err


@pytest.mark.usefixtures("no_torch", "no_network")
@pytest.mark.parametrize("kind", ["absent", "a hub id", "empty", "without weights", "a whole pipeline"])
def test_what_is_no_vae_is_said_at_once(
    kind: str, data: Path, vae: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "none"
    match kind:
        case "empty":
            folder.mkdir()
        case "without weights":
            shutil.copytree(vae, folder)
            (folder / "diffusion_pytorch_model.safetensors").unlink()
        case "a whole pipeline":
            shutil.copytree(vae, folder / "vae")
        case _:
            pass
    name = "owner/none" if kind == "a hub id" else str(folder)
    assert dis("encode-latents", "--data", data, "--vae", name, "--out", tmp_path / "out", *OPTIONS) == 1
    error = capsys.readouterr().err
    assert f"`{name}`" in error
    assert (f"Did you mean `{folder / 'vae'}`?" if kind == "a whole pipeline" else "--vae DIR") in error
    assert not (tmp_path / "out").exists()


def test_a_folder_called_like_the_bundled_vae(data: Path, vae: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(vae, tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    finish(encode(data, "./digits", tmp_path / "out", SMALL))
    record = LatentSource(tmp_path / "out").settings.vae
    assert (record.name, record.weights_sha256) == (str(tmp_path / "digits"), VaeCodec(vae).files.identity[1])
    assert LatentSource(tmp_path / "out").channels == LATENT_CHANNELS


def test_the_bundled_vae_of_the_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # a folder of that name is not what is meant
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    options = ["--image-size", 32, "--batch-size", 64, "--device", "cpu", "-q"]
    assert dis("encode-latents", "--source", "digits", "--vae", "digits", "--out", "out", *options) == 0
    source, codec = LatentSource(tmp_path / "out", hflip=False), VaeCodec("digits")
    assert (source.settings.vae.name, source.settings.vae.weights_sha256) == ("digits", codec.files.identity[1])
    assert source.settings.latent_shape == (codec.latent_channels, 32 // codec.downsample, 32 // codec.downsample)
    # about unit variance by its own scale
    assert source.settings.scale == codec.files.scaling_factor
    assert 0.5 < source.settings.scale * np.mean(read_manifest(tmp_path / "out").statistics["std"]) < 2
    indices = range(0, 1347, 50)
    originals = torch.stack([DigitsSource(image_size=32, channels=3).load(index, None) for index in indices])
    decoded = codec.decode(torch.stack([source.load(index, None) for index in indices]))
    assert (decoded - originals).square().mean() < 0.1 * originals.var()
    assert dis("encode-latents", "--decode", "out", "-q") == 0
    assert (tmp_path / "out" / "grid.png").is_file()
