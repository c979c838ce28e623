"""The causal convolution with SiLU at its edges, for each engine and instruction set."""

import pytest
import torch
from support.compare import CONV_SIZES, check_conv, conv_inputs, output_weights, results
from support.engines import IMPLEMENTATIONS, SINGLE, case_fixture, parameters

from dis_cli.scan import causal_conv_silu
from dis_cli.scan.engines.reference import causal_conv_silu_reference

case = case_fixture(IMPLEMENTATIONS)
single = pytest.mark.parametrize("case", parameters(SINGLE), indirect=True)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("size", CONV_SIZES, ids=str)
def test_ragged_sizes_match_torch_s_convolution(size, reverse, case) -> None:
    check_conv(conv_inputs(*size), case, reverse=reverse)


@pytest.mark.parametrize("taps", [3, 4])
@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.repeat(1, 2, 2)[:, 17:51, 5:14],
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: x[:1, :1].expand_as(x),
        lambda x: x[:, :, :1].expand_as(x),
    ],
    ids=["slice", "channels-first", "one-token", "one-channel"],
)
def test_any_layout(layout, taps, case) -> None:
    inputs = conv_inputs(3, 34, 9, taps)
    inputs["x"] = layout(inputs["x"])
    inputs["weight"] = inputs["weight"].t().contiguous().t()
    inputs["bias"] = inputs["bias"].repeat_interleave(2)[::2]
    assert not any(tensor.is_contiguous() for tensor in inputs.values())
    check_conv(inputs, case, lambda out: layout(output_weights(out)))


def test_the_gradient_of_a_plain_sum(case) -> None:
    # It comes as one number, expanded.
    check_conv(conv_inputs(2, 5, 9, 4), case, lambda out: torch.ones((), dtype=out.dtype).expand_as(out))


def test_reverse_is_the_flipped_convolution_of_the_flipped_sequence(case) -> None:
    x, weight, bias = (tensor.to(case.dtype) for tensor in conv_inputs(2, 35, 9, 4).values())
    flipped = causal_conv_silu(x.flip(1), weight, bias, engine=case.engine).flip(1)
    out = causal_conv_silu(x, weight, bias, reverse=True, engine=case.engine)
    # PyTorch's convolution adds its taps in an order of its own, which depends on the processor.
    rounding = 1e-6 if case.engine == "torch" and case.dtype == torch.float32 else 0.0
    torch.testing.assert_close(out, flipped, rtol=rounding, atol=rounding)


def test_half_precision_computes_in_float32(case) -> None:
    x, weight, bias = (tensor.float() for tensor in conv_inputs(2, 35, 9, 4).values())
    out = causal_conv_silu(x.bfloat16(), weight, bias, engine=case.engine)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, causal_conv_silu(x.bfloat16().float(), weight, bias, engine=case.engine).bfloat16())


@single
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("name", ["x", "weight", "bias"])
def test_what_is_not_finite_reaches_the_same_tokens(name, value, case) -> None:
    inputs = {key: tensor.float() for key, tensor in conv_inputs(2, 40, 9, 4).items()}
    inputs[name][{"x": (1, 30, 1), "weight": (1, 3), "bias": (1,)}[name]] = value
    # At minus infinity torch's SiLU is NaN.
    inputs["weight"] = inputs["weight"].abs()
    inputs["x"] = inputs["x"].abs() + 0.1
    exact = results(causal_conv_silu_reference, inputs)
    got = results(causal_conv_silu, inputs, engine=case.engine)
    out, wanted = got.pop("out"), exact.pop("out")
    assert not wanted.isfinite().all()
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5, equal_nan=True)
    for key, gradient in got.items():
        assert not gradient[exact[key].isnan()].isfinite().any(), key


@pytest.mark.parametrize("size", [(0, 5, 4, 3), (2, 0, 4, 3)], ids=["batch", "length"])
def test_nothing_to_do(size, case) -> None:
    inputs = {key: tensor.to(case.dtype) for key, tensor in conv_inputs(*size).items()}
    got = results(causal_conv_silu, inputs, engine=case.engine)
    assert got["out"].shape == size[:3]
    for name in ("weight", "bias"):
        assert torch.equal(got[name], torch.zeros_like(got[name])), name


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("x", (9, 4), r"x must be \(batch, length, channels\), got shape \(9, 4\)"),
        ("weight", (5, 3), r"weight must be \(4, taps\), got shape \(5, 3\)"),
        ("weight", (4, 1, 3), r"weight must be \(4, taps\), got shape \(4, 1, 3\)"),
        ("weight", (4, 0), r"weight must be \(4, taps\), got shape \(4, 0\)"),
        ("bias", (3,), r"bias must have shape \(4,\), got \(3,\)"),
        ("bias", (1, 4), r"bias must have shape \(4,\), got \(1, 4\)"),
    ],
)
def test_wrong_shapes_name_the_argument(name, shape, message) -> None:
    inputs = conv_inputs(2, 9, 4, 3) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=message):
        # The annotations would catch it first under the tests' type checker.
        causal_conv_silu.__wrapped__(**inputs)
