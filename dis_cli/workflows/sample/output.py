"""Finished images as a folder of PNGs, one npz or one zip: written part by part, the same bytes every time."""

import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dis_cli.errors import DataError, UsageError
from dis_cli.pictures.grid import class_grid, labelled_grid, labelled_rows, png_of
from dis_cli.runtime.files import publish, storage_error, write_durably
from dis_cli.workflows.sample.requests import file_labels
from dis_cli.workflows.sample.unfinished import Images, Labels

Format = Literal["png", "npz", "zip"]
Trajectory = Literal["strip", "gif"]
SavedBatch = tuple[int, Images, Labels | None]

SETTINGS_FILE = "samples.json"
GRID_FILE = "grid.png"
TRAJECTORY_FILES: dict[Trajectory, str] = {"strip": "trajectory.png", "gif": "trajectory.gif"}
MAX_GRID_IMAGES = 400
_MAX_GRID_BYTES = 32_000_000


@dataclass(frozen=True, kw_only=True)
class Result:
    """A result apart from its pixels.

    Attributes:
        facts: All that the images depend on, as JSON.
        settings: Part of ``samples.json`` before its list of images.
        class_names: One name a class; empty when unknown.
        shape: (height, width, channels) of an image.
    """

    out: Path
    form: Format
    facts: dict[str, object]
    settings: dict[str, object]
    seeds: Sequence[int]
    class_names: tuple[str, ...]
    num_classes: int
    shape: tuple[int, int, int]

    @cached_property
    def class_labels(self) -> list[str]:
        """The name of each class in names of files."""
        return file_labels(self.class_names, self.num_classes)

    def write(self, parts: Iterable[SavedBatch], temporary: Path, extras: dict[str, bytes]) -> None:
        """Write all of it under another name, and give it its own when it is complete and on the disk.

        Args:
            temporary: That name, on the same disk.
            extras: Further files of a folder.

        Raises:
            StorageError: The disk does not take it; names the file.
            DataError: Images are missing.
        """
        try:
            match self.form:
                case "png":
                    self._write_folder(parts, temporary, extras)
                case "npz":
                    self._write_npz(parts, temporary)
                case "zip":
                    self._write_zip(parts, temporary)
            publish(temporary, self.out)
        except OSError as error:
            raise storage_error(self.out, error, self.size_bytes if self.form == "npz" else None) from error

    @property
    def size_bytes(self) -> int:
        """Bytes of the pixels: what an npz has, and about the most that PNGs have."""
        return len(self.seeds) * int(np.prod(self.shape))

    def name_of(self, place: int, label: int | None) -> str:
        """The file of an image."""
        seed = f"{self.seeds[place]:06d}"
        return f"{seed}.png" if label is None else f"{seed}_class-{self.class_labels[label]}.png"

    def _write_folder(self, parts: Iterable[SavedBatch], folder: Path, extras: dict[str, bytes]) -> None:
        folder.mkdir()
        shown: list[Images] = []
        labels: list[int | None] = []
        most = min(MAX_GRID_IMAGES, max(16, _MAX_GRID_BYTES // int(np.prod(self.shape))))
        for place, image, label in self._images(parts):
            data = self._png(place, image, label)
            name = self.name_of(place, label)
            write_durably(folder / name, data, shown_as=self.out / name)
            labels.append(label)
            if len(shown) < most:
                shown.append(image)
        classes = [label for label in labels[: len(shown)] if label is not None] or None
        files = {GRID_FILE: class_grid(shown, classes, self.class_names), **extras}
        for name, data in files.items():
            write_durably(folder / name, data, shown_as=self.out / name)
        text = "".join(self._settings_text(labels)).encode()
        write_durably(folder / SETTINGS_FILE, text, shown_as=self.out / SETTINGS_FILE)

    def _write_npz(self, parts: Iterable[SavedBatch], path: Path) -> None:
        labels: list[int] = []
        with zipfile.ZipFile(path, "w") as archive:
            with archive.open(_entry("arr_0.npy"), "w", force_zip64=True) as member:
                _write_header(member, (len(self.seeds), *self.shape), np.dtype(np.uint8))
                for _, images, own in self._in_order(parts):
                    member.write(np.ascontiguousarray(images).data)
                    labels += [] if own is None else own.tolist()
            if labels:
                with archive.open(_entry("arr_1.npy"), "w", force_zip64=True) as member:
                    _write_header(member, (len(labels),), np.dtype(np.int64))
                    member.write(np.asarray(labels, dtype="<i8").data)
            archive.comment = _comment(self.facts)

    def _write_zip(self, parts: Iterable[SavedBatch], path: Path) -> None:
        labels: list[int | None] = []
        with zipfile.ZipFile(path, "w") as archive:
            for place, image, label in self._images(parts):
                archive.writestr(_entry(self.name_of(place, label)), self._png(place, image, label))
                labels.append(label)
            with archive.open(_entry(SETTINGS_FILE), "w", force_zip64=True) as member:
                for line in self._settings_text(labels):
                    member.write(line.encode())
            archive.comment = _comment(self.facts)

    def _in_order(self, parts: Iterable[SavedBatch]) -> Iterator[SavedBatch]:
        reached = 0
        for start, images, labels in parts:
            if start != reached or images.shape[1:] != self.shape:
                raise DataError(f"The image at place {reached} is missing", "Run the same command again")
            reached += len(images)
            yield start, images, labels
        if reached != len(self.seeds):
            raise DataError(f"The image at place {reached} is missing", "Run the same command again")

    def _images(self, parts: Iterable[SavedBatch]) -> Iterator[tuple[int, Images, int | None]]:
        for start, images, labels in self._in_order(parts):
            for offset, image in enumerate(images):
                yield start + offset, image, None if labels is None else int(labels[offset])

    def class_name(self, label: int | None) -> str:
        """The name of a class; its number where names are unknown."""
        return self.class_names[label] if label is not None and self.class_names else str(label)

    def _png(self, place: int, image: Images, label: int | None) -> bytes:
        sample = self.facts["sample"]
        assert isinstance(sample, dict)
        own: dict[str, object] = {"seed": self.seeds[place], "class": label}
        if label is not None and self.class_names:
            own["class_name"] = self.class_names[label]
        facts = {key: self.facts[key] for key in ("dis", "checkpoint_sha256", "step", "engine", "precision", "sample")}
        readable = {
            "Software": f"dis {self.facts['dis']}",
            "Seed": own["seed"],
            "Class": None if label is None else self.class_name(label),
            "Sampler": sample["sampler"],
            "Steps": sample["steps"],
            "Guidance scale": sample["cfg_scale"],
            "Checkpoint": f"sha256 {self.facts['checkpoint_sha256']}",
            "dis": json.dumps(own | facts),
        }
        return png_bytes(image, {name: str(value) for name, value in readable.items() if value is not None})

    def _settings_text(self, labels: Sequence[int | None]) -> Iterator[str]:
        """``samples.json``, an image a line: a list of all would take more memory than the images."""
        head = json.dumps(self.settings, indent=1)
        yield head.removesuffix("\n}") + ',\n "images": [\n'
        for place, label in enumerate(labels):
            record = {"file": self.name_of(place, label), "seed": self.seeds[place], "class": label}
            record |= {"class_name": self.class_names[label]} if label is not None and self.class_names else {}
            yield f"  {json.dumps(record)}{',' if place < len(labels) - 1 else ''}\n"
        yield " ]\n}\n"


def read_facts(out: Path) -> dict[str, object] | None:
    """The conditions of the samples in a finished folder or file; None when nothing is there.

    Raises:
        UsageError: Something else is there.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        if out.is_dir():
            facts = json.loads((out / SETTINGS_FILE).read_bytes())["facts"]
        else:
            with zipfile.ZipFile(out) as archive:
                facts = json.loads(archive.comment)
        if isinstance(facts, dict):
            return facts
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        pass
    raise UsageError(
        f"`{out}` exists and holds no samples of this program", "Choose another folder or file with `--out PATH`"
    )


def png_bytes(image: npt.NDArray[np.uint8], texts: dict[str, str] | None = None) -> bytes:
    """An (h, w, c) image as a PNG file, grey when c is 1, with texts in it by their keywords."""
    info = PngInfo()
    for name, text in (texts or {}).items():
        info.add_text(name, text)
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def trajectory_images(
    frames: Sequence[tuple[int, Images]], names: Sequence[str] | None, form: Trajectory
) -> dict[str, bytes]:
    """Images on their way from noise, as a file to put beside them.

    Args:
        frames: Steps taken, 0 for the noise, and what was there then, (n, h, w, c).
        names: Class of each image; None for a model without classes.
        form: A row an image, or one moving picture of all.
    """
    headings = ["noise" if step == 0 else f"step {step}" for step, _ in frames]
    if form == "strip":
        count = len(frames[0][1])
        rows = [
            (names[place] if names is not None else "", [images[place] for _, images in frames])
            for place in range(count)
        ]
        return {TRAJECTORY_FILES[form]: png_of(labelled_rows(rows, headings))}
    pictures = [
        labelled_grid(list(images), names, heading=heading)
        for heading, (_, images) in zip(headings, frames, strict=True)
    ]
    buffer = io.BytesIO()
    # The end is looked at longer.
    times = [150] * (len(pictures) - 1) + [1500]
    pictures[0].save(buffer, format="GIF", save_all=True, append_images=pictures[1:], duration=times, loop=0)
    return {TRAJECTORY_FILES[form]: buffer.getvalue()}


def _entry(name: str) -> zipfile.ZipInfo:
    # Its date is that of the format's beginning: the same bytes whenever it is written. Images are packed already.
    entry = zipfile.ZipInfo(name)
    entry.external_attr = 0o644 << 16
    return entry


def _comment(facts: dict[str, object]) -> bytes:
    return json.dumps(facts).encode()


def _write_header(member: object, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, header)  # pyright: ignore[reportArgumentType]
