"""The plan shared by all processes that encode into one folder: its settings, and the images left out."""

import dataclasses
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dis_cli.data.images.files import FileSource
from dis_cli.data.images.verify import check_images
from dis_cli.data.latents.format import (
    MANIFEST,
    Dtype,
    LatentSettings,
    Manifest,
    Shard,
    Skipped,
    bytes_per_image,
    read_manifest,
)
from dis_cli.data.latents.unfinished import Plan, Unfinished
from dis_cli.data.source import ImageSource
from dis_cli.errors import DataError, MismatchError, differing, flat, listed, shortened
from dis_cli.events import Event, Note
from dis_cli.runtime.machine import num_cores
from dis_cli.runtime.signals import StopRequest

SHARD_BYTES = 512_000_000
BATCH_SIZE = 16
# What makes no difference to the bytes of a shard.
_INFORMATION = frozenset({"data", "num_images", "vae.name"})
SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """The options of encoding images.

    Attributes:
        image_size: Side to which images are cropped and resized, in pixels; a multiple of the VAE's downsampling.
        batch_size: Images encoded at a time. A folder that was begun keeps its own.
        shard_bytes: Largest size of a shard; one holds whole batches, and at least an image.
        mirrored: Also encode each image flipped left to right; never done to digits.
        dtype: Type in which moments are stored.
        scale: Factor on the VAE's z, recorded for training; None takes the VAE's own.
        background: Colour behind transparent images, a name or ``#rrggbb``.
        check: Read all images first, so that bad ones are known before anything is encoded.
        on_bad: Whether bad images stop the work or are left out.
        download: Fetch a public data set that is not there.
        device: "auto", "cpu", "cuda" or "cuda:N".
        num_workers: Threads that read images; None takes as many as there are processors, up to 8.
    """

    image_size: int = 256
    batch_size: int = BATCH_SIZE
    shard_bytes: int = SHARD_BYTES
    mirrored: bool = True
    dtype: Dtype = "float16"
    scale: float | None = None
    background: str = "white"
    check: bool = True
    on_bad: Literal["stop", "skip"] = "stop"
    download: bool = False
    device: str = "auto"
    num_workers: int | None = None

    @property
    def num_readers(self) -> int:
        """Threads that read images."""
        return self.num_workers or min(num_cores(), 8)


class Agreement:
    """The making of a plan for a folder of latents.

    Args:
        source: The images, as they were found.
        asked: The settings of a folder that is new.
        require_space: Refuses what the disk cannot hold: so many images of these settings.
    """

    def __init__(
        self,
        out: Path,
        options: EncodeOptions,
        source: ImageSource,
        asked: LatentSettings,
        require_space: Callable[[LatentSettings, int], None],
    ) -> None:
        self._out = out
        self._options = options
        self._source = source
        self._asked = asked
        self._unfinished = Unfinished(out)
        self._require_space = require_space

    def reach(self, stop: StopRequest) -> Generator[Event, None, Plan]:
        """The plan of the folder, ours if we are the first; the images are checked before it is written."""
        waited = False
        while True:
            state = self.state()
            if state is not None and not self._faulty():
                yield from self._note_batch_size(state.settings)
                return state
            self._unfinished.create()
            with self._unfinished.beginning() as held:
                if held:
                    if faulty := self._faulty():
                        for fault in faulty.values():
                            yield Note(message=f"{fault}; encoding it again", level="warning")
                        self._unfinished.reopen(read_manifest(self._out), list(faulty))
                    elif not self._unfinished.exists:
                        plan = yield from self._checked(stop)
                        self._require_space(plan.settings, plan.settings.num_images)
                        self._unfinished.write_plan(plan)
                    continue
            if not waited:
                yield Note(message="Waiting for the process that checks the images")
                waited = True
            stop.obey("Nothing was encoded yet")
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def state(self) -> Plan | None:
        """The content of the folder, checked against the request; None when nothing was begun."""
        state = self._finished_plan() or self._unfinished.read_plan() or self._finished_plan()
        if state is None:
            return None
        there = state.settings
        asked = divided(self._asked, self._options, there.batch_size)
        before, now = (flat(dataclasses.asdict(settings)) for settings in (there, asked))
        decisive = {key: value for key, value in before.items() if key not in _INFORMATION}
        if lines := differing(decisive, now, lambda value: shortened(repr(value))):
            raise MismatchError(
                f"`{self._out}` holds latents of other images or settings{listed(lines)}",
                "Give the same settings, or another --out",
            )
        return state

    def _finished_plan(self) -> Plan | None:
        manifest = self._manifest()
        return manifest and Plan(manifest.settings, manifest.skipped)

    def _faulty(self) -> dict[Shard, str]:
        """Shards of a finished folder that are gone or of another size, with the reason."""
        manifest = self._manifest()
        faults = {shard: shard.fault(self._out, hashed=False) for shard in manifest.shards} if manifest else {}
        return {shard: fault for shard, fault in faults.items() if fault}

    def _manifest(self) -> Manifest | None:
        try:
            return read_manifest(self._out)
        except DataError:
            # absent; or taken away in this moment, by a process that encodes damaged shards again
            if (self._out / MANIFEST).exists():
                raise
            return None

    def _checked(self, stop: StopRequest) -> Generator[Event, None, Plan]:
        if not self._options.check or not isinstance(self._source, FileSource):
            return Plan(self._asked, ())
        good = yield from check_images(
            self._source, on_bad=self._options.on_bad, num_workers=self._options.num_readers, stop=stop
        )
        skipped = tuple(Skipped(index=index, name=self._source.sample_name(index)) for index in good.left_out)
        settings = dataclasses.replace(self._asked, num_images=len(good))
        return Plan(divided(settings, self._options, settings.batch_size), skipped)

    def _note_batch_size(self, there: LatentSettings) -> Iterator[Note]:
        own = self._options.batch_size
        if own != there.batch_size:
            yield Note(message=f"Continuing with a batch size of {there.batch_size}, not {own}: it decides last bits")


def divided(settings: LatentSettings, options: EncodeOptions, batch_size: int) -> LatentSettings:
    """The settings with a batch size and as many images in a shard as fit, whole batches if possible."""
    fitting = options.shard_bytes // bytes_per_image(settings.latent_shape, settings.dtype, mirrored=settings.mirrored)
    whole = fitting // batch_size * batch_size or max(fitting, 1)
    return dataclasses.replace(settings, batch_size=batch_size, images_per_shard=whole)
