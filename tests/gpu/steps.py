"""Whole training steps of DiS and of a DiT-XL/2 in bfloat16, and sampling."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial

import torch
from kernels import Machine, require
from plan import Part
from timing import milliseconds
from torch import Tensor, nn

from dis_cli.diffusion.batch import TrainingBatch
from dis_cli.diffusion.loss import Objective
from dis_cli.diffusion.samplers.loop import make_sampler, sample_loop
from dis_cli.diffusion.schedule import make_schedule
from dis_cli.models.dis.backbone import DiS
from dis_cli.models.dis.flops import count
from dis_cli.models.dis.sizes import SIZES, Shape
from dis_cli.models.dit import cost as dit_cost
from dis_cli.models.dit import sizes as dit_sizes
from dis_cli.models.dit.backbone import DiT

CLASSES = 1000
# As published, in training.
DROP_PATH = 0.1
SAMPLER, EVALUATIONS = "dpm++", 25
# The largest batch that fits is taken.
BATCHES = (64, 32, 16, 8)


def training_parts(machine: Machine) -> Iterator[Part]:
    """Forward, loss, backward and AdamW on latents of 256x256 pixels, by engine, and of a DiT-XL/2."""
    proof, *others = machine.engines
    for size in _sizes(machine):
        yield _part("training step", _train_dis, machine, size, proof, 15)
    yield Part("training step", "DiT-XL/2 bf16", 12, partial(_train_dit, machine))
    for engine in others:
        yield _part("training step", _train_dis, machine, _sizes(machine)[0], engine, 30)


def sampling_parts(machine: Machine) -> Iterator[Part]:
    """Images a second with 25 evaluations of DPM-Solver++, without guidance and without decoding."""
    proof, *others = machine.engines
    for size in _sizes(machine):
        yield _part("sampling", _sample, machine, size, proof, 15)
    for engine in others:
        yield _part("sampling", _sample, machine, _sizes(machine)[0], engine, 30)


def _part(
    section: str,
    measure: Callable[[Machine, Shape, str], object],
    machine: Machine,
    size: str,
    engine: str,
    seconds: float,
) -> Part:
    shape = _shape(size, dry=machine.dry)
    return Part(section, f"DiS-{size.upper()}/2 bf16, {engine}", seconds, partial(measure, machine, shape, engine))


def _sizes(machine: Machine) -> tuple[str, ...]:
    """The larger one first; where everything is tiny, one is enough."""
    return ("xl",) if machine.dry else ("xl", "l")


def _shape(size: str, *, dry: bool) -> Shape:
    """The model of the ImageNet preset of that size, on latents of 256x256 pixels."""
    if dry:
        return Shape(4, 4, 4, embed_dim=16, depth=1, num_classes=10, d_state=2)
    own = SIZES[size]
    return Shape(32, 2, 4, own.embed_dim, own.depth, num_classes=CLASSES)


def _dis(shape: Shape, engine: str, device: torch.device) -> DiS:
    torch.manual_seed(0)
    with torch.device(device):
        return DiS(
            shape.image_size,
            shape.patch_size,
            shape.in_channels,
            shape.embed_dim,
            shape.depth,
            num_classes=shape.num_classes,
            drop_path=DROP_PATH,
            d_state=shape.d_state,
            engine=engine,
        )


def _train_dis(machine: Machine, shape: Shape, engine: str) -> dict[str, object]:
    require(engine, machine.device)
    build = partial(_dis, shape, engine, machine.device)
    return _train(machine, build, 2 * count(shape).training_macs, shape, variance="learned_range")


def _train_dit(machine: Machine) -> dict[str, object]:
    """DiT without a learned variance, whose channels cost next to nothing."""
    grid = _shape("xl", dry=machine.dry)
    size = dit_sizes.Size(16, 2, 2) if machine.dry else dit_sizes.SIZES["xl"]
    shape = dit_sizes.Shape(
        grid.image_size,
        grid.patch_size,
        grid.in_channels,
        size.embed_dim,
        size.depth,
        size.num_heads,
        num_classes=grid.num_classes,
        learn_sigma=False,
    )

    def build() -> nn.Module:
        torch.manual_seed(0)
        with torch.device(machine.device):
            return DiT(**asdict(shape))

    flops = 2 * dit_cost.count(shape).training_macs
    return _train(machine, build, flops, grid, variance="fixed_small")


def _train(
    machine: Machine, build: Callable[[], nn.Module], flops: int, grid: Shape, *, variance: str
) -> dict[str, object]:
    """Images a second, peak memory and MFU of a training step at the largest batch that fits.

    Args:
        flops: Of a forward and backward for one image.
        grid: What the images are like.
        variance: Of the reverse step (``dis_cli.diffusion.objective``).
    """
    refused: list[int] = []
    for batch in (1,) if machine.dry else BATCHES:
        _free(machine.device)
        timed = milliseconds({"step": _step(machine, build, batch, grid, variance)}, machine.device, machine.seconds)[
            "step"
        ]
        if "OutOfMemory" in str(timed.get("error")):
            refused.append(batch)
            continue
        row = {"batch": batch, "out_of_memory_at": refused, **timed}
        if "ms" in timed:
            row |= _speed(machine, batch, float(str(timed["ms"])), flops)
        return row
    return {"error": f"out of memory at every batch of {refused}"}


def _step(
    machine: Machine, build: Callable[[], nn.Module], batch: int, grid: Shape, variance: str
) -> Callable[[], object]:
    """One training step; the model and its optimizer are made in the first call, and go with the function."""
    objective = Objective(
        process=make_schedule("linear", 1000),
        prediction="epsilon",
        variance=variance,
        is_conditional=True,
        precision="bf16",
    )
    made: list[tuple[nn.Module, torch.optim.AdamW, TrainingBatch]] = []

    def step() -> None:
        if not made:
            model = build().train()
            # Vectors are not decayed in `dis train`; without decay there is nothing to tell apart.
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
            drops = getattr(model, "num_drop_path", 0)
            made.append((model, optimizer, _batch(machine.device, batch, grid, drops)))
        model, optimizer, images = made[0]
        objective.loss(model, images).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _batch(device: torch.device, batch: int, grid: Shape, drops: int = 0) -> TrainingBatch:
    generator = torch.Generator().manual_seed(0)
    images = (batch, grid.in_channels, grid.image_size, grid.image_size)
    return TrainingBatch(
        x_0=torch.randn(images, generator=generator),
        labels=torch.randint(grid.num_classes, (batch,), generator=generator),
        t=torch.randint(1000, (batch,), generator=generator),
        noise=torch.randn(images, generator=generator),
        label_drop_uniform=torch.rand(batch, generator=generator),
        drop_path_uniform=torch.rand(drops, batch, generator=generator),
    ).to(device)


def _speed(machine: Machine, batch: int, ms: float, flops: int) -> dict[str, object]:
    rate = batch / ms * 1e3
    row: dict[str, object] = {"images_per_second": round(rate, 2), "tflops": round(rate * flops / 1e12, 2)}
    if machine.card is not None:
        row["mfu"] = round(rate * flops / 1e12 / machine.card.tflops["bf16"], 4)
    if machine.device.type == "cuda":
        row["peak_gib"] = round(torch.cuda.max_memory_allocated(machine.device) / 2**30, 2)
    return row


def _sample(machine: Machine, shape: Shape, engine: str) -> dict[str, object]:
    require(engine, machine.device)
    _free(machine.device)
    model = _dis(shape, engine, machine.device).eval().requires_grad_(False)
    batch = 1 if machine.dry else BATCHES[0]
    evaluations = 2 if machine.dry else EVALUATIONS
    sampler = make_sampler(
        make_schedule("linear", 1000), name=SAMPLER, steps=evaluations, prediction="epsilon", variance="learned_range"
    )
    images = _batch(machine.device, batch, shape)
    generators = [torch.Generator().manual_seed(seed) for seed in range(batch)]

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(machine.device.type, torch.bfloat16):
            return model(x, t, images.labels).float()

    def sample() -> None:
        for _ in sample_loop(denoise, images.noise, sampler, generators):
            pass

    row = milliseconds({"sample": sample}, machine.device, machine.seconds)["sample"]
    if "ms" not in row:
        return row
    rate = batch / float(str(row["ms"])) * 1e3
    row |= {"batch": batch, "evaluations": evaluations, "images_per_second": round(rate, 2)}
    row["ms_per_evaluation"] = round(float(str(row["ms"])) / evaluations, 3)
    return row


def _free(device: torch.device) -> None:
    """Give back what earlier parts held, so that a peak is this part's own."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
