"""The residual sum and its RMS norm: the kernel's operator against torch's, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from support.compare import assert_same, cast, results
from support.engines import SINGLE, case_fixture
from torch import Tensor

from dis_cli.scan import add_rms_norm

case = case_fixture(SINGLE)

# (batch, length, channels): the kernel takes 64 rows at a time forward and makes at most 16 parts backward.
SIZES = [(1, 1, 1), (2, 3, 7), (1, 17, 8), (5, 13, 9), (2, 64, 31), (3, 43, 69), (0, 4, 9)]


def inputs(batch: int, length: int, channels: int) -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(channels)
    hidden, residual = torch.randn(2, batch, length, channels, generator=generator).double()
    return {"hidden": hidden, "residual": residual, "weight": torch.randn(channels, generator=generator).double()}


def both(use: str, engine: str | None, **tensors: Tensor | None) -> Tensor:
    """The two results, or one of them, as one tensor."""
    if engine is not None:
        normed, total = add_rms_norm(**tensors, epsilon=1e-5, engine=engine)
    else:
        total = tensors["hidden"] if tensors["residual"] is None else tensors["hidden"] + tensors["residual"]
        normed = F.rms_norm(total, total.shape[-1:], tensors["weight"], 1e-5)
    return {"norm": normed, "sum": total, "both": torch.cat([normed, total])}[use]


def check(tensors: dict[str, Tensor | None], case, use: str = "both") -> None:
    def ours(**named: Tensor | None) -> Tensor:
        return both(use, case.engine, **named)

    def reference(**named: Tensor | None) -> Tensor:
        return both(use, None, **named)

    assert_same(results(ours, cast(tensors, case.dtype)), results(reference, tensors), case.dtype)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_ragged_sizes(size, case) -> None:
    check(inputs(*size), case)


def test_without_a_residual(case) -> None:
    check(inputs(2, 5, 9) | {"residual": None}, case)


def test_only_the_norm_is_used(case) -> None:
    check(inputs(2, 5, 9), case, "norm")


def test_only_the_sum_is_used(case) -> None:
    tensors = cast(inputs(2, 5, 9), case.dtype)
    leaf = tensors["hidden"].requires_grad_()
    _, total = add_rms_norm(leaf, tensors["residual"], tensors["weight"], epsilon=1e-5, engine=case.engine)
    total.sum().backward()
    assert torch.equal(leaf.grad, torch.ones_like(leaf))


def test_any_layout(case) -> None:
    tensors = inputs(3, 5, 9)
    tensors["hidden"] = tensors["hidden"].transpose(1, 2).contiguous().transpose(1, 2)
    tensors["residual"] = tensors["residual"][:, :1].expand(-1, 5, -1)
    tensors["weight"] = tensors["weight"].repeat_interleave(2)[::2]
    assert not any(tensor.is_contiguous() for tensor in tensors.values())
    check(tensors, case)


def test_half_precision_stays_in_float32(case) -> None:
    hidden, residual, weight = (tensor.float() for tensor in inputs(2, 5, 9).values())
    normed, total = add_rms_norm(hidden.bfloat16(), residual, weight, epsilon=1e-5, engine=case.engine)
    assert normed.dtype == total.dtype == torch.float32
    assert torch.equal(total, hidden.bfloat16().float() + residual)


@pytest.mark.parametrize("name", ["hidden", "residual", "weight"])
def test_nan_stays_in_its_row_or_channel(name, case) -> None:
    tensors = cast(inputs(2, 5, 9), case.dtype)
    tensors[name][(0, 3, 8) if name != "weight" else 8] = float("nan")
    normed, total = add_rms_norm(**tensors, epsilon=1e-5, engine=case.engine)
    expected = torch.zeros(2, 5, 9, dtype=torch.bool)
    expected[(0, 3) if name != "weight" else (..., 8)] = True
    assert torch.equal(normed.isnan(), expected)
    assert total.isnan().sum() == (name != "weight")
