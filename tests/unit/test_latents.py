import dataclasses
import hashlib
import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from dis_cli.data.batches import TrainingSet, training_batches
from dis_cli.data.latents.format import (
    CROP,
    MANIFEST,
    PROGRESS,
    LatentSettings,
    Manifest,
    Shard,
    Skipped,
    VaeRecord,
    read_manifest,
    write_manifest,
)
from dis_cli.data.latents.source import LatentSource
from dis_cli.data.latents.unfinished import Plan, Unfinished
from dis_cli.data.latents.writer import ShardWriter
from dis_cli.data.source import BatchSource, ImageSource
from dis_cli.errors import DataError, MismatchError, RefusedError, StorageError
from dis_cli.runtime.seed import Stream, generators

SETTINGS = LatentSettings(
    source="images",
    data="pictures",
    class_names=("cat", "dog"),
    num_images=5,
    image_size=16,
    crop=CROP,
    background="white",
    vae=VaeRecord(name="vae", config_sha256="c0", weights_sha256="fe", scaling_factor=0.5),
    scale=0.5,
    shift=0.0,
    latent_shape=(4, 2, 2),
    dtype="float32",
    mirrored=True,
    images_per_shard=3,
    batch_size=2,
)
LABELS = np.array([0, 0, 0, 1, 1])
NAMES = ["cat/a.png", "cat/b.png", "cat/\udcff\n.png", "dog/é.png", "dog/"]
# Far apart, so that each draw tells from which posterior it came; a standard deviation of 2.
MEANS = {"mean": 100.0, "mirrored_mean": -100.0}
STD = 2.0


def changed(**changes: object) -> LatentSettings:
    return dataclasses.replace(SETTINGS, **changes)


def moments(settings: LatentSettings, indices: range) -> dict[str, np.ndarray]:
    """Means that tell which image it is."""
    shape = (len(indices), *settings.latent_shape)
    offsets = np.array(indices, dtype=np.float32).reshape(-1, 1, 1, 1)
    return {
        name: np.full(shape, MEANS[name], np.float32) + offsets
        if name in MEANS
        else np.full(shape, STD, dtype=np.float32)
        for name in settings.moment_names
    }


def write_one(folder: Path, number: int, settings: LatentSettings) -> Shard:
    indices = settings.indices(number)
    labels, names = LABELS[indices.start : indices.stop], NAMES[indices.start : indices.stop]
    writer = ShardWriter(folder, number, settings, labels, names)
    for first in range(indices.start, indices.stop, settings.batch_size):
        writer.add(moments(settings, range(first, min(first + settings.batch_size, indices.stop))))
    shard = writer.finish()
    writer.close()
    return shard


def write_latents(folder: Path, settings: LatentSettings = SETTINGS) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    unfinished = Unfinished(folder)
    unfinished.create()
    plan = Plan(settings, (Skipped(index=2, name="cat/\udcfe.png"),))
    unfinished.write_plan(plan)
    for number in range(settings.num_shards):
        assert unfinished.finish(plan) is None
        with unfinished.claim(number) as ours:
            assert ours
            unfinished.add(number, write_one(folder, number, settings))
    assert unfinished.finish(plan) == read_manifest(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_latents(tmp_path / "latents")


# The source


def test_source_gives_scaled_means(folder: Path):
    source = LatentSource(folder, image_size=2, channels=4)
    assert isinstance(source, ImageSource)
    assert (len(source), source.num_classes, source.channels, source.image_size) == (5, 2, 4, 2)
    assert source.class_names == ("cat", "dog")
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == [0, 0, 0, 1, 1]
    assert not source.labels.flags.writeable
    for index in range(5):
        torch.testing.assert_close(source.load(index, None), torch.full((4, 2, 2), 0.5 * (100 + index)))
    for outside in (-1, 5):
        for ask in (lambda index: source.load(index, None), source.sample_name):
            with pytest.raises(IndexError):
                ask(outside)


def test_names_come_back_whatever_bytes_they_had(folder: Path):
    source = LatentSource(folder)
    assert [source.sample_name(index) for index in range(5)] == NAMES


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
    source = LatentSource(write_latents(tmp_path / "half", changed(dtype="float16")))
    latent = source.load(1, np.random.default_rng(0))
    assert latent.dtype == source.load(1, None).dtype == torch.float32
    # exactly what was stored, though float16 cannot hold the scaled noise
    assert torch.equal(source.load(1, None), torch.full((4, 2, 2), 50.5))
    assert not torch.equal(latent, latent.half().float())


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_shift_is_subtracted_before_the_scale(folder: Path, tmp_path: Path, dtype: str):
    plain, shifted = LatentSource(folder), LatentSource(write_latents(tmp_path / "s", changed(shift=30.0, dtype=dtype)))
    assert torch.equal(shifted.load(4, None), torch.full((4, 2, 2), 0.5 * (104 - 30)))
    difference = plain.load(4, np.random.default_rng(1)) - shifted.load(4, np.random.default_rng(1))
    torch.testing.assert_close(difference, torch.full((4, 2, 2), 15.0))
    assert shifted.fingerprint != plain.fingerprint


def test_source_survives_pickling_after_use(folder: Path):
    source = LatentSource(folder)
    latent = source.load(4, np.random.default_rng(0))
    pickled = pickle.dumps(source)
    assert len(pickled) < 5000
    assert torch.equal(pickle.loads(pickled).load(4, np.random.default_rng(0)), latent)


def test_loader_processes_give_what_one_process_gives(folder: Path):
    source = LatentSource(folder)
    # mapped already when the processes begin
    source.load(0, None)

    def batches(num_workers: int) -> list[torch.Tensor]:
        dataset = TrainingSet(source, seed=1, num_timesteps=10, num_drop_path=0)
        made = training_batches(
            dataset, first_step=0, last_step=6, batch_size=4, accumulation=1, num_workers=num_workers
        )
        return [batch.x_0 for batch in made]

    alone, shared = batches(0), batches(2)
    assert len(alone) == len(shared) == 6
    assert all(torch.equal(left, right) for left, right in zip(alone, shared, strict=True))
    assert min(batch.min() for batch in alone) < 0 < max(batch.max() for batch in alone)


def test_latents_can_be_kept_and_changed(folder: Path):
    source = LatentSource(folder)
    latent = source.load(0, None)
    latent.zero_()
    assert source.load(0, None).min() == 50


def test_fingerprint_follows_content_and_scale(folder: Path, tmp_path: Path):
    fingerprint = LatentSource(folder).fingerprint
    assert LatentSource(write_latents(tmp_path / "again")).fingerprint == fingerprint
    for other in (changed(scale=0.6), changed(num_images=4), changed(class_names=("cat", "cow"))):
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
    plain = write_latents(tmp_path / "plain", changed(mirrored=False))
    with pytest.raises(MismatchError, match="--no-flip"):
        LatentSource(plain)
    assert len(LatentSource(plain, hflip=False)) == 5


# What the process is charged with; of the pages of a mapped file, those that were touched.
IO, STATUS = Path("/proc/self/io"), Path("/proc/self/status")


@pytest.mark.skipif(not IO.exists(), reason="reads what a process has read from Linux's /proc")
def test_opening_reads_no_moments(tmp_path: Path):
    # 34 GB that take no space on the disk
    settings = changed(latent_shape=(4, 1024, 1024), dtype="float16", num_images=1024, images_per_shard=1024)
    settings = dataclasses.replace(settings, mirrored=True)
    size = 1024 * 4 * 1024 * 1024 * 2
    entries: dict[str, object] = {"labels": {"dtype": "I64", "shape": [1024], "data_offsets": [0, 8192]}}
    for place, name in enumerate(settings.moment_names):
        begin = 8192 + place * size
        entries[name] = {"dtype": "F16", "shape": [1024, *settings.latent_shape], "data_offsets": [begin, begin + size]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    path = tmp_path / "shard-00000.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 8192 + 4 * size)
    record = Shard(
        file=path.name,
        first=0,
        count=1024,
        size_bytes=path.stat().st_size,
        sha256="",
        sums=(0.0,) * 4,
        sums_of_squares=(0.0,) * 4,
    )
    write_manifest(tmp_path, Manifest(settings=settings, skipped=(), shards=(record,)))

    def figures() -> tuple[int, int]:
        read = int(IO.read_text().split("rchar: ")[1].split()[0])
        return read, int(STATUS.read_text().split("VmRSS:")[1].split()[0]) << 10

    read, resident = figures()
    source = LatentSource(tmp_path)
    assert figures()[0] - read < 1_000_000
    assert figures()[1] - resident < 20_000_000
    # and one latent costs no more than it is large, a few times over
    assert source.load(1000, np.random.default_rng(0)).shape == (4, 1024, 1024)
    assert figures()[1] - resident < 100_000_000


# The shards


def test_a_shard_is_a_safetensors_file(folder: Path):
    path = folder / "shard-00001.safetensors"
    tensors = load_file(path)
    expected = moments(SETTINGS, range(3, 5)) | {"labels": LABELS[3:]}
    assert tensors.keys() == {*expected, "names"}
    for name, array in expected.items():
        assert np.array_equal(tensors[name], array), name
        assert tensors[name].dtype == array.dtype
    assert bytes(tensors["names"]) == "dog/é.png\0dog/".encode()
    content = path.read_bytes()
    assert int.from_bytes(content[:8], "little") % 8 == 0
    record = read_manifest(folder).shards[1]
    assert (record.first, record.count, record.size_bytes) == (3, 2, len(content))
    assert record.sha256 == hashlib.sha256(content).hexdigest()


def test_a_shard_of_one_image_without_a_name(tmp_path: Path):
    Unfinished(tmp_path).create()
    writer = ShardWriter(tmp_path, 0, changed(num_images=1), LABELS[:1], [""])
    writer.add(moments(SETTINGS, range(1)))
    writer.finish()
    writer.close()
    assert load_file(tmp_path / "shard-00000.safetensors")["names"].shape == (0,)


def test_moments_of_any_memory_order_are_stored_as_they_read(tmp_path: Path):
    Unfinished(tmp_path).create()
    settings = changed(mirrored=False, num_images=2)
    mean = np.arange(2 * 4 * 2 * 2, dtype=np.float32).reshape(2, 2, 2, 4).transpose(0, 3, 1, 2)
    writer = ShardWriter(tmp_path, 0, settings, LABELS[:2], NAMES[:2])
    writer.add({"mean": mean, "std": np.ones_like(mean)})
    writer.finish()
    writer.close()
    assert np.array_equal(load_file(tmp_path / "shard-00000.safetensors")["mean"], mean)


def test_a_shard_that_is_not_finished_leaves_nothing(tmp_path: Path):
    Unfinished(tmp_path).create()
    writer = ShardWriter(tmp_path, 0, SETTINGS, LABELS[:3], NAMES[:3])
    writer.add(moments(SETTINGS, range(2)))
    writer.close()
    assert [path.name for path in tmp_path.rglob("*")] == [PROGRESS]


@pytest.mark.parametrize(("dtype", "value"), [("float16", 65520.0), ("float16", -np.inf), ("float32", np.nan)])
def test_what_the_stored_type_cannot_hold_is_refused(tmp_path: Path, dtype: str, value: float):
    Unfinished(tmp_path).create()
    writer = ShardWriter(tmp_path, 0, changed(dtype=dtype), LABELS[:3], NAMES[:3])
    spoilt = moments(SETTINGS, range(2))
    spoilt["mirrored_mean"][1, 2, 1, 0] = value
    with pytest.raises(OverflowError, match="mirrored_mean"):
        writer.add(spoilt)
    writer.close()


def test_statistics_do_not_depend_on_the_shards(tmp_path: Path):
    found = [
        read_manifest(write_latents(tmp_path / "latents", changed(images_per_shard=size, dtype=dtype))).statistics
        for size in (1, 3, 5)
        for dtype in ("float16", "float32")
    ]
    means = np.concatenate([MEANS[name] + np.arange(5) for name in MEANS])
    for statistics in found:
        np.testing.assert_allclose(statistics["mean"], [means.mean()] * 4, rtol=1e-12)
        np.testing.assert_allclose(statistics["std"], [np.sqrt(means.var() + STD**2)] * 4, rtol=1e-12)


# The manifest


def test_manifest_round_trip(folder: Path):
    manifest = read_manifest(folder)
    assert manifest.settings == SETTINGS
    assert manifest.skipped == (Skipped(index=2, name="cat/\udcfe.png"),)
    assert [(shard.first, shard.count) for shard in manifest.shards] == [(0, 3), (3, 2)]
    write_manifest(folder, manifest)
    assert read_manifest(folder) == manifest


def test_missing_folder_says_how_to_make_one(tmp_path: Path):
    with pytest.raises(DataError) as caught:
        LatentSource(tmp_path / "none")
    assert "encode-latents" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda _: "[]",
        lambda _: "null",
        lambda _: "\udcff",
        lambda text: text.replace('"num_images": 5', '"num_images": -5'),
        lambda text: text.replace('"num_images": 5', '"num_images": "5"'),
        lambda text: text.replace('"num_images": 5', '"num_images": 9'),
        lambda text: text.replace('"mirrored": true,', ""),
        lambda text: text.replace("shard-00001", "../shard-00001"),
        lambda text: text.replace("shard-00001.safetensors", "/etc/passwd"),
        lambda text: text.replace('"first": 3', '"first": 0'),
        lambda text: text.replace('"version": 2', '"version": 1'),
        lambda text: text.replace('"dis-latents"', '"latents"'),
        lambda text: text.replace('"float32"', '"object"'),
        lambda text: text.replace('"sha256"', '"md5"'),
        lambda text: text.replace(CROP, "somehow"),
        lambda text: text.replace('"weights_sha256"', '"weights"'),
        lambda text: text.replace('"skipped"', '"left_out"'),
    ],
)
def test_damaged_manifest_is_refused(folder: Path, damage: Callable[[str], str]):
    text = (folder / MANIFEST).read_text()
    assert damage(text) != text
    (folder / MANIFEST).write_text(damage(text), errors="surrogateescape")
    with pytest.raises(DataError, match=r"manifest\.json"):
        LatentSource(folder)


def test_a_manifest_of_another_version_says_what_to_do(folder: Path):
    (folder / MANIFEST).write_text((folder / MANIFEST).read_text().replace('"version": 2', '"version": 3'))
    with pytest.raises(DataError, match="is dis-latents version 3; this program reads dis-latents version 2") as caught:
        LatentSource(folder)
    assert "Encode the images again" in (caught.value.hint or "")


# Damage and harm


@pytest.mark.parametrize("cut", [0, 1, 8, 100, -1])
def test_truncated_shard_is_refused_on_opening(folder: Path, cut: int):
    shard = folder / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:cut])
    with pytest.raises(DataError, match="shard-00001") as caught:
        LatentSource(folder)
    assert "again" in (caught.value.hint or "")


def test_deleted_shard_is_refused(folder: Path):
    (folder / "shard-00000.safetensors").unlink()
    with pytest.raises(DataError, match=r"shard-00000.* is missing"):
        LatentSource(folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # as a swap of two files would give: all sizes agree, the header does not
        (b'"mean"', b'"maen"'),
        (b'"labels"', b'"lables"'),
        (b'"I64"', b'"F64"'),
        (b'"F32","shape":[3,4,2,2]', b'"I32","shape":[3,4,2,2]'),
        (b"[3,4,2,2]", b"[3,2,4,2]"),
        (b"{", b"["),
    ],
)
def test_shard_with_other_content_of_equal_size_is_refused(folder: Path, old: bytes, new: bytes):
    shard = folder / "shard-00000.safetensors"
    content = shard.read_bytes()
    assert old in content
    shard.write_bytes(content.replace(old, new, 1))
    with pytest.raises(DataError, match="shard-00000"):
        LatentSource(folder)


def test_labels_of_no_class_are_refused(folder: Path):
    shard = folder / "shard-00001.safetensors"
    content = shard.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    for label in (2, -1):
        shard.write_bytes(content[:begin] + struct.pack("<q", label) + content[begin + 8 :])
        with pytest.raises(DataError, match="does not hold what the manifest says"):
            LatentSource(folder)


def with_header(shard: Path, change: Callable[[dict[str, dict[str, object]]], None]) -> bytes:
    """The shard's bytes with another header of the same size."""
    content = shard.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    return content[:8] + text.ljust(end - 8) + content[end:]


def overlapping(header: dict[str, dict[str, object]]) -> None:
    header["std"]["data_offsets"] = header["mean"]["data_offsets"]


def test_a_shard_whose_tensors_overlap_is_refused(folder: Path):
    shard = folder / "shard-00000.safetensors"
    content = with_header(shard, overlapping)
    assert len(content) == shard.stat().st_size
    shard.write_bytes(content)
    with pytest.raises(RefusedError, match=r"shard-00000.*overlap") as caught:
        LatentSource(folder)
    assert caught.value.code == 2


def test_a_shard_with_a_huge_header_is_refused(folder: Path):
    shard = folder / "shard-00000.safetensors"
    shard.write_bytes(struct.pack("<Q", 2**62) + shard.read_bytes()[8:])
    with pytest.raises(RefusedError, match="its header claims"):
        LatentSource(folder)


def test_a_link_to_elsewhere_is_not_what_was_written(folder: Path, tmp_path: Path):
    (folder / "shard-00001.safetensors").unlink()
    (folder / "shard-00001.safetensors").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="shard-00001"):
        LatentSource(folder)


# What is unfinished


def test_unfinished_latents_are_refused(tmp_path: Path):
    Unfinished(tmp_path).create()
    with pytest.raises(DataError, match="unfinished") as caught:
        LatentSource(tmp_path)
    assert "again" in (caught.value.hint or "")


@pytest.fixture
def unfinished(tmp_path: Path) -> Unfinished:
    """The first of two shards is finished."""
    found = Unfinished(tmp_path / "latents")
    found.create()
    found.write_plan(Plan(SETTINGS, ()))
    found.add(0, write_one(tmp_path / "latents", 0, SETTINGS))
    return found


def test_a_shard_is_held_by_one(unfinished: Unfinished):
    with unfinished.claim(1) as first, unfinished.claim(1) as second, unfinished.claim(0) as done:
        assert (first, second, done) == (True, False, False)
    with unfinished.claim(1) as again:
        assert again


def test_what_is_recorded_comes_back(unfinished: Unfinished, tmp_path: Path):
    assert unfinished.exists
    assert unfinished.read_plan() == Plan(SETTINGS, ())
    assert unfinished.done(SETTINGS) == {0}
    shards = unfinished.shards(SETTINGS)
    assert shards == unfinished.sound_shards(SETTINGS)
    assert [(number, shard.first, shard.count) for number, shard in shards.items()] == [(0, 0, 3)]
    unfinished.add(1, write_one(tmp_path / "latents", 1, SETTINGS))
    assert unfinished.finish(Plan(SETTINGS, ())) == read_manifest(tmp_path / "latents")
    assert len(LatentSource(tmp_path / "latents")) == 5
    assert not (tmp_path / "latents" / PROGRESS).exists()


def test_looking_forgets_nothing(unfinished: Unfinished, tmp_path: Path):
    (tmp_path / "latents" / "shard-00000.safetensors").unlink()
    assert list(unfinished.shards(SETTINGS)) == [0]
    assert list(unfinished.shards(SETTINGS)) == [0]
    assert unfinished.sound_shards(SETTINGS) == {}
    assert unfinished.done(SETTINGS) == set()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "dis-latents", "version": 2}'])
def test_a_damaged_record_is_a_shard_to_encode_again(unfinished: Unfinished, tmp_path: Path, text: str):
    (tmp_path / "latents" / PROGRESS / "shard-00000.json").write_text(text)
    assert unfinished.shards(SETTINGS) == {0: None}
    assert unfinished.sound_shards(SETTINGS) == {}
    with unfinished.claim(0) as ours:
        assert ours


def test_damaged_settings_are_refused(unfinished: Unfinished, tmp_path: Path):
    path = tmp_path / "latents" / PROGRESS / "settings.json"
    path.write_text(path.read_text().replace('"skipped"', '"left_out"'))
    with pytest.raises(DataError, match=r"settings\.json` is damaged"):
        unfinished.read_plan()


def test_whoever_finishes_too_late_finds_the_folder_finished(unfinished: Unfinished, tmp_path: Path):
    folder, plan = tmp_path / "latents", Plan(SETTINGS, ())
    unfinished.add(1, write_one(folder, 1, SETTINGS))
    late = Unfinished(folder)
    assert unfinished.finish(plan) is not None
    written = (folder / MANIFEST).stat().st_mtime_ns
    with late.claim(1) as ours:
        assert not ours
    assert late.done(SETTINGS) == {0, 1}
    assert late.finish(plan) == read_manifest(folder)
    assert (folder / MANIFEST).stat().st_mtime_ns == written
    assert not (folder / PROGRESS).exists()


def test_a_manifest_that_cannot_be_written_leaves_the_folder_unfinished(
    unfinished: Unfinished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, plan = tmp_path / "latents", Plan(SETTINGS, ())
    unfinished.add(1, write_one(folder, 1, SETTINGS))

    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("dis_cli.data.latents.unfinished.write_manifest", full)
        with pytest.raises(StorageError, match="full"):
            unfinished.finish(plan)
    assert unfinished.done(SETTINGS) == {0, 1}
    assert unfinished.finish(plan) is not None


def test_the_beginning_is_held_by_one_and_leaves_nothing_when_nothing_was_agreed_on(tmp_path: Path):
    one, other = Unfinished(tmp_path), Unfinished(tmp_path)
    one.create()
    with one.beginning() as first, other.beginning() as second:
        assert (first, second) == (True, False)
    assert list(tmp_path.iterdir()) == []
    with other.beginning() as held:
        assert held
        other.write_plan(Plan(SETTINGS, ()))
    assert one.read_plan() == Plan(SETTINGS, ())


def test_a_batch_holds_the_bits_of_its_samples(folder: Path):
    source = LatentSource(folder)
    assert isinstance(source, BatchSource)
    indices = [4, 0, 3, 3]
    batch = source.load_batch(indices, generators(1, Stream.TRAIN, range(4)))
    rngs = generators(1, Stream.TRAIN, range(4))
    singly = [source.load(index, rng) for index, rng in zip(indices, rngs, strict=True)]
    assert torch.equal(batch, torch.stack(singly))
    assert not torch.equal(batch[2], batch[3])
    with pytest.raises(IndexError):
        source.load_batch([5], generators(1, Stream.TRAIN, range(1)))
