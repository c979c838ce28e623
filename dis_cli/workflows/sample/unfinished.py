"""Generated images while more of them are being made: a folder beside the result that a kill leaves as it is.

    OUT.unfinished/settings.json       what is being made
    OUT.unfinished/part-00000064.npz   finished images from place 64 on, and their classes
    OUT.unfinished/result              the result, in the moments before it gets its name

A part appears whole or not at all, and carries the checksums of its content. Any number of processes that share the
file system add parts; one of them, the leader, makes the result. How the places are dealt out to parts decides nothing.
"""

import io
import json
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from dis_cli.errors import DataError, MismatchError, differing, flat, listed, shortened
from dis_cli.runtime.files import atomic_write_bytes, atomic_write_text, remove_temporaries, storage_error

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

# The version of the samplers of before it was noted (`dis_cli.diffusion.samplers.table`).
FIRST_SAMPLERS: Final = {"samplers": 1}

_PART = re.compile(r"part-([0-9]{8,})\.npz")


class UnfinishedSamples:
    """The folder of finished parts beside ``out``."""

    def __init__(self, out: Path) -> None:
        self.path = out.with_name(f"{out.name}.unfinished")
        self._settings = self.path / "settings.json"
        self.result = self.path / "result"

    def begin(self, facts: dict[str, object]) -> None:
        """Make the folder, or continue the one that is there.

        Args:
            facts: All that the images depend on.

        Raises:
            MismatchError: What is there was begun with other facts; names them.
            StorageError: The folder cannot be made.
        """
        there = self.facts()
        if there is not None:
            require_same(self.path, there, facts)
            self._clear()
            return
        try:
            if self.path.is_dir() and any(not entry.name.startswith(".tmp-") for entry in self.path.iterdir()):
                raise MismatchError(
                    f"`{self.path}` holds other files, but finished images are to be kept there",
                    "Move it away, or choose another `--out`",
                )
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(self.path, error, action="create") from error
        self._clear()
        atomic_write_text(self._settings, json.dumps(facts, indent=1) + "\n")

    def facts(self) -> dict[str, object] | None:
        """The conditions of the samples in the making; None when nothing was begun."""
        try:
            return json.loads(self._settings.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise DataError(
                f"`{self._settings}` cannot be read: {error}", f"Delete `{self.path}` to begin anew"
            ) from error

    def add(self, start: int, images: Images, labels: Labels | None) -> None:
        """Keep finished images.

        Args:
            images: (n, h, w, c).
            labels: Class of each, or None.

        Raises:
            StorageError: The disk does not take them.
        """
        buffer = io.BytesIO()
        # An empty array stands for no classes.
        np.savez(buffer, images=images, labels=np.zeros(0, np.int64) if labels is None else labels)
        atomic_write_bytes(self.path / f"part-{start:08d}.npz", buffer.getvalue())

    def sound_places(self) -> list[range]:
        """Places of the finished images, in order; a damaged part is deleted, to be made again."""
        places: list[range] = []
        for start, path in self._parts():
            try:
                images, _ = _read(path)
            except DataError:
                path.unlink(missing_ok=True)
            else:
                places.append(range(start, start + len(images)))
        return places

    def starts(self) -> set[int]:
        """First places of the parts that are there; nothing is read."""
        return {start for start, _ in self._parts()}

    def parts(self) -> Iterator[tuple[int, Images, Labels | None]]:
        """The finished images in order, a part at a time, each with the place of its first.

        Raises:
            DataError: A part was damaged since it was written.
        """
        for start, path in self._parts():
            images, labels = _read(path)
            yield start, images, labels

    def discard_result(self) -> None:
        """Delete a result that is half-written."""
        if self.result.is_dir():
            shutil.rmtree(self.result, ignore_errors=True)
        else:
            self.result.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the folder."""
        # Last the settings: what a kill leaves of it is still known as ours.
        for path in self.path.glob("part-*.npz"):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def _parts(self) -> list[tuple[int, Path]]:
        found = ((_PART.fullmatch(path.name), path) for path in self.path.glob("part-*.npz"))
        return sorted((int(match[1]), path) for match, path in found if match)

    def _clear(self) -> None:
        """Delete what a kill left half-written."""
        remove_temporaries(self.path)
        try:
            self.discard_result()
        except OSError as error:
            raise storage_error(self.result, error, action="delete") from error


def require_same(path: Path, there: dict[str, object], facts: dict[str, object]) -> None:
    """Refuse to mix images of different settings.

    Raises:
        MismatchError: Gives both values of what differs.
    """
    there = FIRST_SAMPLERS | there
    hint = "Give the same settings, choose another `--out`, or delete it"
    if there["samplers"] != facts["samplers"]:
        # Other versions note other facts.
        facts = {key: value for key, value in facts.items() if key in there}
        hint = "This version's samplers round otherwise: choose another `--out`, or delete it"
    changed = differences(there, json.loads(json.dumps(facts)))
    if changed:
        raise MismatchError(f"`{path}` holds samples of other settings{changed}", hint)


def differences(there: Mapping[str, object], facts: Mapping[str, object]) -> str:
    """The differences, a line each with both values, to end a message; empty when there are none."""
    before, now = flat(there), flat(facts)
    nothing = dict.fromkeys(sorted({*before, *now}))
    return listed(differing(nothing | before, nothing | now, lambda value: shortened(json.dumps(value))))


def missing(places: list[range], count: int, batch_size: int) -> list[range]:
    """The places that no part has, in batches.

    Args:
        places: Those that there are, in order.
        batch_size: Most images of a batch.
    """
    batches: list[range] = []
    reached = 0
    for part in [*places, range(count, count)]:
        batches += [
            range(first, min(first + batch_size, part.start)) for first in range(reached, part.start, batch_size)
        ]
        reached = max(reached, part.stop)
    return batches


def _read(path: Path) -> tuple[Images, Labels | None]:
    try:
        with np.load(path) as data:
            images, labels = data["images"], data["labels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"`{path}` is damaged: {error}", "Run the same command again") from error
    return images, labels if len(labels) else None
