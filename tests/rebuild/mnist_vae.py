"""Makes the VAE of the study's latent runs, in the folder tests: ``python -m rebuild.mnist_vae DATA OUT``.

DATA holds the archives that ``tests/study/data.py`` builds. The network and its training are those of the digits' VAE
(``digits_vae``): latents of 4 channels, one latent pixel for 4x4 of the image. The study's runner looks for OUT as
``mnist_vae`` beside the archives.
"""

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from rebuild.digits_vae import IMAGE_SIZE, make_vae
from study.data import TEST, TRAIN
from torch import Tensor

from dis_cli.codecs.pixel import to_uint8
from dis_cli.codecs.vae import VaeCodec
from dis_cli.data.open import open_source
from dis_cli.data.source import ImageSource
from dis_cli.events import Event, Finished
from dis_cli.metrics.extractors.mnist import MnistFeatures
from dis_cli.metrics.frechet import frechet_distance
from dis_cli.metrics.statistics import statistics

# As many steps as the digits' VAE took.
NUM_EPOCHS = 4


def rebuild(data: Path, out: Path) -> Iterator[Event]:
    """Train the VAE on the training images, write it and measure what it is good for.

    Args:
        data: The folder of the archives.
        out: The folder to write.

    Raises:
        StorageError: The files cannot be written.
    """
    scale = yield from make_vae(_images(_source(data / TRAIN)), out, num_epochs=NUM_EPOCHS)
    yield Finished(result={"path": str(out), "scaling_factor": scale} | measure(out, data / TEST))


def measure(folder: Path, archive: Path) -> dict[str, float]:
    """How well the test images survive the VAE.

    Returns:
        ``psnr`` in dB, of the posterior's mean; accuracy of the bundled classifier on the images and on what the VAE
        makes of them; and the Frechet distance between these.
    """
    codec, extractor, source = VaeCodec(str(folder)), MnistFeatures(), _source(archive)
    images = _images(source)
    mean, _ = codec.moments(images)
    decoded = codec.decode(codec.scale * mean)
    looks = [extractor.features(extractor.reduced(to_uint8(own))) for own in (images, decoded)]
    features, logits = zip(*looks, strict=True)
    right = [float((own.argmax(1).numpy() == source.labels).mean()) for own in logits]
    return {
        "psnr": 10 * math.log10(4 / F.mse_loss(decoded.clamp(-1, 1), images).item()),
        "accuracy_plain": right[0],
        "accuracy_mean": right[1],
        "frechet_mean": frechet_distance(statistics(features[1]), statistics(features[0])),
    }


def _source(archive: Path) -> ImageSource:
    return open_source("zip", archive, split="all", image_size=IMAGE_SIZE, channels=3)


def _images(source: ImageSource) -> Tensor:
    return torch.stack([source.load(index, None) for index in range(len(source))])


def main() -> None:
    """Rebuild, and print what was measured, one number a line."""
    for event in rebuild(Path(sys.argv[1]), Path(sys.argv[2])):
        if isinstance(event, Finished):
            sys.stdout.writelines(f"{name}: {value}\n" for name, value in event.result.items())


if __name__ == "__main__":
    main()
