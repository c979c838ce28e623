"""Reading many images with several threads, ahead of their use."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from dis_cli.data.source import ImageSource

T = TypeVar("T")


def groups_ahead(
    source: ImageSource, groups: Sequence[range], *, num_workers: int
) -> Iterator[tuple[range, Float[Tensor, "b c h w"]]]:
    """Groups of images in order, without augmentation; one group is read while the one before is used.

    Args:
        groups: Indices of each group's images.

    Raises:
        DataError: An image cannot be read.
    """

    def read(part: Sequence[int]) -> Tensor:
        return torch.stack([source.load(index, None) for index in part])

    for group, parts in read_ahead(read, groups, num_workers=num_workers):
        yield group, torch.cat(parts)


def read_ahead(
    read: Callable[[Sequence[int]], T], groups: Sequence[range], *, num_workers: int
) -> Iterator[tuple[range, list[T]]]:
    """The results of ``read`` for groups of places, in order; one group is read while the one before is used.

    Args:
        read: Called with some of a group's places at a time, in threads.
    """
    with ThreadPoolExecutor(num_workers) as pool:
        waiting: deque[tuple[range, list[Future[T]]]] = deque()
        for group in groups:
            # one task a thread and not one an image: small images are read faster than they could be handed over
            step = -(-len(group) // num_workers)
            parts = [group[first : first + step] for first in range(0, len(group), step)]
            waiting.append((group, [pool.submit(read, part) for part in parts]))
            if len(waiting) > 1:
                yield _ready(*waiting.popleft())
        while waiting:
            yield _ready(*waiting.popleft())


def _ready(group: range, parts: list[Future[T]]) -> tuple[range, list[T]]:
    return group, [part.result() for part in parts]
