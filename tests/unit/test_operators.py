"""What torch asks of the custom operators: schema, fake tensors, autograd, and FLOPs that the counter can see."""

from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import torch
from support.compare import conv_inputs, results, scan_inputs
from support.engines import Case, case_fixture, parameters
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dis_cli.models import DiS
from dis_cli.models.dis.flops import count
from dis_cli.models.dis.mixer import Mixer
from dis_cli.models.dis.sizes import Shape
from dis_cli.scan import add_rms_norm, bidirectional, bidirectional_scan, causal_conv_silu, norm, selective_scan

ENGINES = [Case("torch", torch.float32), Case("kernel", torch.float32)]
case = case_fixture(ENGINES)

# torch's own check looks at the gradients of tensors that are not leaves.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


@pytest.fixture
def unchecked_annotations(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch also checks with sizes that are symbols, where annotations promise numbers."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


checks_of_torch = pytest.mark.usefixtures("unchecked_annotations")


def leaves(tensors: dict[str, Tensor | None]) -> list[Tensor | None]:
    return [None if tensor is None else tensor.float().requires_grad_() for tensor in tensors.values()]


def mixer_inputs(batch: int) -> tuple[Tensor, Any, Any]:
    torch.manual_seed(0)
    mixer = Mixer(8, d_state=3)
    mixer.reset_parameters()
    return torch.randn(batch, 35, 32).requires_grad_(), mixer._direction(reverse=False), mixer._direction(reverse=True)


@checks_of_torch
@pytest.mark.parametrize("absent", [(), ("D", "z", "delta_bias")], ids=["all", "required"])
@pytest.mark.parametrize("reverse", [False, True])
def test_scan_operators(absent, reverse, case) -> None:
    arguments = leaves(scan_inputs(2, 35, 9, 3) | dict.fromkeys(absent))
    flags = (True, reverse, case.engine)
    torch.library.opcheck(torch.ops.dis.selective_scan, (*arguments, *flags))
    out, ends = torch.ops.dis.selective_scan(*arguments, *flags)
    detached = [None if tensor is None else tensor.detach() for tensor in (out, ends, *arguments)]
    torch.library.opcheck(torch.ops.dis.selective_scan_backward, (*detached, *flags))


@checks_of_torch
def test_convolution_operators(case) -> None:
    arguments = leaves(conv_inputs(2, 35, 9, 4))
    torch.library.opcheck(torch.ops.dis.causal_conv_silu, (*arguments, False, case.engine))
    grad, *detached = (tensor.detach() for tensor in (arguments[0] * 2, *arguments))
    torch.library.opcheck(torch.ops.dis.causal_conv_silu_backward, (grad, *detached, True, case.engine))


@checks_of_torch
@pytest.mark.parametrize("batch", [1, 4], ids=["parts", "whole"])
def test_mixer_operators(batch, case) -> None:
    xz, forward, backward = mixer_inputs(batch)
    arguments = (xz, *forward, *backward, case.engine)
    torch.library.opcheck(torch.ops.dis.bidirectional_scan, arguments)
    with torch.no_grad():
        out, *kept = torch.ops.dis.bidirectional_scan(*arguments)
    detached = [tensor.detach() for tensor in (xz, *forward, *backward)]
    torch.library.opcheck(torch.ops.dis.bidirectional_scan_backward, (out, *kept, *detached, case.engine))


@checks_of_torch
@pytest.mark.parametrize("batch", [1, 4], ids=["parts", "whole"])
def test_operators_of_a_mixer_of_one_direction(batch, case) -> None:
    xz, forward, _ = mixer_inputs(batch)
    arguments = (xz, *forward, case.engine)
    torch.library.opcheck(torch.ops.dis.forward_scan, arguments)
    with torch.no_grad():
        out, *kept = torch.ops.dis.forward_scan(*arguments)
    detached = [tensor.detach() for tensor in (xz, *forward)]
    torch.library.opcheck(torch.ops.dis.forward_scan_backward, (out, *kept, *detached, case.engine))


@checks_of_torch
@pytest.mark.parametrize("case", parameters([ENGINES[1]]), indirect=True)
@pytest.mark.parametrize("given", [True, False])
def test_norm_operators(given, case) -> None:
    hidden, weight = torch.randn(2, 5, 9).requires_grad_(), torch.randn(9).requires_grad_()
    residual = torch.randn(2, 5, 9).requires_grad_() if given else None
    torch.library.opcheck(torch.ops.dis.add_rms_norm, (hidden, residual, weight, 1e-5, case.engine))
    with torch.no_grad():
        normed, total, scale = torch.ops.dis.add_rms_norm(hidden, residual, weight, 1e-5, case.engine)
    grad_total = torch.ones_like(total) if given else None
    arguments = (normed, grad_total, total, scale, weight.detach(), case.engine)
    torch.library.opcheck(torch.ops.dis.add_rms_norm_backward, arguments)


def twice(monkeypatch: pytest.MonkeyPatch, module: Any, call: Callable[[], dict[str, Tensor]]) -> None:
    """The call past torch's dispatcher gives what the operator gives, bit for bit."""
    got = []
    for eager in (True, False):
        calls = []
        monkeypatch.setattr(module, "runs_eagerly", lambda eager=eager, calls=calls: calls.append(eager) or eager)
        got.append(call())
        assert calls
    for name, tensor in got[0].items():
        assert torch.equal(tensor, got[1][name]), name


@pytest.mark.parametrize("batch", [1, 4], ids=["parts", "whole"])
def test_the_mixer_past_the_dispatcher(batch, case, monkeypatch) -> None:
    xz, forward, backward = mixer_inputs(batch)
    names = ["xz", *(f"{name}{suffix}" for suffix in ("", "_b") for name in forward._fields)]

    def call(**tensors: Tensor) -> Tensor:
        _, *parameters = tensors.values()
        directions = type(forward)(*parameters[:7]), type(forward)(*parameters[7:])
        return bidirectional_scan(tensors["xz"], *directions, engine=case.engine)

    tensors = dict(zip(names, (xz, *forward, *backward), strict=True))
    twice(monkeypatch, bidirectional, lambda: results(call, tensors))


@pytest.mark.parametrize("case", parameters([ENGINES[1]]), indirect=True)
def test_the_norm_past_the_dispatcher(case, monkeypatch) -> None:
    tensors = {"hidden": torch.randn(2, 5, 9), "residual": torch.randn(2, 5, 9), "weight": torch.randn(9)}

    def call(**tensors: Tensor) -> Tensor:
        return torch.cat(add_rms_norm(**tensors, epsilon=1e-5, engine="kernel"))

    twice(monkeypatch, norm, lambda: results(call, tensors))


def test_flops_of_one_scan_and_one_convolution(case) -> None:
    inputs = {name: tensor.float().requires_grad_() for name, tensor in scan_inputs(2, 35, 9, 3).items()}
    with FlopCounterMode(display=False) as counter:
        out = selective_scan(**inputs, engine=case.engine)
    # The state update, the read-out with C, and D u.
    scan = 2 * 2 * 35 * 9 * (2 * 3 + 1)
    assert counter.get_flop_counts()["Global"] == {torch.ops.dis.selective_scan: scan}
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * scan
    x, weight, bias = (tensor.float().requires_grad_() for tensor in conv_inputs(2, 35, 9, 4).values())
    with FlopCounterMode(display=False) as counter:
        out = causal_conv_silu(x, weight, bias, engine=case.engine)
    convolution = 2 * 2 * 35 * 9 * 4
    assert counter.get_total_flops() == convolution
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * convolution


@pytest.mark.parametrize("num_classes", [0, 3])
def test_flops_of_a_model_are_twice_its_macs(num_classes, case) -> None:
    settings: dict[str, Any] = {"image_size": 8, "patch_size": 2, "in_channels": 3, "embed_dim": 40, "depth": 3}
    settings |= {"num_classes": num_classes, "d_state": 5, "d_conv": 3}
    cost = count(Shape(**settings))
    model = DiS(**settings, engine=case.engine)
    batch = 4
    labels = torch.arange(batch) % num_classes if num_classes else None
    with FlopCounterMode(display=False) as counter:
        out = model(torch.randn(batch, 3, 8, 8), torch.arange(batch), labels)
    # The extra tokens pass the final layer in the closed form, as in the published code; here they are dropped before.
    dropped = model.extras * 40 * 2**2 * 6
    assert cost.tokens == model.extras + 16
    assert counter.get_total_flops() == batch * 2 * (cost.macs - dropped)
    parts = ("conv", "x_proj", "dt_proj", "scan")
    mixers = counter.get_flop_counts()["Global"][torch.ops.dis.bidirectional_scan]
    assert mixers == batch * 2 * sum(cost.parts[part].macs for part in parts)
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    mixers_backward = counter.get_flop_counts()["Global"][torch.ops.dis.bidirectional_scan_backward]
    assert mixers_backward == 2 * mixers
