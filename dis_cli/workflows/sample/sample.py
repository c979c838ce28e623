"""Sampling: a checkpoint, seeds and classes in; images with their settings out, as PNGs and a grid, or in one file.

Finished batches are kept beside the result until it is whole (see `unfinished`), so that the same command continues
after a kill. A small result is written from memory all the same, and of a single batch nothing is kept unless the start
ends early. Under `torchrun` every process makes a share of the batches, and the leader the result.
"""

import contextlib
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np

from dis_cli.errors import StorageError
from dis_cli.events import Event, Finished, Note, Progress, Started, Wrote
from dis_cli.runtime.device import Process, join_job, pick_device, require_compiler
from dis_cli.runtime.files import atomic_write_bytes, storage_error, try_lock
from dis_cli.runtime.precision import Precision
from dis_cli.runtime.targets import followed, require_writable
from dis_cli.workflows.build import Codec, build_codec, choices
from dis_cli.workflows.load.model import LoadedModel, load_model
from dis_cli.workflows.load.opened import Opened
from dis_cli.workflows.preflight import look_for_vae
from dis_cli.workflows.sample.batch_size import pick_batch_size
from dis_cli.workflows.sample.facts import (
    all_facts,
    choose_form,
    choose_sample_precision,
    compared,
    default_path,
    free_place,
    require_place,
    sample_settings,
)
from dis_cli.workflows.sample.generate import generate
from dis_cli.workflows.sample.output import (
    GRID_FILE,
    TRAJECTORY_FILES,
    Format,
    Result,
    SavedBatch,
    Trajectory,
    read_facts,
    trajectory_images,
)
from dis_cli.workflows.sample.requests import as_ranges, choose_seeds, parse_classes
from dis_cli.workflows.sample.unfinished import Images, UnfinishedSamples, missing, require_same

TRAJECTORY_IMAGES = 8
TRAJECTORY_STEPS = 10
# A result of so many bytes is written from memory.
_MOST_BYTES_IN_MEMORY = 32_000_000
_POLL_SECONDS = 0.05


def sample(
    opened: Opened,
    *,
    num_images: int | None = None,
    seed: int | None = None,
    seeds: str | None = None,
    classes: Sequence[str] = (),
    preset: str | None = None,
    out: Path | None = None,
    form: Format | None = None,
    trajectory: Trajectory | None = None,
    compile_model: bool = False,
    device: str = "auto",
    dry_run: bool = False,
) -> Iterator[Event]:
    """Generate images and write them with their settings; image i has seed ``seed + i``.

    Under `torchrun` every process calls this; they must share a file system.

    Args:
        opened: The checkpoint, from `open_checkpoint`, with settings such as ``sample.steps=50``.
        num_images: Number; None takes as many as there are ``seeds``, else 16.
        seed: Seed of the first image; None is 0.
        seeds: All seeds instead, such as "0-15,40".
        classes: Numbers, names, ranges or "all"; several take turns. None lets each image's seed choose uniformly.
        preset: The preset that the checkpoint must belong to; None accepts any.
        out: The folder or file to write; None puts it into the run's ``samples``.
        form: "png" is a folder with a grid, "npz" one array, "zip" one archive of PNGs; None goes by ``out``.
        trajectory: Also show how the first images came about; with "png" only.
        compile_model: Compile the model, which takes a minute and then makes each step faster.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        UsageError: A setting, seed or class is wrong, or ``out`` holds something else.
        Interrupted: A signal asked to stop; finished batches stay for the next start.
        DisError: The checkpoint, the VAE, the device or the disk do not allow it.
    """
    chosen_seeds = choose_seeds(seed, seeds, num_images)
    out = out and followed(out)
    chosen_form = choose_form(form, out, trajectory)
    place = pick_device(device)
    with contextlib.ExitStack() as held:
        process = yield from join_job(place, held, alone=dry_run)
        group = process.group
        loaded = load_model(opened, place, preset)
        yield from (Note(message=note, level="warning") for note in loaded.saved.notes)
        config = loaded.config
        if not dry_run:
            # Of a published file this is known only now; what is built next takes seconds.
            look_for_vae(config, None)
        asked = parse_classes(classes, loaded.saved.class_names, loaded.saved.config.model.num_classes)
        yield from (Note(message=note) for note in asked.notes)
        chosen = asked.places
        named = f"seeds-{as_ranges(chosen_seeds)}" if seeds else f"seed-{chosen_seeds[0]}"

        def facts_at(path: Path) -> dict[str, object]:
            precision = choose_sample_precision(path, config, place)
            return all_facts(loaded, precision, chosen_seeds, chosen, chosen_form, compiled=compile_model)

        usual = default_path(loaded, named, len(chosen_seeds), chosen, chosen_form)
        path = out or group.from_leader(lambda: free_place(usual, facts_at))
        if out is None:
            require_place(path, chosen_form)
        precision = group.from_leader(lambda: choose_sample_precision(path, config, place))
        facts = all_facts(loaded, precision, chosen_seeds, chosen, chosen_form, compiled=compile_model)
        result = Result(
            out=path,
            form=chosen_form,
            facts=facts,
            settings=sample_settings(loaded, facts, chosen_seeds, chosen),
            seeds=chosen_seeds,
            class_names=loaded.saved.class_names,
            num_classes=config.model.num_classes,
            shape=(config.pixel_size, config.pixel_size, config.pixel_channels),
        )
        batch_size = pick_batch_size(loaded.model, config, place)
        job = _Job(loaded, result, process, precision, chosen, batch_size, trajectory, compile_model)
        group.require_agreement(facts | {"out": str(path)})
        if dry_run:
            yield Finished(result=job.summary() | {"dry_run": True, **job.plan()})
            return
        # All that may be wrong is told before anything is written.
        codec = build_codec(config, place, loaded.saved.vae)
        if compile_model:
            require_compiler(place, "`--compile` was given")
            loaded.model.compile()
        if group.is_leader:
            held.enter_context(_lock(path))
        yield from job.run(codec)


@dataclass
class _Job:
    """The fixed part of a command, from the first image to the last."""

    loaded: LoadedModel
    result: Result
    process: Process
    precision: Precision
    classes: list[int]
    batch_size: int
    trajectory: Trajectory | None
    compiled: bool

    def __post_init__(self) -> None:
        self.unfinished = UnfinishedSamples(self.result.out)
        self.count = len(self.result.seeds)
        # What this process made, when that is all and it is small.
        self.made: list[SavedBatch] | None = None

    def run(self, codec: Codec) -> Iterator[Event]:
        """Make what is missing, then the result."""
        began = time.monotonic()
        places = self.process.group.from_leader(self._begin)
        if places is None:
            yield from self._add_trajectory(codec)
            yield Finished(result=self.summary() | {"images_generated": 0, "images_kept": self.count})
            return
        batches = missing(places, self.count, self.batch_size)
        kept = self.count - sum(map(len, batches))
        sample = self.loaded.config.sample
        details: dict[str, object] = {
            "sampler": sample.sampler,
            "steps": sample.steps,
            "device": str(self.process.device),
        }
        details |= {"batch size": self.batch_size}
        details |= {"processes": self.process.group.world_size} if self.process.group.world_size > 1 else {}
        yield Started(what="sampling", total=self.count, unit="images", first=kept, details=details)
        yield from choices(self.loaded.engine, self.precision)
        if self.process.group.world_size == 1 and not kept and self.result.size_bytes <= _MOST_BYTES_IN_MEMORY:
            self.made = []
        try:
            yield from self._fill(batches, kept, codec)
            if self.process.group.is_leader:
                extras = {} if self.trajectory is None else self._trajectory(codec, self.trajectory)
                self.process.stop.obey(self._state(self.count))
                parts = self.unfinished.parts() if self.made is None else self.made
                self.result.write(parts, self.unfinished.result, extras)
        except BaseException:
            if self.process.group.is_leader:
                self.unfinished.discard_result()
                self._keep()
            raise
        if self.process.group.is_leader:
            self.unfinished.remove()
        self.process.wait_for_leader(self._state(self.count))
        yield Wrote(what="images", path=self.result.out)
        if self.trajectory is not None:
            yield Wrote(what="trajectory", path=self.result.out / TRAJECTORY_FILES[self.trajectory])
        seconds = time.monotonic() - began
        yield Finished(
            result=self.summary()
            | {"images_generated": self.count - kept, "images_kept": kept}
            | {"seconds": round(seconds, 3), "images_per_second": round((self.count - kept) / seconds, 3)}
        )

    def summary(self) -> dict[str, object]:
        """The part of ``--json`` that every run has."""
        result = self.result
        grid = {"grid": str(result.out / GRID_FILE)} if result.form == "png" else {}
        summary = result.settings | {"out": str(result.out), "batch_size": self.batch_size, **grid}
        if self.trajectory is not None:
            summary["trajectory"] = str(result.out / TRAJECTORY_FILES[self.trajectory])
        return summary

    def plan(self) -> dict[str, object]:
        """The plan, for a dry run."""
        there = read_facts(self.result.out)
        if there is not None:
            require_same(self.result.out, compared(there), compared(self.result.facts))
        # The PNGs, the grid, the settings and the trajectory.
        num_files = self.count + 2 + (self.trajectory is not None) if self.result.form == "png" else 1
        # Finished batches stay until the result is whole.
        return {
            "num_files": num_files,
            "result_bytes": self.result.size_bytes,
            "disk_bytes": 2 * self.result.size_bytes,
        }

    def _begin(self) -> list[range] | None:
        """The places of the images that are there; None when all is done. On the leader."""
        out, facts = self.result.out, compared(self.result.facts)
        there = read_facts(out)
        if there is not None:
            require_same(out, compared(there), facts)
            # A kill may have come before this.
            self.unfinished.remove()
            return None
        self.unfinished.begin(facts)
        return self.unfinished.sound_places()

    def _fill(self, batches: list[range], kept: int, codec: Codec) -> Iterator[Event]:
        """Generate this rank's batches and keep them; the leader then waits for those of the others."""
        done = kept
        sizes = {batch.start: len(batch) for batch in batches}
        for batch in batches[self.process.group.rank :: self.process.group.world_size]:
            labels = [self.classes[index % len(self.classes)] for index in batch] if self.classes else None
            for step in generate(
                self.loaded.model,
                codec,
                self.loaded.config,
                seeds=[self.result.seeds[index] for index in batch],
                classes=labels,
                device=self.process.device,
                precision=self.precision.name,
                batch_size=self.batch_size,
                whole_batches=self.compiled,
            ):
                if step.images is not None:
                    own = None if step.labels is None else np.asarray(step.labels, dtype=np.int64)
                    part = (batch.start, step.images.numpy(), own)
                    if self.made is not None:
                        self.made.append(part)
                    if self.made is None or len(batches) > 1:
                        self.unfinished.add(*part)
                    done = kept + self._num_done(sizes)
                    yield Progress(done=done, total=self.count, unit="images")
                else:
                    yield Progress(done=done + step.num_done, total=self.count, unit="images")
                self.process.stop.obey(self._state(done))
        if self.process.group.world_size == 1 or not self.process.group.is_leader:
            return
        while (now := kept + self._num_done(sizes)) < self.count:
            if now > done:
                done = now
                yield Progress(done=done, total=self.count, unit="images")
            self.process.stop.obey(self._state(done))
            time.sleep(_POLL_SECONDS)

    def _num_done(self, sizes: dict[int, int]) -> int:
        starts = self.unfinished.starts() if self.made is None else {start for start, _, _ in self.made}
        return sum(sizes.get(start, 0) for start in starts)

    def _keep(self) -> None:
        """Put on the disk what is only in memory, for the next start."""
        there = self.unfinished.starts()
        for part in self.made or ():
            if part[0] not in there:
                self.unfinished.add(*part)

    def _state(self, done: int) -> str:
        return f"{done} of {self.count} images are finished and kept in `{self.unfinished.path}`"

    def _add_trajectory(self, codec: Codec) -> Iterator[Event]:
        """Put what is missing beside samples that are there."""
        out, wanted = self.result.out, self.trajectory
        if wanted is None or (out / TRAJECTORY_FILES[wanted]).exists():
            yield Note(message=f"`{out}` holds these samples already: nothing to do")
            return
        path = out / TRAJECTORY_FILES[wanted]
        if self.process.group.is_leader:
            require_writable(path, "file", suffixes=(path.suffix,))
            (data,) = self._trajectory(codec, wanted).values()
            atomic_write_bytes(path, data)
        self.process.wait_for_leader(self._state(self.count))
        yield Wrote(what="trajectory", path=path)

    def _trajectory(self, codec: Codec, trajectory: Trajectory) -> dict[str, bytes]:
        """The trajectories of the first images. They are made once more, which makes the same images."""
        few = range(min(TRAJECTORY_IMAGES, self.count))
        frames: list[tuple[int, Images]] = []
        names: list[str] | None = None
        for step in generate(
            self.loaded.model,
            codec,
            self.loaded.config,
            seeds=[self.result.seeds[index] for index in few],
            classes=[self.classes[index % len(self.classes)] for index in few] if self.classes else None,
            device=self.process.device,
            precision=self.precision.name,
            batch_size=len(few),
            estimates=min(TRAJECTORY_STEPS, self.loaded.config.sampling[1]),
        ):
            if step.estimate is not None:
                frames.append((step.step, step.estimate.numpy()))
                names = None if step.labels is None else list(map(self.result.class_name, step.labels))
            self.process.stop.obey(self._state(self.count))
        return trajectory_images(frames, names, trajectory)


@contextlib.contextmanager
def _lock(out: Path) -> Generator[None]:
    """Keep other processes from writing the same result meanwhile."""
    path = out.with_name(f".{out.name}.lock")
    lock = filelock.FileLock(path)
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = try_lock(lock)
    except OSError as error:
        raise storage_error(out, error) from error
    if not held:
        raise StorageError(f"Another process is writing `{out}`", "Wait for it to end, or choose another `--out`")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()
        # Those in which nothing was written.
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()
