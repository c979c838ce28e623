"""Both directions of a mixer as one operator, for each engine and instruction set, against the scans of the reference.

The kernel has two ways: all as one call, and one call an operation. Each runs at every size here.
"""

import pytest
import torch
from support.compare import assert_same, output_weights
from support.engines import MIXERS, case_fixture, parameters
from support.mixers import MIXER_SIZES, everything, random_mixer
from torch import Tensor

from dis_cli.scan import Direction, bidirectional_scan

CASES = [case for case in MIXERS if case.engine == "torch" or case.isa]
case = case_fixture(CASES)
kernels = pytest.mark.parametrize("case", parameters([case for case in CASES if case.isa]), indirect=True)


@pytest.mark.parametrize("size", MIXER_SIZES, ids=str)
def test_output_and_gradients(size, case) -> None:
    assert_same(everything(size, case.engine, case.dtype), everything(size, "reference", torch.float64), case.dtype)


@pytest.mark.parametrize("size", [(5, 3, 4, 8, 4, 2), (4, 66, 40, 16, 4, 2), (5, 40, 6, 3, 9, 2)], ids=str)
def test_one_direction(size, case) -> None:
    got, expected = (
        everything(size, *how, both=False) for how in ((case.engine, case.dtype), ("reference", torch.float64))
    )
    assert not [name for name in got if "_b" in name]
    assert_same(got, expected, case.dtype)


def operator_inputs(dtype: torch.dtype) -> tuple[Tensor, Direction, Direction]:
    mixer, tokens = random_mixer((5, 34, 9, 3, 4, 2), "torch", dtype)
    with torch.no_grad():
        xz = mixer.in_proj(tokens)
    return xz, mixer._direction(reverse=False), mixer._direction(reverse=True)


@kernels
@pytest.mark.parametrize(
    "layout",
    [
        lambda wide: wide.transpose(1, 2).contiguous().transpose(1, 2),
        lambda wide: torch.cat([wide, wide], dim=-1)[..., : wide.shape[-1]],
        lambda wide: wide[:1, :1].expand_as(wide),
        lambda wide: wide[:1, :1, :1].expand_as(wide),
    ],
    ids=["channels-first", "slice", "one-token", "one-number"],
)
def test_any_layout(layout, case) -> None:
    xz, forward, backward = operator_inputs(case.dtype)
    # Parameters too may be views, with any strides.
    forward = Direction(*(parameter.repeat_interleave(2, dim=-1)[..., ::2] for parameter in forward))
    results = []
    for xz_, engine, dtype in (
        (layout(xz), case.engine, case.dtype),
        (layout(xz).contiguous(), "torch", torch.float64),
    ):
        tensors = [xz_, *forward, *backward]
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]
        out = bidirectional_scan(leaves[0], Direction(*leaves[1:8]), Direction(*leaves[8:]), engine=engine)
        gradients = torch.autograd.grad(out, leaves, layout(output_weights(out.detach())))
        names = ["xz", *(f"{d}.{name}" for d in ("forward", "backward") for name in Direction._fields)]
        results.append({"out": out.detach(), **dict(zip(names, gradients, strict=True))})
    assert_same(results[0], results[1], case.dtype)


@pytest.mark.parametrize("what", ["result", "gradient"])
def test_bfloat16_projects_in_bfloat16_and_scans_in_float32(what, case) -> None:
    xz, forward, backward = operator_inputs(torch.float32)
    outs = []
    for dtype in (torch.bfloat16, torch.float32):
        leaf = xz.bfloat16().to(dtype).requires_grad_()
        out = bidirectional_scan(leaf, forward, backward, engine=case.engine)
        assert out.dtype == dtype
        (gradient,) = torch.autograd.grad(out, leaf, output_weights(out.detach()).bfloat16().to(dtype))
        assert gradient.dtype == dtype
        outs.append((out if what == "result" else gradient).detach().float())
    error = (outs[0] - outs[1]).abs().max() / outs[1].abs().max()
    assert 0 < error < 0.03
