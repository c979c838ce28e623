"""Encoding of images with a VAE into shards of latents; the same command completes what is missing.

Shards are the unit of safety and of sharing: each is written whole or not at all, by one process (see
`data/latents/unfinished.py`). Images are encoded in fixed groups that begin anew with each shard, so on one machine a
shard's bytes depend neither on how often the work was interrupted, nor on the number of processes or reading threads.
(On a CPU the number of threads that compute, OMP_NUM_THREADS, decides last bits; `torchrun` sets it to 1.)
"""

import functools
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from dis_cli.codecs.locate import absolute_vae
from dis_cli.codecs.vae import VaeCodec
from dis_cli.data.images.bulk import groups_ahead
from dis_cli.data.images.files import FileSource
from dis_cli.data.images.verify import layout_notes
from dis_cli.data.latents.agreement import SECONDS_BETWEEN_LOOKS, Agreement, EncodeOptions, divided
from dis_cli.data.latents.format import (
    CROP,
    MANIFEST,
    LatentSettings,
    Shard,
    Skipped,
    VaeRecord,
    shard_name,
)
from dis_cli.data.latents.unfinished import Plan, Unfinished
from dis_cli.data.latents.writer import ShardWriter
from dis_cli.data.open import kind_of, open_source
from dis_cli.data.source import ImageSource
from dis_cli.errors import DataError, StorageError, UsageError
from dis_cli.events import Event, Finished, Note, Progress, Started, Wrote
from dis_cli.runtime.device import pick_device
from dis_cli.runtime.distributed import WORK_ALONE, WorkShare, part_from_environment
from dis_cli.runtime.files import free_bytes
from dis_cli.runtime.signals import StopRequest, stop_on_signals
from dis_cli.runtime.targets import require_writable


def encode(
    data: Path | None,
    vae: str,
    out: Path,
    options: EncodeOptions,
    *,
    kind: str | None = None,
    part: WorkShare | None = None,
    dry_run: bool = False,
) -> Iterator[Event]:
    """Encode images, with their classes, into ``out``.

    Args:
        data: The folder or archive of the images; None for the bundled digits.
        vae: Folder, bundled name or hub id of a diffusers AutoencoderKL.
        out: Folder of the shards; an unfinished one is continued.
        kind: The kind of source; None tells it from ``data``.
        part: The shards to encode; None takes torchrun's word, and all when there is none.
        dry_run: End after planning; nothing is written.

    Yields:
        Started and Progress (of the check, then of the encoding), Note, Wrote after each shard, and Finished.

    Raises:
        MissingResourceError: The VAE is not on this machine.
        MismatchError: ``out`` holds latents of other images, of another VAE or with other settings.
        DataError: Images cannot be read, or a latent is not finite.
        StorageError: The disk is full or read-only.
        Interrupted: A signal asked to stop; finished shards stay.
    """
    job = Encoding.prepare(data, vae, out, options, kind=kind)
    part = part or part_from_environment()
    if dry_run:
        yield from job.notes()
        yield Finished(result=job.dry_run(part))
        return
    yield from run_encoding(job, part)


def run_encoding(job: "Encoding", part: WorkShare) -> Iterator[Event]:
    """Encode the shards of ``part``; events and errors are those of `encode`."""
    began = time.monotonic()
    out = job.out
    yield from job.notes()
    with stop_on_signals() as stop:
        plan = yield from job.agreement.reach(stop)
        settings = plan.settings
        # forgets those whose files were deleted or damaged since
        job.unfinished.sound_shards(settings)
        done = job.unfinished.done(settings)
        mine = [number for number in range(settings.num_shards) if part.holds(number)]
        kept = [number for number in mine if number in done]
        _require_space(out, settings, sum(len(settings.indices(number)) for number in mine if number not in done))
        written: list[Shard] = []
        encoding = time.monotonic()
        waited = False
        while True:
            yield from job.fill(plan, mine, written, stop)
            manifest = job.unfinished.finish(plan)
            if manifest is not None or not part.together:
                break
            if not waited:
                yield Note(
                    message=f"Waiting for the other processes of this job: it has {part.count} (WORLD_SIZE), each of "
                    f"which encodes its share. {WORK_ALONE}"
                )
                waited = True
            stop.obey("The other processes go on")
            time.sleep(SECONDS_BETWEEN_LOOKS)
        speed = sum(shard.count for shard in written) / (time.monotonic() - encoding)
    if manifest is None:
        left = settings.num_shards - len(job.unfinished.done(settings))
        yield Note(message=f"This part is finished; {left} of {settings.num_shards} shards are left to other parts")
    result = _summary(out, settings) | {
        "complete": manifest is not None,
        "shards_kept": len(kept),
        "shards_written": len(written),
        "skipped": len(plan.skipped),
        "size_bytes": sum((out / shard_name(number)).stat().st_size for number in mine),
        "seconds": round(time.monotonic() - began, 3),
        "images_per_second": round(speed, 3),
    }
    yield Finished(result=result | ({"statistics": manifest.statistics} if manifest else {}))


@dataclass
class Encoding:
    """The fixed part of encoding, from the first image to the last."""

    out: Path
    options: EncodeOptions
    codec: VaeCodec
    source: ImageSource
    asked: LatentSettings
    unfinished: Unfinished
    agreement: Agreement

    @classmethod
    def prepare(
        cls, data: Path | None, vae: str, out: Path, options: EncodeOptions, *, kind: str | None = None
    ) -> "Encoding":
        """Find what is needed and nothing wrong with it; writes nothing. Arguments and errors are those of `encode`."""
        _require_place(data, out)
        # The VAE is looked for there when latents are decoded, from wherever that is.
        vae = absolute_vae(vae)
        kind = kind or (kind_of(data) if data is not None else "digits")
        codec = VaeCodec(vae, scale=options.scale, device=pick_device(options.device))
        size, downsample = options.image_size, codec.downsample
        if size % downsample:
            raise UsageError(
                f"Images of {size} pixels cannot be encoded: the VAE needs a multiple of {downsample}",
                f"Give encode-latents `--image-size {max(size // downsample, 1) * downsample}`",
            )
        source = open_source(
            kind,
            data,
            split="train",
            image_size=size,
            channels=3,
            background=options.background,
            download=options.download,
        )
        mirrored = options.mirrored and kind != "digits"
        shape = (codec.latent_channels, size // downsample, size // downsample)
        config_sha256, weights_sha256 = codec.files.identity
        asked = LatentSettings(
            source=source.fingerprint,
            data=source.name,
            class_names=source.class_names,
            num_images=len(source),
            image_size=size,
            crop=CROP,
            background=options.background,
            vae=VaeRecord(
                name=vae,
                config_sha256=config_sha256,
                weights_sha256=weights_sha256,
                scaling_factor=codec.files.scaling_factor,
            ),
            scale=codec.scale,
            shift=codec.shift,
            latent_shape=shape,
            dtype=options.dtype,
            mirrored=mirrored,
            images_per_shard=0,
            batch_size=options.batch_size,
        )
        asked = divided(asked, options, options.batch_size)
        agreement = Agreement(out, options, source, asked, functools.partial(_require_space, out))
        job = cls(out, options, codec, source, asked, Unfinished(out), agreement)
        job.agreement.state()
        return job

    @property
    def is_begun(self) -> bool:
        """True if images were checked and settings agreed on before.

        Raises:
            MismatchError: With other images or settings.
        """
        return self.agreement.state() is not None

    def notes(self) -> Iterator[Note]:
        """Notes on oddities of the images and the settings."""
        yield from layout_notes(self.source, checked=self.options.check)
        own = self.codec.files.scaling_factor
        if own is not None and own != self.codec.scale:
            vae = self.asked.vae.name
            message = f"The VAE `{vae}` asks for a scale of {own}, and {self.codec.scale} was asked for"
            yield Note(message=message, level="warning")
        if self.options.mirrored and not self.asked.mirrored:
            yield Note(message="Digits are never mirrored: encoding them as they are")

    def dry_run(self, part: WorkShare) -> dict[str, object]:
        """The plan, for a dry run."""
        state = self.agreement.state()
        settings = self.asked if state is None else state.settings
        done = self.unfinished.done(settings) if state is not None else set[int]()
        mine = [number for number in range(settings.num_shards) if part.holds(number)]
        missing = [number for number in mine if number not in done]
        return _summary(self.out, settings) | {
            "shards_kept": len(mine) - len(missing),
            "shards_to_write": len(missing),
            "bytes_to_write": settings.bytes_per_image * sum(len(settings.indices(number)) for number in missing),
            "free_bytes": free_bytes(self.out),
            "dry_run": True,
        }

    def fill(self, plan: Plan, mine: list[int], written: list[Shard], stop: StopRequest) -> Iterator[Event]:
        """Encode the shards that are ours and that nobody else is at, until all are there; adds them to ``written``."""
        settings = plan.settings
        source = self._without(plan.skipped)
        counts = {number: len(settings.indices(number)) for number in mine}
        missing = [number for number in mine if number not in self.unfinished.done(settings)]
        if not missing:
            return
        total = sum(counts.values())
        details: dict[str, object] = {
            "latents": "x".join(map(str, settings.latent_shape)),
            "shards": settings.num_shards,
            "device": str(self.codec.device),
        }
        first = total - sum(counts[number] for number in missing)
        yield Started(what="encode", total=total, unit="images", first=first, details=details)
        waited = False
        while missing:
            idle = True
            for number in missing:
                with self.unfinished.claim(number) as ours:
                    if not ours:
                        continue
                    idle = False
                    done = sum(counts[other] for other in self.unfinished.done(settings) if other in counts)
                    for step in self._encode_shard(number, settings, source):
                        if isinstance(step, Shard):
                            self.unfinished.add(number, step)
                            written.append(step)
                            break
                        if stop.requested is not None:
                            finished = len(self.unfinished.done(settings))
                            stop.obey(f"{finished} of {settings.num_shards} shards are finished")
                        size = (done + step) * settings.bytes_per_image
                        yield Progress(done=done + step, total=total, unit="images", size_bytes=size)
                yield Wrote(what="shard", path=self.out / shard_name(number))
            missing = [number for number in mine if number not in self.unfinished.done(settings)]
            if missing and idle:
                if not waited:
                    yield Note(message="Waiting for the processes that encode the last shards")
                    waited = True
                stop.obey("Other processes are at the last shards")
                time.sleep(SECONDS_BETWEEN_LOOKS)

    def _encode_shard(self, number: int, settings: LatentSettings, source: ImageSource) -> Iterator[int | Shard]:
        """Yields how many images are encoded, at last the shard."""
        indices = settings.indices(number)
        size = settings.batch_size
        groups = [indices[first : first + size] for first in range(0, len(indices), size)]
        labels = source.labels[indices.start : indices.stop]
        names = [source.sample_name(index) for index in indices]
        done = 0
        with closing(ShardWriter(self.out, number, settings, labels, names)) as writer:
            for group, images in groups_ahead(source, groups, num_workers=self.options.num_readers):
                try:
                    writer.add(_moments(self.codec, images, settings))
                except OverflowError as error:
                    raise DataError(
                        f"The VAE gave latents beyond {settings.dtype} (or NaN) for the images "
                        f"{group[0]} to {group[-1]}, the first of which is `{source.sample_name(group[0])}`",
                        "Store them by `dis encode-latents` with --dtype float32, in another --out"
                        if settings.dtype == "float16"
                        else "Use another VAE",
                    ) from error
                done += len(group)
                yield done
            yield writer.finish()

    def _without(self, skipped: tuple[Skipped, ...]) -> ImageSource:
        if not skipped or not isinstance(self.source, FileSource):
            return self.source
        return self.source.without([one.index for one in skipped])


def _moments(
    codec: VaeCodec, images: Float[Tensor, "b 3 h w"], settings: LatentSettings
) -> dict[str, NDArray[np.float32]]:
    moments: dict[str, NDArray[np.float32]] = {}
    for prefix, batch in {"": images, "mirrored_": images.flip(-1)}.items():
        if prefix and not settings.mirrored:
            continue
        for name, values in zip(("mean", "std"), codec.moments(batch), strict=True):
            moments[prefix + name] = values.cpu().numpy()
    return moments


def _summary(out: Path, settings: LatentSettings) -> dict[str, object]:
    return {
        "out": str(out),
        "data": settings.data,
        "num_images": settings.num_images,
        "num_classes": len(settings.class_names),
        "image_size": settings.image_size,
        "latent_shape": settings.latent_shape,
        "dtype": settings.dtype,
        "mirrored": settings.mirrored,
        "scale": settings.scale,
        "num_shards": settings.num_shards,
        "images_per_shard": settings.images_per_shard,
        "batch_size": settings.batch_size,
    }


def _require_place(data: Path | None, out: Path) -> None:
    if data is not None and out.resolve().is_relative_to(data.resolve()):
        raise UsageError(f"`{out}` lies inside the folder of the images, `{data}`", "Choose an --out outside of it")
    require_writable(out, "filled folder")
    # the manifest twice: another process may write it and remove what is unfinished in this moment
    is_ours = (out / MANIFEST).exists() or Unfinished(out).exists or (out / MANIFEST).exists()
    if not is_ours and out.is_dir() and any(not entry.name.startswith(".") for entry in out.iterdir()):
        raise UsageError(f"`{out}` holds other files and no latents", "Choose an empty or a new folder for --out")


def _require_space(out: Path, settings: LatentSettings, num_images: int) -> None:
    """Refuse to begin what the disk cannot hold."""
    needed, free = settings.bytes_per_image * num_images, free_bytes(out)
    if free is not None and needed > free:
        raise StorageError(
            f"Not enough space for `{out}` (needs {needed:,} bytes, {free:,} bytes free)",
            "Free some space there, or store less with `--no-flip` (or data.hflip=false)",
        )
