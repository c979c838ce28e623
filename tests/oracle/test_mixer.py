"""The bidirectional mixer against arrays recorded from the published code."""

import pytest
import torch
from support.oracle import TOLERANCE, assert_matches, group, load

from dis_cli.models.mixer import Mixer


def recorded_mixer(length: int, dtype: torch.dtype) -> tuple[Mixer, dict[str, torch.Tensor]]:
    recorded = load(f"mixer_d24_L{length}_f64", dtype)
    mixer = Mixer(24).to(dtype)
    mixer.load_state_dict(group(recorded, "param"))
    return mixer, recorded


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("length", [7, 66])
def test_output_and_gradients(length, dtype) -> None:
    mixer, recorded = recorded_mixer(length, dtype)
    x = recorded["x"].requires_grad_()
    out = mixer(x)
    assert_matches(out, recorded["out"], dtype, "out")
    (out * recorded["w"]).sum().backward()
    assert_matches(x.grad, recorded["grad_x"], dtype, "grad_x")
    for name, parameter in mixer.named_parameters():
        assert_matches(parameter.grad, recorded[f"grad/{name}"], dtype, name)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_each_direction(dtype) -> None:
    mixer, recorded = recorded_mixer(7, dtype)
    xz = mixer.in_proj(recorded["x"])
    # Recorded (b, e, l), the backward direction in the order of its own scan.
    assert_matches(mixer.scan(xz, reverse=False).transpose(1, 2), recorded["y_fwd"], dtype)
    assert_matches(mixer.scan(xz, reverse=True).transpose(1, 2).flip(-1), recorded["y_bwd_unflipped"], dtype)
