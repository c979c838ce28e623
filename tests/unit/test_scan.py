"""The scan and the convolution at their edges: shapes, ragged sizes, direction, and errors."""

import pytest
import torch
from support.oracle import TOLERANCE, assert_matches

from dis_cli.scan import causal_conv_silu, selective_scan, torch_engine
from dis_cli.scan.reference import causal_conv_silu_reference, selective_scan_reference


def scan_inputs(b: int, length: int, d: int, n: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(b + 10 * length + 100 * d + 1000 * n)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    inputs = {
        "u": normal(b, length, d),
        # Crosses the threshold of softplus, 20, where it becomes linear.
        "delta": normal(b, length, d) * 12,
        "A": -normal(d, n).abs() - 0.1,
        "B": normal(b, length, n),
        "C": normal(b, length, n),
        "D": normal(d),
        "z": normal(b, length, d),
        "delta_bias": normal(d),
    }
    return {name: tensor.requires_grad_() for name, tensor in inputs.items()}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("length", "d", "n"), [(1, 1, 1), (2, 3, 8), (37, 5, 16), (66, 4, 64)])
def test_ragged_sizes_match_the_recurrence(length, d, n, reverse, dtype, monkeypatch) -> None:
    monkeypatch.setattr(torch_engine, "CHUNK_ELEMENTS", 20 * d * n)
    inputs = scan_inputs(3, length, d, n, dtype)
    reference_inputs = scan_inputs(3, length, d, n, torch.float64)
    # float32 inputs, float64 arithmetic: the expectation is the exact result of the same numbers.
    with torch.no_grad():
        for name, tensor in inputs.items():
            reference_inputs[name].copy_(tensor)
    out = selective_scan(**inputs, reverse=reverse)
    expected = selective_scan_reference(**reference_inputs, reverse=reverse)
    assert_matches(out, expected, dtype, "out")
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (out * weights.to(dtype)).sum().backward()
    (expected * weights.to(dtype).double()).sum().backward()
    for name, tensor in inputs.items():
        assert_matches(tensor.grad, reference_inputs[name].grad, dtype, name)


def test_reverse_is_the_flipped_scan_of_the_flipped_sequence() -> None:
    inputs = scan_inputs(2, 9, 4, 3, torch.float64)
    flipped = {name: tensor.flip(1) if tensor.ndim == 3 else tensor for name, tensor in inputs.items()}
    torch.testing.assert_close(selective_scan(**inputs, reverse=True), selective_scan(**flipped).flip(1))


def test_rows_may_have_any_stride() -> None:
    inputs = scan_inputs(2, 9, 4, 3, torch.float64)
    wide = torch.cat([inputs["u"], inputs["z"]], dim=-1).detach()
    u, z = wide.chunk(2, dim=-1)
    assert not u.is_contiguous()
    strided = {**inputs, "u": u, "z": z, "delta": inputs["delta"][:, :1].expand(-1, 9, -1)}
    dense = {name: tensor.contiguous() for name, tensor in strided.items()}
    torch.testing.assert_close(selective_scan(**strided), selective_scan(**dense))


def test_half_precision_computes_in_float32() -> None:
    inputs = {name: tensor.detach().bfloat16() for name, tensor in scan_inputs(2, 50, 4, 8, torch.float64).items()}
    out = selective_scan(**inputs)
    assert out.dtype == torch.bfloat16
    exact = selective_scan(**{name: tensor.float() for name, tensor in inputs.items()})
    assert torch.equal(out, exact.bfloat16())


def test_nan_spreads_forward_in_time_and_not_backward() -> None:
    inputs = {name: tensor.detach() for name, tensor in scan_inputs(1, 8, 2, 2, torch.float64).items()}
    inputs["u"][0, 4, 0] = float("nan")
    out = selective_scan(**inputs)
    assert out[0, :4].isfinite().all()
    assert out[0, 4:, 0].isnan().all()
    assert out[0, :, 1].isfinite().all()


def test_an_empty_batch_is_fine() -> None:
    inputs = scan_inputs(0, 5, 4, 3, torch.float32)
    out = selective_scan(**inputs)
    out.sum().backward()
    assert out.shape == (0, 5, 4)
    assert torch.equal(inputs["A"].grad, torch.zeros(4, 3))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("delta", (2, 9, 5), r"delta must have shape \(2, 9, 4\), got \(2, 9, 5\)"),
        ("A", (5, 3), r"A must have shape \(4, 3\), got \(5, 3\)"),
        ("B", (2, 8, 3), r"B must have shape \(2, 9, 3\), got \(2, 8, 3\)"),
        ("D", (3,), r"D must have shape \(4,\), got \(3,\)"),
    ],
)
def test_wrong_shapes_name_the_argument(name, shape, message) -> None:
    inputs = scan_inputs(2, 9, 4, 3, torch.float64)
    with pytest.raises(ValueError, match=message):
        # The annotations would catch it first under the tests' type checker.
        selective_scan.__wrapped__(**(inputs | {name: torch.zeros(shape)}))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("length", "taps"), [(1, 4), (3, 4), (18, 4), (18, 1), (66, 3)])
def test_convolution_matches_torch(length, taps, reverse, dtype) -> None:
    generator = torch.Generator().manual_seed(length)
    tensors = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((2, length, 5), (5, taps), (5,))
    ]
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    out = causal_conv_silu(*tensors, reverse=reverse)
    expected = causal_conv_silu_reference(*exact, reverse=reverse)
    assert_matches(out, expected, dtype, "out")
    weights = torch.randn(out.shape, generator=generator)
    (out * weights.to(dtype)).sum().backward()
    (expected * weights.double()).sum().backward()
    for name, tensor, wanted in zip(("x", "weight", "bias"), tensors, exact, strict=True):
        assert_matches(tensor.grad, wanted.grad, dtype, name)


def test_the_state_arrays_of_a_long_scan_never_exist_as_a_whole() -> None:
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    inputs = scan_inputs(1, 1026, 96, 16, torch.float32)
    with Watch():
        selective_scan(**inputs).sum().backward()
    assert largest <= torch_engine.CHUNK_ELEMENTS < 1026 * 96 * 16
