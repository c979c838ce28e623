"""Cached measurements of sets of images, in the user's cache folder under a key of their content.

The key holds all that the numbers depend on, so that a changed image, weight or setting is another entry, and none is
ever out of date. An entry is a file ``scores/KEY.cache``: the sha256 of the rest in 32 bytes, then safetensors. Nothing
in it is irreplaceable: an entry that is missing, damaged or not to be written is no error.
"""

import contextlib
import hashlib
import json
import secrets
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from jaxtyping import Shaped, UInt8
from safetensors import SafetensorError
from torch import Tensor

from dis_cli.errors import StorageError
from dis_cli.runtime.files import TEMPORARY_PREFIX, publish, write_hashed
from dis_cli.runtime.machine import cache_folder

_VERSION = 1
_DIGEST_BYTES = 32


class ImageDigest:
    """The sha256 of the pixels of images in their order: equal for a folder, an archive and an array of the same."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.count = 0

    def update(self, images: UInt8[Tensor, "b h w c"]) -> None:
        """Add images; how they are cut into batches makes no difference."""
        for image in images.cpu().contiguous().numpy():
            self._digest.update(struct.pack("<3I", *image.shape))
            self._digest.update(image)
        self.count += len(images)

    def hexdigest(self) -> str:
        """Of all so far."""
        return self._digest.hexdigest()


@dataclass(frozen=True)
class Key:
    """The key of an entry: all that its numbers depend on.

    Args:
        kind: Kind of numbers, such as "statistics".
        images_sha256: Of the images' content (`ImageDigest`); names, sizes and times are not enough.
        extractor_sha256: Of its weights.
        preprocessing: Preprocessing of an image.
        computed: Other influences on the numbers: the device, the batch size, the version of torch.
    """

    kind: str
    images_sha256: str
    num_images: int
    extractor: str
    extractor_sha256: str
    preprocessing: str
    computed: str = ""

    @property
    def text(self) -> str:
        """All of it, in one order."""
        return json.dumps(asdict(self) | {"version": _VERSION}, sort_keys=True)


class ScoreCache:
    """The entries in a folder; any number of processes may use it at once.

    Args:
        folder: Folder of the entries; None takes ``scores`` in DIS_CACHE_DIR, else in ``~/.cache/dis`` or the like.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or cache_folder() / "scores"

    def get(self, key: Key) -> dict[str, Shaped[np.ndarray, "..."]] | None:
        """The arrays of an entry; None when it is not there, damaged, or of another key."""
        try:
            content = self._path(key).read_bytes()
        except OSError:
            return None
        body = memoryview(content)[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != content[:_DIGEST_BYTES]:
            return None
        try:
            arrays = safetensors.numpy.load(bytes(body))
        except SafetensorError:
            return None
        found = arrays.pop("key", None)
        return arrays if found is not None and found.tobytes().decode() == key.text else None

    def put(self, key: Key, arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> None:
        """Keep arrays; of several processes that write the same entry, each writes it whole, and the last one stays.

        Args:
            arrays: The arrays, by names other than "key".
        """
        text = np.frombuffer(key.text.encode(), np.uint8)
        everything = dict(arrays) | {"key": text}
        body = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in everything.items()})
        temporary = self._folder / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        with contextlib.suppress(OSError, StorageError):
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                chunks = (hashlib.sha256(body).digest(), body)
                write_hashed(temporary, chunks, size=len(body) + _DIGEST_BYTES, shown_as=self._path(key))
                publish(temporary, self._path(key))
            finally:
                temporary.unlink(missing_ok=True)

    def _path(self, key: Key) -> Path:
        return self._folder / f"{hashlib.sha256(key.text.encode()).hexdigest()}.cache"
