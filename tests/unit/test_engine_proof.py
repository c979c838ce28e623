"""An engine is tried before a run is trusted to it; one that fails is passed over, and the user hears why."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from support import mamba_standin
from support.tiny import dis, train
from torch.utils.flop_counter import FlopCounterMode

from dis_cli.config.schema import RunConfig
from dis_cli.errors import ConfigError
from dis_cli.models.dis.backbone import DiS
from dis_cli.runtime.precision import Precision
from dis_cli.scan.engines import choose as engines
from dis_cli.scan.engines import mamba_engine, proof
from dis_cli.scan.engines.choose import ChosenEngine, SecondChoice, choose_engine, failing
from dis_cli.scan.engines.cpu import kernel
from dis_cli.scan.engines.table import ENGINES
from dis_cli.workflows.build import choices, pick_engine

CPU = torch.device("cpu")
BUILT = kernel.why_not() is None


@pytest.fixture(autouse=True)
def nothing_tried() -> Iterator[None]:
    """No engine was tried before, and what a test finds is forgotten."""
    before = dict(engines._failures)
    engines._failures.clear()
    yield
    engines._failures.clear()
    engines._failures.update(before)


@pytest.fixture
def mamba_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if this were a GPU: the packages' stand-ins compute on the CPU."""
    mamba_engine._packages.cache_clear()
    monkeypatch.setitem(ENGINES, "mamba_ssm", replace(ENGINES["mamba_ssm"], devices=("cpu",), preference=2))
    with mamba_standin.no_packages():
        yield
    mamba_engine._packages.cache_clear()


def test_packages_that_work_are_taken(mamba_on_the_cpu) -> None:
    calls = mamba_standin.install()
    assert choose_engine("auto", CPU) == ChosenEngine("mamba_ssm", "the fastest on cpu")
    assert len(calls.scan) == len(calls.conv) == 1
    # Tried once.
    assert choose_engine("mamba_ssm", CPU).name == choose_engine("auto", "cpu").name == "mamba_ssm"
    assert len(calls.scan) == 1


def test_a_build_without_cuda_that_says_so_is_not_taken(mamba_on_the_cpu) -> None:
    calls = mamba_standin.install(works=False)
    chosen = choose_engine("auto", CPU)
    assert chosen.name == ("kernel" if BUILT else "torch")
    assert "mamba-ssm was built without its CUDA part; `MAMBA_KEEP_CUDA_BUILD=TRUE" in chosen.reason
    assert calls.scan == []


def test_a_build_without_cuda_that_does_not_say_so_is_found_out(mamba_on_the_cpu) -> None:
    mamba_standin.install(says_so=False, works=False)
    chosen = choose_engine("auto", CPU)
    assert isinstance(chosen, SecondChoice)
    assert chosen.name == ("kernel" if BUILT else "torch")
    expected = "it fails at its first computation: RuntimeError: selective_scan_cuda is not available"
    assert chosen.reason.startswith(f"mamba_ssm cannot be used: {expected}")
    first, second = choices(chosen, Precision("fp32", "chosen in the settings"))
    assert (first.level, second.level) == ("warning", "info")
    assert first.message.startswith(f"engine {chosen.name}: mamba_ssm cannot be used: {expected}")
    with pytest.raises(ConfigError, match=expected) as caught:
        pick_engine(RunConfig(engine="mamba_ssm"), CPU)
    assert "got `mamba_ssm`, allowed on cpu here: auto, " in caught.value.message
    assert "reference, mamba_ssm" not in caught.value.message


@pytest.mark.parametrize("factor", [1.1, float("nan")])
def test_an_engine_that_computes_something_else_is_found_out(factor: float, mamba_on_the_cpu, monkeypatch) -> None:
    mamba_standin.install()
    scan = mamba_engine.selective_scan
    monkeypatch.setattr(mamba_engine, "selective_scan", lambda *args, **flags: factor * scan(*args, **flags))
    assert failing("mamba_ssm", CPU) == "it computes something else than the recurrence"


@pytest.mark.skipif(not BUILT, reason="the kernel is not built")
def test_the_kernel_is_tried_too_and_training_goes_on_without_it(tmp_path, monkeypatch, capsys) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("undefined symbol: dis_scan_forward")

    monkeypatch.setattr(kernel, "scan_forward", broken)
    assert dis("train", "--out", tmp_path, "train.steps=1", "train.batch_size=4", "train.precision=fp32") == 0
    reason = "kernel cannot be used: it fails at its first computation: RuntimeError: undefined symbol"
    assert capsys.readouterr().err.count(f"warning: engine torch: {reason}: dis_scan_forward\n") == 1
    assert train(tmp_path / "other", "train.steps=1", "engine=kernel") == 2
    error = capsys.readouterr().err
    assert error.count("error:") == 1
    assert "undefined symbol: dis_scan_forward" in error


@pytest.mark.skipif(not BUILT, reason="the kernel is not built")
def test_a_trial_moves_nothing_else() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert failing("kernel", CPU) is None
        assert torch.is_inference_mode_enabled()
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.skipif(not BUILT, reason="the kernel is not built")
@pytest.mark.skipif(not BUILT, reason="the kernel is not built")
def test_a_trial_inside_a_checkpointed_block_does_not_disturb_it() -> None:
    model = DiS(image_size=4, patch_size=2, in_channels=1, embed_dim=8, depth=3).train()
    model.gradient_checkpointing = True
    model(torch.randn(2, 1, 4, 4), torch.arange(2)).square().mean().backward()
    assert engines._failures == {("kernel", "cpu"): None}
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_nothing_is_tried_where_operators_are_counted() -> None:
    with FlopCounterMode(display=False) as counter:
        assert choose_engine("auto", "cpu").name == "kernel"
    assert counter.get_total_flops() == 0
    assert engines._failures == {}
    assert choose_engine("auto", "cpu").name == "kernel"
    assert engines._failures == {("kernel", "cpu"): None}


def test_plain_pytorch_needs_no_trial(monkeypatch) -> None:
    monkeypatch.setattr(proof, "failure", lambda *_: "tried")
    assert failing("torch", CPU) is failing("reference", CPU) is None
