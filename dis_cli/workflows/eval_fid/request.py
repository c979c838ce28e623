"""A request for a score: the images, the reference and the way to compare them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dis_cli.metrics.extractors.base import Extractor
from dis_cli.workflows.eval_fid.place import require_place
from dis_cli.workflows.load.opened import Opened
from dis_cli.workflows.sample.facts import choose_form


@dataclass(frozen=True, kw_only=True)
class Request:
    """A call of `evaluate`.

    Attributes:
        opened: A checkpoint, from `open_checkpoint`, with settings such as ``evaluate.num_samples=10000``; or None.
        images: A folder, archive or npz file of images, in its place.
        ref: Reference: "data" (that of the run or preset), or a path; None is the data of a
            checkpoint.
        inception: The weights of Inception; None takes those in torch's cache where they are needed.
        extractor: One of the caller's own, such as `FunctionFeatures`, in the place of those that settings name.
        overrides: ``KEY=VALUE`` on the preset's settings, for images.
        preset: The preset that the checkpoint must belong to, or whose data images are compared with.
        out: The result file; None puts it into the run's ``evaluations``.
        device: "auto", "cpu", "cuda" or "cuda:N".
        interval: Give a confidence interval of the Frechet distance, by the bootstrap.
        repeat: Draw so many times as many images, each time with the next seeds.
        save_images: Place for generated images: a folder, or a file that ends in .npz or .zip.
        fail_above: Bounds, such as "fid=5", or "5" of the first metric.
        command: The command line, for the result.
        dry_run: Only say what would be done.
    """

    opened: Opened | None = None
    images: Path | None = None
    ref: str | None = None
    inception: Path | None = None
    extractor: Extractor | None = None
    overrides: Sequence[str] = ()
    preset: str | None = None
    out: Path | None = None
    device: str = "auto"
    interval: bool = False
    repeat: int = 1
    save_images: Path | None = None
    fail_above: Sequence[str] = ()
    command: str = ""
    dry_run: bool = False


def require_places(request: Request) -> None:
    """Refuse paths that results cannot be written to, before anything is read.

    Raises:
        UsageError: Something else is there, or a name says something else than what would be written.
        StorageError: The operating system does not allow it.
    """
    if request.out is not None:
        require_place(request.out)
    if request.save_images is not None:
        choose_form(None, request.save_images, None, option="--save-images")
