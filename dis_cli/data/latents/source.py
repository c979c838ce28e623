"""Training data that a VAE has encoded beforehand: memory-mapped shards of posterior moments.

The format is described in `dis_cli.data.latents.format`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dis_cli.data.latents.format import (
    FINISH_HINT,
    MANIFEST,
    PROGRESS,
    STORED,
    Shard,
    content_hash,
    read_manifest,
    tensor_places,
)
from dis_cli.data.source import require_index
from dis_cli.errors import DataError, MismatchError
from dis_cli.runtime.untrusted import check_safetensors


class LatentSource:
    """Latents of a folder written by `dis encode-latents`; the images are drawn from the VAE's posterior.

    Files are mapped into memory when first used, once per process, so a copy sent to a loader process maps its own.
    Opening reads the headers and labels of the shards, not their moments.

    Args:
        image_size: Side of the latent grid that the model expects; None accepts what is there.
        channels: Channels that the model expects; None accepts what is there.
        hflip: Mirror half of the draws; needs mirrored latents in the folder.
        scale: Factor on the VAE's z that the run expects; None takes the folder's.

    Raises:
        DataError: Latents are missing, unfinished or damaged.
        MismatchError: The latents are of another shape or scale, or were not mirrored.
        RefusedError: A shard is made to do harm.
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
        if not (path / MANIFEST).is_file() and (path / PROGRESS).is_dir():
            raise DataError(f"Latents in `{path}` are unfinished", hint=FINISH_HINT)
        manifest = read_manifest(path)
        self.settings = manifest.settings
        self._path = path
        self._shards = manifest.shards
        self._maps: dict[int, dict[str, NDArray[np.floating[Any]]]] = {}
        self._check_fit(image_size, channels, scale, hflip)
        self.labels = np.concatenate([self._read_labels(shard) for shard in self._shards])
        self.labels.flags.writeable = False

        self.name = "latents"
        self.hflip = hflip
        self.class_names = self.settings.class_names
        self.num_classes = len(self.class_names)
        self.channels, self.image_size, _ = self.settings.latent_shape
        self.fingerprint = content_hash(manifest)

    def __len__(self) -> int:
        return self.settings.num_images

    def __getstate__(self) -> dict[str, Any]:
        # A mapped file would be pickled with its content.
        return self.__dict__ | {"_maps": {}}

    def sample_name(self, index: int) -> str:
        """The name of the image that was encoded."""
        require_index(index, len(self))
        shard, row = divmod(index, self.settings.images_per_shard)
        with safe_open(self._path / self._shards[shard].file, framework="np") as tensors:
            return bytes(tensors.get_tensor("names")).split(b"\0")[row].decode(errors="surrogateescape")

    def load(self, index: int, rng: np.random.Generator | None) -> Float[Tensor, "c h w"]:
        """One latent, scaled.

        Args:
            index: 0 to ``len(self) - 1``.
            rng: Draws the mirror, then the posterior's noise: scale * (mean + std * noise - shift). None gives the
                mode: scale * (mean - shift), not mirrored.

        Raises:
            IndexError: No such image.
        """
        require_index(index, len(self))
        if rng is not None:
            return self.load_batch([index], iter([rng]))[0]
        shard, row = divmod(index, self.settings.images_per_shard)
        return self._scaled(_single(self._moments(shard)["mean"][row]))

    def load_batch(self, indices: Sequence[int], rngs: Iterator[np.random.Generator]) -> Float[Tensor, "b c h w"]:
        """The results of ``load`` for all indices with their generators, in half the time; see BatchSource."""
        shape = (len(indices), *self.settings.latent_shape)
        noise = np.empty(shape, dtype=np.float32)
        mean, std = (np.empty(shape, dtype=self.settings.dtype) for _ in range(2))
        for row, (index, rng) in enumerate(zip(indices, rngs, strict=True)):
            require_index(index, len(self))
            shard, place = divmod(index, self.settings.images_per_shard)
            moments = self._moments(shard)
            prefix = "mirrored_" if self.hflip and rng.random() < 0.5 else ""
            rng.standard_normal(out=noise[row], dtype=np.float32)
            mean[row] = moments[prefix + "mean"][place]
            std[row] = moments[prefix + "std"][place]
        return self._scaled(torch.from_numpy(noise).mul_(_single(std)).add_(_single(mean)))

    def _scaled(self, z: Tensor) -> Tensor:
        if self.settings.shift:
            z.sub_(self.settings.shift)
        return z.mul_(self.settings.scale)

    def _check_fit(self, image_size: int | None, channels: int | None, scale: float | None, hflip: bool) -> None:
        there, height, width = self.settings.latent_shape
        wanted = (channels or there, image_size or height, image_size or width)
        if wanted != self.settings.latent_shape:
            raise MismatchError(
                f"Latents in `{self._path}` are {there} x {height} x {width} (channels x height x width), "
                f"the model expects {wanted[0]} x {wanted[1]} x {wanted[2]}",
                hint=f"Set model.in_channels={there} model.image_size={height}, "
                "or encode again by `dis encode-latents` with another `--image-size` or `--vae`",
            )
        if scale is not None and scale != self.settings.scale:
            raise MismatchError(
                f"Latents in `{self._path}` were encoded for the scale {self.settings.scale}, the run has {scale}",
                hint=f"Set codec.scale={self.settings.scale}",
            )
        if hflip and not self.settings.mirrored:
            raise MismatchError(
                f"data.hflip is true, and the latents in `{self._path}` were made by `dis encode-latents --no-flip`",
                hint="Set data.hflip=false, or encode again by `dis encode-latents` without `--no-flip`",
            )

    def _read_labels(self, shard: Shard) -> NDArray[np.int64]:
        if fault := shard.fault(self._path, hashed=False):
            raise DataError(fault, hint=FINISH_HINT)
        path = self._path / shard.file
        shape, stored = [shard.count, *self.settings.latent_shape], STORED[self.settings.dtype]
        check_safetensors(path)
        try:
            with safe_open(path, framework="np") as tensors:
                moments = [tensors.get_slice(name) for name in self.settings.moment_names]
                fits = all(there.get_shape() == shape and there.get_dtype() == stored for there in moments)
                labels = np.asarray(tensors.get_tensor("labels"))
        except (SafetensorError, OSError) as error:
            raise DataError(f"`{path}` is damaged: {error}", hint=FINISH_HINT) from error
        num_classes = max(len(self.settings.class_names), 1)
        fits = fits and labels.dtype == np.int64 and labels.shape == (shard.count,)
        if not fits or not np.all((labels >= 0) & (labels < num_classes)):
            raise DataError(f"`{path}` does not hold what the manifest says", hint=FINISH_HINT)
        return labels

    def _moments(self, shard: int) -> dict[str, NDArray[np.floating[Any]]]:
        if shard in self._maps:
            return self._maps[shard]
        record = self._shards[shard]
        shape = (record.count, *self.settings.latent_shape)
        # Not mapped for PyTorch, which knows writable arrays only: the system would set memory aside for all of it.
        # And as a plain array: NumPy's class for mapped ones takes five microseconds to give a row.
        whole = np.asarray(np.memmap(self._path / record.file, mode="r"))
        places = tensor_places(whole)
        dtype = np.dtype(self.settings.dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        self._maps[shard] = {
            name: whole[places[name] : places[name] + size].view(dtype).reshape(shape)
            for name in self.settings.moment_names
        }
        return self._maps[shard]


def _single(moments: NDArray[np.floating[Any]]) -> Tensor:
    """A copy in float32; PyTorch reads float16 seven times as fast as NumPy."""
    return torch.from_numpy(np.array(moments)).float()
