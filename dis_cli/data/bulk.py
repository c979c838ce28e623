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
