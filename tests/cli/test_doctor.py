"""`dis doctor`: what it reports of the machine as it is, and what it calls a failure."""

import json

import pytest
import torch
from support.tiny import dis, result

from dis_cli import __version__
from dis_cli.models.dis import parity
from dis_cli.scan.engines.choose import choose_engine, unavailable
from dis_cli.scan.engines.table import ENGINES
from dis_cli.workflows import doctor as workflow


@pytest.fixture
def broken(monkeypatch):
    """Make the plain PyTorch scan go wrong: what it returns passes through the function given."""

    def break_with(change):
        scan = parity.selective_scan

        def broken_scan(*args, engine, **kwargs):
            out = scan(*args, engine=engine, **kwargs)
            return change(out) if engine == "torch" else out

        monkeypatch.setattr(parity, "selective_scan", broken_scan)

    return break_with


def test_a_sound_machine(capsys) -> None:
    assert dis("doctor", "--device", "cpu") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert f"dis {__version__}, Python 3" in captured.out
    assert torch.__version__ in captured.out
    assert "mamba-ssm" in captured.out
    assert f"auto takes {choose_engine('auto', 'cpu').name}: " in captured.out
    assert "GFLOP/s in bf16" in captured.out
    assert captured.out.splitlines()[-1].startswith("healthy")
    # A table: every state begins in the same column.
    rows = [line for line in captured.out.splitlines() if line[2:].startswith(("ENGINE", *ENGINES))]
    column = rows[0].index("STATE")
    assert len(rows) == 1 + len(ENGINES)
    assert all(row[column - 2 : column] == "  " and row[column] != " " for row in rows)


def test_json_is_one_object_with_units(capsys) -> None:
    assert dis("doctor", "--json") == 0
    data = result(capsys)
    assert (data["schema"], data["healthy"], data["problems"]) == (1, True, [])
    assert data["free_disk_bytes"] > 0
    assert data["total_memory_bytes"] is None or data["total_memory_bytes"] >= (data["free_memory_bytes"] or 0) > 0
    assert data["cpu"]["num_torch_threads"] == torch.get_num_threads()
    assert data["packages"]["mamba-ssm"] is None or isinstance(data["packages"]["mamba-ssm"], str)
    assert data["packages"]["diffusers"]
    assert (data["kernel"]["isa"] is None) == (data["kernel"]["why_not"] is not None)
    assert list(data["devices"]) == list(data["engines"])
    cpu = data["devices"]["cpu"]
    assert cpu["precision"]["name"] in ("fp32", "bf16")
    assert cpu["precision"]["reason"]
    assert all(rate > 0 for rate in cpu["matmul_gflops_per_second"].values())
    engines = data["engines"]["cpu"]
    assert list(engines) == list(ENGINES)
    for name, facts in engines.items():
        assert facts["reason"] == unavailable(name, "cpu")
        if facts["available"]:
            assert 0 < facts["parity_error"] <= 1e-5
        else:
            assert facts["parity_error"] is None
    assert engines["torch"]["available"]
    assert not engines["mamba_ssm"]["available"]


@pytest.mark.parametrize(
    ("change", "error"),
    [(lambda out: out * 1.0001, 1e-4), (lambda out: out + out.detach().new_tensor(float("nan")), None)],
    ids=["a ten thousandth off", "nan"],
)
def test_an_engine_that_computes_wrongly_is_a_negative_verdict(change, error, broken, capsys) -> None:
    broken(change)
    assert dis("doctor", "--device", "cpu", "--json") == 3
    captured = capsys.readouterr()
    data = json.loads(captured.out)
    assert data["engines"]["cpu"]["torch"]["parity_error"] == (error and pytest.approx(error, rel=0.1))
    assert data["engines"]["cpu"]["reference"]["parity_error"] <= 1e-5
    assert not data["healthy"]
    assert "1 check failed" in captured.err
    assert "engine torch on cpu: its error is" in captured.err
    assert captured.err.count("error:") == 1


def test_an_engine_that_raises_is_a_negative_verdict(broken, capsys) -> None:
    def fail(out):
        raise RuntimeError("no kernel image is available\nfor execution")

    broken(fail)
    assert dis("doctor", "--device", "cpu") == 3
    captured = capsys.readouterr()
    assert "it raises RuntimeError: no kernel image is available" in captured.err
    assert "for execution" not in captured.err
    assert captured.out.splitlines()[-1] == "not healthy"


def test_a_device_that_cannot_multiply_is_a_negative_verdict(monkeypatch, capsys) -> None:
    def fail(device):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(workflow, "matmul_gflops_per_second", fail)
    assert dis("doctor", "--device", "cpu", "--json") == 3
    data = result(capsys)
    assert data["problems"] == [
        "cpu: it raises RuntimeError: CUDA error: no kernel image is available for execution on the device"
    ]
    assert data["devices"] == data["engines"] == {}


def test_a_lack_in_torch_is_a_negative_verdict(monkeypatch, capsys) -> None:
    monkeypatch.setattr(workflow, "_NEEDED", ("nn.RMSNorm", "nn.NoSuchThing"))
    assert dis("doctor", "--device", "cpu", "--json") == 3
    assert result(capsys)["problems"] == [f"PyTorch {torch.__version__} lacks torch.nn.NoSuchThing"]


def test_a_nearly_full_disk_is_a_warning(monkeypatch, capsys) -> None:
    monkeypatch.setattr(workflow, "MIN_FREE_DISK_BYTES", 10**18)
    assert dis("doctor", "--device", "cpu", "--json") == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("warning: Less than 1 GB is free")
    assert len(json.loads(captured.out)["warnings"]) == 1


def test_an_absent_device_is_wrong_usage(capsys) -> None:
    assert dis("doctor", "--device", "cuda:99") == 2
    assert "cuda:99" in capsys.readouterr().err
