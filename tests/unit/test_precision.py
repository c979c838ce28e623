"""The numbers of the linear layers: how they are chosen, and that float32 is left alone."""

from collections.abc import Callable

import pytest
import torch

from dis_cli.runtime import precision
from dis_cli.runtime.precision import (
    best_seconds,
    choose_precision,
    cpu_bf16_instructions,
    linear_precision,
    linear_seconds,
)

CPU = torch.device("cpu")


@pytest.fixture
def with_instructions(monkeypatch) -> Callable[[list[str]], None]:
    return lambda found: monkeypatch.setattr(precision, "cpu_bf16_instructions", lambda: found)


def test_what_is_asked_for_is_taken() -> None:
    for name in ("fp32", "bf16"):
        chosen = choose_precision(name, CPU, 16)
        assert (chosen.name, chosen.reason) == (name, "chosen in the settings")
    with pytest.raises(ValueError, match="got 'fp16'"):
        choose_precision("fp16", CPU, 16)


def test_a_processor_without_the_instructions_takes_fp32(with_instructions) -> None:
    with_instructions([])
    assert choose_precision("auto", CPU, 16).name == "fp32"


@pytest.mark.parametrize(("speedup", "name"), [(1.19, "fp32"), (1.2, "bf16"), (5.0, "bf16"), (0.1, "fp32")])
def test_one_with_them_takes_bf16_where_it_pays(speedup, name, with_instructions, monkeypatch) -> None:
    with_instructions(["amx_bf16"])
    monkeypatch.setattr(precision, "linear_seconds", lambda *_: {"fp32": speedup, "bf16": 1.0})
    chosen = choose_precision("auto", CPU, 96)
    assert chosen.name == name
    assert f"width 96 at {speedup:.2f}x the speed" in chosen.reason


def test_the_measurement_is_one() -> None:
    seconds = linear_seconds(16, CPU)
    assert seconds.keys() == {"fp32", "bf16"}
    assert all(0 < value < 1 for value in seconds.values())


def test_work_is_timed_in_turn() -> None:
    calls: list[str] = []
    best_seconds({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, CPU)
    assert len(calls) >= 2 * precision.MIN_ROUNDS
    assert calls == ["a", "b"] * (len(calls) // 2)


@pytest.mark.parametrize(("supported", "name"), [(True, "bf16"), (False, "fp32")])
def test_a_gpu_takes_bf16_where_it_computes_in_it(supported, name, monkeypatch) -> None:
    # Stands in for a GPU, of which nothing but these two is asked.
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: supported)
    assert choose_precision("auto", torch.device("cuda", 0), 96).name == name


def test_the_instructions_are_torch_s_own(monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "amx_bf16": False}, raising=False)
    assert cpu_bf16_instructions() == ["avx512_bf16"]
    # Older versions say it otherwise.
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert cpu_bf16_instructions() == ["amx_bf16"]


def test_fp32_enters_nothing_and_bf16_leaves_the_parameters_alone() -> None:
    layer, rows = torch.nn.Linear(8, 8), torch.randn(4, 8)
    with linear_precision("fp32", "cpu"):
        assert not torch.is_autocast_enabled("cpu")
        assert layer(rows).equal(layer(rows))
    with linear_precision("bf16", "cpu"):
        out = layer(rows)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert layer.weight.dtype == layer.weight.grad.dtype == torch.float32
    with pytest.raises(ValueError, match="got 'auto'"), linear_precision("auto", "cpu"):
        pass


def test_a_model_in_bf16_keeps_its_residual_stream_and_gradients_in_float32() -> None:
    from dis_cli.models import DiS

    torch.manual_seed(0)
    model = DiS(image_size=8, patch_size=2, in_channels=1, embed_dim=32, depth=3, num_classes=3, learn_sigma=False)
    inputs = torch.randn(4, 1, 8, 8), torch.tensor([1, 200, 500, 999]), torch.tensor([0, 1, 2, 3])
    left: list[torch.dtype] = []
    for block in model.blocks():
        # The norm of the residual stream, and the stream.
        block.norm.register_forward_hook(lambda _m, _i, out: left.extend(tensor.dtype for tensor in out))
    gradients = {}
    for name in ("fp32", "bf16"):
        with linear_precision(name, "cpu"):
            out = model.eval()(*inputs)
        gradients[name] = torch.autograd.grad(out.float().square().mean(), list(model.parameters()))
    assert set(left) == {torch.float32}
    for full, reduced in zip(gradients["fp32"], gradients["bf16"], strict=True):
        assert reduced.dtype == torch.float32
        assert (reduced - full).norm() <= 0.05 * full.norm()
