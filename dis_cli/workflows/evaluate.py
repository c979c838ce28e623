"""Scoring: images from a checkpoint, compared with real ones in the features of a classifier."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dis_cli import __version__
from dis_cli.codecs.pixel import to_uint8
from dis_cli.config.schema import RunConfig
from dis_cli.data.source import ImageSource
from dis_cli.errors import StorageError, UsageError
from dis_cli.events import Event, Finished, Metric, Note, Progress, Started, Wrote
from dis_cli.metrics.baselines import ClassGaussians
from dis_cli.metrics.features import FEATURES, DigitFeatures
from dis_cli.metrics.frechet import frechet_distance
from dis_cli.metrics.inception import InceptionFeatures
from dis_cli.metrics.locate import locate_inception
from dis_cli.metrics.memorization import copy_share
from dis_cli.metrics.statistics import Statistics, statistics
from dis_cli.runtime.device import pick_device
from dis_cli.runtime.files import atomic_write_text
from dis_cli.runtime.precision import Precision
from dis_cli.scan.engines import Engine
from dis_cli.workflows.build import build_codec, build_image_source, choices, pick_precision
from dis_cli.workflows.digit_features import as_digits, digit_images
from dis_cli.workflows.generate import generate
from dis_cli.workflows.load import LoadedModel, load_model

Extractor = DigitFeatures | InceptionFeatures

FEATURE_BATCH = 256
# What is told as soon as it is known, each with the numbers that give it meaning.
HEADLINES = {
    "fid": (),
    "frechet_digits": ("floor", "class_gaussians"),
    "class_accuracy": ("class_accuracy_real",),
}


def evaluate(
    checkpoint: Path,
    *,
    inception: Path | None = None,
    overrides: Sequence[str] = (),
    preset: str | None = None,
    step: int | None = None,
    out: Path | None = None,
    device: str = "auto",
    dry_run: bool = False,
) -> Iterator[Event]:
    """Generate images and measure their Frechet distance to the data of the run.

    The bundled digits are scored in the features of the bundled classifier ("frechet_digits", never called FID), with
    the accuracy of the classes asked for, beside the same numbers of real test images and of simple baselines. With
    ``inception`` the score is FID proper.

    Args:
        checkpoint: Run folder, checkpoint folder, exported file or folder, or published ``.pt`` file.
        inception: The Inception weights that FID is defined with; None takes the digit classifier, for the digits only.
        overrides: ``KEY=VALUE`` on the checkpoint's settings, such as ``evaluate.num_samples=10000``.
        preset: The preset that the checkpoint must belong to; None accepts any.
        step: The checkpoint of a run folder to take instead of its newest sound one.
        out: The result file; None puts it into the run's ``evaluations``.
        device: "auto", "cpu", "cuda" or "cuda:N".
        dry_run: Only say what would be done.

    Raises:
        MissingResourceError: No feature extractor fits the data.
        DisError: The checkpoint, the data, the device or the disk do not allow it.
    """
    place = pick_device(device)
    loaded = load_model(checkpoint, place, overrides, preset, step)
    yield from (Note(message=note, level="warning") for note in loaded.notes)
    config = loaded.config
    precision = pick_precision(config.sample.precision, config, place)
    inception = inception or config.evaluate.inception
    extractor = make_extractor(config, inception, place)
    if isinstance(extractor, InceptionFeatures) and not extractor.published:
        message = f"`{inception}` is not the published Inception: the score cannot be compared with those of papers"
        yield Note(message=message, level="warning")
    whole = reference_images(config)
    num_samples = config.evaluate.num_samples or len(whole)
    labels = class_labels(whole, num_samples) if config.model.num_classes else None
    path = out or _default_path(loaded, config, extractor.name)
    settings: dict[str, object] = {
        "schema": 1,
        "dis": __version__,
        "checkpoint": str(loaded.path),
        "step": loaded.step,
        "ema_decay": loaded.average.decay,
        **conditions(config, extractor, whole, loaded.engine, num_samples),
        "precision": asdict(precision),
        "result_file": str(path),
    }
    if dry_run:
        yield Finished(result=settings | {"dry_run": True})
        return
    images: list[Tensor] = []
    for item in _generated(loaded, precision, num_samples, labels, place):
        if isinstance(item, Tensor):
            images.append(item)
        else:
            yield item
    metrics = score(torch.cat(images), labels, whole, extractor)
    yield from headlines(metrics)
    result = settings | metrics
    yield write_result(path, result)
    yield Finished(result=result)


def score(
    generated: Tensor, labels: npt.NDArray[np.int64] | None, source: ImageSource, extractor: Extractor
) -> dict[str, float]:
    """All that is measured of generated images.

    Args:
        generated: (n, h, w, c) 8-bit images.
        labels: The class asked for of each; None when there are none.
        source: What they are compared with.
        extractor: What looks at them.
    """
    if isinstance(extractor, DigitFeatures):
        return score_digits(generated, labels, extractor)
    return {"fid": frechet_distance(_real_statistics(source, extractor), _statistics(generated, extractor))}


def conditions(
    config: RunConfig, extractor: Extractor, source: ImageSource, engine: Engine, num_samples: int
) -> dict[str, object]:
    """What a score depends on beside the weights, as result files have it.

    Args:
        config: How the images were generated.
        extractor: What looked at them.
        source: What they were compared with.
        engine: What computed the scan.
        num_samples: How many there were.
    """
    return {
        "features": extractor.name,
        "features_sha256": extractor.sha256,
        "data": source.name,
        "data_sha256": source.fingerprint,
        "num_samples": num_samples,
        "seed": config.evaluate.seed,
        "sample": config.sample.model_dump(mode="json"),
        "engine": asdict(engine),
    }


def headlines(metrics: dict[str, float], step: int | None = None) -> Iterator[Metric]:
    """What is told of the metrics at once, each with the numbers that give it meaning; ``step`` when training."""
    for name, beside in HEADLINES.items():
        if name in metrics:
            context = {other: metrics[other] for other in beside}
            yield Metric(name=name, value=metrics[name], context=context, step=step)


def write_result(path: Path, result: dict[str, object]) -> Wrote:
    """Write a result file.

    Raises:
        StorageError: It could not be written.
    """
    if path.is_dir():
        raise StorageError(f"`{path}` is a folder; the result is a file", "Give a file with `--out FILE`")
    atomic_write_text(path, json.dumps(result, indent=1) + "\n")
    return Wrote(what="result", path=path)


def reference_images(config: RunConfig) -> ImageSource:
    """What generated images are compared with: all digits, or the training images of other data.

    Raises:
        UsageError: The run was trained on latents, and no images were given.
        DataError: They are missing or unreadable.
    """
    return build_image_source(config, split="all" if config.data.source == "digits" else "train")


def class_labels(source: ImageSource, num_samples: int) -> npt.NDArray[np.int64]:
    """Labels with the source's own class frequencies, whatever the number of samples: its labels, sorted, resampled."""
    positions = (np.arange(num_samples) * len(source)) // num_samples
    return np.sort(source.labels)[positions]


def score_digits(generated: Tensor, labels: npt.NDArray[np.int64] | None, extractor: DigitFeatures) -> dict[str, float]:
    """All that is known of generated digits, each number beside what real and simple images get.

    Args:
        generated: (n, h, w, c) 8-bit images; larger ones are reduced to 8x8 grey, and real ones with them.
        labels: The class asked for of each; None leaves the accuracy out.
        extractor: The digit classifier.
    """
    image_size = generated.shape[1]
    train, train_labels = digit_images("train", image_size)
    test, test_labels = digit_images("test", image_size)
    generated = as_digits(generated)
    features, logits = extractor.features(generated)
    test_features, test_logits = extractor.features(test)
    own, train_stats, test_stats = (
        statistics(features),
        statistics(extractor.features(train)[0]),
        statistics(test_features),
    )
    gaussians = ClassGaussians(train, train_labels).sample(np.concatenate([train_labels, test_labels]), seed=0)
    gaussian_stats = statistics(extractor.features(gaussians)[0])
    metrics = {
        "frechet_digits": frechet_distance(own, test_stats),
        "frechet_digits_train": frechet_distance(own, train_stats),
        "floor": frechet_distance(train_stats, test_stats),
        "class_gaussians": frechet_distance(gaussian_stats, test_stats),
    }
    if labels is not None:
        metrics["class_accuracy"] = _accuracy(logits, labels)
        metrics["class_accuracy_real"] = _accuracy(test_logits, test_labels)
    copies, real_copies = copy_share(generated, train), copy_share(test, train)
    metrics["copy_share"] = copies.median
    metrics["copy_share_real"] = real_copies.median
    metrics["near_copy_share"] = copies.low
    metrics["near_copy_share_real"] = real_copies.low
    return metrics


def _generated(
    loaded: LoadedModel,
    precision: Precision,
    num_samples: int,
    labels: npt.NDArray[np.int64] | None,
    device: torch.device,
) -> Iterator[Event | Tensor]:
    config = loaded.config
    codec = build_codec(config, device, loaded.vae)
    yield Started(
        what="generating for the score",
        total=num_samples,
        unit="images",
        details={"sampler": config.sample.sampler, "steps": config.sample.steps, "device": str(device)},
    )
    yield from choices(loaded.engine, precision)
    batches = generate(
        loaded.model,
        codec,
        config,
        seeds=range(config.evaluate.seed, config.evaluate.seed + num_samples),
        classes=None if labels is None else labels.tolist(),
        device=device,
        precision=precision.name,
    )
    for batch in batches:
        yield Progress(done=batch.num_done, total=num_samples, unit="images")
        if batch.images is not None:
            yield batch.images


def make_extractor(config: RunConfig, inception: Path | None, device: torch.device) -> Extractor:
    """What looks at the images: the classifier of digits, or Inception.

    Raises:
        MissingResourceError: Its weights are needed and not there.
    """
    weights = locate_inception(inception, config.data.source)
    return DigitFeatures() if weights is None else InceptionFeatures(weights, device=device)


def _statistics(images: Tensor, extractor: InceptionFeatures) -> Statistics:
    return statistics(torch.cat([extractor.outputs(part)[FEATURES].cpu() for part in images.split(FEATURE_BATCH)]))


def _real_statistics(source: ImageSource, extractor: InceptionFeatures) -> Statistics:
    parts = [
        extractor.outputs(to_uint8(torch.stack([source.load(index, None) for index in part])))[FEATURES].cpu()
        for part in (
            range(start, min(start + FEATURE_BATCH, len(source))) for start in range(0, len(source), FEATURE_BATCH)
        )
    ]
    return statistics(torch.cat(parts))


def _accuracy(logits: Tensor, labels: npt.NDArray[np.int64]) -> float:
    return float((logits.argmax(dim=1).numpy() == labels).mean())


def _default_path(loaded: LoadedModel, config: RunConfig, features: str) -> Path:
    if loaded.run_folder is None and loaded.step is None:
        root, origin = Path("evaluations"), loaded.path.stem
    else:
        root = loaded.run_folder / "evaluations" if loaded.run_folder else Path("evaluations")
        origin = f"step-{loaded.step:08d}"
    return root / result_name(origin, config, features, loaded.average.name_parts)


def result_name(origin: str, config: RunConfig, features: str, average: Sequence[str] = ()) -> str:
    """The name of a result file, so that results of other settings do not overwrite each other.

    Args:
        origin: Which weights.
        config: Its ``sample`` section says how the images were made.
        features: The extractor.
        average: Which average of the weights, when it is not the usual one.
    """
    sample = config.sample
    how = f"{sample.sampler.replace('+', 'p')}-{sample.steps}"
    return "_".join([origin, features, how, f"cfg-{sample.cfg_scale:g}", *sample.name_parts, *average]) + ".json"


def check_bound(result: dict[str, object], fail_above: float | None) -> str | None:
    """A sentence when the score is above the bound, None when it is not.

    Raises:
        UsageError: The bound is negative.
    """
    if fail_above is None:
        return None
    if fail_above < 0:
        raise UsageError(f"--fail-above must be at least 0, got {fail_above:g}")
    name = "fid" if "fid" in result else "frechet_digits"
    value = result[name]
    if isinstance(value, float) and not value <= fail_above:
        return f"{name} is {value:.4g}, above --fail-above {fail_above:g}"
    return None
