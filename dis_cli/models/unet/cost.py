"""Parameters and multiply-accumulates of a U-Net in closed form; nothing is built or run. No torch.

Source: the layers of diffusers' ``UNet2DModel``. Attention over s pixels of c channels takes 2 s^2 c
multiply-accumulates for its two products. Softmax, norms and activations are not counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dis_cli.models.cost import Flops, LayerCost
from dis_cli.models.unet.sizes import Shape

_TIME_RATIO = 4


@dataclass(frozen=True)
class _Layer:
    part: str
    parameters: int
    macs: int


def count(shape: Shape, num_patches: int | None = None) -> Flops:
    """Parameters and MACs of a U-Net.

    Args:
        num_patches: Another number of pixels than that of its grid; None is the grid's. Of one that does not halve
            evenly, levels below have their share rounded down.

    Returns:
        The counts, as exact integers.
    """
    pixels = shape.image_size**2 if num_patches is None else num_patches
    parts: dict[str, LayerCost] = {}
    for layer in _layers(shape, pixels):
        known = parts.get(layer.part, LayerCost(0))
        macs = known.macs + layer.macs
        parts[layer.part] = LayerCost(known.parameters + layer.parameters, macs, published_macs=macs)
    first = 9 * shape.in_channels * shape.channels
    return Flops(
        tokens=pixels,
        parts=parts,
        data_gradient_macs=pixels * first + shape.channels * _TIME_RATIO * shape.channels,
        run_once=frozenset({"embeddings", "head", "block outputs"}),
    )


def _layers(shape: Shape, pixels: int) -> Iterator[_Layer]:
    """All layers with weights in the order in which they run."""
    time = _TIME_RATIO * shape.channels
    out = shape.in_channels * (2 if shape.learn_sigma else 1)
    widths = [shape.channels * factor for factor in shape.multipliers]

    def conv(part: str, inputs: int, outputs: int, level: int, taps: int = 9) -> _Layer:
        weights = taps * inputs * outputs
        return _Layer(part, weights + outputs, (pixels >> 2 * level) * weights)

    def block(inputs: int, outputs: int, level: int) -> Iterator[_Layer]:
        yield conv("convolutions", inputs, outputs, level)
        yield _Layer("modulation", time * outputs + outputs, time * outputs)
        yield _Layer("norms", 2 * inputs + 2 * outputs, 0)
        yield conv("convolutions", outputs, outputs, level)
        if inputs != outputs:
            yield conv("convolutions", inputs, outputs, level, taps=1)

    def attention(width: int, level: int) -> Iterator[_Layer]:
        places = pixels >> 2 * level
        yield _Layer("norms", 2 * width, 0)
        yield _Layer("attention", 3 * (width * width + width), places * 3 * width * width + 2 * places**2 * width)
        yield conv("attention", width, width, level, taps=1)

    yield _Layer("embeddings", shape.channels * time + time + time * time + time, shape.channels * time + time * time)
    if shape.num_classes:
        yield _Layer("embeddings", (shape.num_classes + 1) * time, 0)
    yield conv("embeddings", shape.in_channels, shape.channels, 0)
    skips, before = [shape.channels], shape.channels
    for level, width in enumerate(widths):
        layers: list[_Layer] = []
        for _ in range(shape.num_blocks):
            layers += block(before, width, level)
            if level in shape.attention_levels:
                layers += attention(width, level)
            before = width
            skips.append(width)
        if level < len(widths) - 1:
            layers.append(conv("convolutions", width, width, level + 1))
            skips.append(width)
        yield from _closed(layers)
    last = len(widths) - 1
    yield from _closed([*block(before, before, last), *attention(before, last), *block(before, before, last)])
    for level, width in reversed(list(enumerate(widths))):
        layers = []
        for _ in range(shape.num_blocks + 1):
            layers += block(before + skips.pop(), width, level)
            if level in shape.attention_levels:
                layers += attention(width, level)
            before = width
        if level:
            layers.append(conv("convolutions", width, width, level - 1))
        yield from _closed(layers)
    yield _Layer("head", 2 * before, 0)
    yield conv("head", before, out, 0)


def _closed(layers: list[_Layer]) -> list[_Layer]:
    """The layers of one block, its last product apart: nothing needs its result again."""
    return [*layers[:-1], replace(layers[-1], part="block outputs")]
