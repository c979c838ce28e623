"""Scores: the Frechet distance at 2048 features, what statistics add to the extractor, memory.

``frechet``: two covariances of 4,096 vectors, full rank, against torch-fidelity's general eigenvalues, which agree to
1e-7, and scipy's square root of the product. numpy computes with all cores, whatever is said of torch.

``scoring``: images a second through Inception of random weights with the sums of FID, sFID and the Inception Score,
against the network alone on the same batches.

``interval``: the bootstrap of 50 resamples at 2048 features. ``memory``: growth with four times the images.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from common import Record, Settings, at_least, at_most, can_measure_memory, clock_name, cores, extra_peak, interleaved
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

from dis_cli.metrics.bootstrap import GroupedMoments, frechet_interval
from dis_cli.metrics.extractors.base import FEATURES, LOGITS, SPATIAL
from dis_cli.metrics.extractors.inception import InceptionFeatures
from dis_cli.metrics.frechet import frechet_distance
from dis_cli.metrics.inception_score import InceptionScore
from dis_cli.metrics.statistics import Moments, Statistics, statistics

sys.path.append(str(Path(__file__).parents[1]))
from support.inception import save_random_inception

SIZE = 2048
BATCH = 16


def measure(settings: Settings) -> Iterator[Record]:
    """The figures of this subject."""
    yield from _frechet(settings)
    yield from _scoring(settings)
    yield from _interval(settings)
    yield from _memory()


def _frechet(settings: Settings) -> Iterator[Record]:
    a, b = _drawn(0), _drawn(1)
    theirs = [{"mu": x.mean, "sigma": x.covariance} for x in (a, b)]
    ours, fidelity = frechet_distance(a, b), fid_statistics_to_metric(*theirs, verbose=False)[KEY_METRIC_FID]
    if not abs(ours / fidelity - 1) <= 1e-7:
        raise RuntimeError(f"the contenders differ: {ours} and {fidelity}")
    contenders: dict[str, Callable[[], object]] = {
        "dis": lambda: frechet_distance(a, b),
        "torch-fidelity": lambda: fid_statistics_to_metric(*theirs, verbose=False),
    }
    slow = () if settings.quick else ("scipy",)
    if slow:
        contenders["scipy"] = lambda: scipy.linalg.sqrtm(a.covariance @ b.covariance)
    seconds = interleaved(contenders, threads=cores(), rounds=settings.rounds(6), once=slow)
    clock = clock_name(cores())
    yield Record(f"Frechet distance, {SIZE} features: seconds", seconds["dis"], "", clock, at_most(3))
    for other in [name for name in contenders if name != "dis"]:
        target = at_least(4) if other == "torch-fidelity" else None
        yield Record(f"the same: {other} / dis", seconds[other] / seconds["dis"], "x", clock, target)


def _scoring(settings: Settings) -> Iterator[Record]:
    with tempfile.TemporaryDirectory() as folder:
        extractor = InceptionFeatures(save_random_inception(Path(folder) / "random.pth"))
    images = torch.randint(0, 256, (BATCH, 32, 32, 3), dtype=torch.uint8)
    # as many as make whole blocks of sums
    num_batches = 8 if settings.quick else 64
    moments = {name: Moments(extractor.sizes[name]) for name in (FEATURES, SPATIAL)}

    def score() -> None:
        inception_score = InceptionScore(BATCH * num_batches)
        for number in range(num_batches):
            outputs = extractor.outputs(images)
            for name, sums in moments.items():
                sums.update(outputs[name])
            inception_score.update(outputs[LOGITS], number * BATCH)
        inception_score.score()

    def bare() -> None:
        for _ in range(num_batches):
            extractor.outputs(images)

    seconds = interleaved({"scored": score, "bare": bare}, threads=cores(), rounds=settings.rounds(3))
    clock = clock_name(cores())
    yield Record("Inception with statistics: images/s", BATCH * num_batches / seconds["scored"], "", clock)
    yield Record("the same / Inception alone", 100 * seconds["bare"] / seconds["scored"], "%", clock, at_least(95))


def _interval(settings: Settings) -> Iterator[Record]:
    reference = _drawn(1)
    groups = GroupedMoments(SIZE)
    groups.update(_vectors(0), 0)
    once = interleaved(
        {"interval": lambda: frechet_interval(groups, reference)}, threads=cores(), rounds=1, once=("interval",)
    )
    yield Record("95 % interval of 50 resamples: seconds", once["interval"], "", clock_name(cores()))


def _memory() -> Iterator[Record]:
    if not can_measure_memory():
        return
    peaks = [extra_peak(lambda count=count: _stream(count)) / 1e6 for count in (8_192, 32_768)]
    yield Record("statistics of 8,192 vectors in batches: peak memory", peaks[0], "MB", "peak")
    yield Record("growth of the peak with four times the vectors", peaks[1] - peaks[0], "MB", "peak", at_most(20))


def _stream(count: int) -> None:
    moments = Moments(SIZE)
    batch = torch.randn(256, SIZE)
    for _ in range(count // len(batch)):
        moments.update(batch)
    moments.statistics()


def _vectors(seed: int) -> torch.Tensor:
    """Correlated vectors, with eigenvalues over four orders of magnitude as Inception's have."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -2, SIZE)
    mixed = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator)).Q
    return (torch.randn(2 * SIZE, SIZE, generator=generator) * scales) @ mixed + 0.3


def _drawn(seed: int) -> Statistics:
    return statistics(np.asarray(_vectors(seed)))
