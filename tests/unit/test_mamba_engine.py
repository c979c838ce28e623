"""The CUDA engine: against stand-ins with the packages' own checks, and on a CUDA device against the packages."""

import importlib.abc
import importlib.util
import sys

import pytest
import torch
from support import mamba_standin
from support.oracle import TOLERANCE, assert_matches, relative_error

from dis_cli.scan.engines import mamba_engine
from dis_cli.scan.engines.reference import causal_conv_silu_reference, selective_scan_reference

RANK = 3
HALF_TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1e-2}
# A CUDA kernel sums in another order and takes exp from the hardware.
GPU_TOLERANCE = 1e-4


@pytest.fixture
def unloaded():
    """Neither package imported, and nothing remembered of them."""
    mamba_engine._packages.cache_clear()
    with mamba_standin.no_packages():
        yield
    mamba_engine._packages.cache_clear()


@pytest.fixture
def calls(unloaded):
    """The stand-ins installed: what they are called with."""
    return mamba_standin.install()


@pytest.fixture
def gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if mamba_engine.why_not() is not None:
        pytest.skip(mamba_engine.why_not())
    return torch.device("cuda")


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scan_leaves(
    b: int, length: int, d: int, n: int, *, optional: bool, softplus: bool = True
) -> dict[str, torch.Tensor]:
    """What a block's scan reads from: z is half of a tensor, B and C parts of another, delta_bias every second value.

    ``optional`` gives D, z and delta_bias. Without ``softplus`` the time steps are positive, so that the state decays.
    """
    delta = normal(b, length, d, seed=2)
    leaves = {
        "u": normal(b, length, d, seed=1),
        # Crosses the threshold of softplus, 20, where it becomes linear.
        "delta": delta * 12 if softplus else delta.abs() / 10,
        "A": -normal(d, n, seed=3).abs() - 0.1,
        "dbl": normal(b, length, RANK + 2 * n, seed=4),
        "xz": normal(b, length, 2 * d, seed=5),
    }
    return leaves | ({"D": normal(d, seed=6), "delta_bias": normal(2 * d, seed=7).abs()} if optional else {})


def scan_arguments(leaves: dict[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
    _, B, C = leaves["dbl"].split([RANK, leaves["A"].shape[1], leaves["A"].shape[1]], dim=-1)
    optional = "D" in leaves
    return {
        **{name: leaves[name] for name in ("u", "delta", "A")},
        "B": B,
        "C": C,
        "D": leaves.get("D"),
        "z": leaves["xz"].chunk(2, dim=-1)[1] if optional else None,
        "delta_bias": leaves["delta_bias"][::2] if optional else None,
    }


def as_leaves(tensors, dtype, device="cpu"):
    return {name: tensor.to(dtype).to(device).requires_grad_() for name, tensor in tensors.items()}


def exact(leaves):
    """The same numbers, in float64: the expectation is their exact result."""
    return {name: tensor.detach().double().cpu().requires_grad_() for name, tensor in leaves.items()}


def assert_same(out, leaves, expected, exact_leaves, tolerance) -> None:
    weights = normal(*out.shape, seed=8)
    (out * weights.to(out)).sum().backward()
    (expected * weights.to(out.dtype).double()).sum().backward()
    error = relative_error(out.cpu(), expected)
    assert error <= tolerance, f"out: relative error {error:.2e}"
    for name, leaf in leaves.items():
        if exact_leaves[name].grad is None:
            assert leaf.grad is None, name
            continue
        error = relative_error(leaf.grad.cpu(), exact_leaves[name].grad)
        assert error <= tolerance, f"gradient of {name}: relative error {error:.2e}"


def assert_scan_matches(
    *, b=2, length=19, d=6, n=4, optional=True, delta_softplus, reverse, dtype, device="cpu", tolerance
) -> None:
    flags = {"delta_softplus": delta_softplus, "reverse": reverse}
    tensors = scan_leaves(b, length, d, n, optional=optional, softplus=delta_softplus)
    leaves = as_leaves(tensors, dtype, device)
    exact_leaves = exact(leaves)
    out = mamba_engine.selective_scan(**scan_arguments(leaves), **flags)
    expected = selective_scan_reference(**scan_arguments(exact_leaves), **flags)
    assert out.dtype == dtype
    assert_same(out, leaves, expected, exact_leaves, tolerance)


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("optional", [True, False], ids=["D-z-bias", "bare"])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_scan_and_its_gradients_match_the_recurrence(reverse, optional, softplus, calls) -> None:
    flags = {"reverse": reverse, "delta_softplus": softplus}
    assert_scan_matches(optional=optional, dtype=torch.float32, tolerance=TOLERANCE[torch.float32], **flags)
    assert len(calls.scan) == 1


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("length", "d", "n"), [(1, 1, 1), (1, 8, 4), (2, 3, 8), (66, 1, 1), (37, 5, 16)])
def test_ragged_sizes_match_the_recurrence(length, d, n, reverse, calls) -> None:
    flags = {"reverse": reverse, "delta_softplus": True}
    assert_scan_matches(length=length, d=d, n=n, dtype=torch.float32, tolerance=TOLERANCE[torch.float32], **flags)


@pytest.mark.parametrize("dtype", HALF_TOLERANCE, ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_half_precision_is_read_by_the_kernel_as_it_is(reverse, dtype, calls) -> None:
    flags = {"reverse": reverse, "delta_softplus": True}
    assert_scan_matches(dtype=dtype, tolerance=HALF_TOLERANCE[dtype], **flags)
    assert calls.scan[0]["u"].dtype == dtype
    assert calls.scan[0]["A"].dtype == torch.float32


def test_mixed_dtypes_are_scanned_in_float32(calls) -> None:
    arguments = scan_arguments(as_leaves(scan_leaves(2, 9, 6, 4, optional=True), torch.float32))
    arguments["u"] = arguments["u"].bfloat16()
    out = mamba_engine.selective_scan(**arguments, delta_softplus=True, reverse=False)
    expected = selective_scan_reference(**arguments, delta_softplus=True)
    assert out.dtype == torch.bfloat16
    assert calls.scan[0]["u"].dtype == torch.float32
    assert torch.equal(out, expected.bfloat16())


def test_a_sequence_that_is_time_last_already_is_not_copied(calls) -> None:
    arguments = scan_arguments(as_leaves(scan_leaves(2, 9, 6, 4, optional=True), torch.float32))
    arguments["u"] = arguments["u"].detach().transpose(1, 2).contiguous().transpose(1, 2)
    mamba_engine.selective_scan(**arguments, delta_softplus=True, reverse=False)
    assert calls.scan[0]["u"].data_ptr() == arguments["u"].data_ptr()


def test_an_empty_batch_needs_no_kernel(unloaded) -> None:
    leaves = as_leaves(scan_leaves(0, 5, 6, 4, optional=True), torch.float32)
    out = mamba_engine.selective_scan(**scan_arguments(leaves), delta_softplus=True, reverse=True)
    out.sum().backward()
    assert out.shape == (0, 5, 6)
    assert torch.equal(leaves["A"].grad, torch.zeros(6, 4))


def test_what_the_kernel_cannot_do_is_said(calls) -> None:
    double = scan_arguments(scan_leaves(1, 2, 3, 4, optional=False))
    with pytest.raises(ValueError, match=r"u must be one of .*, got torch.float64"):
        mamba_engine.selective_scan(**double, delta_softplus=True, reverse=False)
    wide = scan_arguments(as_leaves(scan_leaves(1, 2, 3, 257, optional=False), torch.float32))
    with pytest.raises(ValueError, match="at most 256 states per channel, got 257"):
        mamba_engine.selective_scan(**wide, delta_softplus=True, reverse=False)


def conv_leaves(b: int, length: int, d: int, taps: int) -> dict[str, torch.Tensor]:
    return {
        "xz": normal(b, length, 2 * d, seed=1),
        "weight": normal(d, taps, seed=2),
        "bias": normal(d, seed=3),
    }


def conv_arguments(leaves):
    return leaves["xz"].chunk(2, dim=-1)[0], leaves["weight"], leaves["bias"]


def assert_conv_matches(*, b=2, length=18, d=16, taps=4, reverse, dtype, device="cpu", tolerance) -> None:
    leaves = as_leaves(conv_leaves(b, length, d, taps), dtype, device)
    exact_leaves = exact(leaves)
    out = mamba_engine.causal_conv_silu(*conv_arguments(leaves), reverse=reverse)
    expected = causal_conv_silu_reference(*conv_arguments(exact_leaves), reverse=reverse)
    assert out.dtype == dtype
    assert_same(out, leaves, expected, exact_leaves, tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TOLERANCE], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("taps", [1, 2, 3, 4, 5, 33])
def test_the_convolution_and_its_gradients_match_the_reference(taps, reverse, dtype, calls) -> None:
    tolerance = (TOLERANCE | HALF_TOLERANCE)[dtype]
    assert_conv_matches(taps=taps, reverse=reverse, dtype=dtype, tolerance=tolerance)
    # The package has no kernel for other numbers of taps.
    assert len(calls.conv) == (1 if taps in (2, 3, 4) else 0)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("b", "length", "d"), [(1, 1, 1), (2, 1, 6), (2, 1, 8), (1, 5, 8), (2, 8, 1), (2, 8, 6), (3, 7, 12), (2, 2, 24)]
)
def test_ragged_sizes_of_the_convolution_match(b, length, d, reverse, calls) -> None:
    assert_conv_matches(
        b=b, length=length, d=d, reverse=reverse, dtype=torch.float32, tolerance=TOLERANCE[torch.float32]
    )


def test_half_of_in_proj_is_convolved_in_place(calls) -> None:
    leaves = as_leaves(conv_leaves(2, 18, 16, 4), torch.float32)
    out = mamba_engine.causal_conv_silu(*conv_arguments(leaves), reverse=False)
    assert calls.conv[0]["x"].data_ptr() == leaves["xz"].data_ptr()
    assert out.is_contiguous()


def odd_inputs() -> dict[str, torch.Tensor]:
    wide = normal(2, 9, 40, seed=1).float()
    return {
        "an offset that is not aligned": wide[..., 3:19],
        "rows of an odd stride": normal(2, 8, 19, seed=1).float()[..., :16],
        "images of an odd stride": normal(2, 148, seed=1).float()[:, :144].unflatten(1, (9, 16)),
        "every second channel": wide[..., :32:2],
        "one token for all": wide[:, :1, :16].expand(-1, 9, -1),
        "one image for all": wide[:1, :, :16].expand(2, -1, -1),
        "every second token": wide.repeat_interleave(2, dim=1)[:, ::2, :16],
        "time last": wide[..., :16].transpose(1, 2).contiguous().transpose(1, 2),
        "time last, of an odd stride": normal(2, 16, 11, seed=1).float()[..., :8].transpose(1, 2),
        "time last, not aligned": normal(2 * 16 * 8 + 1, seed=1).float()[1:].view(2, 16, 8).transpose(1, 2),
        "one token, strides of a longer sequence": wide[:, 4:5, :16],
    }


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", odd_inputs())
def test_any_strides_are_convolved_rightly(name, reverse, calls) -> None:
    leaves = {"x": odd_inputs()[name].requires_grad_(), **as_leaves(conv_leaves(1, 1, 16, 4), torch.float32)}
    del leaves["xz"]
    exact_leaves = exact(leaves)
    out = mamba_engine.causal_conv_silu(*leaves.values(), reverse=reverse)
    expected = causal_conv_silu_reference(*exact_leaves.values(), reverse=reverse)
    assert_same(out, leaves, expected, exact_leaves, TOLERANCE[torch.float32])
    assert len(calls.conv) == 1


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("b", "length"), [(2, 9), (1, 9), (1, 1)])
def test_a_gradient_may_have_strides_that_the_kernel_refuses(b, length, reverse, calls) -> None:
    leaves = as_leaves(conv_leaves(b, length, 16, 4), torch.float32)
    exact_leaves = exact(leaves)
    weights = normal(b, length + 1, 19, seed=8)
    for tensors, function in (
        (leaves, mamba_engine.causal_conv_silu),
        (exact_leaves, causal_conv_silu_reference),
    ):
        out = function(*conv_arguments(tensors), reverse=reverse)
        # The gradient of a part is a view of the whole's: rows of 19, from the third on.
        rows = torch.cat([out.new_ones(b, length, 3), out], dim=-1)
        (torch.cat([rows, out.new_ones(b, 1, 19)], dim=1) * weights.to(out)).sum().backward()
    for name, leaf in leaves.items():
        assert_matches(leaf.grad, exact_leaves[name].grad, torch.float32, name)


def test_an_empty_batch_is_convolved_without_a_kernel(unloaded) -> None:
    leaves = as_leaves(conv_leaves(0, 5, 8, 4), torch.float32)
    out = mamba_engine.causal_conv_silu(*conv_arguments(leaves), reverse=False)
    out.sum().backward()
    assert out.shape == (0, 5, 8)
    assert torch.equal(leaves["bias"].grad, torch.zeros(8))


def test_no_gradient_is_computed_where_none_is_wanted(calls) -> None:
    with torch.no_grad():
        arguments = scan_arguments(as_leaves(scan_leaves(1, 4, 8, 2, optional=True), torch.float32))
        assert not mamba_engine.selective_scan(**arguments, delta_softplus=True, reverse=True).requires_grad
        arguments = conv_arguments(as_leaves(conv_leaves(1, 4, 8, 4), torch.float32))
        assert not mamba_engine.causal_conv_silu(*arguments, reverse=True).requires_grad


class Missing(importlib.abc.MetaPathFinder):
    """Makes packages missing, whatever the environment has, and notes which of them were looked for."""

    def __init__(self, names) -> None:
        self.names = names
        self.asked: list[str] = []

    def find_spec(self, fullname, *_):
        if fullname in self.names:
            self.asked.append(fullname)
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def without(monkeypatch, *names: str) -> Missing:
    missing = Missing(names)
    monkeypatch.setattr(sys, "meta_path", [missing, *sys.meta_path])
    return missing


def test_nothing_is_imported_before_it_is_asked_for(unloaded, monkeypatch) -> None:
    missing = without(monkeypatch, *mamba_standin.NAMES)
    spec = importlib.util.spec_from_file_location("fresh_mamba_engine", mamba_engine.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert missing.asked == []
    message = module.why_not()
    assert missing.asked == list(mamba_standin.NAMES)
    assert module.why_not() == message
    assert missing.asked == list(mamba_standin.NAMES), "asked again"


INSTALL = '`MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation "dis-cli[cuda]"` installs them'


def write_package(path, name: str, source: str) -> None:
    """A package of that name whose import runs ``source``."""
    (path / name).mkdir()
    (path / name / "__init__.py").write_text(source)


WORKING = {
    "mamba_ssm": "import sys, types\n"
    "sys.modules['mamba_ssm.ops'] = types.ModuleType('mamba_ssm.ops')\n"
    "interface = types.ModuleType('mamba_ssm.ops.selective_scan_interface')\n"
    "interface.selective_scan_fn = print\n"
    "sys.modules[interface.__name__] = interface\n",
    "causal_conv1d": "causal_conv1d_fn = print\n",
}


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (WORKING, None),
        ({}, f"mamba-ssm is not installed; causal-conv1d is not installed; {INSTALL}"),
        ({"mamba_ssm": WORKING["mamba_ssm"]}, f"causal-conv1d is not installed; {INSTALL}"),
        ({"causal_conv1d": WORKING["causal_conv1d"]}, f"mamba-ssm is not installed; {INSTALL}"),
        ({**WORKING, "mamba_ssm": WORKING["mamba_ssm"] + "interface.selective_scan_cuda = sys\n"}, None),
        (
            {**WORKING, "mamba_ssm": WORKING["mamba_ssm"] + "interface.selective_scan_cuda = None\n"},
            "mamba-ssm was built without its CUDA part; `MAMBA_KEEP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE pip install "
            "--force-reinstall --no-deps --no-cache-dir --no-build-isolation mamba-ssm` builds it",
        ),
        (
            {
                **WORKING,
                "causal_conv1d": "import sys, types\n"
                "interface = types.ModuleType('causal_conv1d.causal_conv1d_interface')\n"
                "interface.causal_conv1d_cuda = None\n"
                "sys.modules[interface.__name__] = interface\n"
                "causal_conv1d_fn = print\n",
            },
            "causal-conv1d was built without its CUDA part; `CAUSAL_CONV1D_FORCE_BUILD=TRUE pip install "
            "--force-reinstall --no-deps --no-cache-dir --no-build-isolation causal-conv1d` builds it",
        ),
        (
            {**WORKING, "causal_conv1d": "causal_conv1d_fn = None\n"},
            "causal-conv1d does not import: causal_conv1d_fn is None",
        ),
        (
            {**WORKING, "mamba_ssm": "raise ImportError('selective_scan_cuda.so: undefined symbol: _ZN3c10')"},
            "mamba-ssm does not import: ImportError: selective_scan_cuda.so: undefined symbol: _ZN3c10",
        ),
        (
            {**WORKING, "mamba_ssm": "import a_dependency_that_is_missing"},
            "mamba-ssm does not import: No module named 'a_dependency_that_is_missing'",
        ),
        (
            {**WORKING, "causal_conv1d": "raise OSError('libcudart.so.12: cannot open shared object file')"},
            "causal-conv1d does not import: OSError: libcudart.so.12: cannot open shared object file",
        ),
        (
            {"mamba_ssm": "raise RuntimeError('0 active drivers\\nin many lines')", "causal_conv1d": "1 / 0"},
            "mamba-ssm does not import: RuntimeError: 0 active drivers; "
            "causal-conv1d does not import: ZeroDivisionError: division by zero",
        ),
        (
            {**WORKING, "causal_conv1d": ""},
            "causal-conv1d does not import: AttributeError: module 'causal_conv1d' has no attribute 'causal_conv1d_fn'",
        ),
        (
            {**WORKING, "mamba_ssm": ""},
            "mamba-ssm does not import: No module named 'mamba_ssm.ops'",
        ),
    ],
)
def test_why_not_names_the_package_and_the_error(sources, expected, unloaded, tmp_path, monkeypatch) -> None:
    for name, source in sources.items():
        write_package(tmp_path, name, source)
    without(monkeypatch, *(name for name in mamba_standin.NAMES if name not in sources))
    monkeypatch.syspath_prepend(tmp_path)
    assert mamba_engine.why_not() == expected


def test_a_call_without_the_packages_says_why(unloaded, monkeypatch) -> None:
    without(monkeypatch, *mamba_standin.NAMES)
    arguments = scan_arguments(as_leaves(scan_leaves(1, 4, 8, 2, optional=True), torch.float32))
    with pytest.raises(ValueError, match="engine 'mamba_ssm' cannot be used: mamba-ssm is not installed"):
        mamba_engine.selective_scan(**arguments, delta_softplus=True, reverse=True)
    arguments = conv_arguments(as_leaves(conv_leaves(1, 4, 8, 4), torch.float32))
    with pytest.raises(ValueError, match="causal-conv1d is not installed"):
        mamba_engine.causal_conv_silu(*arguments, reverse=True)


def test_the_stand_ins_refuse_what_the_kernels_refuse(calls) -> None:
    scan, conv = mamba_standin.selective_scan_fn, mamba_standin.causal_conv1d_fn
    u, A, B = torch.randn(2, 8, 5), torch.randn(8, 4), torch.randn(2, 4, 5)
    with pytest.raises(RuntimeError, match=r"delta.stride\(-1\) must be 1"):
        scan(u, torch.randn(2, 5, 8).transpose(1, 2), A, B, B)
    with pytest.raises(RuntimeError, match=r"B is torch.bfloat16, u is torch.float32"):
        scan(u, u, A, B.bfloat16(), B)
    with pytest.raises(RuntimeError, match=r"delta_bias is torch.float16"):
        scan(u, u, A, B, B, delta_bias=torch.randn(8).half())
    x, weight, bias = torch.randn(2, 9, 12), torch.randn(12, 4), torch.randn(12)
    with pytest.raises(RuntimeError, match="channel dimension divisible by 8"):
        conv(x.transpose(1, 2), weight, bias, activation="silu")
    with pytest.raises(RuntimeError, match="width between 2 and 4"):
        conv(torch.randn(2, 12, 9), torch.randn(12, 5), bias, activation="silu")
    with pytest.raises(NotImplementedError, match="activation"):
        conv(torch.randn(2, 12, 9), weight, bias, activation="SiLU")


# What the packages warn of at import and at their first call is theirs.
@pytest.mark.gpu
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TOLERANCE], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("length", "d", "n"), [(1, 8, 16), (18, 24, 16), (257, 32, 16), (2304, 8, 4)])
def test_the_scan_on_a_gpu_matches_the_recurrence(length, d, n, reverse, dtype, gpu) -> None:
    tolerance = HALF_TOLERANCE.get(dtype, GPU_TOLERANCE)
    flags = {"length": length, "d": d, "n": n, "reverse": reverse, "delta_softplus": True}
    for optional in (True, False):
        assert_scan_matches(optional=optional, dtype=dtype, device=gpu, tolerance=tolerance, **flags)


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TOLERANCE], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("length", "d"), [(1, 8), (1, 6), (18, 192), (64, 12)])
def test_the_convolution_on_a_gpu_matches_the_reference(length, d, reverse, dtype, gpu) -> None:
    tolerance = HALF_TOLERANCE.get(dtype, GPU_TOLERANCE)
    sizes = {"length": length, "d": d, "reverse": reverse}
    for taps in (2, 3, 4, 5, 33):
        assert_conv_matches(taps=taps, dtype=dtype, device=gpu, tolerance=tolerance, **sizes)


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", odd_inputs())
def test_any_strides_are_convolved_rightly_on_a_gpu(name, reverse, gpu) -> None:
    source = odd_inputs()[name]
    # `to(device)` would make it dense.
    storage = torch.empty(source.untyped_storage().nbytes() // 4, device=gpu)
    x = storage.as_strided(source.shape, source.stride(), source.storage_offset())
    storage.copy_(source.as_strided(storage.shape, (1,), 0))
    leaves = {"x": x.requires_grad_(), **as_leaves(conv_leaves(1, 1, 16, 4), torch.float32, gpu)}
    del leaves["xz"]
    exact_leaves = exact(leaves)
    out = mamba_engine.causal_conv_silu(*leaves.values(), reverse=reverse)
    expected = causal_conv_silu_reference(*exact_leaves.values(), reverse=reverse)
    assert_same(out, leaves, expected, exact_leaves, GPU_TOLERANCE)
