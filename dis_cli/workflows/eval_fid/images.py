"""The scored images: generated on the way by a model, or read from a path."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dis_cli.config.schema import RunConfig
from dis_cli.data.decode import printable
from dis_cli.data.images.archives import TarFiles, ZipFiles
from dis_cli.data.images.files import FolderFiles
from dis_cli.data.images.folders import list_images, split_folder
from dis_cli.data.open import kind_of
from dis_cli.errors import UsageError
from dis_cli.metrics.images.sets import FEATURE_BATCH, FileImages, NpzSet, Unit
from dis_cli.models.backbone import Backbone
from dis_cli.workflows.build import Codec
from dis_cli.workflows.sample.batch_size import pick_batch_size
from dis_cli.workflows.sample.generate import generate
from dis_cli.workflows.sample.output import GRID_FILE, SETTINGS_FILE

# What `dis sample` puts beside its images.
_PICTURES = (GRID_FILE, "trajectory.png", "trajectory.gif")


@dataclass(frozen=True, kw_only=True)
class GeneratedImages:
    """Images that a model makes on the way: image i has the seed ``seeds[i]``.

    Attributes:
        model: In evaluation mode.
        codec: Turns its grid into images.
        seeds: One an image.
        labels: The class of each; None when there are none.
    """

    model: Backbone
    codec: Codec
    config: RunConfig
    seeds: range
    labels: npt.NDArray[np.int64] | None
    device: torch.device
    precision: str
    unit_size: int

    name = "generated images"

    def __len__(self) -> int:
        return len(self.seeds)

    def image_name(self, place: int) -> str:
        """Its seed; see ImageSet."""
        return f"of seed {self.seeds[place]}"

    def units(self, wanted: Sequence[range]) -> Iterator[Unit | float]:
        """A few batches of the model a unit; see ImageSet."""
        for unit in wanted:
            images: list[Tensor] = []
            for batch in generate(
                self.model,
                self.codec,
                self.config,
                seeds=self.seeds[unit.start : unit.stop],
                classes=None if self.labels is None else self.labels[unit.start : unit.stop].tolist(),
                device=self.device,
                precision=self.precision,
            ):
                images += [] if batch.images is None else list(batch.images)
                yield batch.num_done / len(unit)
            yield Unit(unit.start, images)


def generated_unit_size(
    model: Backbone, config: RunConfig, device: torch.device, *, num_images: int, num_ranks: int
) -> int:
    """Images that a rank generates before their features are sent: what keeps all of them busy.

    Args:
        config: Its ``sample`` section may say how many at a time.
    """
    batch = pick_batch_size(model, config, device) // FEATURE_BATCH
    share = -(-num_images // (num_ranks * FEATURE_BATCH))
    return FEATURE_BATCH * max(1, min(batch, share))


def open_images(path: Path, background: str = "white") -> FileImages | NpzSet:
    """The images that a path names: a folder, a zip or tar file, or an npz file.

    Args:
        path: The path. What `dis sample` puts beside its images is no image.
        background: Colour behind transparent images.

    Raises:
        UsageError: It is none of these.
        DataError: There are no images, or they cannot be read.
    """
    if path.suffix.lower() == ".npz":
        return NpzSet(path)
    if path.suffix.lower() == ".npy":
        raise UsageError(
            f"`{printable(path)}` is one bare array, and images are read from .npz files",
            f"Save it as one: `python -c \"import numpy as np; np.savez('{path.stem}.npz', np.load('{path}'))\"`",
        )
    match kind_of(path, or_npz=True):
        case "zip":
            return FileImages(ZipFiles(path), background)
        case "tar":
            return FileImages(TarFiles(path), background)
        case _:
            part = split_folder(path, "all")
            listing = list_images(part.folder)
            if (path / SETTINGS_FILE).is_file():
                own = [index for index, name in enumerate(listing.names) if name not in _PICTURES]
                listing = dataclasses.replace(
                    listing,
                    names=[listing.names[index] for index in own],
                    labels=[listing.labels[index] for index in own],
                )
            return FileImages(FolderFiles(part.folder, listing, part.notes), background)
