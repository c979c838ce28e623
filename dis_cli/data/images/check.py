"""The pass over all files of a set before long work starts, which finds every bad one.

What was found flawless is remembered by its name, size and time of last change, and is not read again. This is kept in
the user's cache folder (DIS_CACHE_DIR, else the system's, such as ``~/.cache/dis``), in one file per set: 16 bytes that
mark it, then a digest of 16 bytes for each flawless file, sorted. Nothing in it is irreplaceable, so that a cache which
is missing, damaged, foreign or not to be written is no error. A change of a file that leaves its size and time as they
were is not seen. Bad files, and those of which something is left out, are reported every time and not remembered.
"""

import contextlib
import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL

from dis_cli.data.decode import RULES, UnreadableImage, check_image, printable
from dis_cli.data.images.files import ImageFiles
from dis_cli.errors import StorageError, is_limit
from dis_cli.runtime.files import atomic_write_bytes
from dis_cli.runtime.machine import cache_folder

_DIGEST_BYTES = 16
_MAGIC = b"DiS: flawless 1\n"
# Small files are read faster than they could be handed to the threads one by one.
_FILES_PER_TASK = 32


class ImageCheck:
    """Finds the files of a set that cannot be used.

    Args:
        num_workers: Threads that read; 0 counts as 1.

    Attributes:
        faults: "name: reason" for each file that cannot be used, by its place among the files.
        remarks: Parts left out of files that are used all the same, with the number of files.
    """

    def __init__(self, files: ImageFiles, *, num_workers: int) -> None:
        self.faults: dict[int, str] = {}
        self.remarks: Counter[str] = Counter()
        self._files = files
        self._num_workers = max(num_workers, 1)
        self._num_read = 0
        # the title is the path
        path = os.path.abspath(files.title)  # noqa: PTH100 - absolute() leaves `..` in
        self._digest_of_path = hashlib.blake2b(path.encode() + b"\0", digest_size=_DIGEST_BYTES)
        # Another Pillow may refuse what this one reads.
        self._cache = cache_folder() / f"checked-{RULES}-{PIL.__version__}-{self._digest_of_path.hexdigest()}"
        self._known = _read_digests(self._cache)
        self._flawless = bytearray()

    def read(self, places: Sequence[int]) -> None:
        """Read some of the files, each to be named once; not to be called from several threads.

        Args:
            places: Their places among the files.
        """
        step = min(len(places) // self._num_workers + 1, _FILES_PER_TASK)
        tasks = [places[first : first + step] for first in range(0, len(places), step)]
        # What Pillow itself warns of (damaged EXIF data and the like) leaves the image as it is. Around the pool and
        # not in its threads, because filters belong to the whole process.
        with warnings.catch_warnings(), ThreadPoolExecutor(self._num_workers) as pool:
            warnings.simplefilter("ignore")
            for task, verdicts in zip(tasks, pool.map(self._verdicts, tasks), strict=True):
                for place, verdict in zip(task, verdicts, strict=True):
                    self._take(place, verdict)
        self._num_read += len(places)

    def remember(self) -> None:
        """Store what is flawless; also after an interruption. Files that are gone are forgotten by a complete check."""
        digests = np.frombuffer(bytes(self._flawless), _VOID)
        if self._num_read < len(self._files.labels):
            digests = np.concatenate([self._known, digests])
        digests = np.unique(digests)
        if not np.array_equal(digests, self._known):
            with contextlib.suppress(StorageError):
                atomic_write_bytes(self._cache, _MAGIC + digests.tobytes())

    def _take(self, place: int, verdict: "_Verdict") -> None:
        if verdict.fault is not None:
            self.faults[place] = verdict.fault
        elif verdict.remarks:
            self.remarks.update(verdict.remarks)
        else:
            self._flawless += verdict.digest

    def _verdicts(self, places: Sequence[int]) -> list["_Verdict"]:
        return [self._verdict(place) for place in places]

    def _verdict(self, place: int) -> "_Verdict":
        name: bytes = self._files.names[place]
        try:
            # before the file is read: one that changes meanwhile is remembered as what it was
            size, changed = self._files.facts(place)
            hashed = self._digest_of_path.copy()
            hashed.update(name + b"\0%d\0%d" % (size, changed))
            digest = hashed.digest()
            return _Verdict(
                digest, None, [] if _contains(self._known, digest) else check_image(self._files.open(place))
            )
        except UnreadableImage as error:
            reason = error.reason
        except OSError as error:
            if is_limit(error):
                raise
            reason = error.strerror or str(error)
        return _Verdict(b"", f"{printable(os.fsdecode(name))}: {reason}", [])


class _Verdict(NamedTuple):
    digest: bytes
    fault: str | None
    remarks: list[str]


# A digest as a single value, which numpy compares by its bytes.
_VOID = np.dtype((np.void, _DIGEST_BYTES))


def _read_digests(path: Path) -> npt.NDArray[Any]:
    try:
        content = path.read_bytes() if path.is_file() else b""
    except OSError:
        content = b""
    if not content.startswith(_MAGIC) or len(content) % _DIGEST_BYTES:
        content = _MAGIC
    return np.frombuffer(content, _VOID, offset=len(_MAGIC))


def _contains(sorted_digests: npt.NDArray[Any], digest: bytes) -> bool:
    place = int(np.searchsorted(sorted_digests, np.frombuffer(digest, _VOID))[0])
    return place < len(sorted_digests) and sorted_digests[place].tobytes() == digest
