"""Sampling: a checkpoint, seeds and classes in; images, their settings and a grid out."""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from dis_cli.config.schema import RunConfig
from dis_cli.errors import UsageError
from dis_cli.events import Event, Finished, Note, Progress, Started, Wrote
from dis_cli.runtime.device import pick_device
from dis_cli.runtime.files import atomic_folder, discard_folder, write_durably
from dis_cli.workflows.build import build_codec, build_guidance, build_sampler, choices, pick_precision
from dis_cli.workflows.generate import generate
from dis_cli.workflows.grid import grid_png
from dis_cli.workflows.load import LoadedModel, load_model, parse_classes
from dis_cli.workflows.resources import look_for_vae

SETTINGS_FILE = "samples.json"
GRID_FILE = "grid.png"
MAX_GRID_IMAGES = 400


def sample(
    checkpoint: Path,
    *,
    num_images: int,
    seed: int = 0,
    classes: Sequence[str] = (),
    overrides: Sequence[str] = (),
    preset: str | None = None,
    step: int | None = None,
    out: Path | None = None,
    device: str = "auto",
    dry_run: bool = False,
) -> Iterator[Event]:
    """Generate images and write them with their settings and a grid; image i has seed ``seed + i``.

    Args:
        checkpoint: Run folder, checkpoint folder, exported file or folder, or published ``.pt`` file.
        num_images: How many.
        seed: Seed of the first image.
        classes: Numbers, names, or "all"; several take turns. None lets each image's seed choose.
        overrides: ``KEY=VALUE`` on the checkpoint's settings, such as ``sample.steps=50``.
        preset: The preset that the checkpoint must belong to; None accepts any.
        step: The checkpoint of a run folder to take instead of its newest sound one.
        out: The folder to write, replaced when it holds earlier samples; None puts it into the run's ``samples``.
        device: "auto", "cpu", "cuda" or "cuda:N".
        dry_run: Only say what would be done.

    Raises:
        UsageError: A setting or class is wrong, or ``out`` holds something else.
        DisError: The checkpoint, the VAE, the device or the disk do not allow it.
    """
    place = pick_device(device)
    loaded = load_model(checkpoint, place, overrides, preset, step)
    yield from (Note(message=note, level="warning") for note in loaded.notes)
    config = loaded.config
    if not dry_run:
        # Of a published file this is known only now; what is built next takes seconds.
        look_for_vae(config, None)
    precision = pick_precision(config.sample.precision, config, place)
    chosen = parse_classes(list(classes), loaded)
    per_image = [chosen[index % len(chosen)] for index in range(num_images)] if chosen else None
    sampler = build_sampler(config)
    folder = out or default_folder(loaded, config, seed, num_images, chosen)
    replaces = _check_replaceable(folder)
    settings: dict[str, object] = {
        "schema": 1,
        "checkpoint": str(loaded.path),
        "step": loaded.step,
        "ema_decay": loaded.average.decay,
        "seed": seed,
        "num_images": num_images,
        "classes": chosen or None,
        "sample": config.sample.model_dump(mode="json"),
        "engine": asdict(loaded.engine),
        "precision": asdict(precision),
        "image_size": config.pixel_size,
        "model_evaluations": len(sampler.timesteps),
        "guided_evaluations": build_guidance(config).count_guided(sampler.timesteps),
        "out": str(folder),
    }
    if dry_run:
        yield Finished(result=settings | {"dry_run": True})
        return
    codec = build_codec(config, place, loaded.vae)
    yield Started(
        what="sampling",
        total=num_images,
        unit="images",
        details={"sampler": config.sample.sampler, "steps": len(sampler.timesteps), "device": str(place)},
    )
    yield from choices(loaded.engine, precision)
    with atomic_folder(folder.with_name(folder.name + ".new") if replaces else folder) as temporary:
        shown: list[npt.NDArray[np.uint8]] = []
        records: list[dict[str, object]] = []
        seeds = range(seed, seed + num_images)
        batches = generate(
            loaded.model,
            codec,
            config,
            seeds=seeds,
            classes=per_image,
            device=place,
            precision=precision.name,
        )
        for batch in batches:
            if batch.images is None:
                size = min(config.sample.batch_size, num_images - batch.start)
                yield Progress(done=batch.start + int(batch.share * size), total=num_images, unit="images")
                continue
            for offset, image in enumerate(batch.images.numpy()):
                label = None if batch.labels is None else batch.labels[offset]
                own_seed = seed + batch.start + offset
                name = f"{own_seed:06d}.png" if label is None else f"{own_seed:06d}_class-{label}.png"
                write_durably(temporary / name, png_bytes(image), shown_as=folder / name)
                records.append({"file": name, "seed": own_seed, "class": label})
                if len(shown) < MAX_GRID_IMAGES:
                    shown.append(image)
            yield Progress(done=batch.start + len(batch.images), total=num_images, unit="images")
        names = _names(records[: len(shown)], loaded.class_names)
        write_durably(temporary / GRID_FILE, grid_png(shown, names), shown_as=folder / GRID_FILE)
        text = json.dumps(settings | {"images": records}, indent=1) + "\n"
        write_durably(temporary / SETTINGS_FILE, text.encode(), shown_as=folder / SETTINGS_FILE)
    if replaces:
        discard_folder(folder)
        folder.with_name(folder.name + ".new").rename(folder)
    yield Wrote(what="images", path=folder)
    yield Finished(result=settings | {"grid": str(folder / GRID_FILE)})


def default_folder(loaded: LoadedModel, config: RunConfig, seed: int, num_images: int, classes: list[int]) -> Path:
    """Where samples go unless told: a folder in the run's ``samples`` (or ./samples) that names what is in it."""
    root = loaded.run_folder / "samples" if loaded.run_folder else Path("samples")
    origin = loaded.path.stem if loaded.step is None else f"step-{loaded.step:08d}"
    parts = [
        origin,
        config.sample.sampler.replace("+", "p"),
        f"{config.sample.steps}",
        f"seed-{seed}",
        f"n-{num_images}",
    ]
    if config.sample.cfg_scale != 1:
        parts.append(f"cfg-{config.sample.cfg_scale:g}")
    parts += (*config.sample.name_parts, *loaded.average.name_parts)
    if classes:
        all_of_them = classes == list(range(config.model.num_classes))
        parts.append("class-all" if all_of_them else "class-" + "-".join(map(str, classes[:8])))
    return root / "_".join(parts)


def png_bytes(image: npt.NDArray[np.uint8]) -> bytes:
    """An (h, w, c) image as a PNG file, grey when c is 1."""
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(buffer, format="PNG")
    return buffer.getvalue()


def _names(records: list[dict[str, object]], class_names: tuple[str, ...]) -> list[str] | None:
    labels = [record["class"] for record in records]
    if any(label is None for label in labels):
        return None
    return [class_names[label] if isinstance(label, int) and class_names else str(label) for label in labels]


def _check_replaceable(folder: Path) -> bool:
    """Whether earlier samples stand there; anything else that stands there is not ours to replace."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if (folder / SETTINGS_FILE).is_file():
        return True
    raise UsageError(
        f"`{folder}` exists and holds no samples of this program", "Choose another folder with `--out DIR`"
    )
