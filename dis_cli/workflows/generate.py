"""Images from a model: image i is a function of its seed and class alone, whatever it is generated together with."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from dis_cli.codecs.pixel import to_uint8
from dis_cli.config.schema import RunConfig
from dis_cli.diffusion.guidance import guide
from dis_cli.diffusion.samplers import sample_loop
from dis_cli.models.backbone import DiS
from dis_cli.runtime.precision import linear_precision
from dis_cli.runtime.seed import Stream, generator
from dis_cli.workflows.build import Codec, build_guidance, build_sampler


@dataclass(frozen=True)
class Generated:
    """What came out of one model evaluation for every image of a batch.

    Attributes:
        start: Place of the batch's first image among all.
        share: Finished share of the batch, 0 to 1.
        images: (b, h, w, c) 8-bit images when ``share`` is 1, else None.
        labels: Class of each image; None for an unconditional model.
    """

    start: int
    share: float
    images: UInt8[Tensor, "b h w c"] | None
    labels: list[int] | None


def generate(
    model: DiS,
    codec: Codec,
    config: RunConfig,
    *,
    seeds: Sequence[int],
    classes: Sequence[int] | None,
    device: torch.device,
    precision: str,
) -> Iterator[Generated]:
    """Generate one image per seed, ``config.sample.batch_size`` at a time.

    Args:
        model: In evaluation mode.
        codec: Turns the model's grid into images.
        config: Its ``sample`` and ``diffusion`` sections say how.
        seeds: One an image.
        classes: One an image; None draws each from the image's own generator. Ignored by unconditional models.
        device: Where the model is.
        precision: "fp32" or "bf16": what its linear layers compute in. Everything between its calls is float32.
    """
    sampler, guidance = build_sampler(config), build_guidance(config)
    batch_size = config.sample.batch_size

    def predict(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        with linear_precision(precision, device.type):
            return model(x, t, labels).float()

    for start in range(0, len(seeds), batch_size):
        part = seeds[start : start + batch_size]
        generators = [image_generator(seed) for seed in part]
        # Drawn also when the class is given, so that an image's noise does not depend on how its class was chosen.
        drawn = [int(torch.randint(max(1, model.num_classes), (), generator=own)) for own in generators]
        labels = None
        if model.num_classes:
            labels = drawn if classes is None else list(classes[start : start + len(part)])
        denoise = guide(
            predict,
            None if labels is None else torch.tensor(labels, device=device),
            guidance,
            null_class=model.null_class,
            num_channels=model.in_channels,
        )
        shape = (model.in_channels, model.image_size, model.image_size)
        x_T = torch.stack([torch.randn(shape, generator=own) for own in generators]).to(device)
        evaluations = len(sampler.timesteps)
        for done, x in enumerate(sample_loop(denoise, x_T, sampler, generators), start=1):
            images = to_uint8(codec.decode(x).float()).cpu() if done == evaluations else None
            yield Generated(start, done / evaluations, images, labels)


def image_generator(seed: int) -> torch.Generator:
    """The generator of one image: of its class when none is given, and of all its noise."""
    return torch.Generator().manual_seed(int(generator(seed, Stream.SAMPLE).integers(2**63)))
