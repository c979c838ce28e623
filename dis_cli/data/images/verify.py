"""The check of image files that comes before training and encoding: every bad file is named before the work starts."""

import time
from collections.abc import Generator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dis_cli.data.images.check import ImageCheck
from dis_cli.data.images.files import FileSource, ImageFiles
from dis_cli.data.images.other_files import advise_on_other_files, tell_other_files
from dis_cli.data.source import ImageSource
from dis_cli.errors import DataError
from dis_cli.events import Event, Note, Progress, Started
from dis_cli.runtime.signals import StopRequest

MAX_LISTED = 100

# Progress is shown, and a signal obeyed, about so often. The bound is for files that need not be read, one after the
# other in no time, and are followed by some that do.
_SECONDS_PER_GROUP = 0.5
_SMALLEST_GROUP, _LARGEST_GROUP = 16, 512


def check_images(
    source: FileSource, *, on_bad: Literal["stop", "skip"], num_workers: int, stop: StopRequest
) -> Generator[Event, None, FileSource]:
    """Read the images of a source, apart from those that an earlier check found flawless.

    What looks like an image in the folder and cannot be one (a broken link, an image beside the class folders) counts
    as a bad image.

    Args:
        on_bad: "stop" ends with an error that lists the bad images; "skip" goes on without them.
        num_workers: Threads that read; 0 counts as 1.
        stop: Ends the check in order; what was read until then is not read again.

    Yields:
        Started and Progress; then a warning for what is left out of images that are used, and one that lists the
        images that are skipped.

    Returns:
        The source without its bad images.

    Raises:
        DataError: Images are bad and on_bad is "stop", or all of them are bad.
        Interrupted: A signal asked to stop.
    """
    check = ImageCheck(source.files, num_workers=num_workers)
    places = np.delete(np.arange(len(source.files.labels)), list(source.left_out))
    try:
        yield from _read_all(check, places, stop)
    finally:
        check.remember()
    bad = [*source.files.skipped, *check.faults.values()]
    message = f"{len(bad)} of {len(source) + len(source.files.skipped)} images cannot be used"
    if bad and (on_bad == "stop" or len(check.faults) == len(source)):
        raise DataError(
            message + _listed(bad),
            "Repair, replace or remove them"
            + (", or go on without them: `--on-bad skip` (or data.on_bad=skip)" if on_bad == "stop" else ""),
        )
    for remark, count in check.remarks.items():
        yield Note(message=f"{remark}: {count} images", level="warning")
    if not bad:
        return source
    kept = source.without(np.flatnonzero(np.isin(places, list(check.faults))).tolist())
    yield Note(message=f"{message} and are skipped" + _listed(bad), level="warning")
    had_images, have_images = (set(some.labels.tolist()) for some in (source, kept))
    emptied = [kept.class_names[label] for label in sorted(had_images - have_images)]
    if emptied:
        yield Note(message=f"No image is left in {len(emptied)} classes" + _listed(emptied), level="warning")
    return kept


def layout_notes(data: ImageSource | ImageFiles, *, checked: bool) -> list[Note]:
    """Notes on a set before it is used: files that are left out, folders that are taken for classes.

    Args:
        data: The set; of one that is not of files there is nothing to say.
        checked: Whether ``check_images`` tells of what looks like an image and is none.
    """
    files = data.files if isinstance(data, FileSource) else data
    if not isinstance(files, ImageFiles):
        return []
    notes = [Note(message=note, level="warning") for note in files.notes]
    advice = advise_on_other_files(files.other_files, len(files.labels))
    if files.other_files:
        message = ". ".join([tell_other_files(files.other_files), *advice])
        notes.append(Note(message=message, level="warning" if advice else "info"))
    if files.skipped and not checked:
        message = f"Cannot be used and left out: {len(files.skipped):,} images" + _listed(files.skipped)
        notes.append(Note(message=message, level="warning"))
    return notes


def _read_all(check: ImageCheck, places: NDArray[np.int64], stop: StopRequest) -> Generator[Event]:
    total = len(places)
    yield Started(what="check images", total=total, unit="images")
    done, size = 0, _SMALLEST_GROUP
    while done < total:
        stop.obey(f"{done} of {total} images are checked, the work has not begun")
        began = time.monotonic()
        group = places[done : done + size].tolist()
        check.read(group)
        done += len(group)
        yield Progress(done=done, total=total, unit="images")
        fitting = size * _SECONDS_PER_GROUP / max(time.monotonic() - began, 1e-3)
        size = min(max(int(fitting), _SMALLEST_GROUP), _LARGEST_GROUP)


def _listed(lines: Sequence[str]) -> str:
    unlisted = len(lines) - MAX_LISTED
    return "".join(f"\n  {line}" for line in lines[:MAX_LISTED]) + (f"\n  and {unlisted} more" if unlisted > 0 else "")
