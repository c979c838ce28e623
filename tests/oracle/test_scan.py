"""The scan, forward and backward, against arrays recorded from the published recurrence."""

import pytest
from support.engines import DOUBLE_KERNEL, KERNEL, PLAIN, case_fixture
from support.oracle import DATA, assert_matches, load
from torch import Tensor

from dis_cli.scan import selective_scan
from dis_cli.scan.engines import torch_engine

FILES = sorted(path.stem for path in DATA.glob("scan_*.safetensors"))
INPUTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")

case = case_fixture([*PLAIN, *DOUBLE_KERNEL, *KERNEL])


def channels_last(tensor: Tensor) -> Tensor:
    """Recorded sequences are (b, d, l) or (b, n, l)."""
    return tensor.transpose(1, 2) if tensor.ndim == 3 else tensor


def check(name: str, case) -> None:
    recorded = load(name, case.dtype)
    tensors = {
        key: channels_last(recorded[key]).contiguous().requires_grad_() if key in recorded else None for key in INPUTS
    }
    out = selective_scan(**tensors, delta_softplus="nosoftplus" not in name, engine=case.engine)
    assert_matches(channels_last(out), recorded["out"], case.dtype, "out")

    (out * channels_last(recorded["w"])).sum().backward()
    for key, tensor in tensors.items():
        if tensor is not None:
            assert_matches(channels_last(tensor.grad), recorded[f"grad_{key}"], case.dtype, f"grad_{key}")


@pytest.mark.parametrize("name", FILES)
def test_output_and_gradients(name, case) -> None:
    check(name, case)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("case", [case for case in PLAIN if case.engine == "torch"], ids=str)
def test_plain_torch_in_many_chunks(name, case, monkeypatch) -> None:
    monkeypatch.setattr(torch_engine, "CHUNK_ELEMENTS", 1)
    check(name, case)


def test_five_files_were_found() -> None:
    assert len(FILES) == 5
