"""The compiled kernel as a library: threads, memory, instruction sets, and what happens without it."""

import ctypes
import ctypes.util
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest
import torch
from support.compare import cast, conv_inputs, output_weights, results, scan_inputs
from support.engines import KERNEL, MIXERS, SINGLE, case_fixture, parameters, using
from support.processes import python
from torch import Tensor

from dis_cli.models.dis.mixer import Mixer
from dis_cli.scan import Direction, add_rms_norm, bidirectional_scan, causal_conv_silu, choose_engine, selective_scan
from dis_cli.scan.engines.cpu import kernel, kernel_args

case = case_fixture([case for case in MIXERS if case.isa])
# Several operations of torch between those of the kernel may depend on threads; the kernel's own must not.
whole = pytest.mark.parametrize("case", parameters([case for case in MIXERS if case.whole_mixer]), indirect=True)
needs_kernel = pytest.mark.skipif(kernel.why_not() is not None, reason=str(kernel.why_not()))


def mixer(**tensors: Tensor) -> Tensor:
    """Both directions of a mixer as a function of its input and parameters."""
    xz, *parameters = tensors.values()
    half = len(Direction._fields)
    return bidirectional_scan(xz, Direction(*parameters[:half]), Direction(*parameters[half:]), engine="kernel")


def mixer_inputs(batch: int, length: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    module = Mixer(24)
    module.reset_parameters()
    tensors = {"xz": torch.randn(batch, length, 96)}
    for reverse in (False, True):
        direction = module._direction(reverse=reverse)._asdict()
        tensors |= {f"{name}{'_b' if reverse else ''}": tensor.detach() for name, tensor in direction.items()}
    return tensors


def all_functions() -> dict[str, dict[str, Tensor]]:
    """Results and gradients of all functions of the kernel, at sizes that it shares out among several threads."""
    torch.manual_seed(0)
    hidden, residual = torch.randn(2, 4, 1000, 130)
    # Channels in several slices, of a width that is chosen from the numbers of samples and channels.
    scan = cast(scan_inputs(33, 20, 300, 5), torch.float32)
    return {
        "scan": results(selective_scan, scan, engine="kernel"),
        "reverse scan": results(selective_scan, scan, engine="kernel", reverse=True),
        "convolution": results(causal_conv_silu, cast(conv_inputs(33, 35, 300, 4), torch.float32), engine="kernel"),
        "wide convolution": results(
            causal_conv_silu, cast(conv_inputs(33, 150, 300, 33), torch.float32), engine="kernel"
        ),
        "mixer": results(mixer, mixer_inputs(19, 66)),
        "norm": results(
            lambda **named: torch.cat(add_rms_norm(**named, epsilon=1e-5, engine="kernel")),
            {"hidden": hidden, "residual": residual, "weight": torch.randn(130)},
        ),
    }


def assert_identical(got: dict[str, dict[str, Tensor]], expected: dict[str, dict[str, Tensor]]) -> None:
    for function, tensors in expected.items():
        for name, tensor in tensors.items():
            assert torch.equal(got[function][name], tensor), (function, name)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@whole
def test_results_do_not_depend_on_the_number_of_threads_nor_on_chance(case, threads) -> None:
    threads(1)
    one = all_functions()
    assert_identical(all_functions(), one)
    for number in (2, 3):
        threads(number)
        assert_identical(all_functions(), one)


@whole
def test_work_is_shared_out_in_any_order(case, threads) -> None:
    """With threads of this test's own in the place of OpenMP's: it knows then that there are several."""
    threads(1)
    one = all_functions()
    asked: list[int] = []
    work_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    def parallel(work: int, data: int, number: int, flags: int) -> None:
        asked.append(number)
        workers = [Thread(target=work_type(work), args=(data,)) for _ in range(number)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    library = kernel._loaded.library
    openmp = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    library.dis_use_parallel(ctypes.cast(parallel, ctypes.c_void_p))
    try:
        threads(7)
        assert_identical(all_functions(), one)
    finally:
        library.dis_use_parallel(ctypes.cast(openmp, ctypes.c_void_p) if openmp is not None else None)
    # At least forward and backward of each of the five.
    assert len(asked) >= 10
    assert max(asked) == 7


@needs_kernel
@pytest.mark.skipif(sys.platform != "linux", reason="GOMP_parallel is that of the Linux packages of torch")
def test_the_threads_are_those_of_torch() -> None:
    assert hasattr(ctypes.CDLL(None), "GOMP_parallel")


def nan_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, new tensors of floats come filled with NaN."""

    def filled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapper(*args, **kwargs) -> Tensor:
            tensor = function(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return wrapper

    for owner, name in ((torch.Tensor, "new_empty"), (torch, "empty_like"), (torch, "empty")):
        monkeypatch.setattr(owner, name, filled(getattr(owner, name)))


def test_every_number_of_every_result_is_written(case, monkeypatch) -> None:
    tensors = mixer_inputs(5, 37)
    nan_memory(monkeypatch)
    assert torch.empty(2).isnan().all()
    assert tensors["xz"].new_empty(2).isnan().all()
    for name, tensor in results(mixer, tensors).items():
        assert not tensor.isnan().any(), name


@pytest.mark.parametrize("case", parameters(SINGLE), indirect=True)
@pytest.mark.parametrize("length", [1, 32, 70])
def test_every_number_of_scan_convolution_and_norm_is_written(length, case, monkeypatch) -> None:
    scan, conv = (cast(made(3, length, 21, 4), torch.float32) for made in (scan_inputs, conv_inputs))
    hidden, weight = torch.randn(3, length, 21), torch.randn(21)
    nan_memory(monkeypatch)
    for found in (
        results(selective_scan, scan, engine=case.engine),
        results(selective_scan, scan, engine=case.engine, reverse=True),
        results(causal_conv_silu, conv, engine=case.engine),
        results(
            lambda **named: torch.cat(add_rms_norm(**named, residual=None, epsilon=1e-5, engine=case.engine)),
            {"hidden": hidden, "weight": weight},
        ),
    ):
        for name, tensor in found.items():
            assert not tensor.isnan().any(), name


@pytest.mark.parametrize("case", parameters(KERNEL), indirect=True)
def test_copies_of_large_arguments_live_as_long_as_the_call(case) -> None:
    """Memory of this size goes back to the system when it is freed: reading it later would end the process."""
    size = 1 << 20
    inputs = cast(conv_inputs(1, size // 8, 8, 4), torch.float32)
    dense = results(causal_conv_silu, inputs, engine="kernel")
    inputs["x"] = inputs["x"].transpose(1, 2).contiguous().transpose(1, 2)

    def transposed_weights(out: Tensor) -> Tensor:
        return output_weights(out).transpose(1, 2).contiguous().transpose(1, 2)

    strided = results(causal_conv_silu, inputs, transposed_weights, engine="kernel")
    assert all(torch.equal(strided[name], dense[name]) for name in dense)


@needs_kernel
def test_an_instruction_set_is_chosen_and_all_that_work_are_listed() -> None:
    before = kernel.isa()
    assert before in kernel.isas()
    assert kernel.isas()[-1] == "baseline"
    assert [isa for isa in kernel.ISAS if isa in kernel.isas()] == kernel.isas()
    assert kernel.isa() == before
    assert kernel._loaded.library.dis_use_isa(b"avx1024") == 0


@needs_kernel
def test_instruction_sets_are_indeed_different_code() -> None:
    """Sums in another order or with fused operations: if they were all equal, one would run under several names."""
    if len(kernel.isas()) == 1:
        pytest.skip("this processor has one instruction set only")
    sums = []
    for isa in kernel.isas():
        with using(next(case for case in KERNEL if case.isa == isa)):
            sums.append(results(selective_scan, cast(scan_inputs(2, 33, 40, 16), torch.float32), engine="kernel")["B"])
    assert not torch.equal(sums[0], sums[-1])


def loaded_with(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str | None:
    """Load again with these variables, for the rest of the test; why it does not work."""
    library = kernel._loaded.library
    before = kernel.isa()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(kernel, "_loaded", kernel._load())
    if library is not None and before is not None:
        library.dis_use_isa(before.encode())
    return kernel.why_not()


def test_a_source_distribution_has_all_of_the_source() -> None:
    """Headers go into it because the extension depends on them; without one, the kernel would silently not be built."""
    root = Path(__file__).parents[2]
    (extension,) = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    listed = {*extension["sources"], *extension["depends"]}
    assert listed == {path.relative_to(root).as_posix() for path in (root / "dis_cli/scan/engines/cpu/csrc").iterdir()}


@needs_kernel
@pytest.mark.parametrize("isa", kernel.isas())
def test_the_environment_chooses_the_instruction_set(isa, monkeypatch) -> None:
    assert loaded_with(monkeypatch, DIS_KERNEL_ISA=isa) is None
    assert kernel.isa() == isa


@needs_kernel
def test_an_unknown_instruction_set_is_refused(monkeypatch) -> None:
    reason = loaded_with(monkeypatch, DIS_KERNEL_ISA="avx1024")
    assert reason == "DIS_KERNEL_ISA is 'avx1024'; allowed are avx512, avx2, baseline"
    assert kernel.isa() is None
    assert kernel.isas() == []


@needs_kernel
def test_an_instruction_set_that_the_processor_lacks_is_refused(monkeypatch) -> None:
    lacking = [isa for isa in kernel.ISAS if isa not in kernel.isas()]
    if not lacking:
        pytest.skip("this processor has them all")
    reason = loaded_with(monkeypatch, DIS_KERNEL_ISA=lacking[0])
    assert reason == f"DIS_KERNEL_ISA is {lacking[0]!r}, which this processor does not have"


def test_without_the_extension_the_reason_is_a_compiler(monkeypatch) -> None:
    monkeypatch.delenv("DIS_KERNEL_LIBRARY", raising=False)
    monkeypatch.setattr(kernel, "find_spec", lambda _: None)
    assert "C++ compiler" in (loaded_with(monkeypatch) or "")


def test_a_library_of_something_else_is_refused(tmp_path: Path, monkeypatch) -> None:
    other = ctypes.util.find_library("c") or pytest.skip("no C library by name")
    reason = loaded_with(monkeypatch, DIS_KERNEL_LIBRARY=other)
    assert reason == "its library was built from other sources; install again: pip install -e . (or pip install .)"


@needs_kernel
def test_a_library_of_other_sources_is_refused_before_it_can_crash(monkeypatch) -> None:
    monkeypatch.setattr(kernel, "abi", lambda: kernel_args.abi() + 8)
    assert loaded_with(monkeypatch) == kernel._STALE


def test_both_sides_count_the_same_abi() -> None:
    source = (Path(kernel.__file__).parent / "csrc/args.h").read_text()
    assert f"constexpr int64_t ABI = {kernel_args.ABI};" in source


def test_without_a_kernel_auto_is_torch_and_the_reason_is_said(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "no_library.so"
    file.write_text("not a library")
    reason = loaded_with(monkeypatch, DIS_KERNEL_LIBRARY=str(file))
    assert reason is not None
    assert reason.startswith(f"its library does not load: {file}: ")
    chosen = choose_engine("auto", "cpu")
    assert chosen.name == "torch"
    assert chosen.reason == f"kernel cannot be used: {reason}"
    inputs = cast(scan_inputs(1, 3, 2, 2), torch.float32)
    assert torch.equal(selective_scan(**inputs), selective_scan(**inputs, engine="torch"))
    with pytest.raises(ValueError, match="engine 'kernel' cannot be used: its library does not load"):
        selective_scan(**inputs, engine="kernel")


def test_a_broken_library_does_not_stop_the_package(tmp_path: Path) -> None:
    file = tmp_path / "no_library.so"
    file.write_text("not a library")
    process = python("-c", BROKEN, DIS_KERNEL_LIBRARY=str(file))
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("its library does not load: ")


BROKEN = """
import torch
from dis_cli.models import DiS
from dis_cli.scan.engines.cpu import kernel

x, t = torch.randn(4, 1, 4, 4), torch.arange(4)
DiS(4, 2, 1, 8, 3)(x, t).sum().backward()
try:
    DiS(4, 2, 1, 8, 3, engine="kernel")(x, t)
except ValueError as error:
    assert kernel.why_not() in str(error)
else:
    raise AssertionError("engine='kernel' was not refused")
print(kernel.why_not())
"""
