"""One model on many ranks: gradients averaged over all (DDP), or weights and optimizer dealt out as well (FSDP2).

Whatever is done with single tensors of a model goes through ``whole`` and ``assign``, which also know the parts that
FSDP2 deals out.
"""

import contextlib
from collections.abc import Generator, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from dis_cli.models.backbone import Backbone


def shard(model: Backbone) -> None:
    """Deal the parameters of ``model`` out to all ranks, block by block (FSDP2); they become ``DTensor`` in place.

    The average and the optimizer that are made afterwards are dealt out with them.
    """
    mesh = init_device_mesh(model.device.type, (dist.get_world_size(),))
    for block in model.blocks():
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def replicate(model: Backbone) -> nn.Module:
    """A module to train instead of ``model``, whose gradients are the mean over all ranks (DDP)."""
    device = model.device
    return DistributedDataParallel(
        model, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True
    )


@contextlib.contextmanager
def gradient_sync(module: nn.Module, *, enabled: bool) -> Generator[None]:
    """A block whose backwards average the gradients over all ranks, or only add to this rank's own.

    Only the last part of an accumulated step has to.
    """
    if isinstance(module, DistributedDataParallel) and not enabled:
        with module.no_sync():
            yield
        return
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(enabled)
    yield


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every rank; of one that is dealt out, all ranks have to ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assign(target: Tensor, values: Tensor) -> None:
    """Set a tensor to the leader's ``values``, on all ranks, which have to call this together.

    Args:
        target: A tensor, or the parts of one.
        values: All of it, on the CPU; what it holds counts on the leader only.
    """
    if isinstance(target, DTensor):
        on_device = values.to(target.device)
        target.copy_(distribute_tensor(on_device, target.device_mesh, target.placements))
        return
    if dist.is_initialized():
        values = values.contiguous()
        dist.broadcast(values, src=0)
    target.copy_(values)


def all_equal(tensors: Iterable[Tensor]) -> bool:
    """True if all ranks hold the same bits in their float32 tensors, which they should after every step of DDP."""
    digest = torch.zeros(1, dtype=torch.int64)
    for tensor in tensors:
        # Wraps around on overflow, alike everywhere.
        digest = digest * 31 + tensor.detach().contiguous().view(torch.int32).sum(dtype=torch.int64).cpu()
    lowest, highest = digest.clone(), digest.clone()
    dist.all_reduce(lowest, op=dist.ReduceOp.MIN)
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    return lowest.item() == highest.item()
