"""The files of a folder of encoded latents, written by `dis encode-latents` and read by `LatentSource`.

    manifest.json            what was encoded, how, and the sha256 of every shard; written last
    shard-00000.safetensors  images 0 to images_per_shard - 1, in the source's order
    shard-00001.safetensors  ...
    .progress/               only while the folder is unfinished: see `dis_cli.data.latents.unfinished`

A shard holds, for its N images:

    labels                       (N,) int64    0 to len(class_names) - 1; zeros when there are no classes
    mean, std                    (N, C, H, W)  of the VAE's posterior z, not scaled; float16 or float32
    mirrored_mean, mirrored_std  (N, C, H, W)  the same of the images flipped left to right; only when mirrored
    names                        (B,) uint8    the images' names, UTF-8 or whatever bytes they had, joined by NUL

The manifest, with ``"format": "dis-latents"`` and ``"version": 2``:

    settings    `LatentSettings`: what decides the bytes of the shards
    skipped     the images that were left out because they cannot be read
    statistics  per channel, of z over all images (mirrors included, posterior's variance included): mean, std
    shards      one `Shard` for each file
"""

import dataclasses
import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PlainValidator, TypeAdapter, ValidationError

from dis_cli.errors import DataError
from dis_cli.runtime.files import atomic_write_text, sha256_file

FORMAT: Final = "dis-latents"
VERSION: Final = 2
MANIFEST: Final = "manifest.json"
PROGRESS: Final = ".progress"
FINISH_HINT: Final = "Run the same `dis encode-latents` again to finish it"
Crop = Literal["centre square, resized as the ADM code does"]
CROP: Final[Crop] = "centre square, resized as the ADM code does"

Dtype = Literal["float32", "float16"]
STORED: Final = {"float32": "F32", "float16": "F16"}

Count = Annotated[int, Field(ge=1, strict=True)]
# Names of files may hold bytes that are no UTF-8, which pydantic refuses in a text.
Name = Annotated[str, PlainValidator(str)]

_Record = TypeVar("_Record")
_adapter = functools.cache(TypeAdapter)


@dataclass(frozen=True, kw_only=True)
class VaeRecord:
    """The VAE that made the latents.

    Attributes:
        name: The folder or hub id it was called by; says nothing of what is in it.
        config_sha256: Of the configuration, without the keys that only say where it came from.
        weights_sha256: Of the weights' file.
        scaling_factor: Scale in the configuration; None when it has none.
    """

    name: Name
    config_sha256: str
    weights_sha256: str
    scaling_factor: float | None


@dataclass(frozen=True, kw_only=True)
class LatentSettings:
    """The settings that decide the bytes of shards; they must not change between the runs that write one folder.

    Attributes:
        source: Fingerprint of the images as they were found.
        data: Name of the images; says nothing of their content.
        class_names: One for each class; empty when unlabelled.
        num_images: Images encoded; those that were skipped not counted.
        image_size: Side that images were cropped and resized to, in pixels.
        crop: How; always CROP.
        background: Colour behind transparent images.
        scale: Factor on z for training, so that latents have about unit variance.
        shift: Subtracted from z before; 0 for most VAEs.
        latent_shape: (C, H, W).
        dtype: Type of the stored moments.
        mirrored: Whether the flipped images are there too.
        images_per_shard: All shards have as many, but the last.
        batch_size: Images encoded at a time; it decides the last bits of a latent.
    """

    source: str
    data: Name
    class_names: tuple[Name, ...]
    num_images: Count
    image_size: Count
    crop: Crop
    background: str
    vae: VaeRecord
    scale: float
    shift: float
    latent_shape: tuple[Count, Count, Count]
    dtype: Dtype
    mirrored: bool
    images_per_shard: Count
    batch_size: Count

    @property
    def num_shards(self) -> int:
        """Shards when all are finished."""
        return -(-self.num_images // self.images_per_shard)

    @property
    def bytes_per_image(self) -> int:
        """Size of one image's moments and label, in bytes; its name comes on top."""
        return bytes_per_image(self.latent_shape, self.dtype, mirrored=self.mirrored)

    @property
    def moment_names(self) -> tuple[str, ...]:
        """The tensors of a shard that hold moments."""
        return ("mean", "std", "mirrored_mean", "mirrored_std") if self.mirrored else ("mean", "std")

    def indices(self, shard: int) -> range:
        """The images of a shard."""
        first = shard * self.images_per_shard
        return range(first, min(first + self.images_per_shard, self.num_images))


def bytes_per_image(latent_shape: tuple[int, int, int], dtype: Dtype, *, mirrored: bool) -> int:
    """Size of one image's moments and label, in bytes."""
    values = int(np.prod(latent_shape)) * (4 if mirrored else 2)
    return values * np.dtype(dtype).itemsize + 8


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A finished shard.

    Attributes:
        first: Index of its first image.
        sums: Per channel, the sum of z's mean over all its pixels, mirrors included.
        sums_of_squares: The same of mean squared plus variance.
    """

    file: str
    first: Annotated[int, Field(ge=0, strict=True)]
    count: Count
    size_bytes: Count
    sha256: str
    sums: tuple[float, ...]
    sums_of_squares: tuple[float, ...]

    def fault(self, folder: Path, *, hashed: bool) -> str | None:
        """The fault of the file, or None.

        Args:
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
class Skipped:
    """An image that was left out: its place among the files, and its name."""

    index: int
    name: Name


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A finished folder of latents."""

    settings: LatentSettings
    skipped: tuple[Skipped, ...]
    shards: tuple[Shard, ...]

    @property
    def statistics(self) -> dict[str, list[float]]:
        """Mean and standard deviation of z per channel, in float64."""
        _, height, width = self.settings.latent_shape
        values = self.settings.num_images * height * width * (2 if self.settings.mirrored else 1)
        # one shard after the other in their order, so that it does not matter who finished last
        mean = sum((np.array(shard.sums) for shard in self.shards), np.zeros(1)) / values
        square = sum((np.array(shard.sums_of_squares) for shard in self.shards), np.zeros(1)) / values
        return {"mean": mean.tolist(), "std": np.sqrt(np.maximum(square - mean**2, 0)).tolist()}


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"shard-{shard:05d}.safetensors"


def tensor_places(file: NDArray[np.uint8]) -> dict[str, int]:
    """The offsets of a shard's tensors, in bytes from the start of the file.

    Args:
        file: Its bytes; a mapped file will do, of which only the header is read.
    """
    size = int.from_bytes(file[:8].tobytes(), "little")
    header = json.loads(file[8 : 8 + size].tobytes())
    return {name: 8 + size + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` atomically."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "settings": dataclasses.asdict(manifest.settings),
        "skipped": [dataclasses.asdict(one) for one in manifest.skipped],
        "statistics": manifest.statistics,
        "shards": [dataclasses.asdict(shard) for shard in manifest.shards],
    }
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
            "Write them with `dis encode-latents --data IMAGES --vae DIR --out LATENTS`, and give that folder",
        )
    content = read_record(path)
    try:
        manifest = parse(Manifest, content)
        _check_shards(manifest)
    except ValueError as error:
        raise damaged(path, error) from error
    return manifest


def read_record(path: Path) -> dict[str, Any]:
    """A JSON file of a folder of latents, of this format and version.

    Raises:
        FileNotFoundError, NotADirectoryError: It is absent.
        DataError: It is damaged, or of another format or version.
    """
    try:
        content = json.loads(path.read_bytes())
        found = (content["format"], content["version"])
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, error) from error
    if found != (FORMAT, VERSION):
        raise DataError(
            f"`{path}` is {found[0]} version {found[1]}; this program reads {FORMAT} version {VERSION}",
            "Encode the images again, into another folder",
        )
    return content


def damaged(path: Path, error: Exception) -> DataError:
    """The error to raise for a record that cannot be read."""
    return DataError(f"`{path}` is damaged: {type(error).__name__}: {error}", "Delete the folder and encode again")


def parse(kind: type[_Record], record: object) -> _Record:
    """A record of this kind, a dataclass, from JSON.

    Raises:
        ValueError: It is none: names the first value that is impossible.
    """
    try:
        return _adapter(kind).validate_python(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}, got {first['input']!r:.80}") from error


def content_hash(manifest: Manifest) -> str:
    """A sha256 of all that training sees: the shards, the factors, the classes."""
    settings = manifest.settings
    content = [*(shard.sha256 for shard in manifest.shards), f"{settings.scale!r} {settings.shift!r}"]
    return hashlib.sha256("\n".join([*content, *settings.class_names]).encode()).hexdigest()


def _check_shards(manifest: Manifest) -> None:
    # The names are checked because a manifest must not lead to files elsewhere.
    settings = manifest.settings
    expected = [(shard_name(number), settings.indices(number)) for number in range(settings.num_shards)]
    for shard, (file, indices) in zip(manifest.shards, expected, strict=True):
        if (shard.file, shard.first, shard.count) != (file, indices.start, len(indices)):
            raise ValueError(f"shard record {shard.file!r} (first {shard.first}, count {shard.count}) is impossible")
