"""The training loop: a generator that takes one optimizer step each time it is asked for the next."""

import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dis_cli.diffusion.batch import TrainingBatch
from dis_cli.errors import NonFiniteError
from dis_cli.events import Step
from dis_cli.training.state import TrainingState

LossFunction = Callable[[torch.nn.Module, TrainingBatch], Tensor]


def train_steps(
    state: TrainingState,
    batches: Iterator[TrainingBatch],
    *,
    loss_function: LossFunction,
    learning_rate: Callable[[int], float],
    accumulation: int,
    clip_norm: float | None,
    device: torch.device,
) -> Iterator[Step]:
    """Train until the batches end, one ``Step`` per optimizer step.

    The gradients of ``accumulation`` batches are averaged before the one optimizer step. Differs from the reference,
    which steps on every part and never divides.

    Args:
        state: What is trained; changed in place, consistent whenever a record is yielded.
        batches: ``accumulation`` of them make a step.
        loss_function: Mean loss of a batch.
        learning_rate: The learning rate of a step, counted from 0.
        accumulation: Batches per optimizer step.
        clip_norm: Largest global norm of the gradient; None does not clip.
        device: Where the model is.

    Raises:
        NonFiniteError: The loss or the gradient's norm is NaN or infinite. Raised before the optimizer step, so the
            weights are those after ``state.step`` steps.
    """
    parameters = list(state.model.parameters())
    state.model.train()
    while True:
        started = time.perf_counter()
        total, images = 0.0, 0
        for _ in range(accumulation):
            batch = next(batches, None)
            if batch is None:
                return
            loss = loss_function(state.model, batch.to(device)) / accumulation
            loss.backward()
            total += loss.item()
            images += len(batch.x_0)
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if clip_norm is None else clip_norm).item()
        if not (math.isfinite(total) and math.isfinite(grad_norm)):
            state.optimizer.zero_grad()
            raise NonFiniteError(
                f"The loss is {total} and the gradient norm {grad_norm} at step {state.step + 1}",
                "Lower the learning rate (`train.lr=...`) or lengthen the warm-up (`train.warmup_steps=...`); "
                "the checkpoints on disk are unharmed.",
            )
        lr = learning_rate(state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.ema.update(state.model, state.step)
        state.step += 1
        seconds = time.perf_counter() - started
        yield Step(
            step=state.step,
            loss=total,
            lr=lr,
            grad_norm=grad_norm,
            seconds=seconds,
            images_per_second=images / seconds,
        )
