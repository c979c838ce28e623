"""Sampling: what it costs beside the model, what guidance costs, and how good and fast each sampler is on digits.

``DiS-S/2``: 16 images of 32x32 in 10 classes, 20 steps of DPM-Solver++, as `dis sample` generates them: unguided,
guided, guided in half of the steps, and bare calls of the model on the very tensors that it got in the unguided ones.
A step of each in turn; medians of their ratios.

``digits``: 450 images of a trained run (``--run DIR``), with the class counts of the data, scored as `dis eval-fid`
does: the distance to the test images, and the share of images that the classifier takes for the class asked for. One
pass a sampler, wall time.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch
from common import Record, Settings, at_least, at_most, thread_counts

from dis_cli.codecs.pixel import PixelCodec
from dis_cli.config.overrides import apply_overrides
from dis_cli.config.presets import load_preset
from dis_cli.config.schema import RunConfig
from dis_cli.metrics.extractors.digits import DigitFeatures
from dis_cli.models.dis.backbone import DiS
from dis_cli.workflows.build import build_guidance, build_model, build_sampler
from dis_cli.workflows.eval_fid.references import class_labels, reference_images
from dis_cli.workflows.eval_fid.scorer import score
from dis_cli.workflows.load.model import load_model
from dis_cli.workflows.load.opened import open_checkpoint
from dis_cli.workflows.sample.generate import Generated, generate

BATCH = 16
CLASSES = [index % 10 for index in range(BATCH)]
CPU = torch.device("cpu")
NUM_DIGITS = 450
PAPER = ("ancestral", 250)
FAST = ("dpm++", 20)
SAMPLERS = (
    PAPER,
    ("dpm++", 10),
    FAST,
    ("dpm++", 25),
    ("ddim", 50),
    ("unipc", 20),
    ("heun", 25),
    ("euler", 50),
    ("dpm++sde", 20),
    ("dpm++sde", 25),
)


def measure(settings: Settings) -> Iterator[Record]:
    """The figures of this subject."""
    torch.set_num_threads(thread_counts()[-1])
    yield from _beside_the_model(settings)
    if (settings.run / "checkpoints").is_dir():
        yield from _digits(settings.run)
    else:
        yield Record(
            "digits: quality and speed of samplers", None, "", note=f"no run at {settings.run}: give --run DIR"
        )


def _small(steps: int, *overrides: str) -> RunConfig:
    settings = ["model.num_classes=10", "sample.sampler=dpm++", f"sample.steps={steps}", f"sample.batch_size={BATCH}"]
    return apply_overrides(load_preset("dis-s-cifar"), [*settings, *overrides])


def _images(model: DiS, config: RunConfig) -> Iterator[Generated]:
    return generate(model, PixelCodec(), config, seeds=range(BATCH), classes=CLASSES, device=CPU, precision="fp32")


def _beside_the_model(settings: Settings) -> Iterator[Record]:
    wanted = 4 if settings.quick else 20
    plain = _small(wanted)
    model = build_model(plain.model_copy(update={"engine": settings.engine})).eval().requires_grad_(False)
    configs = {
        "unguided": plain,
        "guided": _small(wanted, "sample.cfg_scale=2"),
        "interval": _small(wanted, "sample.cfg_scale=2", "sample.cfg_interval=0,0.51"),
    }
    timesteps = build_sampler(plain).timesteps
    steps = len(timesteps)
    guided = [build_guidance(config).count_guided(timesteps) for config in configs.values()]
    if guided != [0, steps, steps // 2]:
        raise RuntimeError(f"guided are {guided} of {steps} steps")
    # The first call imports and allocates.
    next(_images(model, configs["guided"]))
    seen: list[tuple[torch.Tensor, ...]] = []
    runs = {name: _images(model, config) for name, config in configs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in (*configs, "bare")}
    for _ in timesteps:
        with torch.no_grad(), _recorded(model, seen):
            seconds["unguided"].append(_timed(lambda: next(runs["unguided"])))
        with torch.no_grad():
            seconds["bare"].append(_timed(lambda: model(*seen.pop())))
        for name in ("guided", "interval"):
            seconds[name].append(_timed(lambda name=name: next(runs[name])))

    def ratio(name: str, half: slice = slice(None)) -> float:
        pairs = zip(seconds[name][half], seconds["unguided"][half], strict=True)
        return median(own / unguided for own, unguided in pairs)

    name = f"DiS-S/2, {BATCH} images, {steps} steps"
    yield Record(name, sum(seconds["unguided"]) * 1e3, "ms", "wall")
    yield Record(f"{name}: time in the model", 100 * ratio("bare"), "%", "wall", at_least(95))
    yield Record(f"{name}: guided / not", ratio("guided"), "x", "wall", at_most(2.05))
    # The first half of the steps is not guided.
    halves = (ratio("interval", slice(steps // 2)) + ratio("interval", slice(steps // 2, None))) / 2
    yield Record(f"{name}: guided in half of them / not", halves, "x", "wall", at_most(1.55))


@contextmanager
def _recorded(model: DiS, seen: list[tuple[torch.Tensor, ...]]) -> Iterator[None]:
    """Keep what a model is called with."""
    hook = model.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    try:
        yield
    finally:
        hook.remove()


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _digits(run: Path) -> Iterator[Record]:
    loaded = load_model(open_checkpoint(run), CPU)
    source = reference_images(loaded.config)
    labels = class_labels(source, NUM_DIGITS)
    extractor = DigitFeatures()
    found: dict[tuple[str, int], tuple[float, float]] = {}
    for sampler, steps in SAMPLERS:
        config = apply_overrides(loaded.config, [f"sample.sampler={sampler}", f"sample.steps={steps}"])
        seeds = range(config.evaluate.seed, config.evaluate.seed + NUM_DIGITS)
        started = time.perf_counter()
        batches = generate(
            loaded.model, PixelCodec(), config, seeds=seeds, classes=labels.tolist(), device=CPU, precision="fp32"
        )
        images = torch.cat([batch.images for batch in batches if batch.images is not None])
        seconds = time.perf_counter() - started
        metrics = score(images, labels, source, extractor)
        found[sampler, steps] = metrics["frechet_digits"], seconds
        name = f"digits, {sampler} {steps}"
        yield Record(f"{name}: frechet_digits", metrics["frechet_digits"], "")
        yield Record(f"{name}: class accuracy", 100 * metrics["class_accuracy"], "%")
        yield Record(f"{name}: {NUM_DIGITS} images", seconds * 1e3, "ms", "wall")
    (paper, paper_seconds), (fast, fast_seconds) = found[PAPER], found[FAST]
    name = "digits, dpm++ 20 against ancestral 250"
    yield Record(f"{name}: distance", fast / paper, "x", "", at_most(1.1), f"floor {metrics['floor']:.2f}")
    yield Record(f"{name}: speed", paper_seconds / fast_seconds, "x", "wall", at_least(10))
