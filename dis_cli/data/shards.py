"""The files of a folder of encoded latents, written by `dis encode-latents` and read by `LatentSource`.

    manifest.json            what was encoded, how, and which shards are finished
    shard-00000.safetensors  images 0 to shard_size - 1, in the source's order
    shard-00001.safetensors  ...

The manifest, with ``"format": "dis-latents"`` and ``"version": 1``:

    complete   false until every shard is finished
    settings   source (fingerprint of the images), class_names, num_images, image_size (pixels), vae (fingerprint),
               scale, latent_shape (C, H, W), dtype, mirrored, shard_size, batch_size (images encoded at a time; it
               decides the last bits of a latent)
    shards     one record for each finished shard: file, first (index of its first image), count, size_bytes, sha256

A shard holds, for its N images:

    mean, logvar                      (N, C, H, W)  moments of the VAE's posterior, not scaled; logvar in [-30, 20]
    mirrored_mean, mirrored_logvar    (N, C, H, W)  the same of the images flipped left to right; only when mirrored
    labels                            (N,) int64    0 to len(class_names) - 1; zeros when there are no classes

Moments are float32 or float16, as ``dtype`` says. A shard is in the manifest only after it has its final name, so
whatever the manifest lists is whole.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from dis_cli.errors import DataError
from dis_cli.runtime.files import atomic_write_bytes, atomic_write_text, sha256_file

FORMAT: Final = "dis-latents"
VERSION: Final = 1
MANIFEST: Final = "manifest.json"
FINISH_HINT: Final = "Run the same `dis encode-latents` again to finish it"

Dtype = Literal["float32", "float16"]


@dataclass(frozen=True, kw_only=True)
class LatentSettings:
    """What decides the bytes of the shards; it must not change between the runs that write one folder."""

    source: str
    class_names: tuple[str, ...]
    num_images: int
    image_size: int
    vae: str
    scale: float
    latent_shape: tuple[int, int, int]
    dtype: Dtype
    mirrored: bool
    shard_size: int
    batch_size: int

    @property
    def num_shards(self) -> int:
        """Shards when all are finished."""
        return -(-self.num_images // self.shard_size)

    @property
    def bytes_per_image(self) -> int:
        """Size of one image's moments and label, in bytes."""
        values = int(np.prod(self.latent_shape)) * (4 if self.mirrored else 2)
        return values * np.dtype(self.dtype).itemsize + 8

    def indices(self, shard: int) -> range:
        """The images of a shard."""
        first = shard * self.shard_size
        return range(first, min(first + self.shard_size, self.num_images))

    def missing(self, finished: "list[Shard]") -> dict[int, range]:
        """The shards that are not among the finished ones, in order, with their images."""
        present = {shard.first for shard in finished}
        shards = {number: self.indices(number) for number in range(self.num_shards)}
        return {number: indices for number, indices in shards.items() if indices.start not in present}


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A finished shard."""

    file: str
    first: int
    count: int
    size_bytes: int
    sha256: str

    def fault(self, folder: Path, *, hashed: bool) -> str | None:
        """What is wrong with the file, or None.

        Args:
            folder: The folder of the shard.
            hashed: Also compare the sha256, which reads the whole file.
        """
        path = folder / self.file
        if not path.is_file():
            return f"`{path}` is missing"
        size = path.stat().st_size
        if size != self.size_bytes:
            return f"`{path}` is damaged: expected {self.size_bytes} bytes, found {size}"
        if hashed and (found := sha256_file(path)) != self.sha256:
            return f"`{path}` is damaged: expected sha256 {self.sha256}, found {found}"
        return None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The state of a folder of latents."""

    settings: LatentSettings
    shards: tuple[Shard, ...]

    @property
    def complete(self) -> bool:
        """Whether every shard is finished."""
        return len(self.shards) == self.settings.num_shards


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"shard-{shard:05d}.safetensors"


def write_shard(folder: Path, shard: int, first: int, arrays: dict[str, NDArray[Any]]) -> Shard:
    """Write one shard atomically.

    Args:
        folder: The folder of latents; it exists.
        shard: Number of the shard.
        first: Index of its first image.
        arrays: The tensors named in this module's description, with the final dtypes.

    Raises:
        StorageError: The disk is full or read-only.
    """
    path = folder / shard_name(shard)
    # safetensors stores the memory of an array as it lies, and so permutes one that is not contiguous, in silence.
    atomic_write_bytes(path, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
    return Shard(
        file=path.name,
        first=first,
        count=len(arrays["labels"]),
        size_bytes=path.stat().st_size,
        sha256=sha256_file(path),
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` atomically."""
    content = {"format": FORMAT, "version": VERSION, "complete": manifest.complete, **dataclasses.asdict(manifest)}
    atomic_write_text(folder / MANIFEST, json.dumps(content, indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read ``manifest.json``.

    Raises:
        DataError: It is absent, damaged or of another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(
            f"No encoded latents in `{folder}`: it has no {MANIFEST}",
            f"Write them with `dis encode-latents --data IMAGES --vae DIR --out {folder}`",
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = (content["format"], content["version"])
        if found == (FORMAT, VERSION):
            return _parse(content)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"`{path}` is damaged: {type(error).__name__}: {error}",
            "Delete the folder and encode again",
        ) from error
    raise DataError(f"`{path}` is {found[0]} version {found[1]}; this program reads {FORMAT} version {VERSION}")


def _parse(content: dict[str, Any]) -> Manifest:
    given = content["settings"]
    channels, height, width = given["latent_shape"]
    settings = LatentSettings(
        source=str(given["source"]),
        class_names=tuple(str(name) for name in given["class_names"]),
        num_images=_at_least(1, given["num_images"]),
        image_size=_at_least(1, given["image_size"]),
        vae=str(given["vae"]),
        scale=float(given["scale"]),
        latent_shape=(_at_least(1, channels), _at_least(1, height), _at_least(1, width)),
        dtype=_dtype(given["dtype"]),
        mirrored=bool(given["mirrored"]),
        shard_size=_at_least(1, given["shard_size"]),
        batch_size=_at_least(1, given["batch_size"]),
    )
    shards = tuple(Shard(**record) for record in content["shards"])
    numbers = [shard.first // settings.shard_size for shard in shards]
    for number, shard in zip(numbers, shards, strict=True):
        indices = settings.indices(number)
        # The names are checked because a manifest must not lead to files elsewhere.
        if (shard.file, shard.first, shard.count) != (shard_name(number), indices.start, len(indices)):
            raise ValueError(f"shard record {shard.file!r} (first {shard.first}, count {shard.count}) is impossible")
    if len(set(numbers)) != len(numbers):
        raise ValueError("a shard is listed twice")
    return Manifest(settings=settings, shards=shards)


def _at_least(bound: int, value: object) -> int:
    if not isinstance(value, int) or value < bound:
        raise ValueError(f"expected a whole number of at least {bound}, got {value!r}")
    return value


def _dtype(value: object) -> Dtype:
    if value not in get_args(Dtype):
        raise ValueError(f"dtype must be one of {', '.join(get_args(Dtype))}, got {value!r}")
    return cast("Dtype", value)
