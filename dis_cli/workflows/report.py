"""Reports: the page of one run or several, with images made for it where they are asked for."""

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dis_cli.codecs.pixel import to_uint8
from dis_cli.config.overrides import apply_overrides
from dis_cli.config.schema import RunConfig
from dis_cli.data.source import ImageSource
from dis_cli.errors import DisError, UsageError
from dis_cli.events import Event, Finished, Note, Progress, Started, Wrote
from dis_cli.metrics.memorization import copy_share
from dis_cli.pictures.grid import class_grid, labelled_grid, labelled_rows, png_of
from dis_cli.report.page import Made
from dis_cli.report.record import RunRecord, shell
from dis_cli.runtime.device import pick_device
from dis_cli.runtime.files import atomic_write_text
from dis_cli.runtime.targets import require_writable
from dis_cli.workflows.build import build_codec, build_image_source, pick_precision
from dis_cli.workflows.held_out import trained_on
from dis_cli.workflows.load.model import LoadedModel, load_model
from dis_cli.workflows.load.opened import open_checkpoint
from dis_cli.workflows.run_facts import open_run
from dis_cli.workflows.run_page import REPORT_FILE, page_of
from dis_cli.workflows.sample.generate import generate

GUIDANCE_SCALES = (1.0, 1.5, 2.0, 3.0, 5.0)
_GENERATOR = b'<meta name="generator" content="dis">'
# Distances between all training images are measured for so many of them only.
_MOST_COMPARED = 20_000
_MOST_NEAREST = 32
_ROWS = 512

_Images = npt.NDArray[np.uint8]


def report(
    folders: Sequence[Path],
    out: Path | None = None,
    *,
    samples: int = 0,
    nearest: bool = False,
    full: bool = False,
    device: str = "auto",
) -> Iterator[Event]:
    """Write the page.

    Args:
        folders: Run folders, in the order of the page.
        out: The file; None is ``report.html``, of a single run in its folder.
        samples: Images that are made of each run for it; 0 makes none.
        nearest: Whether to show the nearest training image beside some of them, and the shares of copies.
        full: Whether to embed pictures as they are.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        UsageError: A folder is no run, or ``out`` is something else than a report.
        DisError: A checkpoint, the device or the disk do not allow it.
    """
    if nearest and not samples:
        raise UsageError("`--nearest` needs samples to look at", "Add `--samples 64`")
    path = out or (folders[0] if len(folders) == 1 else Path()) / REPORT_FILE
    _require_ours(path)
    records = [open_run(folder) for folder in folders]
    words = ["dis", "report", *map(str, folders), *(["--out", str(out)] if out is not None else [])]
    words += ["--samples", str(samples)] if samples else []
    words += [flag for flag, given in (("--nearest", nearest), ("--full", full)) if given]
    made: list[Made] = []
    remarks: list[str] = []
    private = False
    for record in records if samples else ():
        loaded = load_model(open_checkpoint(Path(record.called)), pick_device(device))
        images, pictures = yield from _samples(record, loaded, samples, shell(words), several=len(records) > 1)
        made += pictures
        if nearest:
            try:
                made.append((yield from _nearest(record, loaded, images, shell(words))))
                private = True
            except DisError as error:
                remark = f"Nearest training images of {record.name} are not shown: {error.message}."
                remarks.append(remark)
                yield Note(message=remark, level="warning")
    text = page_of(records, words, full=full, made=made, private=private, remarks=remarks)
    atomic_write_text(path, text)
    yield Wrote(what="report", path=path)
    yield Finished(result={"out": str(path), "size_bytes": len(text.encode()), "runs": [*map(str, folders)]})


def _require_ours(path: Path) -> None:
    require_writable(path, "file", suffixes=(".html", ".htm"))
    if path.is_file() and (head := path.read_bytes()[:4000]) and _GENERATOR not in head:
        raise UsageError(f"`{path}` exists and is no report", "Choose another file with `--out report.html`")


def _samples(
    record: RunRecord, loaded: LoadedModel, count: int, command: str, *, several: bool
) -> Generator[Event, None, tuple[_Images, list[Made]]]:
    """Images of the newest weights: of all classes, and of each at several scales of guidance."""
    config, num_classes = loaded.config, loaded.config.model.num_classes
    names = loaded.saved.class_names
    of = f" of {record.name}" if several else ""
    classes = [place % num_classes for place in range(count)] if num_classes else None
    images = yield from _images(loaded, config, range(count), classes)
    step = [] if loaded.saved.step is None or not record.has_steps else ["--step", str(loaded.saved.step)]
    words = ["dis", "sample", "--ckpt", record.called, *step, *(["--class", "all"] if classes else [])]
    words += ["-n", str(count), "--out", "samples"]
    made = [
        Made(
            f"Class by seed{of}" if classes else f"Seeds 0 to {count - 1}{of}",
            class_grid(list(images), classes, names),
            f"{count} images of seeds 0 to {count - 1}" + (", a row for each class" if classes else ""),
            shell(words),
            "The command makes samples/grid.png, the same bytes.",
        )
    ]
    if classes and config.model.label_drop > 0:
        shown = list(range(min(num_classes, 10)))
        rows: list[tuple[str, list[npt.NDArray[np.uint8]]]] = []
        for scale in GUIDANCE_SCALES:
            guided = apply_overrides(config, [f"sample.cfg_scale={scale:g}"])
            rows.append((f"{scale:g}", list((yield from _images(loaded, guided, [0] * len(shown), shown)))))
        scales = ", ".join(f"{scale:g}" for scale in GUIDANCE_SCALES)
        made.append(
            Made(
                f"Class by guidance{of}",
                png_of(labelled_rows(rows, [names[place] if names else str(place) for place in shown])),
                f"Images of seed 0: a column for each class, a row for each guidance scale of {scales}",
                command,
                f"Seed 0; rows are sample.cfg_scale {scales}, columns the classes from 0.",
            )
        )
    return images, made


def _images(
    loaded: LoadedModel, config: RunConfig, seeds: Sequence[int], classes: Sequence[int] | None
) -> Generator[Event, None, _Images]:
    device = next(loaded.model.parameters()).device
    yield Started(what="sampling", total=len(seeds), unit="images")
    parts: list[_Images] = []
    batches = generate(
        loaded.model,
        build_codec(config, device, loaded.saved.vae),
        config,
        seeds=seeds,
        classes=classes,
        device=device,
        precision=pick_precision(config.sample.precision, config, device).name,
    )
    with torch.no_grad():
        for batch in batches:
            yield Progress(done=batch.num_done, total=len(seeds), unit="images")
            if batch.images is not None:
                parts.append(batch.images.numpy())
    return np.concatenate(parts)


def _nearest(record: RunRecord, loaded: LoadedModel, images: _Images, command: str) -> Generator[Event, None, Made]:
    """Samples beside their nearest training images, in L2 over 8-bit pixels.

    Raises:
        DisError: The training images are not there.
    """
    config = loaded.config
    if config.data.source == "latents":
        raise UsageError("the run was trained on latents, whose images are not at hand")
    source = trained_on(config, build_image_source(config, split="train"))
    shown = images[:_MOST_NEAREST]
    best = np.full(len(shown), np.inf)
    found = np.zeros_like(shown)
    kept: list[torch.Tensor] = []
    yield Started(what="looking for nearest training images", total=len(source), unit="images")
    for first in range(0, len(source), _ROWS):
        block = _read(source, range(first, min(first + _ROWS, len(source))))
        if len(source) <= _MOST_COMPARED:
            kept.append(block)
        left = torch.from_numpy(shown).flatten(1).double()
        distances = torch.cdist(left, block.flatten(1).double()).numpy()
        place = distances.argmin(1)
        closer = distances.min(1) < best
        best[closer] = distances.min(1)[closer]
        found[closer] = block.numpy()[place[closer]]
        yield Progress(done=first + len(block), total=len(source), unit="images")
    pairs = [picture for pair in zip(shown, found, strict=True) for picture in pair]
    note = "Pairs: left the sample, right the training image nearest to it, by L2 over the pixels."
    if kept:
        shares = copy_share(torch.from_numpy(images), torch.cat(kept))
        note += (
            f" Of {len(images)} samples {shares.median:.1%} are nearer to a training image than the median training "
            f"image is to its nearest other, and {shares.low:.1%} nearer than 5 % of them are; of new images of the "
            "same kind it would be about 50 % and 5 %."
        )
    return Made(
        f"Nearest training images of {record.name}",
        png_of(labelled_grid(pairs, None, columns=8)),
        f"{len(shown)} samples, each with the training image nearest to it at its right",
        command,
        note,
    )


def _read(source: ImageSource, places: range) -> torch.Tensor:
    """Images as bytes, (n, h, w, c)."""
    return to_uint8(torch.stack([source.load(place, None) for place in places]))
