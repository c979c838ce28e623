"""Rebuilds the bundled VAE of the handwritten digits: ``python tests/rebuild/digits_vae.py [FOLDER]``.

It takes about three minutes on one core. Measured with torch 2.14 on a CPU: two rebuilds were equal in every bit. On
the 450 test digits: 40.0 dB; the digit classifier is right on 98.4 % of them with and without the VAE (98.9 % before
they are enlarged and reduced), and on 98.7 % with a fifth of a standard deviation of noise on the latents; the Frechet
distance that the VAE adds is 0.04, where real training digits are 3.1 away. Scaled latents have a standard deviation of
1.3, 1.3, 0.35 and 0.63 by channel.

Other weights of the divergence reconstruct as well (38 to 40 dB). A dis-xs-digits on their latents, 1,600 steps of 32,
came to a Frechet distance of 4.56 from the training digits with this weight, 3.89 with 3e-4, 11.3 with 1e-3 and 3.26
with 5e-3 (one seed each): but with 1e-3 most of three channels, and with 5e-3 all of them, are noise and show nothing
of an image. At 1e-6 the channels' means lie 0.6 to 0.7 off zero, and decoding bears less noise. Twice the widths took
twice the time.
"""

import json
import math
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from dis_cli.codecs.locate import BUNDLED, CONFIG, WEIGHTS
from dis_cli.codecs.pixel import to_uint8
from dis_cli.codecs.vae import VaeCodec
from dis_cli.data.published.digits import DigitsSource
from dis_cli.events import Event, Finished, Metric, Progress
from dis_cli.metrics.extractors.digits import DigitFeatures, as_digits
from dis_cli.metrics.frechet import frechet_distance
from dis_cli.metrics.statistics import statistics
from dis_cli.runtime.files import atomic_write_bytes, atomic_write_text
from dis_cli.runtime.seed import Stream, generator

SEED = 0
IMAGE_SIZE = 32
# One latent pixel for 4x4 of the image; 174,000 parameters.
CONFIGURATION: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "sample_size": IMAGE_SIZE,
    "block_out_channels": (8, 16, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
NUM_EPOCHS = 25
BATCH_SIZE = 16
LR = 2e-3
WARMUP_STEPS = 100
# Weight of the Kullback-Leibler divergence (mean over a latent's values) beside the mean squared error.
KL_WEIGHT = 1e-4


def rebuild(out: Path = BUNDLED["digits"]) -> Iterator[Event]:
    """Train the VAE on the 1,347 training digits, write it in diffusers' layout and measure what it is good for.

    Args:
        out: The folder to write.

    Raises:
        StorageError: The files cannot be written.
    """
    scale = yield from make_vae(_images("train"), out, num_epochs=NUM_EPOCHS)
    measured = measure(out)
    for name, value in measured.items():
        yield Metric(name=name, value=value)
    size = sum((out / name).stat().st_size for name in (WEIGHTS, CONFIG))
    written: dict[str, object] = {"path": str(out), "size_bytes": size, "scaling_factor": scale}
    yield Finished(result=written | measured)


def make_vae(images: Tensor, out: Path, *, num_epochs: int) -> Generator[Event, None, float]:
    """Train a VAE and write it in diffusers' layout.

    Args:
        images: (n, 3, 32, 32) in [-1, 1].
        out: The folder to write.

    Returns:
        The factor on its latents.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        module = AutoencoderKL(**CONFIGURATION)
    yield from _train(module, images, num_epochs)
    module.eval()
    scale = _scale(module, images)
    module.register_to_config(scaling_factor=scale)
    with tempfile.TemporaryDirectory() as folder:
        module.save_config(folder)
        config = json.loads((Path(folder) / CONFIG).read_bytes())
    # where it was loaded from, which is nowhere
    config.pop("_name_or_path", None)
    atomic_write_bytes(out / WEIGHTS, save(module.state_dict()))
    atomic_write_text(out / CONFIG, json.dumps(config, indent=1) + "\n")
    return scale


def measure(folder: Path) -> dict[str, float]:
    """How well the test digits survive the VAE.

    Args:
        folder: Of the VAE.

    Returns:
        ``psnr`` in dB at 32x32, of the posterior's mean; accuracy of the digit classifier, and Frechet distance to the
        same digits in its features, when they are enlarged and reduced (``accuracy_plain``), with the VAE in between
        (``_mean``, ``_sample``), and with a fifth of a standard deviation of noise on the latents (``_noisy``);
        ``latent_std_0`` .. ``3``, of the scaled latents of the training digits.
    """
    codec = VaeCodec(str(folder))
    extractor = DigitFeatures()
    images, labels = _images("test"), DigitsSource("test").labels
    rng = torch.Generator().manual_seed(SEED)
    mean, std = (codec.scale * moment for moment in codec.moments(images))
    decoded = {
        "plain": images,
        "mean": codec.decode(mean),
        "sample": codec.decode(mean + std * torch.randn(mean.shape, generator=rng)),
        "noisy": codec.decode(mean + 0.2 * torch.randn(mean.shape, generator=rng)),
    }
    result = {"psnr": 10 * math.log10(4 / F.mse_loss(decoded["mean"].clamp(-1, 1), images).item())}
    reference = statistics(extractor.features(_reduced(images))[0])
    for name, own in decoded.items():
        features, logits = extractor.features(_reduced(own))
        result[f"accuracy_{name}"] = float((logits.argmax(1).numpy() == labels).mean())
        if name != "plain":
            result[f"frechet_{name}"] = frechet_distance(statistics(features), reference)
    mean, std = (codec.scale * moment for moment in codec.moments(_images("train")))
    sampled = mean + std * torch.randn(mean.shape, generator=rng)
    spread = sampled.double().transpose(0, 1).flatten(1).std(dim=1)
    return result | {f"latent_std_{channel}": value for channel, value in enumerate(spread.tolist())}


def _train(module: Any, images: Tensor, num_epochs: int) -> Iterator[Event]:
    """AdamW on squared error and divergence; the same machine gives the same weights, bit for bit."""
    threads = torch.get_num_threads()
    # With more threads the order of sums, and so the last digits, would depend on the machine's load.
    torch.set_num_threads(1)
    try:
        optimizer = torch.optim.AdamW(module.parameters(), lr=LR)
        per_epoch = len(images) // BATCH_SIZE
        for epoch in range(num_epochs):
            order = generator(SEED, Stream.ORDER, epoch).permutation(len(images))
            rng = generator(SEED, Stream.TRAIN, epoch)
            for step in range(per_epoch):
                batch = images[torch.from_numpy(order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE])]
                posterior = module.encode(batch).latent_dist
                noise = torch.from_numpy(rng.standard_normal(posterior.mean.shape, dtype=np.float32))
                decoded = module.decode(posterior.mean + posterior.std * noise).sample
                divergence = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
                loss = F.mse_loss(decoded, batch) + KL_WEIGHT * divergence
                done = epoch * per_epoch + step
                for group in optimizer.param_groups:
                    warm = min(1.0, (done + 1) / WARMUP_STEPS)
                    group["lr"] = LR * warm * 0.5 * (1 + math.cos(math.pi * done / (num_epochs * per_epoch)))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            yield Progress(done=epoch + 1, total=num_epochs, unit="epochs")
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def _scale(module: Any, images: Tensor) -> float:
    """The factor that gives samples of the posterior unit variance over all channels, to five digits."""
    posterior = module.encode(images).latent_dist
    mean, variance = posterior.mean.double(), posterior.var.double()
    total = mean.var().item() + variance.mean().item()
    return float(f"{1 / math.sqrt(total):.5g}")


def _images(split: str) -> Tensor:
    source = DigitsSource(split, image_size=IMAGE_SIZE, channels=3)
    return torch.stack([source.load(index, None) for index in range(len(source))])


def _reduced(images: Tensor) -> Tensor:
    return as_digits(to_uint8(images))


def main() -> None:
    """Rebuild, and print what was measured, one number a line."""
    for event in rebuild(Path(sys.argv[1]) if len(sys.argv) > 1 else BUNDLED["digits"]):
        if isinstance(event, Finished):
            sys.stdout.writelines(f"{name}: {value}\n" for name, value in event.result.items())


if __name__ == "__main__":
    main()
