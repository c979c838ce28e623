"""Data: encoding against the bare VAE, the loader, opening a large set of latents, checking files.

``encode``: images a second of the whole of `dis encode-latents` (reading PNG files, cropping, both mirrors, storing,
hashing) against a loop of diffusers' ``vae.encode`` on one batch that is in memory, as many encodes. 64 pixels; the
bundled tiny VAE, and one with Stable Diffusion's widths and random weights. Peak memory with four times the images.

``loader``: training batches of 4x32x32 latents from a folder in the page cache, with every random number of a step, and
the latents alone; on two loader processes, as beside a GPU. And what a loader process costs a model on the CPU.

``open``: a set of 1.28 million latents (40 GB of empty, sparse files with real headers and labels).

``check``: 10,000 PNG files of 32x32, none of which the cache knows.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from statistics import median

import numpy as np
import torch
from common import Record, Settings, at_least, at_most
from PIL import Image
from torch.utils.data import DataLoader

from dis_cli.codecs.locate import BUNDLED
from dis_cli.data.batches import TrainingSet, training_batches
from dis_cli.data.images.files import FileSource, FolderFiles
from dis_cli.data.images.verify import check_images
from dis_cli.data.latents.format import CROP, PROGRESS, LatentSettings, Manifest, Shard, VaeRecord, write_manifest
from dis_cli.data.latents.source import LatentSource
from dis_cli.data.latents.writer import ShardWriter
from dis_cli.data.published.digits import DigitsSource
from dis_cli.data.source import ImageSource
from dis_cli.events import Finished
from dis_cli.runtime.machine import num_cores
from dis_cli.runtime.seed import Stream, generators
from dis_cli.runtime.signals import StopRequest
from dis_cli.workflows.encode_latents import EncodeOptions, encode

WALL = f"wall, {torch.get_num_threads()} threads"
IMAGE_SIZE = 64
BATCH = 16
LATENT = (4, 32, 32)
IMAGENET = 1_281_167
CHECKED = 10_000
# The peak of a process's own memory in bytes; ru_maxrss of a new process begins with what its parent had.
PEAK = "peak = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) * 1024"


def measure(settings: Settings) -> Iterator[Record]:
    """The figures of this subject."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["DIS_CACHE_DIR"] = str(folder / "cache")
        yield from _encode(folder, settings)
        yield from _encode_memory(folder)
        yield from _loader(folder, settings)
        yield from _open(folder)
        yield from _check(folder, settings)


def _encode(folder: Path, settings: Settings) -> Iterator[Record]:
    count = 128
    images = _pictures(folder / "images", count, IMAGE_SIZE)
    for name, vae, num_images, rounds in (
        ("tiny VAE", str(BUNDLED["digits"]), count, 9),
        ("Stable Diffusion's widths", str(_wide_vae(folder / "wide")), 32, 3),
    ):
        chosen = images if num_images == count else _pictures(folder / "few", num_images, IMAGE_SIZE)
        batch = torch.stack([_load(chosen, index) for index in range(BATCH)])
        module = _plain_vae(vae)
        dis: list[float] = []
        bare: list[float] = []
        for turn in range(settings.rounds(rounds) + 1):
            speed = _encode_once(chosen, vae, folder / f"out-{name}-{turn}")
            seconds = _seconds(lambda module=module, batch=batch: module.encode(batch), 2 * num_images // BATCH)
            # the first turn warms up
            if turn:
                dis.append(speed)
                bare.append(num_images / seconds)
        yield Record(f"encode, {name}: images/s, both mirrors", median(dis), "", WALL)
        yield Record(f"bare vae.encode, {name}: images/s, both mirrors", median(bare), "", WALL)
        yield Record(f"encode / bare vae.encode, {name}", 100 * median(dis) / median(bare), "%", WALL, at_least(95))


def _encode_memory(folder: Path) -> Iterator[Record]:
    """The peak memory of processes that encode different numbers of images into shards of one size."""
    peaks: list[float] = []
    for count in (500, 2_000):
        images = _pictures(folder / f"images-{count}", count, 32)
        script = (
            f"import sys; from dis_cli.cli.app import run; {PEAK}; "
            "status = run(sys.argv[1:]); print(peak()); sys.exit(status)"
        )
        arguments = ["encode-latents", "--data", images, "--vae", "digits", "--image-size", 32, "--shard-size", 2, "-q"]
        command = [sys.executable, "-c", script, *map(str, arguments), "--out", str(folder / f"latents-{count}")]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        peaks.append(int(output.split()[-1]) / 1e6)
        yield Record(f"encode {count} images of 32 pixels: peak memory", peaks[-1], "MB", "peak")
    yield Record("growth of the peak with four times the images", peaks[1] - peaks[0], "MB", "peak", at_most(20))


def _loader(folder: Path, settings: Settings) -> Iterator[Record]:
    source = LatentSource(_latents(folder / "latents", 8_192, 4_096))
    batch = 256
    batches = 60 if settings.quick else 200
    latents = DataLoader(
        _Latents(source), batch_size=None, sampler=[range(i * batch, (i + 1) * batch) for i in range(batches)],
        num_workers=2, prefetch_factor=4,
    )  # fmt: skip
    training = training_batches(
        _training_set(source), first_step=0, last_step=batches, batch_size=batch, accumulation=1, num_workers=2
    )
    speed = batch * _per_second(iter(latents), batches)
    yield Record("latents 4x32x32 drawn from their posteriors: samples/s", speed, "", "2 processes", at_least(20_000))
    speed = batch * _per_second(training, batches)
    yield Record("training batches of them, with all draws: samples/s", speed, "", "2 processes", at_least(20_000))

    steps = 30 if settings.quick else 100
    times: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for _ in range(settings.rounds(5)):
        for workers, own in times.items():
            own.append(_digits_step(workers, steps))
    for workers, own in times.items():
        yield Record(f"digits training step on this CPU, {workers} loader processes", median(own) * 1e3, "ms", WALL)


def _open(folder: Path) -> Iterator[Record]:
    path = _sparse_latents(folder / "large")
    script = (
        f"import sys, time; from pathlib import Path; from dis_cli.data.latents.source import LatentSource; {PEAK}; "
        "before = peak(); "
        "start = time.perf_counter(); source = LatentSource(Path(sys.argv[1])); "
        "seconds = time.perf_counter() - start; source.load(len(source) - 1, None); "
        "print(seconds, peak() - before, len(source))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    seconds, growth, count = map(float, done.stdout.split())
    yield Record(f"opening {count:,.0f} latents: seconds", seconds, "", "wall", at_most(1))
    yield Record("the same: growth of memory", growth / 1e6, "MB", "peak", at_most(200))


def _check(folder: Path, settings: Settings) -> Iterator[Record]:
    path = _pictures(folder / "many", CHECKED, 32)
    source = FileSource(FolderFiles(path), image_size=32)
    speeds = {True: list[float](), False: list[float]()}
    for _ in range(settings.rounds(5)):
        shutil.rmtree(folder / "cache", ignore_errors=True)
        for own in speeds.values():
            start = time.perf_counter()
            for _event in check_images(source, on_bad="stop", num_workers=num_cores(), stop=StopRequest()):
                pass
            own.append(CHECKED / (time.perf_counter() - start))
    yield Record("checking PNG files of 32x32: files/s", median(speeds[True]), "", WALL, at_least(2_000))
    yield Record("the same, all known to the cache: files/s", median(speeds[False]), "", WALL)


class _Latents:
    """Batches of latents alone, by the indices of their samples."""

    def __init__(self, source: LatentSource) -> None:
        self.source = source

    def __getitem__(self, positions: range) -> torch.Tensor:
        indices = [position % len(self.source) for position in positions]
        return self.source.load_batch(indices, generators(0, Stream.TRAIN, positions))


def _training_set(source: ImageSource) -> TrainingSet:
    return TrainingSet(source, seed=0, num_timesteps=1000, num_drop_path=24)


def _per_second(batches: Iterator[object], count: int) -> float:
    """Batches a second once the processes run."""
    warm = count // 4
    for _ in range(warm):
        next(batches)
    start = time.perf_counter()
    rest = sum(1 for _ in batches)
    return rest / (time.perf_counter() - start)


def _digits_step(workers: int, steps: int) -> float:
    from dis_cli.config.presets import load_preset
    from dis_cli.runtime.process_group import ProcessGroup
    from dis_cli.training.loop import train_steps
    from dis_cli.workflows.build import build_objective
    from dis_cli.workflows.train.build import build_training_state

    config = load_preset("dis-xs-digits")
    state = build_training_state(config, torch.device("cpu"), ProcessGroup())
    source = _training_set(DigitsSource("train"))
    batches = training_batches(
        source, first_step=0, last_step=steps, batch_size=config.train.batch_size, accumulation=1, num_workers=workers
    )
    taken = train_steps(
        state,
        batches,
        loss_function=build_objective(config).loss,
        learning_rate=lambda _: 1e-3,
        accumulation=1,
        clip_norm=1.0,
        device=torch.device("cpu"),
        group=ProcessGroup(),
    )
    return median(step.seconds for step in taken)


def _encode_once(images: Path, vae: str, out: Path) -> float:
    options = EncodeOptions(image_size=IMAGE_SIZE, batch_size=BATCH)
    *_, last = encode(images, vae, out, options, kind="folder")
    assert isinstance(last, Finished)
    speed = last.result["images_per_second"]
    assert isinstance(speed, float)
    return speed


def _seconds(call: Callable[[], object], times: int) -> float:
    start = time.perf_counter()
    with torch.no_grad():
        for _ in range(times):
            call()
    return time.perf_counter() - start


def _load(images: Path, index: int) -> torch.Tensor:
    return FileSource(FolderFiles(images), image_size=IMAGE_SIZE).load(index, None)


def _pictures(folder: Path, count: int, side: int) -> Path:
    """Smooth random pictures as PNG files, in ten classes; their size is that of photographs, pixel for pixel."""
    if not folder.exists():
        rng = np.random.default_rng(0)
        for label in range(10):
            (folder / str(label)).mkdir(parents=True)
        for index in range(count):
            coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
            image.save(folder / str(index % 10) / f"{index:06d}.png")
    return folder


def _plain_vae(folder: str) -> torch.nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False).requires_grad_(False).eval()


def _wide_vae(folder: Path) -> Path:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=32,
    ).save_pretrained(folder)
    return folder


def _settings(num_images: int, images_per_shard: int) -> LatentSettings:
    return LatentSettings(
        source="none",
        data="none",
        class_names=tuple(map(str, range(1000))),
        num_images=num_images,
        image_size=256,
        crop=CROP,
        background="white",
        vae=VaeRecord(name="none", config_sha256="none", weights_sha256="none", scaling_factor=None),
        scale=0.18215,
        shift=0.0,
        latent_shape=LATENT,
        dtype="float16",
        mirrored=True,
        images_per_shard=images_per_shard,
        batch_size=BATCH,
    )


def _latents(folder: Path, num_images: int, images_per_shard: int) -> Path:
    settings = _settings(num_images, images_per_shard)
    (folder / PROGRESS).mkdir(parents=True)
    rng = np.random.default_rng(0)
    shards: list[Shard] = []
    for number in range(settings.num_shards):
        indices = settings.indices(number)
        names = [str(index) for index in indices]
        with closing(ShardWriter(folder, number, settings, np.zeros(len(indices), np.int64), names)) as writer:
            for _ in range(len(indices) // 256):
                shape = (256, *LATENT)
                moments = {name: rng.standard_normal(shape, dtype=np.float32) for name in settings.moment_names}
                writer.add({name: np.abs(values) for name, values in moments.items()})
            shards.append(writer.finish())
    write_manifest(folder, Manifest(settings=settings, skipped=(), shards=tuple(shards)))
    return folder


def _sparse_latents(folder: Path) -> Path:
    """A folder as ImageNet would make it, without the moments: holes in the files that read as zeros."""
    per_shard = 512_000_000 // _settings(1, 1).bytes_per_image // BATCH * BATCH
    settings = _settings(IMAGENET, per_shard)
    (folder / PROGRESS).mkdir(parents=True)
    labels = np.random.default_rng(0).integers(0, 1000, IMAGENET)
    shards: list[Shard] = []
    for number in range(settings.num_shards):
        indices = settings.indices(number)
        names = [f"n01440764/n01440764_{index}.JPEG" for index in indices]
        own = labels[indices.start : indices.stop]
        with closing(ShardWriter(folder, number, settings, own, names)) as writer:
            (folder / PROGRESS / f"shard-{number:05d}.tmp").rename(folder / f"shard-{number:05d}.safetensors")
            shards.append(
                Shard(
                    file=f"shard-{number:05d}.safetensors",
                    first=indices.start,
                    count=len(indices),
                    size_bytes=writer.size_bytes,
                    sha256="0" * 64,
                    sums=(0.0,) * 4,
                    sums_of_squares=(0.0,) * 4,
                )
            )
    write_manifest(folder, Manifest(settings=settings, skipped=(), shards=tuple(shards)))
    return folder
