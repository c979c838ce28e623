"""Writing a shard of latents: batch by batch, under another name until it is whole."""

import contextlib
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dis_cli.data.latents.format import PROGRESS, STORED, LatentSettings, Shard, shard_name
from dis_cli.runtime.files import publish, sha256_file, storage_error
from dis_cli.runtime.safetensors_layout import Stored, layout


class ShardWriter:
    """Writes one shard batch by batch, so that memory does not grow with the shard.

    The file has a temporary name in ``.progress`` until ``finish`` gives it its own.

    Args:
        folder: The folder of latents, with its ``.progress``.
        labels: (N,) of the shard's images.
        names: Of the shard's images.

    Raises:
        StorageError: The disk is full or read-only; the same from every method.
    """

    def __init__(
        self, folder: Path, number: int, settings: LatentSettings, labels: NDArray[np.int64], names: list[str]
    ) -> None:
        self._settings = settings
        self._number = number
        self._count = len(labels)
        self._final = folder / shard_name(number)
        self._temporary = folder / PROGRESS / f"{self._final.stem}.tmp"
        joined = b"\0".join(os.fsencode(name) for name in names)
        header, self._begins, self.size_bytes = _layout(settings, self._count, len(joined))
        self._row_bytes = int(np.prod(settings.latent_shape)) * np.dtype(settings.dtype).itemsize
        self._written = 0
        self._sums = np.zeros((2, settings.latent_shape[0]))
        with self._refusals():
            self._file = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            self._put(header, 0)
            self._put(labels.astype("<i8").tobytes(), self._begins["labels"])
            self._put(joined, self._begins["names"])
        except BaseException:
            self.close()
            raise

    def add(self, moments: dict[str, NDArray[np.float32]]) -> None:
        """Append the moments of some images.

        Args:
            moments: (n, C, H, W) for each of the settings' ``moment_names``.

        Raises:
            OverflowError: A value is beyond the stored type's range, or not finite.
        """
        stored: dict[str, NDArray[Any]] = {}
        for name in self._settings.moment_names:
            with np.errstate(over="ignore"):
                stored[name] = np.ascontiguousarray(moments[name].astype(np.dtype(self._settings.dtype)))
            if not np.isfinite(stored[name]).all():
                raise OverflowError(name)
            self._put(stored[name].tobytes(), self._begins[name] + self._written * self._row_bytes)
        for prefix in ("", "mirrored_") if self._settings.mirrored else ("",):
            mean, std = (stored[prefix + name].astype(np.float64) for name in ("mean", "std"))
            self._sums += np.stack([mean.sum(axis=(0, 2, 3)), (mean**2 + std**2).sum(axis=(0, 2, 3))])
        self._written += len(moments["mean"])

    def finish(self) -> Shard:
        """Give the file, complete and forced to the disk, its name."""
        with self._refusals():
            sha256 = sha256_file(self._temporary)
            publish(self._temporary, self._final)
        sums, squares = self._sums.tolist()
        return Shard(
            file=self._final.name,
            first=self._settings.indices(self._number).start,
            count=self._count,
            size_bytes=self.size_bytes,
            sha256=sha256,
            sums=tuple(sums),
            sums_of_squares=tuple(squares),
        )

    def close(self) -> None:
        """Close the file, and delete it if it was not finished."""
        os.close(self._file)
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def _put(self, data: bytes, place: int) -> None:
        left = memoryview(data)
        with self._refusals():
            while left:
                written = os.pwrite(self._file, left, place)
                left, place = left[written:], place + written

    @contextlib.contextmanager
    def _refusals(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise storage_error(self._final, error, self.size_bytes) from error


def _layout(settings: LatentSettings, count: int, names_bytes: int) -> tuple[bytes, dict[str, int], int]:
    """A shard's header, where its tensors begin, and its size, all in bytes from the start of the file."""
    shape = [count, *settings.latent_shape]
    moments = Stored(STORED[settings.dtype], shape, int(np.prod(shape)) * np.dtype(settings.dtype).itemsize)
    tensors = {"labels": Stored("I64", [count], 8 * count)}
    tensors |= dict.fromkeys(settings.moment_names, moments)
    tensors["names"] = Stored("U8", [names_bytes], names_bytes)
    return layout(tensors)
