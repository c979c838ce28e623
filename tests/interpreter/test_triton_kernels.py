"""The Triton engine in Triton's interpreter; ``unit/test_triton.py`` runs this folder in a process of its own.

What tests hand to kernels for their results and their scratch is full of NaN, so that nothing is read before it is
written. The tests of all engines take this one too in such a process: ``TRITON_INTERPRET=1 pytest -k triton``.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.compare import assert_same, check_conv, check_scan, conv_inputs, output_weights, results, scan_inputs
from support.engines import TRITON
from support.mixers import everything, random_mixer
from support.oracle import assert_matches
from torch import Tensor

from dis_cli.models.dis.mixer import Mixer
from dis_cli.runtime.precision import linear_precision
from dis_cli.scan import add_rms_norm, bidirectional_scan, causal_conv_silu, choose_engine, selective_scan
from dis_cli.scan.contract import ScanInputs
from dis_cli.scan.engines import torch_engine
from dis_cli.scan.engines.choose import failing
from dis_cli.scan.engines.triton import convolution, engine, launch, norm, scan_backward, scan_forward, states

(CASE,) = TRITON
FLOAT = torch.float32


@pytest.fixture(autouse=True)
def _memory_full_of_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every tensor that is made without being filled."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def numbers(*sizes: int, **changes: Any) -> ScanInputs:
    """Inputs in float32, as the engine takes them."""
    tensors = {name: tensor.float() for name, tensor in scan_inputs(*sizes, spread=1.0).items()}
    return ScanInputs(**(tensors | {"delta_softplus": True, "reverse": False} | changes))


# (batch, length, channels, states): T, the chunk and the block of channels and one beside them; any number of states.
SIZES = [
    (1, 1, 1, 1),
    (2, 7, 3, 5),
    (1, 8, 64, 2),
    (1, 9, 65, 3),
    (2, 64, 3, 1),
    (1, 65, 5, 2),
    pytest.param((1, 257, 33, 1), marks=pytest.mark.long),
    (1, 129, 3, 1),
    (1, 3, 40, 64),
    (1, 17, 31, 16),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_scan(size) -> None:
    check_scan(scan_inputs(*size), CASE, reverse=sum(size) % 2 == 1)


@pytest.mark.parametrize("absent", [("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")], ids=str)
def test_optional_tensors(absent) -> None:
    check_scan(scan_inputs(2, 9, 5, 2) | dict.fromkeys(absent), CASE, reverse=True)


def test_time_steps_of_either_sign() -> None:
    check_scan(scan_inputs(1, 10, 5, 2, spread=0.5), CASE, delta_softplus=False)
    absent = dict.fromkeys(("z", "delta_bias"))
    check_scan(scan_inputs(1, 10, 5, 2, spread=0.5) | absent, CASE, delta_softplus=False, reverse=True)


@pytest.mark.parametrize("layout", ["wider", "channels-first", "same-token"])
def test_any_layout(layout) -> None:
    layouts = {
        "wider": lambda x: F.pad(x, (2, 3, 1, 2))[:, 1:-2, 2:-3],
        "channels-first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        "same-token": lambda x: x[:1, :1].expand_as(x),
    }
    change = layouts[layout]
    inputs = scan_inputs(2, 10, 9, 3)
    inputs = {name: change(tensor) if tensor.ndim == 3 else tensor for name, tensor in inputs.items()}
    inputs["D"], inputs["delta_bias"] = torch.stack([inputs["D"], inputs["delta_bias"]], dim=1).unbind(1)
    inputs["A"] = inputs["A"].t().contiguous().t()
    check_scan(inputs, CASE, lambda out: change(output_weights(out)), reverse=layout == "wider")


def test_rows_are_read_where_they_lie() -> None:
    sequence = torch.zeros(2, 9, 12)[:, 1:8, 3:8]
    assert launch._rows(sequence) is sequence
    assert launch._rows(sequence.transpose(1, 2)).is_contiguous()
    far = torch.empty_strided((1, 3, 2), (0, 2**30, 1), device="meta")
    assert launch._rows(far).stride() == (6, 2, 1)


@pytest.mark.parametrize("reverse", [False, True])
def test_what_a_scan_adds_to_and_writes_to(reverse) -> None:
    inputs = numbers(2, 10, 5, 3, reverse=reverse)
    inputs = inputs._replace(A=inputs.A.abs().log(), A_is_log=True)
    given = {name: torch.randn(2, 10, 12)[..., 3:8] for name in ("y", "z")}
    wide = torch.full((2, 10, 9), 7.0)
    into = {"grad_B": wide[..., 1:4], "grad_C": wide[..., 5:8]}
    outs = []
    for module in (engine, torch_engine):
        out, ends = module.scan_forward(inputs, add_to=(y := given["y"].clone()))
        assert out is y
        gradients = module.scan_backward(out, ends, inputs, **into, grad_z=(z := given["z"].clone()), add_to_z=True)
        assert gradients.z is z
        outs.append([out, *(tensor.clone() for tensor in gradients)])
    for got, expected in zip(*outs, strict=True):
        assert_matches(got, expected, FLOAT)
    assert (wide[..., [0, 4, 8]] == 7).all()


def test_the_same_bits_twice_and_whatever_the_batch() -> None:
    inputs = numbers(3, 9, 5, 2)
    x, taps, bias = torch.randn(3, 9, 5), torch.randn(5, 5), torch.randn(5)
    alone = inputs._replace(**{name: getattr(inputs, name)[1:2] for name in ("u", "delta", "B", "C", "z")})

    def everything_of(inputs: ScanInputs, x: Tensor) -> list[Tensor]:
        out, ends = engine.scan_forward(inputs)
        convolved = engine.conv_silu_forward(x, taps, bias, reverse=True)
        normed = engine.norm_forward(x, None, bias, 1e-5)
        gradients = engine.scan_backward(out, ends, inputs)
        of_x, of_taps, _ = engine.conv_silu_backward(convolved, x, taps, bias, reverse=True)
        samples = [out, convolved, *normed, gradients.u, gradients.delta, gradients.B, gradients.C, gradients.z, of_x]
        return [*samples, gradients.A, gradients.D, gradients.delta_bias, of_taps]

    first, again = everything_of(inputs, x), everything_of(inputs, x)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    one = everything_of(alone, x[1:2])
    assert all(torch.equal(a[1:2], b) for a, b in zip(first[:-4], one[:-4], strict=True))


def test_bfloat16_in_and_float32_inside() -> None:
    inputs = numbers(1, 18, 5, 3, reverse=True)
    half = inputs._replace(**{name: getattr(inputs, name).bfloat16() for name in ("u", "delta", "z")})
    exact = half._replace(**{name: getattr(half, name).float() for name in ("u", "delta", "z")})
    add = torch.randn(1, 18, 5)
    out, ends = engine.scan_forward(half, add_to=add)
    wanted, wanted_ends = engine.scan_forward(exact, add_to=add.clone())
    # The interpreter cuts a result's digits off, where a GPU rounds.
    torch.testing.assert_close(out.float(), wanted, rtol=2**-7, atol=0)
    assert torch.equal(ends, wanted_ends)
    assert engine.scan_forward(half._replace(z=None))[0].dtype == FLOAT
    gradients, expected = engine.scan_backward(out, ends, half), engine.scan_backward(out.float(), ends, exact)
    for name, got in gradients._asdict().items():
        assert got.dtype == getattr(half, name).dtype
        torch.testing.assert_close(got.float(), getattr(expected, name), rtol=2**-7 if got.itemsize == 2 else 0, atol=0)


# (batch, length, channels, taps): those taps that make fours and those that do not.
CONV_SIZES = [(1, 1, 1, 1), (2, 3, 3, 2), (1, 2, 7, 7), (1, 17, 65, 4), (2, 16, 9, 3), (1, 40, 3, 33), (1, 35, 5, 8)]


@pytest.mark.parametrize("size", CONV_SIZES, ids=str)
def test_the_convolution(size) -> None:
    check_conv(conv_inputs(*size), CASE, reverse=sum(size) % 2 == 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_convolution_of_slices_that_is_added_to(dtype) -> None:
    xz, taps, bias = torch.randn(2, 20, 18).to(dtype), torch.randn(9, 4), torch.randn(9)
    x, base = xz.chunk(2, dim=-1)
    grad = torch.randn(2, 20, 9).to(dtype)
    outs = []
    for module, kept_in in ((engine, dtype), (torch_engine, FLOAT)):
        into = base.to(kept_in).clone()
        arguments = (grad.to(kept_in), x.to(kept_in), taps, bias)
        outs.append(module.conv_silu_backward(*arguments, reverse=True, grad_x=into, add_to_x=True))
        assert outs[-1][0] is into
    for got, expected in zip(*outs, strict=True):
        error = (got.float() - expected).abs().max() / expected.abs().max()
        assert error < (1e-5 if dtype == FLOAT else 0.02)


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 7), (1, 17, 40), (1, 35, 300)], ids=str)
@pytest.mark.parametrize("given", [True, False])
def test_the_norm(size, given) -> None:
    hidden, residual = torch.randn(2, *size).double()
    tensors = {"hidden": hidden, "residual": residual if given else None, "weight": torch.randn(size[2]).double()}

    def both(name: str, **named: Any) -> Tensor:
        return torch.cat(add_rms_norm(**named, epsilon=1e-5, engine=name))

    got = {name: None if tensor is None else tensor.float() for name, tensor in tensors.items()}
    expected = results(lambda **named: both("torch", **named), tensors)
    assert_same(results(lambda **named: both("triton", **named), got), expected, FLOAT)


def test_an_empty_batch_and_an_empty_sequence() -> None:
    for size in ((0, 5, 4, 3), (2, 0, 4, 3)):
        inputs = {name: tensor.float() for name, tensor in scan_inputs(*size).items()}
        got = results(selective_scan, inputs, engine="triton")
        assert got["out"].shape == size[:3]
        assert all(torch.equal(got[name], torch.zeros_like(got[name])) for name in ("A", "D", "delta_bias"))
        got = results(causal_conv_silu, {"x": inputs["u"], "weight": inputs["A"], "bias": inputs["D"]}, engine="triton")
        assert torch.equal(got["weight"], torch.zeros(4, 3))
        normed, _ = add_rms_norm(inputs["u"], None, inputs["D"], epsilon=1e-5, engine="triton")
        assert normed.shape == size[:3]


@pytest.mark.parametrize("size", [(2, 9, 8, 3, 4, 2), (1, 1, 1, 1, 1, 1), (0, 5, 8, 2, 4, 2)], ids=str)
def test_the_mixer(size) -> None:
    assert_same(everything(size, "triton", FLOAT), everything(size, "reference", torch.float64), FLOAT)


def test_a_mixer_keeps_its_sequences_in_bfloat16(monkeypatch) -> None:
    seen = []

    def watched(name: str, function: Any) -> None:
        def call(*tensors: Any, **options: Any) -> Any:
            found = tensors[0][:2] if isinstance(tensors[0], ScanInputs) else tensors[:1]
            seen.extend((name, tensor.dtype) for tensor in found)
            return function(*tensors, **options)

        monkeypatch.setattr(engine, name, call)

    for name in ("scan_forward", "conv_silu_forward", "conv_silu_backward"):
        watched(name, getattr(engine, name))
    mixer, tokens = random_mixer((1, 9, 8, 2, 4, 1), "triton", FLOAT)
    gradients = []
    for dtype in (torch.bfloat16, FLOAT):
        with torch.no_grad():
            xz = mixer.in_proj(tokens).to(dtype)
        leaf = xz.requires_grad_()
        out = bidirectional_scan(leaf, mixer._direction(reverse=False), mixer._direction(reverse=True), engine="triton")
        gradients.append((out, *torch.autograd.grad(out, [leaf, mixer.A_log], output_weights(out.detach()))))
        kinds, _ = {kind for _, kind in seen}, seen.clear()
        assert kinds == {dtype}
    for got, expected in zip(*gradients, strict=True):
        assert (got.float() - expected).abs().max() < 0.03 * expected.abs().max()


def test_a_mixer_under_autocast() -> None:
    mixer, tokens = random_mixer((1, 5, 8, 2, 4, 1), "triton", FLOAT)
    outs = []
    for name in ("triton", "torch"):
        mixer.engine = name
        with linear_precision("bf16", "cpu"):
            outs.append(mixer(tokens.requires_grad_()).float())
        outs.append(torch.autograd.grad(outs[-1].sum(), mixer.x_proj.weight)[0])
    for got, expected in zip(outs[:2], outs[2:], strict=True):
        assert (got - expected).abs().max() < 0.03 * expected.abs().max()


# The whole list of checks traces an operator many times; the short one is of schema, shapes and registration.
BRIEF = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_what_torch_asks_of_operators(whole) -> None:
    def leaves(tensors: dict[str, Tensor]) -> list[Tensor]:
        return [tensor.float().requires_grad_() for tensor in tensors.values()]

    def check(operator: Any, *arguments: Any, dtype: torch.dtype = FLOAT) -> None:
        options: dict[str, Any] = {} if whole and dtype == FLOAT else {"test_utils": BRIEF}
        torch.library.opcheck(operator, arguments, **options)

    check(torch.ops.dis.selective_scan, *leaves(scan_inputs(1, 3, 3, 2)), True, True, "triton")
    check(torch.ops.dis.causal_conv_silu, *leaves(conv_inputs(1, 3, 3, 2)), False, "triton")
    stream, weight = torch.randn(1, 3, 5).requires_grad_(), torch.randn(5).requires_grad_()
    check(torch.ops.dis.add_rms_norm, stream, stream, weight, 1e-5, "triton")
    mixer = Mixer(2, d_state=2, d_conv=2)
    mixer.reset_parameters()
    directions = (*mixer._direction(reverse=False), *mixer._direction(reverse=True))
    for dtype in (FLOAT, torch.bfloat16):
        xz = torch.randn(1, 3, 8, dtype=dtype).requires_grad_()
        check(torch.ops.dis.bidirectional_scan, xz, *directions, "triton", dtype=dtype)


def test_a_compiled_mixer_is_one_graph() -> None:
    mixer, tokens = random_mixer((1, 3, 4, 2, 2, 1), "triton", FLOAT)
    expected = mixer(tokens)
    wanted = torch.autograd.grad(expected.sum(), [mixer.in_proj.weight, mixer.A_log])
    got = torch.compile(mixer, fullgraph=True, backend="aot_eager")(tokens)
    assert_matches(got, expected.detach(), FLOAT)
    for one, other in zip(torch.autograd.grad(got.sum(), [mixer.in_proj.weight, mixer.A_log]), wanted, strict=True):
        assert_matches(one, other, FLOAT)


def test_the_scan_s_naive_forms() -> None:
    inputs = numbers(1, 66, 5, 2)
    u, delta, A, B, C, D, z, bias, *_ = inputs
    assert bias is not None
    step, add = F.softplus(delta + bias), torch.randn(1, 66, 5)
    out, ends = engine.scan_forward(inputs, add_to=add.clone())
    wanted = scan_forward.naive_scan_forward(u, step, A, B, C, D, z, add, engine.CHUNK)
    assert_same({"out": out, "ends": ends}, dict(zip(("out", "ends"), wanted, strict=True)), FLOAT)
    got = engine.scan_backward(add, ends, inputs)
    of_u, of_step, of_A, of_B, of_C, of_D, of_z = scan_backward.naive_scan_backward(add, u, step, A, B, C, D, z)
    of_delta = of_step * torch.sigmoid(delta + bias)
    wanted = type(got)(of_u, of_delta, of_A.sum(0), of_B, of_C, of_D.sum(0), of_z, of_delta.sum((0, 1)))
    assert_same(got._asdict(), wanted._asdict(), FLOAT)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_other_naive_forms(reverse) -> None:
    inputs = numbers(2, 11, 5, 3, reverse=reverse)
    scan = launch._Scan(inputs)
    assert torch.equal(scan.BC, states.naive_pack(inputs.B, inputs.C, scan.padded, reverse=reverse))
    parts = torch.randn(3, 2, 3, scan.padded // launch.TOKENS, 2, launch.TOKENS)
    scan.groups, (grad_B, grad_C) = 3, torch.zeros(2, 2, 11, 3)
    scan.sum_states(parts, grad_B, grad_C)
    wanted = states.naive_sum(parts, 11, reverse=reverse)
    assert_same({"B": grad_B, "C": grad_C}, dict(zip("BC", wanted, strict=True)), FLOAT)
    x, taps, bias, grad = torch.randn(2, 11, 5), torch.randn(5, 6), torch.randn(5), torch.randn(2, 11, 5)
    out = engine.conv_silu_forward(x, taps, bias, reverse=reverse)
    assert_matches(out, convolution.naive_convolution(x, taps, bias, reverse=reverse), FLOAT)
    of_x, _, of_bias = engine.conv_silu_backward(grad, x, taps, bias, reverse=reverse)
    plain = convolution.naive_convolution(x, taps, None, reverse=reverse) + bias
    through = convolution.naive_activation_gradient(grad, plain)
    assert_matches(of_x, convolution.naive_convolution(through, taps, None, reverse=not reverse), FLOAT)
    assert_matches(of_bias, through.sum((0, 1)), FLOAT)
    found = engine.norm_forward(x, grad, bias, 1e-5)
    wanted = norm.naive_norm_forward(x, grad, bias, 1e-5)
    found += engine.norm_backward(out, grad, *found[1:], bias)
    wanted += norm.naive_norm_backward(out, grad, *wanted[1:], bias)
    for got, expected in zip(found, wanted, strict=True):
        assert_matches(got, expected, FLOAT)


def test_it_is_taken_when_it_is_asked_for_only() -> None:
    assert choose_engine("triton", "cpu").name == "triton"
    assert failing("triton", "cpu") is None
    assert choose_engine("auto", "cpu").name != "triton"
    assert choose_engine("triton", "cpu", torch.float64).name == "torch"
