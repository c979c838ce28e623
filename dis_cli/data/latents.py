"""Training data that a VAE has encoded beforehand: memory-mapped shards of posterior moments.

The format is described in `dis_cli.data.shards`.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dis_cli.data.shards import FINISH_HINT, Shard, read_manifest
from dis_cli.errors import DataError, MismatchError


class LatentSource:
    """Latents of a folder written by `dis encode-latents`; the images are drawn from the VAE's posterior.

    Files are mapped into memory when first used, once per process, so a copy sent to a loader process opens its own.

    Args:
        path: The folder.
        image_size: Side of the latent grid that the model expects; None accepts what is there.
        channels: Channels that the model expects; None accepts what is there.
        hflip: Mirror half of the draws; needs mirrored latents in the folder.
        scale: Factor on the VAE's z that the run expects; None takes the folder's.

    Raises:
        DataError: Latents are missing, unfinished or damaged.
        MismatchError: The latents are of another shape or scale, or were not mirrored.
    """

    def __init__(
        self,
        path: Path,
        *,
        image_size: int | None = None,
        channels: int | None = None,
        hflip: bool = True,
        scale: float | None = None,
    ) -> None:
        manifest = read_manifest(path)
        self.settings = manifest.settings
        self._path = path
        self._shards = sorted(manifest.shards, key=lambda shard: shard.first)
        self._handles: dict[int, Any] = {}
        if not manifest.complete:
            raise DataError(
                f"Latents in `{path}` are unfinished: {len(manifest.shards)} of {manifest.settings.num_shards} shards",
                hint=FINISH_HINT,
            )
        self._check_fit(image_size, channels, scale, hflip)
        self.labels = np.concatenate([self._read_labels(shard) for shard in self._shards])

        self.name = "latents"
        self.hflip = hflip
        self.scale = self.settings.scale
        self.class_names = self.settings.class_names
        self.num_classes = len(self.class_names)
        self.channels, self.image_size, _ = self.settings.latent_shape
        content = [*(shard.sha256 for shard in self._shards), repr(self.scale), *self.class_names]
        self.fingerprint = hashlib.sha256("\n".join(content).encode()).hexdigest()

    def __len__(self) -> int:
        return self.settings.num_images

    def __getstate__(self) -> dict[str, Any]:
        # A mapped file cannot be pickled.
        return self.__dict__ | {"_handles": {}}

    def sample_name(self, index: int) -> str:
        """The place in the folder's order."""
        return f"{self.name}/{index:07d}"

    def load(self, index: int, rng: np.random.Generator | None) -> Float[Tensor, "c h w"]:
        """One latent, scaled.

        Args:
            index: 0 to ``len(self) - 1``.
            rng: Draws the mirror, then the posterior's noise: scale * (mean + exp(logvar / 2) * noise). None gives the
                mode: scale * mean, not mirrored.

        Raises:
            IndexError: No such image.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside 0 to {len(self) - 1}")
        shard, row = divmod(index, self.settings.shard_size)
        if rng is None:
            return torch.from_numpy(self.scale * self._row(shard, "mean", row))
        prefix = "mirrored_" if self.hflip and rng.random() < 0.5 else ""
        mean = self._row(shard, prefix + "mean", row)
        deviation = np.exp(0.5 * self._row(shard, prefix + "logvar", row))
        noise = rng.standard_normal(mean.shape, dtype=np.float32)
        return torch.from_numpy(self.scale * (mean + deviation * noise))

    def verify(self) -> None:
        """Compare every shard with its sha256; reads all files.

        Raises:
            DataError: Names every damaged file, with the expected and the found sha256.
        """
        faults = [fault for shard in self._shards if (fault := shard.fault(self._path, hashed=True))]
        if faults:
            raise DataError("\n".join(faults), hint=FINISH_HINT)

    def _check_fit(self, image_size: int | None, channels: int | None, scale: float | None, hflip: bool) -> None:
        there, height, width = self.settings.latent_shape
        wanted = (channels or there, image_size or height, image_size or width)
        if wanted != self.settings.latent_shape:
            raise MismatchError(
                f"Latents in `{self._path}` are {there} x {height} x {width} (channels x height x width), "
                f"the model expects {wanted[0]} x {wanted[1]} x {wanted[2]}",
                hint=f"Set model.in_channels={there} model.image_size={height}, "
                "or encode again with another --image-size or VAE",
            )
        if scale is not None and scale != self.settings.scale:
            raise MismatchError(
                f"Latents in `{self._path}` were encoded for the scale {self.settings.scale}, the run has {scale}",
                hint=f"Set codec.scale={self.settings.scale}",
            )
        if hflip and not self.settings.mirrored:
            raise MismatchError(
                f"data.hflip is true, and the latents in `{self._path}` were encoded with --no-flip",
                hint="Set data.hflip=false, or encode again without --no-flip",
            )

    def _read_labels(self, shard: Shard) -> NDArray[np.int64]:
        if fault := shard.fault(self._path, hashed=False):
            raise DataError(fault, hint=FINISH_HINT)
        shape = [shard.count, *self.settings.latent_shape]
        names = ["mean", "logvar"] + (["mirrored_mean", "mirrored_logvar"] if self.settings.mirrored else [])
        try:
            with safe_open(self._path / shard.file, framework="np") as tensors:
                fits = all(tensors.get_slice(name).get_shape() == shape for name in names)
                labels = np.asarray(tensors.get_tensor("labels"))
        except (SafetensorError, OSError) as error:
            raise DataError(f"`{self._path / shard.file}` is damaged: {error}", hint=FINISH_HINT) from error
        num_classes = max(len(self.settings.class_names), 1)
        if not fits or labels.shape != (shard.count,) or not np.all((labels >= 0) & (labels < num_classes)):
            raise DataError(f"`{self._path / shard.file}` does not hold what the manifest says", hint=FINISH_HINT)
        return labels.astype(np.int64)

    def _row(self, shard: int, name: str, row: int) -> NDArray[np.float32]:
        if shard not in self._handles:
            self._handles[shard] = safe_open(self._path / self._shards[shard].file, framework="np")
        return np.asarray(self._handles[shard].get_slice(name)[row], dtype=np.float32)
