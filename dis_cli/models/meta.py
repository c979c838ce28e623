"""Parameters and operations of models on the meta device, where tensors have shapes and no numbers."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from dis_cli.models.backbone import Backbone
from dis_cli.models.cost import Flops, LayerCost, ModelShape
from dis_cli.models.recognize import Shape


class _WithoutDraws(TorchFunctionMode):
    """Leaves initial values out: there are none here, and torch imports its compiler, for a second, to draw none."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init" or func in (
            torch.Tensor.normal_,
            torch.Tensor.uniform_,
        ):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def parameter_shapes(build: Callable[..., Backbone], settings: dict[str, Any]) -> dict[str, Shape]:
    """Name and shape of every parameter of a model."""
    with torch.device("meta"), _WithoutDraws():
        model = build(**settings)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def count(build: Callable[..., Backbone], shape: ModelShape) -> Flops:
    """Parameters, and the MACs of all matrix products, convolutions and attention that a forward takes."""
    # Looks for Triton when it is imported.
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    # The counter knows the two products of attention, not all of the kernels that fuse them.
    with torch.device("meta"), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        # In training nothing is filled up for the sake of equal bits.
        model = build(**asdict(shape)).train()
        x = torch.empty(1, shape.in_channels, shape.image_size, shape.image_size)
        model(x, torch.empty(1), torch.empty(1, dtype=torch.int64) if shape.num_classes else None)
    macs = counter.get_total_flops() // 2
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Flops(model.num_tokens, {"network": LayerCost(parameters, macs, published_macs=macs)})
