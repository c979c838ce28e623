"""Inspection of encoded latents: a check of their files, and a grid of their images."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from dis_cli.codecs.pixel import to_uint8
from dis_cli.codecs.vae import VaeCodec
from dis_cli.data.latents.format import FINISH_HINT, MANIFEST, read_manifest
from dis_cli.data.latents.source import LatentSource
from dis_cli.data.latents.unfinished import Unfinished
from dis_cli.errors import DataError
from dis_cli.events import Event, Finished, Note, Progress, Started, Wrote
from dis_cli.pictures.grid import labelled_grid, png_of
from dis_cli.runtime.device import pick_device
from dis_cli.runtime.files import atomic_write_bytes, place_for, require_replaceable
from dis_cli.runtime.targets import require_writable
from dis_cli.workflows.build import require_vae

GRID_FILE = "grid.png"


def verify_latents(folder: Path) -> Iterator[Event]:
    """Compare every finished shard of a folder with its sha256; reads all files.

    Raises:
        DataError: It holds no latents, or files are damaged or missing: all are named.
    """
    plan = None if (folder / MANIFEST).exists() else Unfinished(folder).read_plan()
    if plan is None:
        manifest = read_manifest(folder)
        settings, shards = manifest.settings, list(manifest.shards)
    else:
        recorded = Unfinished(folder).shards(plan.settings).values()
        settings, shards = plan.settings, [shard for shard in recorded if shard is not None]
    yield Started(what="verify", total=len(shards), unit="shards", details={"folder": str(folder)})
    faults: list[str] = []
    size_bytes = 0
    for done, shard in enumerate(shards, start=1):
        if fault := shard.fault(folder, hashed=True):
            faults.append(fault)
        size_bytes += shard.size_bytes
        yield Progress(done=done, total=len(shards), unit="shards")
    if faults:
        raise DataError(
            f"{len(faults)} of {len(shards)} shards are damaged" + "".join(f"\n  {fault}" for fault in faults),
            "Delete these files and run the same `dis encode-latents` again: it encodes what is missing",
        )
    if plan is not None:
        message = f"{len(shards)} of {settings.num_shards} shards are finished. {FINISH_HINT}"
        yield Note(message=message, level="warning")
    yield Finished(
        result={
            "out": str(folder),
            "complete": plan is None,
            "num_shards": settings.num_shards,
            "verified": len(shards),
            "size_bytes": size_bytes,
        }
    )


def decode_latents(
    folder: Path, *, vae: str | None, num_images: int, out: Path | None, device: str = "auto"
) -> Iterator[Event]:
    """Decode some latents, spread evenly over a folder, into a labelled grid: what the model will be trained on.

    Args:
        vae: The VAE that made them; None looks for it where it was then.
        out: The PNG file; None puts ``grid.png`` into the folder, or ``grid_2.png`` beside another picture.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        MismatchError: The VAE is another one.
        UsageError: ``out`` holds something else.
        DisError: The latents, the VAE, the device or the disk do not allow it.
    """
    path = out or folder / GRID_FILE
    source = LatentSource(folder, hflip=False)
    require_writable(path, "file", suffixes=(".png",))
    name = vae or source.settings.vae.name
    require_vae(source.settings.vae, name, f"The latents in `{folder}` were made by")
    codec = VaeCodec(name, scale=source.settings.scale, device=pick_device(device))
    indices = np.unique(np.linspace(0, len(source) - 1, min(num_images, len(source))).round().astype(int))
    yield Started(what="decode", total=len(indices), unit="images", details={"vae": name})
    latents = torch.stack([source.load(int(index), None) for index in indices])
    images = to_uint8(codec.decode(latents).cpu()).numpy()
    yield Progress(done=len(indices), total=len(indices), unit="images")
    labels = [source.class_names[source.labels[index]] for index in indices] if source.class_names else None
    picture = png_of(labelled_grid(list(images), labels))
    if out is not None:
        require_replaceable(out, picture, option="--out")
    else:
        path = place_for(path, picture)
    atomic_write_bytes(path, picture)
    yield Wrote(what="grid", path=path)
    yield Finished(result={"latents": str(folder), "grid": str(path), "num_images": len(indices), "vae": name})
