"""A DiS and its ablations written down as their equations, with the parameters of a built one."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dis_cli.models.dis.sizes import Shape
from dis_cli.models.embed import timestep_embedding, unpatchify
from dis_cli.scan.engines.reference import causal_conv_silu_reference, selective_scan_reference

Parameters = Mapping[str, Tensor]

# One of everything that can be chosen beside what is published.
ABLATED: dict[str, Any] = {
    "skip": "add",
    "directions": "forward",
    "conditioning": "adaln_zero",
    "scan_order": "alternate",
    "d_conv": 9,
}


def naive_dis(p: Parameters, shape: Shape, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """The output (b, out, h, w) in the dtype of the parameters."""
    side, half = shape.image_size // shape.patch_size, shape.depth // 2
    patches = F.unfold(x, shape.patch_size, stride=shape.patch_size).transpose(1, 2)
    patches = patches @ p["patch_embed.proj.weight"].flatten(1).t() + p["patch_embed.proj.bias"]
    time = linear(p, "time_embed.0", timestep_embedding(t, shape.embed_dim).to(patches.dtype))
    time = linear(p, "time_embed.2", F.silu(time))
    label = None if labels is None else p["label_emb.embedding_table.weight"][labels]
    condition = time if label is None else time + label
    extras = [] if shape.conditioning == "adaln_zero" else [time] if label is None else [label, time]
    stream = torch.cat([*(extra[:, None] for extra in extras), patches], dim=1) + p["pos_embed"]
    hidden, skips = torch.zeros_like(stream), []
    for index in range(shape.depth):
        group = "in_blocks" if index < half else "out_blocks"
        name = "mid_block" if index == half else f"{group}.{index if index < half else index - half - 1}"
        if index > half and shape.skip != "none":
            skip = skips.pop()
            joined = linear(p, f"{name}.skip_linear", torch.cat([hidden, skip], -1)) if shape.skip == "concat" else None
            hidden = hidden + skip if joined is None else joined
        stream = stream + hidden
        tokens = rms_norm(stream, p[f"{name}.norm.weight"])
        gate: Tensor | float = 1.0
        if shape.conditioning == "adaln_zero":
            modulation = linear(p, f"{name}.adaLN_modulation.1", F.silu(condition))
            shift, scale, gate = modulation[:, None].chunk(3, dim=-1)
            tokens = tokens * (1 + scale) + shift
        in_columns = shape.scan_order == "column" or (shape.scan_order == "alternate" and index % 2 == 1)
        rows, width = range(side), range(side)
        cells = [(row, column) for column in width for row in rows] if in_columns else None
        places = [len(extras) + row * side + column for row, column in cells] if cells else []
        order = [*range(len(extras)), *places] if cells else [*range(tokens.shape[1])]
        mixed = mixer(p, f"{name}.mixer", tokens[:, order], shape)
        hidden = gate * torch.stack([mixed[:, order.index(place)] for place in range(len(order))], dim=1)
        if index < half:
            skips.append(hidden)
    tokens = rms_norm(stream + hidden, p["norm_f.weight"])[:, len(extras) :]
    tokens = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
    if label is not None:
        shift, scale = linear(p, "final_layer.adaLN_modulation.1", F.silu(condition))[:, None].chunk(2, dim=-1)
        tokens = tokens * (1 + scale) + shift
    channels = shape.in_channels * (2 if shape.learn_sigma else 1)
    return unpatchify(linear(p, "final_layer.linear", tokens), shape.patch_size, channels)


def mixer(p: Parameters, name: str, tokens: Tensor, shape: Shape) -> Tensor:
    x, z = (tokens @ p[f"{name}.in_proj.weight"].t()).chunk(2, dim=-1)
    total = torch.zeros_like(x)
    for end in ("", "_b") if shape.directions == "both" else ("",):
        sequence = x.flip(1) if end else x
        u = causal_conv_silu_reference(sequence, p[f"{name}.conv1d{end}.weight"][:, 0], p[f"{name}.conv1d{end}.bias"])
        rank, states = shape.dt_rank, shape.d_state
        dt, B, C = (u @ p[f"{name}.x_proj{end}.weight"].t()).split([rank, states, states], dim=-1)
        delta, bias = dt @ p[f"{name}.dt_proj{end}.weight"].t(), p[f"{name}.dt_proj{end}.bias"]
        A = -torch.exp(p[f"{name}.A{end}_log"])
        y = selective_scan_reference(u, delta, A, B, C, D=p[f"{name}.D{end}"], delta_bias=bias)
        total = total + (y.flip(1) if end else y)
    return (total * F.silu(z)) @ p[f"{name}.out_proj.weight"].t()


def linear(p: Parameters, name: str, values: Tensor) -> Tensor:
    return values @ p[f"{name}.weight"].t() + p[f"{name}.bias"]


def rms_norm(tokens: Tensor, weight: Tensor) -> Tensor:
    return tokens * torch.rsqrt(tokens.square().mean(-1, keepdim=True) + 1e-5) * weight
