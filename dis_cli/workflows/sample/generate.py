"""Images from a model: image i is a function of its seed and class alone, whatever it is generated together with."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from dis_cli.codecs.pixel import to_uint8
from dis_cli.codecs.vae import DECODE_GROUP
from dis_cli.config.schema import RunConfig
from dis_cli.diffusion.guidance import guide
from dis_cli.diffusion.samplers.loop import sample_loop
from dis_cli.models.backbone import Backbone
from dis_cli.runtime.precision import linear_precision
from dis_cli.runtime.seed import Stream, generator
from dis_cli.workflows.build import Codec, build_guidance, build_sampler
from dis_cli.workflows.sample.batch_size import pick_batch_size

# Matrix libraries sum products of fewer rows than a few for each thread in another order; see models.embed.RowWise.
_ROWS_PER_THREAD = 8


@dataclass(frozen=True)
class Generated:
    """The outputs of one model evaluation for every image of a batch.

    Attributes:
        start: Place of the batch's first image among all.
        share: Finished share of the batch, 0 to 1.
        images: (b, h, w, c) 8-bit images when ``share`` is 1, else None.
        labels: Class of each image; None for an unconditional model.
        step: Model evaluations done; 0 for the noise, which comes where estimates are asked for.
        estimate: Images by the last estimate of x_0, at step 0 the noise itself; None unless asked for at this step.
    """

    start: int
    size: int
    share: float
    images: UInt8[Tensor, "b h w c"] | None
    labels: list[int] | None
    step: int
    estimate: UInt8[Tensor, "b h w c"] | None = None

    @property
    def num_done(self) -> int:
        """Images of all that are finished, those of this batch by their share."""
        return self.start + int(self.share * self.size)


def generate(
    model: Backbone,
    codec: Codec,
    config: RunConfig,
    *,
    seeds: Sequence[int],
    classes: Sequence[int] | None,
    device: torch.device,
    precision: str,
    batch_size: int | None = None,
    whole_batches: bool = False,
    estimates: int = 0,
) -> Iterator[Generated]:
    """Generate one image per seed, some at a time.

    Args:
        model: In evaluation mode.
        config: Its ``sample`` and ``diffusion`` sections say how.
        seeds: One an image.
        classes: One an image; None draws each from the image's own generator. Ignored by unconditional models.
        precision: "fp32" or "bf16": what its linear layers compute in. Everything between its calls is float32.
        batch_size: Images at a time; None asks the configuration.
        whole_batches: Fill the last batch up, so that a compiled model meets one shape only.
        estimates: At how many steps, evenly spread and the last among them, ``Generated.estimate`` is given; and the
            noise before them.
    """
    sampler, guidance = build_sampler(config), build_guidance(config)
    batch_size = batch_size or pick_batch_size(model, config, device)
    evaluations = len(sampler.timesteps)
    shown = {round((index + 1) * evaluations / estimates) for index in range(estimates)}

    def predict(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        with linear_precision(precision, device.type):
            return model(x, t, labels).float()

    def images_of(x: Tensor, count: int) -> Tensor:
        # In parts: decoded images in float32 would take more memory than the whole batch of latents.
        return torch.cat([to_uint8(codec.decode(part).float()).cpu() for part in x[:count].split(DECODE_GROUP)])

    for start in range(0, len(seeds), batch_size):
        part = seeds[start : start + batch_size]
        count = len(part)
        # Filled up with its last image, where a product would have too few rows for bits that do not depend on them.
        wanted = batch_size if whole_batches else _fewest_images(model)
        part = [*part, *[part[-1]] * (wanted - count)]
        generators = [image_generator(seed) for seed in part]
        # Drawn also when the class is given, so that an image's noise does not depend on how its class was chosen.
        drawn = [int(torch.randint(max(1, model.num_classes), (), generator=own)) for own in generators]
        labels = None
        if model.num_classes and classes is None:
            labels = drawn
        elif model.num_classes and classes is not None:
            labels = list(classes[start : start + count])
            labels += labels[-1:] * (len(part) - count)
        denoise = guide(
            predict,
            None if labels is None else torch.tensor(labels, device=device),
            guidance,
            null_class=model.null_class,
            num_channels=model.in_channels,
        )
        shape = (model.in_channels, model.image_size, model.image_size)
        x_T = torch.stack([torch.randn(shape, generator=own) for own in generators]).to(device)
        own_labels = None if labels is None else labels[:count]
        if estimates:
            yield Generated(start, count, 0.0, None, own_labels, 0, images_of(x_T, count))
        for done, x in enumerate(sample_loop(denoise, x_T, sampler, generators), start=1):
            images = images_of(x, count) if done == evaluations else None
            estimate = None
            if done in shown and sampler.pred_x_0 is not None:
                estimate = images_of(sampler.pred_x_0, count)
            yield Generated(start, count, done / evaluations, images, own_labels, done, estimate)


def _fewest_images(model: Backbone) -> int:
    return -(-_ROWS_PER_THREAD * torch.get_num_threads() // model.num_tokens)


def image_generator(seed: int) -> torch.Generator:
    """The generator of one image: of its class when none is given, and of all its noise."""
    return torch.Generator().manual_seed(int(generator(seed, Stream.SAMPLE).integers(2**63)))
