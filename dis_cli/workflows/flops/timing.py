"""The speed of a model on this machine, as a share of the speed of its matrix products."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict

import torch
import torch.nn.functional as F

from dis_cli.errors import UsageError
from dis_cli.events import Event, Finished, Note
from dis_cli.models.cost import ModelShape
from dis_cli.runtime.device import pick_device
from dis_cli.runtime.machine import memory
from dis_cli.runtime.peak import matrix_flops_per_second
from dis_cli.runtime.precision import choose_precision, linear_precision
from dis_cli.scan.engines.choose import choose_engine
from dis_cli.training.optimizer import make_optimizer
from dis_cli.workflows.build import engine_note
from dis_cli.workflows.flops.model import AskedModel

MIN_SECONDS, MIN_ROUNDS, MAX_ROUNDS = 2.0, 3, 50

# What the program and its libraries take beside the model.
_PROGRAM_BYTES = 600_000_000


def time_model(model: AskedModel, *, batch: int, device: str = "auto") -> Iterator[Event]:
    """Measure a forward and a training step: forward, mean squared error, backward and AdamW.

    Each is the median of at least three rounds and two seconds, after one that is not counted. The rate of a large
    matrix product is measured before and after, and the better one counts.

    Args:
        model: Built with random weights.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        UsageError: The device does not exist, or has too little memory: says what fits.
    """
    place = pick_device(device)
    precision = choose_precision("auto", place, model.shape.width)
    engine = choose_engine("auto", place)
    _require_memory(model, batch, precision.name, place)
    yield engine_note(engine)
    yield Note(message=f"precision {precision.name}: {precision.reason}")
    peak = matrix_flops_per_second(place, precision.name, model.shape.width)
    forward, step = _work(model, batch, precision.name, place)
    seconds = {"forward": _median_seconds(forward, place), "training_step": _median_seconds(step, place)}
    peak = max(peak, matrix_flops_per_second(place, precision.name, model.shape.width))
    cost = model.family.cost(model.shape)
    flops = {"forward": 2 * batch * cost.macs, "training_step": 2 * batch * cost.training_macs}
    yield Finished(
        result={
            "name": model.name,
            "batch_size": batch,
            "device": str(place),
            "num_threads": torch.get_num_threads(),
            "engine": asdict(engine),
            "precision": asdict(precision),
            "matmul_gflops_per_second": peak / 1e9,
            "timings": {
                what: {
                    "seconds": taken,
                    "images_per_second": batch / taken,
                    "gflops_per_second": flops[what] / taken / 1e9,
                    "utilisation": flops[what] / taken / peak,
                }
                for what, taken in seconds.items()
            },
        }
    )


def _work(
    asked: AskedModel, batch: int, precision: str, device: torch.device
) -> tuple[Callable[[], object], Callable[[], object]]:
    """A forward for sampling, and a training step, of one model on fixed random images."""
    shape = asked.shape
    model = asked.family.build(**asdict(shape)).to(device)
    optimizer = make_optimizer(model, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0)
    x = torch.randn(batch, shape.in_channels, shape.image_size, shape.image_size, device=device)
    t = torch.arange(batch, device=device) % 1000
    labels = t % shape.num_classes if shape.num_classes else None
    target = torch.randn(batch, model.out_channels, shape.image_size, shape.image_size, device=device)

    def forward() -> None:
        model.eval()
        with torch.inference_mode(), linear_precision(precision, device.type):
            model(x, t, labels)

    def step() -> None:
        model.train()
        with linear_precision(precision, device.type):
            prediction = model(x, t, labels)
        F.mse_loss(prediction.float(), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    return forward, step


def _median_seconds(run: Callable[[], object], device: torch.device) -> float:
    turns: list[float] = []
    while len(turns) <= MIN_ROUNDS or (sum(turns[1:]) < MIN_SECONDS and len(turns) <= MAX_ROUNDS):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        turns.append(time.perf_counter() - started)
    # The first one builds what the others reuse.
    return statistics.median(turns[1:])


def _require_memory(model: AskedModel, batch: int, precision: str, device: torch.device) -> None:
    free = memory(device).free_bytes
    estimate_memory = model.family.memory
    if free is None or estimate_memory is None:
        return

    def needed(shape: ModelShape, batch: int) -> int:
        # Without the weight average, which a timed step does not have.
        estimate = estimate_memory(shape, batch=batch, precision=precision)
        return _PROGRAM_BYTES + estimate.training - estimate.ema

    if needed(model.shape, batch) <= free:
        return
    least, per_image = needed(model.shape, 1), needed(model.shape, 2) - needed(model.shape, 1)
    largest = 1 + (free - least) // per_image if least <= free else 0
    if largest:
        allowed, hint = f"a batch of up to {largest}", f"Try `--batch {largest}`"
    else:
        sizes = [name for name, size in model.family.sizes.items() if needed(model.resized(size).shape, 1) <= free]
        allowed = f"--size {', '.join(sizes)} with --batch 1" if sizes else "no named size"
        hint = "Free some memory, lower `--image-size`, or take a smaller model"
    raise UsageError(
        f"{model.name} does not fit into memory with a batch of {batch}: a training step needs about "
        f"{needed(model.shape, batch) / 1e9:,.1f} GB, got {free / 1e9:,.1f} GB free on {device}, allowed: {allowed}",
        hint,
    )
