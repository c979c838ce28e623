"""The steps of one start of a training run, and all that happens between them."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NoReturn

from dis_cli.checkpoints.background import CheckpointWriter
from dis_cli.checkpoints.store import checkpoint_bytes
from dis_cli.config.schema import RunConfig
from dis_cli.data.batches import TrainingSet, training_batches
from dis_cli.data.source import ImageSource
from dis_cli.errors import DisError, Interrupted, first_line, is_out_of_memory
from dis_cli.events import Event, Note, Saved, Step, Stopped
from dis_cli.runs.folder import RunDir
from dis_cli.runtime.device import Process
from dis_cli.runtime.faults import reach
from dis_cli.runtime.machine import memory_in_use
from dis_cli.runtime.precision import Precision
from dis_cli.scan.engines.choose import ChosenEngine
from dis_cli.training.loop import train_steps
from dis_cli.training.parallel import all_equal
from dis_cli.training.state import TrainingState
from dis_cli.workflows.build import build_objective, build_timestep_draw
from dis_cli.workflows.cost import model_shape
from dis_cli.workflows.held_out import trained_on
from dis_cli.workflows.train.build import build_learning_rate, max_skipped, num_loader_workers
from dis_cli.workflows.train.watch import Watcher

# The share of the time in which the model waits for data that is worth a word, and the least time to judge it by.
_STARVED = 0.2
_SECONDS_OF_PROOF = 30.0
# Forward, and backward to the inputs and to the weights.
_PASSES = 3


@dataclass(frozen=True)
class Job:
    """The fixed part of a start, from its first step to its last."""

    config: RunConfig
    run: RunDir
    process: Process
    engine: ChosenEngine
    precision: Precision
    source: ImageSource
    identity: dict[str, str]
    began: float


@dataclass
class Steps:
    """The steps of one start, with all that happens between them."""

    job: Job
    state: TrainingState
    meta: dict[str, object]
    watcher: Watcher
    writer: CheckpointWriter
    peak_flops: float
    macs: int
    loss: float | None = None
    seconds: float = 0.0
    waited: float = 0.0
    saved_step: int = 0

    def events(self) -> Iterator[Event]:
        """Train, save and look, until the last step or until asked to stop."""
        job, state = self.job, self.state
        train, last_step = job.config.train, job.config.train.steps
        self.saved_step = state.step
        # What a kill between a checkpoint and its picture has left undone.
        yield from self._look()
        for step in self._steps():
            yield replace(step, memory_bytes=memory_in_use(job.process.device), mfu=self._utilisation(step))
            if step.skipped:
                message = f"The loss or gradient of step {step.step} is not finite: its update was skipped"
                yield Note(message=f"{message} ({state.num_skipped} so far)", level="warning")
            yield from self._finished_save(wait=False)
            signal_number, out_of_time = self._asked_to_stop()
            stops = state.step < last_step and (signal_number is not None or out_of_time)
            is_last = stops or state.step == last_step
            if is_last or state.step % train.save_every == 0 or self.watcher.is_due(state.step):
                yield from self._finished_save(wait=True)
                self._begin_save()
            if is_last:
                yield from self._finished_save(wait=True)
            if stops and signal_number is not None:
                self._interrupt(signal_number)
            yield from self._look()
            if stops:
                message = f"train.max_minutes reached: stopped at step {state.step} of {last_step}, which is saved"
                yield Stopped(step=state.step, reason="time", message=message)
                return
        # The last look may have found a new best.
        self.writer.prune()

    def _look(self) -> Iterator[Event]:
        """Look at the model; a signal that comes meanwhile ends the work after saving."""
        signal_number = yield from self.watcher.look(self.state)
        if signal_number is not None:
            yield from self._finished_save(wait=True)
            if self.saved_step != self.state.step:
                self._begin_save()
                yield from self._finished_save(wait=True)
            self._interrupt(signal_number)

    def _interrupt(self, signal_number: int) -> NoReturn:
        # No rank may go before the leader has saved: `torchrun` would not wait long for it.
        self.job.process.group.barrier()
        raise Interrupted(
            f"Stopped at step {self.state.step} of {self.job.config.train.steps}, which is saved",
            signal_number,
            "Run the same command again to continue",
        )

    @property
    def data_wait_share(self) -> float:
        """The share of the time in which the model waited for its data."""
        return self.waited / self.seconds if self.seconds else 0.0

    def remarks(self) -> Iterator[Note]:
        """Advice to the user."""
        if self.data_wait_share > _STARVED and self.seconds > _SECONDS_OF_PROOF:
            message = f"{self.data_wait_share:.0%} of the time was spent waiting for data: see data.num_workers"
            yield Note(message=message, level="warning")

    def _steps(self) -> Iterator[Step]:
        job, state, train = self.job, self.state, self.job.config.train
        dataset = TrainingSet(
            trained_on(job.config, job.source),
            seed=job.config.seed,
            num_timesteps=job.config.diffusion.num_timesteps,
            num_drop_path=getattr(state.model, "num_drop_path", 0),
            draw_timestep=build_timestep_draw(job.config),
        )
        batches = training_batches(
            dataset,
            first_step=state.step,
            last_step=train.steps,
            batch_size=train.batch_size,
            accumulation=train.accumulation,
            num_workers=num_loader_workers(job.config, job.process.device),
            pin_memory=job.process.device.type == "cuda",
            rank=job.process.group.rank,
            world_size=job.process.group.world_size,
            offset=state.images - state.step * train.batch_size,
        )
        steps = train_steps(
            state,
            batches,
            loss_function=build_objective(job.config).loss,
            learning_rate=lambda step: build_learning_rate(job.config, step),
            accumulation=train.accumulation,
            clip_norm=train.clip_norm,
            device=job.process.device,
            group=job.process.group,
            max_skipped=max_skipped(job.config),
        )
        try:
            # Closed whatever happens: the loader processes end with it.
            with contextlib.closing(batches):
                for step in steps:
                    self.loss = step.loss
                    self.seconds, self.waited = self.seconds + step.seconds, self.waited + step.data_seconds
                    yield step
        except Exception as error:
            if is_out_of_memory(error):
                raise _out_of_memory(job, state.step, error) from error
            raise

    def _utilisation(self, step: Step) -> float | None:
        achieved = step.images_per_second * _PASSES * 2 * self.macs
        return achieved / self.peak_flops if self.peak_flops else None

    def _asked_to_stop(self) -> tuple[int | None, bool]:
        """The signal that any rank has received, and whether the leader's time is over; the same on all ranks."""
        job = self.job
        limit = job.config.train.max_minutes
        over = limit is not None and job.process.group.is_leader and time.monotonic() - job.began > limit * 60
        received = job.process.stop.requested or 0
        if job.process.group.world_size == 1:
            return received or None, over
        highest, any_over = job.process.group.maximum([received, over])
        return int(highest) or None, bool(any_over)

    def _begin_save(self) -> None:
        job, state = self.job, self.state
        tensors = state.tensors()
        if job.process.group.world_size > 1 and job.config.train.sharding == "ddp":
            # Weights, averages and moments: each is a function of the gradients, which all ranks share.
            own = [tensor for named in tensors.values() for tensor in named.values()]
            if not all_equal(own):
                raise DisError(
                    f"The processes hold different weights after step {state.step}, which was not saved",
                    "A machine may be faulty. Run the same command again to continue from the last checkpoint",
                )
        reach("saving", state.step)
        counts = {"num_skipped": state.num_skipped, "images": state.images}
        self.writer.begin(state.step, tensors, self.meta | counts)
        self.saved_step = state.step

    def _finished_save(self, *, wait: bool) -> Iterator[Event]:
        path = self.writer.finished(wait=wait)
        if path is not None:
            reach("saved", self.saved_step)
            yield Saved(step=self.saved_step, path=path, size_bytes=checkpoint_bytes(path))


def _out_of_memory(job: Job, step: int, error: Exception) -> DisError:
    train, model = job.config.train, job.config.model
    ranks = job.process.group.world_size
    more = next(
        (n for n in range(2 * train.accumulation, train.batch_size + 1) if train.batch_size % (n * ranks) == 0), None
    )
    return DisError(
        f"Out of memory in step {step + 1}, with train.batch_size {train.batch_size} in {train.accumulation} parts of "
        f"{model.image_size}x{model.image_size} (model.image_size), {model_shape(job.config).layers}: "
        f"{first_line(error)}",
        (f"Compute a batch in more parts (train.accumulation={more}), keep" if more else "Keep")
        + " less of each block (train.gradient_checkpointing=true), or lower train.batch_size or model.image_size in a "
        "new run. Other programs may be using the same memory. What was saved before is unharmed",
    )
