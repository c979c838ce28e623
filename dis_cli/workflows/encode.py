"""Encodes a folder of images with a VAE into shards of latents; running it again finishes what is missing.

Shards are the unit of safety: each is written whole or not at all, and is listed in the manifest once it has its name.
Images are encoded in fixed groups that begin anew with each shard, so on one machine a shard's bytes depend neither on
how often the work was interrupted nor on the number of reading threads.
"""

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from dis_cli.codecs.vae import VaeCodec
from dis_cli.data.bulk import ImageCheck, groups_ahead
from dis_cli.data.files import FileSource
from dis_cli.data.images import open_source
from dis_cli.data.shards import (
    MANIFEST,
    Dtype,
    LatentSettings,
    Manifest,
    Shard,
    read_manifest,
    shard_name,
    write_manifest,
    write_shard,
)
from dis_cli.data.source import ImageSource
from dis_cli.errors import DataError, Interrupted, MismatchError, StorageError, UsageError
from dis_cli.events import Event, Finished, Note, Progress, Started, Wrote
from dis_cli.runtime.device import pick_device
from dis_cli.runtime.files import remove_temporaries, storage_error
from dis_cli.runtime.run_dir import RunDir
from dis_cli.runtime.signals import StopRequest, stop_on_signals

_CHECKED_AT_A_TIME = 256
_MAX_SKIPPED_LISTED = 10


def encode(
    data: Path,
    vae: str,
    out: Path,
    *,
    image_size: int = 256,
    batch_size: int = 16,
    shard_size: int = 1024,
    mirrored: bool = True,
    dtype: Dtype = "float32",
    scale: float = 0.18215,
    device: str = "auto",
    num_workers: int = 4,
    check: bool = True,
    dry_run: bool = False,
) -> Iterator[Event]:
    """Encode a folder of images, with its classes, into ``out``.

    Args:
        data: Folder of images, or of one sub-folder per class.
        vae: Folder or hub id of a diffusers AutoencoderKL.
        out: Folder of the shards; an unfinished one is continued.
        image_size: Side to which images are cropped and resized, in pixels; a multiple of the VAE's downsampling.
        batch_size: Images encoded at a time. A folder that has finished shards keeps its own.
        shard_size: Images in a shard.
        mirrored: Also encode each image flipped left to right.
        dtype: Type in which moments are stored.
        scale: Factor on the VAE's z, recorded for training.
        device: "auto", "cpu", "cuda" or "cuda:N".
        num_workers: Threads that read images.
        check: Read all images first, so that bad ones are known before anything is encoded.
        dry_run: End after planning; nothing is written.

    Yields:
        Started and Progress (of the check, then of the encoding), Note, Wrote after each shard, and Finished.

    Raises:
        MissingResourceError: The VAE is not on this machine.
        MismatchError: ``out`` holds shards of other images, another VAE or other settings.
        DataError: Images cannot be read, or a latent is not finite.
        StorageError: The disk is full or read-only, or another process writes to ``out``.
        Interrupted: A signal asked to stop; finished shards stay.
    """
    began = time.monotonic()
    _require_place(data, out)
    codec = VaeCodec(vae, scale=scale, device=pick_device(device))
    if image_size % codec.downsample:
        raise UsageError(
            f"Images of {image_size} pixels cannot be encoded: the VAE needs a multiple of {codec.downsample}",
            f"Give `--image-size {max(image_size // codec.downsample, 1) * codec.downsample}`",
        )
    source = open_source("folder", data, split="train", image_size=image_size, channels=3, hflip=False)
    side = image_size // codec.downsample
    asked = LatentSettings(
        source=source.fingerprint,
        class_names=source.class_names,
        num_images=len(source),
        image_size=image_size,
        vae=codec.fingerprint,
        scale=scale,
        latent_shape=(codec.latent_channels, side, side),
        dtype=dtype,
        mirrored=mirrored,
        shard_size=shard_size,
        batch_size=batch_size,
    )
    yield from _notes_before(codec, source)
    with contextlib.nullcontext() if dry_run else _held(out), stop_on_signals() as stop:
        settings, shards, notes = _resume(out, asked)
        yield from notes
        missing = settings.missing(shards)
        bytes_to_write = settings.bytes_per_image * sum(map(len, missing.values()))
        result = _summary(out, settings) | {"shards_kept": len(shards)}
        if dry_run:
            estimates = {"bytes_to_write": bytes_to_write, "free_bytes": _free_bytes(out)}
            yield Finished(result=result | {"dry_run": True} | estimates)
            return
        if missing:
            _require_space(out, bytes_to_write)
            write_manifest(out, Manifest(settings=settings, shards=tuple(shards)))
            if check:
                yield from _check(source, missing, num_workers, stop)
            yield from _fill(out, codec, source, settings, shards, num_workers, stop)
    written = {
        "shards_written": len(missing),
        "size_bytes": sum(shard.size_bytes for shard in shards),
        "seconds": round(time.monotonic() - began, 3),
    }
    yield Finished(result=result | written)


def _fill(
    out: Path,
    codec: VaeCodec,
    source: ImageSource,
    settings: LatentSettings,
    shards: list[Shard],
    num_workers: int,
    stop: StopRequest,
) -> Iterator[Event]:
    """Encode the missing shards and add them to ``shards``."""
    done = sum(shard.count for shard in shards)
    details: dict[str, object] = {"latents": "x".join(map(str, settings.latent_shape)), "device": str(codec.device)}
    yield Started(what="encode", total=settings.num_images, unit="images", first=done, details=details)
    for number, indices in settings.missing(shards).items():
        groups = [indices[first : first + settings.batch_size] for first in range(0, len(indices), settings.batch_size)]
        parts: list[dict[str, NDArray[Any]]] = []
        for group, images in groups_ahead(source, groups, num_workers=num_workers):
            _stop_if_asked(stop, f"{len(shards)} of {settings.num_shards} shards are finished")
            parts.append(_moments(codec, images, settings))
            if not all(np.isfinite(values).all() for values in parts[-1].values()):
                raise DataError(f"The VAE gave NaN or infinite latents for the images {group[0]} to {group[-1]}")
            done += len(group)
            yield Progress(done=done, total=settings.num_images, unit="images")
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        labels = source.labels[indices.start : indices.stop]
        shards.append(write_shard(out, number, indices.start, arrays | {"labels": labels}))
        shards.sort(key=lambda shard: shard.first)
        write_manifest(out, Manifest(settings=settings, shards=tuple(shards)))
        yield Wrote(what="shard", path=out / shard_name(number))


def _moments(codec: VaeCodec, images: Float[Tensor, "b 3 h w"], settings: LatentSettings) -> dict[str, NDArray[Any]]:
    moments: dict[str, NDArray[Any]] = {}
    for prefix, batch in {"": images, "mirrored_": images.flip(-1)}.items():
        if prefix and not settings.mirrored:
            continue
        for name, values in zip(("mean", "logvar"), codec.moments(batch), strict=True):
            moments[prefix + name] = values.cpu().numpy().astype(settings.dtype)
    return moments


def _check(source: ImageSource, missing: dict[int, range], num_workers: int, stop: StopRequest) -> Iterator[Event]:
    """Read the images of the missing shards, to fail before the work and not in the middle of it."""
    check = ImageCheck(source, num_workers=num_workers)
    total = sum(map(len, missing.values()))
    yield Started(what="check images", total=total, unit="images")
    done = 0
    for indices in missing.values():
        for first in range(0, len(indices), _CHECKED_AT_A_TIME):
            _stop_if_asked(stop, "Nothing was encoded yet")
            part = indices[first : first + _CHECKED_AT_A_TIME]
            check.read(part)
            done += len(part)
            yield Progress(done=done, total=total, unit="images")
    check.raise_if_bad()
    for remark, count in check.remarks.items():
        yield Note(message=f"{remark}: {count} images", level="warning")


def _resume(out: Path, asked: LatentSettings) -> tuple[LatentSettings, list[Shard], list[Note]]:
    """The settings to go on with, the shards that are whole, and what the user should know."""
    manifest = read_manifest(out) if (out / MANIFEST).exists() else None
    if manifest is None or not manifest.shards:
        return asked, [], []
    there = manifest.settings
    settings = dataclasses.replace(asked, batch_size=there.batch_size)
    differing = [
        f"{field.name}: {_short(getattr(there, field.name))} there, {_short(getattr(settings, field.name))} now"
        for field in dataclasses.fields(settings)
        if getattr(there, field.name) != getattr(settings, field.name)
    ]
    if differing:
        raise MismatchError(
            f"`{out}` holds latents of other images or settings\n  " + "\n  ".join(differing),
            "Give the settings that are there, or another --out",
        )
    notes: list[Note] = []
    if asked.batch_size != there.batch_size:
        message = (
            f"Continuing with a batch size of {there.batch_size}, not {asked.batch_size}: it decides the last bits"
        )
        notes.append(Note(message=message))
    faults = {shard: shard.fault(out, hashed=True) for shard in manifest.shards}
    notes += [Note(message=f"{fault}; encoding it again", level="warning") for fault in faults.values() if fault]
    return settings, [shard for shard, fault in faults.items() if fault is None], notes


def _notes_before(codec: VaeCodec, source: ImageSource) -> Iterator[Note]:
    if codec.own_scale is not None and codec.own_scale != codec.scale:
        message = f"The VAE's own configuration gives a scale of {codec.own_scale}, not {codec.scale}: see --scale"
        yield Note(message=message, level="warning")
    skipped: tuple[str, ...] = source.files.skipped if isinstance(source, FileSource) else ()
    for line in skipped[:_MAX_SKIPPED_LISTED]:
        yield Note(message=f"Skipped {line}", level="warning")
    if len(skipped) > _MAX_SKIPPED_LISTED:
        yield Note(message=f"Skipped {len(skipped) - _MAX_SKIPPED_LISTED} more", level="warning")


def _summary(out: Path, settings: LatentSettings) -> dict[str, object]:
    left_out = ("source", "vae", "class_names")
    fields = {name: value for name, value in dataclasses.asdict(settings).items() if name not in left_out}
    return {"out": str(out), "num_classes": len(settings.class_names), "num_shards": settings.num_shards, **fields}


@contextlib.contextmanager
def _held(out: Path) -> Generator[None]:
    """Make the folder, and keep other processes and what a killed one left out of it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(out, error, action="create") from error
    with RunDir(out).lock():
        if (out / MANIFEST).exists():
            remove_temporaries(out)
        yield


def _require_place(data: Path, out: Path) -> None:
    if out.resolve().is_relative_to(data.resolve()):
        raise UsageError(f"`{out}` lies inside the folder of the images, `{data}`", "Choose an --out outside of it")
    is_ours = (out / MANIFEST).exists()
    if not is_ours and out.is_dir() and any(not entry.name.startswith(".") for entry in out.iterdir()):
        raise UsageError(f"`{out}` holds other files and no latents", "Choose an empty or a new folder for --out")


def _require_space(out: Path, bytes_to_write: int) -> None:
    free = _free_bytes(out)
    if bytes_to_write > free:
        raise StorageError(
            f"Not enough space for `{out}` (needs {bytes_to_write:,} bytes, {free:,} bytes free)",
            "Free some space there, or store less with --dtype float16 or --no-flip",
        )


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.exists())).free


def _stop_if_asked(stop: StopRequest, state: str) -> None:
    if stop.requested is not None:
        raise Interrupted(f"Interrupted; {state}", stop.requested, "Run the same command again to continue")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:18]}...{text[-18:]}"
