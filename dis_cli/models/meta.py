"""Parameters and operations of models on the meta device, where tensors have shapes and no numbers."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dis_cli.models.backbone import Backbone
from dis_cli.models.cost import Flops, LayerCost, ModelShape
from dis_cli.models.recognize import Shape


def parameter_shapes(build: Callable[..., Backbone], settings: dict[str, Any]) -> dict[str, Shape]:
    """Name and shape of every parameter of a model."""
    with torch.device("meta"):
        model = build(**settings)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def count(build: Callable[..., Backbone], shape: ModelShape) -> Flops:
    """Parameters, and the MACs of all matrix products, convolutions and attention that a forward takes."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = build(**asdict(shape)).eval()
        x = torch.empty(1, shape.in_channels, shape.image_size, shape.image_size)
        model(x, torch.empty(1), torch.empty(1, dtype=torch.int64) if shape.num_classes else None)
    macs = counter.get_total_flops() // 2
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Flops(model.num_tokens, {"network": LayerCost(parameters, macs, published_macs=macs)})
