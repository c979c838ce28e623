"""The training loop's promises: averaging, accumulation, stopping before damage, and exact continuation."""

import itertools
import math

import pytest
import torch

from dis_cli.diffusion.batch import TrainingBatch
from dis_cli.errors import NonFiniteError
from dis_cli.runtime.process_group import ProcessGroup
from dis_cli.training.ema import Ema
from dis_cli.training.loop import LossFunction, train_steps
from dis_cli.training.lr import learning_rate
from dis_cli.training.optimizer import make_optimizer
from dis_cli.training.state import TrainingState


def linear_state(*, ema_decay: float = 0.9, warmup: bool = False) -> TrainingState:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1).double()
    optimizer = make_optimizer(model, lr=1e-2, betas=(0.9, 0.999), weight_decay=0.0)
    more = tuple(Ema(model, decay=decay, warmup=warmup) for decay in (0.5, 0.7))
    return TrainingState(model, Ema(model, decay=ema_decay, warmup=warmup), optimizer, more)


def batch(seed: int, size: int = 8) -> TrainingBatch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 1, 2, 2, generator=generator, dtype=torch.float64)
    zeros = torch.zeros(size, dtype=torch.int64)
    return TrainingBatch(x, zeros, zeros, torch.randn_like(x), torch.zeros(size), torch.zeros(0, size))


def squares(model: torch.nn.Module, data: TrainingBatch) -> torch.Tensor:
    return (model(data.x_0.flatten(1)) - 1).square().mean()


def run(
    state: TrainingState,
    batches: list[TrainingBatch],
    *,
    accumulation: int = 1,
    clip: float | None = None,
    loss_function: LossFunction = squares,
    max_skipped: int = 0,
):
    return list(
        train_steps(
            state,
            iter(batches),
            loss_function=loss_function,
            learning_rate=lambda step: 1e-2 / (1 + step),
            accumulation=accumulation,
            clip_norm=clip,
            device=torch.device("cpu"),
            group=ProcessGroup(),
            max_skipped=max_skipped,
        )
    )


def test_accumulated_parts_are_one_step_on_the_whole() -> None:
    whole, parts = linear_state(), linear_state()
    events = run(whole, [batch(1), batch(2)])
    halves = [
        TrainingBatch(*(field[..., part] if field.ndim == 2 else field[part] for field in data))
        for data in (batch(1), batch(2))
        for part in (slice(0, 4), slice(4, 8))
    ]
    part_events = run(parts, halves, accumulation=2)
    assert [event.step for event in part_events] == [1, 2]
    for event, part_event in zip(events, part_events, strict=True):
        assert part_event.loss == pytest.approx(event.loss, rel=1e-12)
        assert part_event.grad_norm == pytest.approx(event.grad_norm, rel=1e-12)
    torch.testing.assert_close(parts.model.weight, whole.model.weight, rtol=1e-12, atol=0)


def test_the_average_follows_its_formula() -> None:
    state = linear_state(ema_decay=0.99, warmup=True)
    expected = state.model.weight.detach().clone()
    for index, data in enumerate([batch(1), batch(2), batch(3)]):
        run(state, [data])
        decay = min(0.99, (1 + index) / (10 + index))
        expected = decay * expected + (1 - decay) * state.model.weight.detach()
    torch.testing.assert_close(state.ema.average["weight"], expected, rtol=1e-12, atol=0)


def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_told() -> None:
    # Adam's first step does not see the scale of the gradient, so look at its first moment: 0.1 of the gradient.
    state = linear_state()
    (event,) = run(state, [batch(1)], clip=0.01)
    moments = [entry["exp_avg"] for entry in state.optimizer.state.values()]
    clipped = math.sqrt(sum(float(moment.square().sum()) for moment in moments)) / 0.1
    assert event.grad_norm > 0.01
    assert clipped == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("ratio", [0.5, 0.9999, 1 - 1e-6, 1, 1 + 1e-7, 1 + 1e-5, 1.01, 3])
@pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
def test_clipping_is_that_of_torch_to_the_last_bit(ratio, scale) -> None:
    def loss_function(model: torch.nn.Module, data: TrainingBatch) -> torch.Tensor:
        return scale * squares(model, data)

    state, expected = linear_state(), linear_state()
    loss_function(expected.model, batch(1)).backward()
    parameters = list(expected.model.parameters())
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters]).item()
    torch.nn.utils.clip_grad_norm_(parameters, ratio * norm)
    expected.optimizer.step()
    (event,) = run(state, [batch(1)], clip=ratio * norm, loss_function=loss_function)
    assert event.grad_norm == norm
    for name, moments in state.tensors()["optimizer"].items():
        assert torch.equal(moments, expected.tensors()["optimizer"][name]), name


def test_every_average_has_its_own_decay_and_can_be_asked_for() -> None:
    state = linear_state(ema_decay=0.9)
    expected = {decay: state.model.weight.detach().clone() for decay in (0.9, 0.5, 0.7)}
    for data in (batch(1), batch(2)):
        run(state, [data])
        for decay, average in expected.items():
            expected[decay] = decay * average + (1 - decay) * state.model.weight.detach()
    for decay, average in expected.items():
        torch.testing.assert_close(state.whole_average(decay)["weight"], average, rtol=1e-12, atol=0)
    assert state.whole_average()["weight"].equal(state.ema.average["weight"])
    assert state.whole_average(0)["weight"].equal(state.model.weight)
    assert sorted(state.tensors()) == ["ema", "ema_more_0", "ema_more_1", "model", "optimizer"]
    with pytest.raises(ValueError, match=r"no average with decay 0\.3"):
        state.whole_average(0.3)


def test_a_checkpoint_that_lacks_a_tensor_is_refused_before_anything_is_loaded() -> None:
    first, second = linear_state(), linear_state()
    run(first, [batch(1)])
    before = second.model.weight.detach().clone()
    for group, name in (("model", "bias"), ("ema_more_1", "weight")):
        tensors = {key: dict(values) for key, values in first.tensors().items()}
        del tensors[group][name]
        with pytest.raises(ValueError, match=f"group '{group}'"):
            second.load(tensors, ProcessGroup())
        assert second.model.weight.equal(before)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_updates_that_are_not_finite_are_left_out_and_counted(where) -> None:
    def poisoned_loss(model: torch.nn.Module, data: TrainingBatch) -> torch.Tensor:
        loss = squares(model, data)
        if data.x_0.isfinite().all():
            return loss
        # A finite loss whose gradient is not: the derivative of the square root at 0.
        clean = model.weight.sum() * 0
        return loss if where == "loss" else torch.sqrt(clean) + 1

    def bad(seed: int) -> TrainingBatch:
        poisoned = batch(seed)
        poisoned.x_0[0] = float("nan")
        return poisoned

    state, expected = linear_state(), linear_state()
    events = run(state, [batch(1), bad(2), bad(3), batch(4)], loss_function=poisoned_loss, max_skipped=2)
    assert [event.skipped for event in events] == [False, True, True, False]
    assert [math.isfinite(event.loss) for event in events] == [True, where == "gradient", where == "gradient", True]
    assert (state.step, state.num_skipped) == (4, 2)
    # As if those two had not been: time goes on, and the learning rate and the warm-up of the average with it.
    run(expected, [batch(1)])
    expected.step = 3
    run(expected, [batch(4)])
    for group, tensors in expected.tensors().items():
        for name, tensor in tensors.items():
            assert state.tensors()[group][name].equal(tensor), (group, name)
    with pytest.raises(NonFiniteError, match="at step 5, after 2 updates"):
        run(state, [bad(5)], loss_function=poisoned_loss, max_skipped=2)
    assert (state.step, state.num_skipped) == (4, 2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_step(bad) -> None:
    state = linear_state()
    run(state, [batch(1)])
    before = {name: tensor.clone() for name, tensor in state.tensors()["model"].items()}
    poisoned = batch(2)
    poisoned.x_0[3] = bad
    with pytest.raises(NonFiniteError, match="at step 2"):
        run(state, [poisoned])
    assert state.step == 1
    for name, tensor in state.tensors()["model"].items():
        assert torch.equal(tensor, before[name])
    # Nothing of it stays behind in the gradients.
    assert all(parameter.grad is None for parameter in state.model.parameters())


def test_a_loaded_state_continues_bit_equal() -> None:
    straight = linear_state()
    run(straight, [batch(index) for index in range(6)])
    first, second = linear_state(), linear_state()
    run(first, [batch(index) for index in range(3)])
    saved = {group: {n: t.clone() for n, t in tensors.items()} for group, tensors in first.tensors().items()}
    second.load(saved, ProcessGroup())
    second.step = first.step
    run(second, [batch(index) for index in range(3, 6)])
    for group, tensors in straight.tensors().items():
        for name, tensor in tensors.items():
            assert torch.equal(second.tensors()[group][name], tensor), (group, name)


def test_the_first_step_has_a_learning_rate_above_zero() -> None:
    settings = {"peak": 1.0, "warmup_steps": 4, "total_steps": 20, "schedule": "linear", "min_ratio": 0.1}
    rates = [learning_rate(step, **settings) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[4:]))
    # One step before the end of a line from 1 at step 4 to 0.1 at step 20.
    assert rates[19] == pytest.approx(1 - 0.9 * 15 / 16)


def test_the_decay_takes_the_last_share_of_the_run() -> None:
    settings = {"peak": 2.0, "warmup_steps": 0, "total_steps": 60, "min_ratio": 0.0, "decay_fraction": 0.5}
    rates = [learning_rate(step, schedule="cosine", **settings) for step in range(60)]
    assert rates[:31] == [2.0] * 31
    assert rates[45] == pytest.approx(1.0)
    assert [learning_rate(step, schedule="constant", **settings) for step in (0, 59)] == [2.0, 2.0]
