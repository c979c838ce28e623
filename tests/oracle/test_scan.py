"""The scan, forward and backward, against arrays recorded from the published recurrence."""

import pytest
from support.oracle import DATA, TOLERANCE, assert_matches, load
from torch import Tensor

from dis_cli.scan import selective_scan, torch_engine
from dis_cli.scan.reference import selective_scan_reference

FILES = sorted(path.stem for path in DATA.glob("scan_*.safetensors"))
INPUTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def channels_last(tensor: Tensor) -> Tensor:
    """Recorded sequences are (b, d, l) or (b, n, l)."""
    return tensor.transpose(1, 2) if tensor.ndim == 3 else tensor


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("engine", [selective_scan, selective_scan_reference])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("chunk_elements", [1 << 20, 1], ids=["one-chunk", "many-chunks"])
def test_output_and_gradients(name, engine, dtype, chunk_elements, monkeypatch) -> None:
    monkeypatch.setattr(torch_engine, "CHUNK_ELEMENTS", chunk_elements)
    recorded = load(name, dtype)
    tensors = {
        key: channels_last(recorded[key]).contiguous().requires_grad_() if key in recorded else None for key in INPUTS
    }
    positional = [tensors.pop(key) for key in ("u", "delta", "A", "B", "C")]
    out = engine(*positional, **tensors, delta_softplus="nosoftplus" not in name)
    assert_matches(channels_last(out), recorded["out"], dtype, "out")

    (out * channels_last(recorded["w"])).sum().backward()
    for key, tensor in zip(INPUTS, [*positional, *tensors.values()], strict=True):
        if tensor is not None:
            assert_matches(channels_last(tensor.grad), recorded[f"grad_{key}"], dtype, f"grad_{key}")


def test_five_files_were_found() -> None:
    assert len(FILES) == 5
