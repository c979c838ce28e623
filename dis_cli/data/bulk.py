"""Reading many images with several threads, ahead of their use."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from jaxtyping import Float
from torch import Tensor

from dis_cli.data.source import ImageSource


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

    def read(part: Sequence[int]) -> Tensor:
        return torch.stack([source.load(index, None) for index in part])

    with ThreadPoolExecutor(num_workers) as pool:
        waiting: deque[tuple[range, list[Future[Tensor]]]] = deque()
        for group in groups:
            # one task a thread and not one an image: small images are read faster than they could be handed over
            step = -(-len(group) // num_workers)
            parts = [group[first : first + step] for first in range(0, len(group), step)]
            waiting.append((group, [pool.submit(read, part) for part in parts]))
            if len(waiting) > 1:
                yield _ready(*waiting.popleft())
        while waiting:
            yield _ready(*waiting.popleft())


def _ready(group: range, parts: list[Future[Tensor]]) -> tuple[range, Tensor]:
    return group, torch.cat([part.result() for part in parts])
