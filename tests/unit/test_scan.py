"""The scan at its edges, for each engine and instruction set: sizes, layouts, extreme numbers, and errors."""

from functools import cache

import pytest
import torch
from support.compare import SCAN_SIZES, assert_same, cast, check_scan, output_weights, results, scan_inputs
from support.engines import IMPLEMENTATIONS, KERNEL, SINGLE, case_fixture, parameters
from support.oracle import assert_matches
from torch import Tensor

from dis_cli.scan import selective_scan
from dis_cli.scan.engines import torch_engine
from dis_cli.scan.engines.reference import selective_scan_reference

case = case_fixture(IMPLEMENTATIONS)
single = pytest.mark.parametrize("case", parameters(SINGLE), indirect=True)


@cache
def expected(size: tuple[int, ...], reverse: bool) -> dict[str, Tensor]:
    return results(selective_scan_reference, scan_inputs(*size), reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("size", SCAN_SIZES, ids=str)
def test_ragged_sizes_match_the_recurrence(size, reverse, case, monkeypatch) -> None:
    monkeypatch.setattr(torch_engine, "CHUNK_ELEMENTS", 20 * size[2] * size[3])
    got = results(selective_scan, cast(scan_inputs(*size), case.dtype), engine=case.engine, reverse=reverse)
    assert_same(got, expected(size, reverse), case.dtype)


@pytest.mark.parametrize("absent", [("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")], ids=str)
def test_optional_tensors(absent, case) -> None:
    check_scan(scan_inputs(2, 35, 9, 3) | dict.fromkeys(absent), case)


def test_reverse_is_the_flipped_scan_of_the_flipped_sequence(case) -> None:
    inputs = cast(scan_inputs(2, 9, 4, 3), case.dtype)
    flipped = {name: tensor.flip(1) if tensor.ndim == 3 else tensor for name, tensor in inputs.items()}
    torch.testing.assert_close(
        selective_scan(**inputs, reverse=True, engine=case.engine),
        selective_scan(**flipped, engine=case.engine).flip(1),
    )


def wider(tensor: Tensor) -> Tensor:
    """The same numbers as a slice of a tensor with more rows and channels."""
    wide = torch.full((len(tensor), tensor.shape[1] + 3, tensor.shape[2] + 5), 7.0, dtype=tensor.dtype)
    wide[:, 2:-1, 2:-3] = tensor
    return wide[:, 2:-1, 2:-3]


def channels_first(tensor: Tensor) -> Tensor:
    """The same numbers with time as the innermost axis."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def batch_innermost(tensor: Tensor) -> Tensor:
    return tensor.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def same_token(tensor: Tensor) -> Tensor:
    """One token for all times, and for all samples: strides of 0."""
    return tensor[:1, :1].expand_as(tensor)


def same_channel(tensor: Tensor) -> Tensor:
    return tensor[:, :, :1].expand_as(tensor)


LAYOUTS = [wider, channels_first, batch_innermost, same_token, same_channel]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout, case) -> None:
    inputs = scan_inputs(3, 34, 9, 5)
    inputs = {name: layout(tensor) if tensor.ndim == 3 else tensor for name, tensor in inputs.items()}
    # A parameter that is a column of a wider one.
    inputs["D"], inputs["delta_bias"] = torch.stack([inputs["D"], inputs["delta_bias"]], dim=1).unbind(1)
    inputs["A"] = inputs["A"].t().contiguous().t()
    assert not any(tensor.is_contiguous() for tensor in inputs.values())
    check_scan(inputs, case, lambda out: layout(output_weights(out)))


def test_half_precision_computes_in_float32(case) -> None:
    inputs = {name: tensor.bfloat16() for name, tensor in scan_inputs(2, 50, 4, 8).items()}
    out = selective_scan(**inputs, engine=case.engine)
    assert out.dtype == torch.bfloat16
    exact = selective_scan(**{name: tensor.float() for name, tensor in inputs.items()}, engine=case.engine)
    assert torch.equal(out, exact.bfloat16())


def test_each_gradient_has_the_dtype_of_its_tensor(case) -> None:
    mixed = {name: tensor.to(case.dtype) for name, tensor in scan_inputs(2, 50, 4, 8).items()}
    mixed |= {name: mixed[name].bfloat16() for name in ("u", "B", "z")}
    exact = results(selective_scan_reference, {name: tensor.double() for name, tensor in mixed.items()})
    got = results(selective_scan, mixed, engine=case.engine)
    assert got.pop("out").dtype == torch.bfloat16
    for name, gradient in got.items():
        assert gradient.dtype == mixed[name].dtype, name
        torch.testing.assert_close(
            gradient.double(), exact[name], rtol=0.02, atol=0.02 * float(exact[name].abs().max())
        )


def test_around_the_threshold_of_softplus(case) -> None:
    values = torch.tensor([19.9, 20.0, 20.1, 40.0, 200.0, 0.0, -19.9, -20.1, -40.0, -200.0])
    inputs = scan_inputs(2, 5, len(values), 3, spread=1.0) | {
        "delta": values.double().expand(2, 5, -1),
        "delta_bias": None,
    }
    # Decays that are neither 0 nor 1 at most of these time steps.
    inputs["A"] = (inputs["A"] / 100).float().double()
    got = results(selective_scan, cast(inputs, case.dtype), engine=case.engine)
    exact = results(selective_scan_reference, inputs)
    tolerance = 1e-12 if case.dtype == torch.float64 else 1e-5
    for name in ("out", "u", "delta", "z", "A", "D"):
        # Of each channel, unless it vanishes in float32.
        axes = (0, 1) if got[name].ndim == 3 else (1,) if got[name].ndim == 2 else ()
        error = (got[name].double() - exact[name]).abs()
        size = exact[name].abs().clamp(min=1e-30)
        if axes:
            error, size = error.amax(axes), size.amax(axes)
        assert (error <= tolerance * size).all(), (name, error / size)


def test_time_steps_of_either_sign(case) -> None:
    check_scan(scan_inputs(2, 33, 9, 3, spread=0.5), case, delta_softplus=False)


@single
def test_decays_beyond_the_range_of_float32(case) -> None:
    inputs = scan_inputs(2, 6, 17, 3, spread=0.1) | {"delta_bias": None, "D": None, "z": None}
    # Of one sign, so that infinities do not meet.
    inputs |= {name: inputs[name].abs() for name in ("u", "B", "C")}
    inputs["A"] = torch.full_like(inputs["A"], -1.0)
    inputs["delta"] = inputs["delta"].abs()
    inputs["delta"][:, 2, ::2] = 300.0  # forgets all, and sees nothing new
    inputs["u"][:, 2, ::2] = 0.0
    inputs["delta"][:, 5, ::2] = -300.0  # explodes, although the state is small
    exact = results(selective_scan_reference, inputs, delta_softplus=False)["out"].float()
    assert exact[:, 5, ::2].isinf().all()
    assert exact.isinf().sum() == (exact == 0).sum() == 2 * 9
    out = selective_scan(**cast(inputs, torch.float32), engine=case.engine, delta_softplus=False)
    assert torch.equal(out.isinf(), exact.isinf())
    assert torch.equal(out.sign(), exact.sign())
    assert_matches(out[:, :5], exact[:, :5], torch.float32)
    assert_matches(out[:, :, 1::2], exact[:, :, 1::2], torch.float32)


@single
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "D", "z", "delta_bias"])
def test_what_is_not_finite_spreads_as_in_the_recurrence(name, value, case) -> None:
    if name in ("A", "z") and value == {"A": float("inf"), "z": float("-inf")}[name]:
        return  # inf * 0: the time before the first token, and torch's SiLU at -inf
    inputs = cast(scan_inputs(2, 40, 9, 3, spread=1.0), torch.float32)
    place = {1: (4,), 2: (4, 1), 3: (1, 35, 1)}[inputs[name].ndim]
    inputs[name][place] = value
    exact = results(selective_scan_reference, inputs)
    got = results(selective_scan, inputs, engine=case.engine)
    # An A of NaN meets a state of 0 at the first token, which not all multiply.
    start = 1 if name == "A" else 0
    out, wanted = got.pop("out")[:, start:], exact.pop("out")[:, start:]
    assert not wanted.isfinite().all() or value < 0
    assert torch.equal(out.isnan(), wanted.isnan())
    assert torch.equal(out.isposinf(), wanted.isposinf())
    assert torch.equal(out.isneginf(), wanted.isneginf())
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-4, equal_nan=True)
    for key, gradient in got.items():
        # Sums in another order may end at infinity where others end at NaN.
        where = exact[key].isnan()
        if where.ndim == 3:
            where[:, :start] = False
        assert not gradient[where].isfinite().any(), key


def test_nan_spreads_forward_in_time_and_not_backward(case) -> None:
    inputs = cast(scan_inputs(1, 8, 2, 2), case.dtype)
    inputs["u"][0, 4, 0] = float("nan")
    out = selective_scan(**inputs, engine=case.engine)
    assert out[0, :4].isfinite().all()
    assert out[0, 4:, 0].isnan().all()
    assert out[0, :, 1].isfinite().all()


def test_an_empty_batch_is_fine(case) -> None:
    got = results(selective_scan, cast(scan_inputs(0, 5, 4, 3), case.dtype), engine=case.engine)
    assert got["out"].shape == (0, 5, 4)
    for name in ("A", "D", "delta_bias"):
        assert torch.equal(got[name], torch.zeros_like(got[name])), name


@pytest.mark.parametrize("case", parameters(KERNEL), indirect=True)
def test_an_empty_sequence_is_fine(case) -> None:
    got = results(selective_scan, cast(scan_inputs(2, 0, 4, 3), case.dtype), engine=case.engine)
    assert got["out"].shape == (2, 0, 4)
    for name in ("A", "D", "delta_bias"):
        assert torch.equal(got[name], torch.zeros_like(got[name])), name


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("u", (2, 9), r"u must be \(batch, length, channels\), got shape \(2, 9\)"),
        ("delta", (2, 9, 5), r"delta must have shape \(2, 9, 4\), got \(2, 9, 5\)"),
        ("A", (4,), r"A must be \(4, states\), got shape \(4,\)"),
        ("A", (5, 3), r"A must have shape \(4, 3\), got \(5, 3\)"),
        ("B", (2, 8, 3), r"B must have shape \(2, 9, 3\), got \(2, 8, 3\)"),
        ("C", (2, 9, 4), r"C must have shape \(2, 9, 3\), got \(2, 9, 4\)"),
        ("D", (3,), r"D must have shape \(4,\), got \(3,\)"),
        ("z", (1, 9, 4), r"z must have shape \(2, 9, 4\), got \(1, 9, 4\)"),
        ("delta_bias", (4, 1), r"delta_bias must have shape \(4,\), got \(4, 1\)"),
    ],
)
def test_wrong_shapes_name_the_argument(name, shape, message) -> None:
    with pytest.raises(ValueError, match=message):
        # The annotations would catch it first under the tests' type checker.
        selective_scan.__wrapped__(**(scan_inputs(2, 9, 4, 3) | {name: torch.zeros(shape)}))


def test_the_state_arrays_of_a_long_scan_never_exist_as_a_whole() -> None:
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return result

    inputs = cast(scan_inputs(1, 1026, 96, 16), torch.float32)
    # The operator hides what it calls from the mode, so the engine is called itself.
    arguments = torch_engine.ScanInputs(**inputs, delta_softplus=True, reverse=False)
    with Watch():
        out, ends = torch_engine.scan_forward(arguments)
        torch_engine.scan_backward(torch.ones_like(out), ends, arguments)
    assert 0 < largest <= torch_engine.CHUNK_ELEMENTS < 1026 * 96 * 16
