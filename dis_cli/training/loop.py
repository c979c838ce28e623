"""The training loop: a generator that takes one optimizer step each time it is asked for the next."""

import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

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
    parameters = tuple(state.model.parameters())
    state.model.train()
    while True:
        started = time.perf_counter()
        losses: list[Tensor] = []
        images = 0
        waited = 0.0
        for _ in range(accumulation):
            asked = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - asked
            if batch is None:
                return
            loss = loss_function(state.model, batch.to(device)) / accumulation
            loss.backward()
            losses.append(loss.detach())
            images += len(batch.x_0)
        norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        # Read once everything is under way: reading waits for the device.
        total, grad_norm = sum(loss.item() for loss in losses), norm.item()
        if not (math.isfinite(total) and math.isfinite(grad_norm)):
            state.optimizer.zero_grad()
            raise NonFiniteError(
                f"The loss is {total} and the gradient norm {grad_norm} at step {state.step + 1}",
                "Lower the learning rate (`train.lr=...`) or lengthen the warm-up (`train.warmup_steps=...`); "
                "the checkpoints on disk are unharmed.",
            )
        # The factor is clip_norm / (norm + 1e-6), at most 1. Where it is 1, a pass over all gradients is spared.
        if clip_norm is not None and grad_norm + 1e-6 > 0.999 * clip_norm:
            clip_grads_with_norm_(parameters, clip_norm, norm)
        lr = learning_rate(state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        state.optimizer.step()
        for parameter in parameters:
            parameter.grad = None
        state.ema.update(parameters, state.step)
        state.step += 1
        seconds = time.perf_counter() - started
        yield Step(
            step=state.step,
            loss=total,
            lr=lr,
            grad_norm=grad_norm,
            seconds=seconds,
            data_seconds=waited,
            images_per_second=images / seconds,
        )
