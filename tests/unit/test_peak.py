"""The measured matrix speed: operations of a real product over its time, and nothing else is touched."""

import time
from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dis_cli.runtime import peak
from dis_cli.runtime.peak import matrix_flops_per_second

CPU = torch.device("cpu")


@pytest.mark.parametrize("width", [96, 1024, 1536])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_is_the_operations_of_a_product_over_its_seconds(
    precision: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []

    def best_seconds(work: dict[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
        assert device == CPU
        with FlopCounterMode(display=False) as counter:
            for function in work.values():
                function()
        counted.append(counter.get_total_flops())
        return dict.fromkeys(work, 0.5)

    monkeypatch.setattr(peak, "best_seconds", best_seconds)
    assert matrix_flops_per_second(CPU, precision, width) == pytest.approx(counted[0] / 0.5)
    assert counted[0] > 0


def test_a_product_of_that_size_is_as_fast() -> None:
    a, b = torch.rand(256, 1024), torch.rand(1024, 1024)
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - started)
    # Wide, since whatever else the machine does slows either down.
    assert 1 / 4 < matrix_flops_per_second(CPU, "fp32", 64) * min(seconds) / (2 * 256 * 1024**2) < 4


def test_nothing_global_changes() -> None:
    before = torch.get_rng_state(), torch.get_num_threads(), torch.get_float32_matmul_precision()
    matrix_flops_per_second(CPU, "fp32", 64)
    after = torch.get_rng_state(), torch.get_num_threads(), torch.get_float32_matmul_precision()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert torch.is_grad_enabled()


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="precision must be 'fp32' or 'bf16', got 'auto'"):
        matrix_flops_per_second(CPU, "auto", 64)
