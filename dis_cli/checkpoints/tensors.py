"""Tensors as safetensors files have them: their types by name, their order, their bytes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dis_cli.runtime.safetensors_layout import Stored

if TYPE_CHECKING:
    from torch import Tensor

# What the format calls the types of tensors.
_DTYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}


def stored(tensors: "Mapping[str, Tensor]") -> dict[str, Stored]:
    """A file's record of its tensors, in the order in which they lie in it."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    return {
        name: Stored(_DTYPES[str(tensor.dtype)], list(tensor.shape), tensor.numel() * tensor.element_size())
        for name, tensor in ordered
    }


def bytes_of(tensor: "Tensor") -> memoryview:
    """A tensor's numbers, row by row."""
    # By way of plain bytes: NumPy has no bfloat16.
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
