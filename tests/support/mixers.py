"""Mixers with random parameters, and all that comes out of them."""

import torch
from support.compare import output_weights
from torch import Tensor

from dis_cli.models.dis.mixer import Mixer

# (batch, length, embed_dim, d_state, d_conv, expand): more samples than the kernel makes groups of, inner widths, ranks
# and projections on both sides of the vectors', and tokens of the chunks'.
MIXER_SIZES = [
    (1, 1, 1, 1, 1, 1),
    (4, 1, 3, 2, 4, 1),
    (5, 3, 4, 8, 4, 2),
    (17, 2, 16, 5, 2, 1),
    (3, 33, 17, 3, 4, 1),
    (4, 66, 40, 16, 4, 2),
    (2, 65, 33, 17, 7, 1),
    (33, 4, 9, 2, 3, 3),
    (5, 40, 6, 3, 9, 2),
    (4, 70, 5, 2, 33, 1),
    (0, 5, 8, 2, 4, 2),
]


def random_mixer(size: tuple[int, ...], engine: str, dtype: torch.dtype, *, both: bool = True) -> tuple[Mixer, Tensor]:
    """A mixer with all parameters random, and tokens; float32 holds their numbers."""
    batch, length, embed_dim, d_state, d_conv, expand = size
    generator = torch.Generator().manual_seed(sum(size))
    mixer = Mixer(embed_dim, d_state, d_conv, expand, engine=engine, both=both)
    with torch.no_grad():
        for parameter in mixer.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / max(1, fan_in) ** 0.5)
    tokens = torch.randn(batch, length, embed_dim, generator=generator)
    return mixer.to(dtype), tokens.to(dtype)


def everything(size: tuple[int, ...], engine: str, dtype: torch.dtype, *, both: bool = True) -> dict[str, Tensor]:
    mixer, tokens = random_mixer(size, engine, dtype, both=both)
    out = mixer(tokens.requires_grad_())
    names, parameters = zip(*mixer.named_parameters(), strict=True)
    gradients = torch.autograd.grad(out, [tokens, *parameters], output_weights(out.detach()))
    return {"out": out.detach(), "tokens": gradients[0], **dict(zip(names, gradients[1:], strict=True))}
