"""Reading many images with several threads: once through to find the bad ones, and in groups ahead of use."""

import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from jaxtyping import Float
from torch import Tensor

from dis_cli.data.decode import ImageWarning
from dis_cli.data.source import ImageSource
from dis_cli.errors import DataError

MAX_LISTED = 100


class ImageCheck:
    """Reads images before long work starts, so that all the bad ones are known at once.

    Args:
        source: The images.
        num_workers: Threads that read.

    Attributes:
        bad: One line for each image that cannot be read: the file and the reason.
        remarks: What is left out of images that are used all the same, and of how many.
    """

    def __init__(self, source: ImageSource, *, num_workers: int) -> None:
        self.bad: list[str] = []
        self.remarks: Counter[str] = Counter()
        self._source = source
        self._num_workers = num_workers

    def read(self, indices: Sequence[int]) -> None:
        """Read some hundred images; not to be called from several threads."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ImageWarning)
            with ThreadPoolExecutor(self._num_workers) as pool:
                self.bad += [fault for fault in pool.map(self._fault, indices) if fault is not None]
        self.remarks.update(str(warning.message) for warning in caught if issubclass(warning.category, ImageWarning))

    def raise_if_bad(self) -> None:
        """Raise a DataError that lists the bad images, if there are any."""
        if not self.bad:
            return
        unlisted = len(self.bad) - MAX_LISTED
        raise DataError(
            f"{len(self.bad)} of {len(self._source)} images cannot be used"
            + "".join(f"\n  {line}" for line in self.bad[:MAX_LISTED])
            + (f"\n  and {unlisted} more" if unlisted > 0 else ""),
            "Repair, replace or remove these files",
        )

    def _fault(self, index: int) -> str | None:
        try:
            self._source.load(index, None)
        except DataError as error:
            return error.message
        return None


def groups_ahead(
    source: ImageSource, groups: Sequence[range], *, num_workers: int
) -> Iterator[tuple[range, Float[Tensor, "b c h w"]]]:
    """Groups of images in order, without augmentation; one group is read while the one before is used.

    Args:
        source: The images.
        groups: Indices of each group's images.
        num_workers: Threads that read.

    Raises:
        DataError: An image cannot be read.
    """
    with ThreadPoolExecutor(num_workers) as pool:
        waiting: deque[tuple[range, list[Future[Tensor]]]] = deque()
        for group in groups:
            waiting.append((group, [pool.submit(source.load, index, None) for index in group]))
            if len(waiting) > 1:
                yield _ready(*waiting.popleft())
        while waiting:
            yield _ready(*waiting.popleft())


def _ready(group: range, images: list[Future[Tensor]]) -> tuple[range, Tensor]:
    return group, torch.stack([image.result() for image in images])
