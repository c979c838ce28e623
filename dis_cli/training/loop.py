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
from dis_cli.runtime.faults import reach
from dis_cli.runtime.process_group import ProcessGroup
from dis_cli.training.parallel import gradient_sync, whole
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
    group: ProcessGroup,
    max_skipped: int = 0,
) -> Iterator[Step]:
    """Train until the batches end, one ``Step`` per optimizer step.

    The gradients of ``accumulation`` batches, and of all ranks, are averaged before the one optimizer step. Differs
    from the reference, which steps on every part and never divides; and which, where a loss is not finite, leaves out
    the step on that rank alone.

    Args:
        state: State that is trained; changed in place, consistent whenever a record is yielded.
        batches: This rank's; ``accumulation`` of them make a step.
        loss_function: Mean loss of a batch.
        learning_rate: The learning rate of a step, counted from 0.
        accumulation: Batches per optimizer step.
        clip_norm: Largest global norm of the gradient; None does not clip.
        max_skipped: Steps in all whose update may be left out because the loss or the gradient is not finite.

    Raises:
        NonFiniteError: One more is not. Raised on all ranks before the optimizer step, so the weights are those after
            ``state.step`` steps.
    """
    parameters = tuple(state.model.parameters())
    module = state.module or state.model
    emas = (state.ema, *state.more_emas)
    module.train()
    while True:
        started = time.perf_counter()
        losses: list[Tensor] = []
        images = 0
        waited = 0.0
        for part in range(accumulation):
            asked = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - asked
            if batch is None:
                return
            with gradient_sync(module, enabled=part == accumulation - 1):
                loss = loss_function(module, batch.to(device)) / accumulation
                loss.backward()
            losses.append(loss.detach())
            images += len(batch.x_0)
        reach("gradients", state.step + 1, parameters=parameters)
        norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        # Read once everything is under way: reading waits for the device. Averaged, so that all ranks judge alike even
        # when the gradients that they share went bad on one of them.
        total, grad_norm = group.mean([sum(loss.item() for loss in losses), whole(norm).item()])
        finite = math.isfinite(total) and math.isfinite(grad_norm)
        if not finite and state.num_skipped >= max_skipped:
            state.optimizer.zero_grad()
            raise _non_finite(state, total, grad_norm)
        lr = learning_rate(state.step)
        if finite:
            # The factor is clip_norm / (norm + 1e-6), at most 1. Where it is 1, a pass over all gradients is spared.
            if clip_norm is not None and grad_norm + 1e-6 > 0.999 * clip_norm:
                clip_grads_with_norm_(parameters, clip_norm, norm)
            for settings in state.optimizer.param_groups:
                settings["lr"] = lr
            state.optimizer.step()
            for ema in emas:
                ema.update(parameters, state.step)
        else:
            state.num_skipped += 1
        for parameter in parameters:
            parameter.grad = None
        state.step += 1
        state.images += images * group.world_size
        seconds = time.perf_counter() - started
        yield Step(
            step=state.step,
            loss=total,
            lr=lr,
            grad_norm=grad_norm,
            seconds=seconds,
            data_seconds=waited,
            images_per_second=images * group.world_size / seconds,
            skipped=not finite,
        )


def _non_finite(state: TrainingState, loss: float, grad_norm: float) -> NonFiniteError:
    before = f", after {state.num_skipped} updates that were left out before" if state.num_skipped else ""
    return NonFiniteError(
        f"The loss is {loss} and the gradient norm {grad_norm} at step {state.step + 1}{before}",
        "Lower the learning rate (train.lr) or lengthen the warm-up (train.warmup_steps) in a new run, or leave such "
        f"updates out (`train.on_nonfinite=skip:{max(3, 2 * state.num_skipped)}`). The checkpoints on disk are "
        "unharmed",
    )
