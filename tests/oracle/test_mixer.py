"""The bidirectional mixer against arrays recorded from the published code."""

import pytest
import torch
from support.engines import MIXERS, Case, case_fixture
from support.oracle import assert_matches, group, load

from dis_cli.models.dis.mixer import Mixer

case = case_fixture(MIXERS)


def recorded_mixer(length: int, case: Case) -> tuple[Mixer, dict[str, torch.Tensor]]:
    recorded = load(f"mixer_d24_L{length}_f64", case.dtype)
    mixer = Mixer(24, engine=case.engine).to(case.dtype)
    mixer.load_state_dict(group(recorded, "param"))
    return mixer, recorded


@pytest.mark.parametrize("length", [7, 66])
def test_output_and_gradients(length, case) -> None:
    mixer, recorded = recorded_mixer(length, case)
    x = recorded["x"].requires_grad_()
    out = mixer(x)
    assert_matches(out, recorded["out"], case.dtype, "out")
    (out * recorded["w"]).sum().backward()
    assert_matches(x.grad, recorded["grad_x"], case.dtype, "grad_x")
    for name, parameter in mixer.named_parameters():
        assert_matches(parameter.grad, recorded[f"grad/{name}"], case.dtype, name)


def test_each_direction(case) -> None:
    mixer, recorded = recorded_mixer(7, case)
    xz = mixer.in_proj(recorded["x"])
    # Recorded (b, e, l), the backward direction in the order of its own scan.
    assert_matches(mixer.scan(xz, reverse=False).transpose(1, 2), recorded["y_fwd"], case.dtype)
    assert_matches(mixer.scan(xz, reverse=True).transpose(1, 2).flip(-1), recorded["y_bwd_unflipped"], case.dtype)
