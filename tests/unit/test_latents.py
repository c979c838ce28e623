import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from dis_cli.data.latents import LatentSource
from dis_cli.data.shards import MANIFEST, LatentSettings, Manifest, read_manifest, write_manifest, write_shard
from dis_cli.data.source import ImageSource
from dis_cli.errors import DataError, MismatchError

SETTINGS = LatentSettings(
    source="images",
    class_names=("cat", "dog"),
    num_images=5,
    image_size=16,
    vae="vae",
    scale=0.5,
    latent_shape=(4, 2, 2),
    dtype="float32",
    mirrored=True,
    shard_size=3,
    batch_size=2,
)
LABELS = np.array([0, 0, 0, 1, 1])
# Far apart, so that each draw tells from which posterior it came; a standard deviation of 2.
MEANS = {"mean": 100.0, "mirrored_mean": -100.0}
LOGVAR = np.log(4.0)


def write_latents(folder: Path, settings: LatentSettings = SETTINGS) -> Path:
    folder.mkdir(exist_ok=True)
    shards = []
    for number in range(settings.num_shards):
        indices = settings.indices(number)
        shape = (len(indices), *settings.latent_shape)
        offsets = np.array(indices, dtype=settings.dtype).reshape(-1, 1, 1, 1)
        arrays = {}
        for prefix in ("", "mirrored_") if settings.mirrored else ("",):
            arrays[f"{prefix}mean"] = (np.full(shape, MEANS[f"{prefix}mean"]) + offsets).astype(settings.dtype)
            arrays[f"{prefix}logvar"] = np.full(shape, LOGVAR, dtype=settings.dtype)
        labels = LABELS[indices.start : indices.stop]
        shards.append(write_shard(folder, number, indices.start, arrays | {"labels": labels}))
    write_manifest(folder, Manifest(settings=settings, shards=tuple(shards)))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_latents(tmp_path / "latents")


def test_source_gives_scaled_means(folder: Path):
    source = LatentSource(folder, image_size=2, channels=4)
    assert isinstance(source, ImageSource)
    assert (len(source), source.num_classes, source.channels, source.image_size) == (5, 2, 4, 2)
    assert source.class_names == ("cat", "dog")
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == [0, 0, 0, 1, 1]
    for index in range(5):
        torch.testing.assert_close(source.load(index, None), torch.full((4, 2, 2), 0.5 * (100 + index)))
    for outside in (-1, 5):
        with pytest.raises(IndexError):
            source.load(outside, None)


def test_draws_follow_the_posterior_and_mirror_half(folder: Path):
    source = LatentSource(folder)
    rng = np.random.default_rng(0)
    draws = torch.stack([source.load(3, rng) for _ in range(2000)]).flatten(1)
    mirrored = draws[:, 0] < 0
    # 5 standard errors
    assert abs(mirrored.double().mean() - 0.5) < 5 * 0.5 / 2000**0.5
    for part, mean in ((draws[~mirrored], 103.0), (draws[mirrored], -97.0)):
        assert abs(part.mean() - 0.5 * mean) < 5 / part.numel() ** 0.5
        assert abs(part.std() - 0.5 * 2) < 5 / (2 * part.numel()) ** 0.5


def test_draws_depend_on_the_generator_alone(folder: Path):
    source = LatentSource(folder)
    first = source.load(4, np.random.default_rng(7))
    source.load(0, np.random.default_rng(1))
    assert torch.equal(source.load(4, np.random.default_rng(7)), first)
    assert not torch.equal(source.load(4, np.random.default_rng(8)), first)


def test_without_hflip_nothing_is_mirrored(folder: Path):
    source = LatentSource(folder, hflip=False)
    rng = np.random.default_rng(0)
    assert all((source.load(0, rng) > 0).all() for _ in range(50))


def test_half_precision_is_read_as_single(tmp_path: Path):
    source = LatentSource(write_latents(tmp_path / "half", dataclasses.replace(SETTINGS, dtype="float16")))
    latent = source.load(1, np.random.default_rng(0))
    assert latent.dtype == source.load(1, None).dtype == torch.float32
    # exactly what was stored, though float16 cannot hold the scaled noise
    assert torch.equal(source.load(1, None), torch.full((4, 2, 2), 50.5))
    assert not torch.equal(latent, latent.half().float())


def test_source_survives_pickling_after_use(folder: Path):
    source = LatentSource(folder)
    latent = source.load(4, np.random.default_rng(0))
    copy = pickle.loads(pickle.dumps(source))
    assert torch.equal(copy.load(4, np.random.default_rng(0)), latent)


def test_latents_can_be_kept_and_changed(folder: Path):
    source = LatentSource(folder)
    latent = source.load(0, None)
    latent.zero_()
    assert source.load(0, None).min() == 50


def test_fingerprint_follows_content_and_scale(folder: Path, tmp_path: Path):
    fingerprint = LatentSource(folder).fingerprint
    assert LatentSource(write_latents(tmp_path / "again")).fingerprint == fingerprint
    for other in (
        dataclasses.replace(SETTINGS, scale=0.6),
        dataclasses.replace(SETTINGS, num_images=4),
        dataclasses.replace(SETTINGS, class_names=("cat", "cow")),
    ):
        assert LatentSource(write_latents(tmp_path / "other", other)).fingerprint != fingerprint


@pytest.mark.parametrize(
    ("wanted", "both"),
    [
        ({"image_size": 4}, ["4 x 2 x 2", "4 x 4 x 4"]),
        ({"channels": 3}, ["4 x 2 x 2", "3 x 2 x 2"]),
        ({"scale": 0.18215}, ["0.5", "0.18215"]),
    ],
)
def test_latents_for_another_model_are_refused(folder: Path, wanted: dict[str, float], both: list[str]):
    with pytest.raises(MismatchError) as caught:
        LatentSource(folder, **wanted)
    assert all(value in caught.value.message for value in both)


def test_mirroring_needs_mirrored_latents(tmp_path: Path):
    plain = write_latents(tmp_path / "plain", dataclasses.replace(SETTINGS, mirrored=False))
    with pytest.raises(MismatchError, match="--no-flip"):
        LatentSource(plain)
    assert len(LatentSource(plain, hflip=False)) == 5


def test_manifest_round_trip(folder: Path):
    manifest = read_manifest(folder)
    assert manifest.settings == SETTINGS
    assert manifest.complete
    assert [(shard.first, shard.count) for shard in manifest.shards] == [(0, 3), (3, 2)]
    assert manifest.settings.missing([manifest.shards[0]]) == {1: range(3, 5)}


def test_missing_folder_says_how_to_make_one(tmp_path: Path):
    with pytest.raises(DataError) as caught:
        LatentSource(tmp_path / "none")
    assert "encode-latents" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda _: "[]",
        lambda text: text.replace('"num_images": 5', '"num_images": -5'),
        lambda text: text.replace('"num_images": 5', '"num_images": "5"'),
        lambda text: text.replace('"mirrored": true,', ""),
        lambda text: text.replace("shard-00001", "../shard-00001"),
        lambda text: text.replace('"first": 3', '"first": 0'),
        lambda text: text.replace('"version": 1', '"version": 2'),
        lambda text: text.replace('"float32"', '"object"'),
        lambda text: text.replace('"sha256"', '"md5"'),
    ],
)
def test_damaged_manifest_is_refused(folder: Path, damage):
    text = (folder / MANIFEST).read_text()
    assert damage(text) != text
    (folder / MANIFEST).write_text(damage(text))
    with pytest.raises(DataError, match=r"manifest\.json"):
        LatentSource(folder)


def test_unfinished_latents_are_refused(folder: Path):
    manifest = read_manifest(folder)
    write_manifest(folder, dataclasses.replace(manifest, shards=manifest.shards[:1]))
    assert json.loads((folder / MANIFEST).read_text())["complete"] is False
    with pytest.raises(DataError, match="1 of 2") as caught:
        LatentSource(folder)
    assert "again" in (caught.value.hint or "")


def test_arrays_of_any_memory_order_are_stored_as_they_read(tmp_path: Path):
    mean = np.arange(2 * 4 * 2 * 2, dtype=np.float32).reshape(2, 2, 2, 4).transpose(0, 3, 1, 2)
    write_shard(tmp_path, 0, 0, {"mean": mean, "labels": LABELS[:2]})
    assert np.array_equal(load_file(tmp_path / "shard-00000.safetensors")["mean"], mean)


@pytest.mark.parametrize("cut", [0, 1, 8, 100, -1])
def test_truncated_shard_is_refused_on_opening(folder: Path, cut: int):
    shard = folder / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:cut])
    with pytest.raises(DataError, match="shard-00001"):
        LatentSource(folder)


def test_deleted_shard_is_refused(folder: Path):
    (folder / "shard-00000.safetensors").unlink()
    with pytest.raises(DataError, match=r"shard-00000.* is missing"):
        LatentSource(folder)


def test_shard_with_other_content_of_equal_size_is_refused(folder: Path):
    # as a swap of two files would give: all sizes agree, the header does not
    shard = folder / "shard-00000.safetensors"
    content = shard.read_bytes().replace(b'"mean"', b'"maen"')
    shard.write_bytes(content)
    with pytest.raises(DataError, match="shard-00000"):
        LatentSource(folder)


def test_verify_finds_one_flipped_bit(folder: Path):
    source = LatentSource(folder)
    source.verify()
    shard = folder / "shard-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError) as caught:
        source.verify()
    expected = next(record.sha256 for record in read_manifest(folder).shards if record.first == 3)
    assert "shard-00001" in caught.value.message
    assert expected in caught.value.message
    assert "shard-00000" not in caught.value.message
