"""The closed form of memory against what autograd keeps and what a forward allocates."""

from collections.abc import Callable
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shapes import shapes
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from dis_cli.models.dis.backbone import DiS
from dis_cli.models.dis.memory import KERNEL_CHUNK, estimate_memory, kept_with_checkpointing
from dis_cli.models.dis.sizes import Shape
from dis_cli.runtime.precision import linear_precision
from dis_cli.scan import choose_engine
from dis_cli.scan.engines.cpu import kernel
from dis_cli.training.ema import Ema
from dis_cli.training.optimizer import make_optimizer

needs_kernel = pytest.mark.skipif(kernel.why_not() is not None, reason="the compiled kernel is not here")


@pytest.fixture(autouse=True, scope="module")
def _engine_is_tried() -> None:
    """What its first use computes, and keeps for a backward, is no model's."""
    choose_engine("auto", "cpu")


def inputs(shape: Shape, batch: int) -> tuple[Tensor, Tensor, Tensor | None]:
    x = torch.randn(batch, shape.in_channels, shape.image_size, shape.image_size)
    t = torch.arange(batch)
    return x, t, t % shape.num_classes if shape.num_classes else None


def kept_bytes(model: DiS, shape: Shape, batch: int, precision: str) -> int:
    """Bytes of all storages that a training forward keeps for its backward, but for the parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), linear_precision(precision, "cpu"):
        # The graph has to live until all is counted: a storage that is freed lends its address to the next one.
        out = model.train()(*inputs(shape, batch))
    total = sum(storage.nbytes() for storage in storages.values() if storage.nbytes())
    assert out.grad_fn is not None
    return total


def peak_bytes(run: Callable[[], object]) -> int:
    """The most that torch's allocator has given out at a time during a call, beyond what it had before.

    What was there before must stay: the profiler does not see how much is freed of it.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        run()
    result = recorded.profiler.kineto_results  # pyright: ignore
    events = sorted(
        (event for event in result.events() if event.name() == "[memory]"), key=lambda event: event.start_ns()
    )
    held = peak = 0
    for event in events:
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def test_the_kernel_keeps_a_state_for_each_of_these_chunks() -> None:
    if kernel.why_not() is not None:
        pytest.skip("the compiled kernel is not here")
    lengths = (1, KERNEL_CHUNK, KERNEL_CHUNK + 1, 3 * KERNEL_CHUNK + 5)
    assert [kernel.ends_shape(1, length, 8, 4)[1] for length in lengths] == [0, 0, 1, 3]


@needs_kernel
@settings(max_examples=20, deadline=None)
@given(shapes(), st.integers(1, 5), st.sampled_from(["fp32", "bf16"]))
def test_activations_are_the_bytes_that_autograd_keeps(shape: Shape, batch: int, precision: str) -> None:
    model = DiS(**asdict(shape))
    assert estimate_memory(shape, batch=batch, precision=precision).activations == kept_bytes(
        model, shape, batch, precision
    )
    model.gradient_checkpointing = True
    assert kept_with_checkpointing(shape, batch=batch, precision=precision) == kept_bytes(
        model, shape, batch, precision
    )


@needs_kernel
def test_drop_path_keeps_one_number_per_image_and_block_more() -> None:
    shape, batch = Shape(8, 2, 3, 64, 5), 3
    model = DiS(**asdict(shape), drop_path=0.1)
    # Each is a tensor of the batch; they are rows of one, or made one by one.
    more = kept_bytes(model, shape, batch, "fp32") - estimate_memory(shape, batch=batch, precision="fp32").activations
    assert more == 4 * batch * model.num_drop_path


@needs_kernel
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"skip": "none"},
        {"directions": "forward"},
        {"conditioning": "adaln_zero"},
        {"scan_order": "alternate"},
        {"skip": "add", "directions": "forward", "conditioning": "adaln_zero", "scan_order": "column"},
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_sampling_holds_what_is_estimated_within_five_percent(precision: str, changes: dict[str, str]) -> None:
    shape, batch = Shape(16, 2, 4, 64, 5, 10, **changes), 3
    model = DiS(**asdict(shape)).eval().requires_grad_(False)
    given = inputs(shape, batch)

    def run() -> None:
        with torch.no_grad(), linear_precision(precision, "cpu"):
            model(*given)

    estimate = estimate_memory(shape, batch=batch, precision=precision)
    assert peak_bytes(run) == pytest.approx(estimate.sampling_work, rel=0.05)
    assert estimate.sampling == estimate.weights + estimate.sampling_work


def test_state_is_that_of_a_training_s_objects() -> None:
    shape = Shape(8, 2, 3, 32, 3, 10)
    model = DiS(**asdict(shape))
    optimizer = make_optimizer(model, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0)
    ema = Ema(model, decay=0.99, warmup=False)
    model(*inputs(shape, 2)).sum().backward()
    optimizer.step()

    def size(tensors: list[Tensor]) -> int:
        return sum(tensor.nbytes for tensor in tensors)

    estimate = estimate_memory(shape, batch=2, precision="fp32")
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    found = [size(list(model.parameters())), size(gradients), size(moments), size(list(ema.average.values()))]
    assert [estimate.weights, estimate.gradients, estimate.optimizer, estimate.ema] == found
    assert estimate.training_state == sum(found)


@needs_kernel
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_step_holds_no_more_than_is_estimated(precision: str, checkpointing: bool) -> None:
    shape, batch = Shape(16, 2, 4, 96, 9), 3
    model = DiS(**asdict(shape)).train()
    model.gradient_checkpointing = checkpointing
    given = inputs(shape, batch)

    def run() -> None:
        with linear_precision(precision, "cpu"):
            out = model(*given)
        out.float().square().mean().backward()

    estimate = estimate_memory(shape, batch=batch, precision=precision)
    kept = estimate.checkpointed_activations if checkpointing else estimate.activations
    # Gradients come while activations go, so that the sum is not reached.
    assert 0.7 < peak_bytes(run) / (kept + estimate.gradients) < 1


@needs_kernel
def test_rounded_weights_stay_until_a_checkpointed_forward_is_over() -> None:
    # Wide and short, so that weights outweigh all else.
    shape = Shape(4, 2, 4, 256, 5)
    model = DiS(**asdict(shape)).train()
    model.gradient_checkpointing = True
    given = inputs(shape, 1)

    def run() -> Tensor:
        with linear_precision("bf16", "cpu"):
            return model(*given)

    estimate = estimate_memory(shape, batch=1, precision="bf16")
    assert peak_bytes(run) == pytest.approx(estimate.checkpointed_activations, rel=0.03)
    assert estimate.checkpointed_activations > 2 * kept_with_checkpointing(shape, batch=1, precision="bf16")


def test_guidance_doubles_the_images_and_an_unknown_precision_is_refused() -> None:
    shape = Shape(8, 2, 3, 32, 3, 10)
    guided = estimate_memory(shape, batch=2, precision="fp32", guided=True)
    assert guided.sampling_work == estimate_memory(shape, batch=4, precision="fp32").sampling_work
    with pytest.raises(ValueError, match="must be 'fp32' or 'bf16', got 'fp16'"):
        estimate_memory(shape, batch=2, precision="fp16")
