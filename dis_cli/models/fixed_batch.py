"""One batch size for layers whose bits depend on it: libraries choose the algorithm of a convolution by its shape."""

from collections.abc import Callable

import torch
from torch import Tensor

# As many images are computed as so many, with copies of the last to fill up: a batch of one costs as much as of eight.
FIXED_BATCH = 8


def in_fixed_batches(compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """What a function makes of its inputs, ``FIXED_BATCH`` images at a time: an image has the same bits in any batch.

    Args:
        compute: Maps tensors whose first dimension is the batch to one of the same batch.
        inputs: Of at least one image.
    """
    count = len(inputs[0])
    missing = -count % FIXED_BATCH
    filled = [torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])]) for tensor in inputs]
    parts = zip(*(tensor.split(FIXED_BATCH) for tensor in filled), strict=True)
    return torch.cat([compute(*part) for part in parts])[:count]
