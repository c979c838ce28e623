"""Another engine: a row and a module, and every command knows it."""

import inspect
import json
from collections.abc import Iterator
from importlib import import_module

import pytest
import torch
from support import toy_engine
from support.compare import results, scan_inputs
from support.tiny import dis, result, train

from dis_cli.config.schema import RunConfig
from dis_cli.errors import ConfigError
from dis_cli.models.dis.mixer import Mixer
from dis_cli.scan import add_rms_norm, causal_conv_silu, choose_engine, selective_scan
from dis_cli.scan.contract import EngineModule
from dis_cli.scan.engines.choose import SecondChoice
from dis_cli.scan.engines.table import ENGINES
from dis_cli.workflows.build import pick_engine

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    toy_engine.add_toy(monkeypatch)
    yield
    monkeypatch.undo()
    toy_engine.forget()


def test_the_operators() -> None:
    inputs = {name: tensor.float() for name, tensor in scan_inputs(2, 5, 4, 3).items()}
    got, wanted = (results(selective_scan, inputs, engine=engine) for engine in ("toy", "reference"))
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in got.items())
    x, taps, bias = torch.randn(2, 5, 4), torch.randn(4, 3), torch.randn(4)
    assert torch.equal(
        causal_conv_silu(x, taps, bias, engine="toy"), causal_conv_silu(x, taps, bias, engine="reference")
    )
    # The proof of a compiled engine is one of each.
    assert toy_engine.calls == {"scan": 2, "conv": 2}
    assert torch.equal(*(add_rms_norm(x, None, bias, epsilon=1e-5, engine=name)[0] for name in ("toy", "torch")))
    assert choose_engine("toy", CPU, torch.float64).name == "torch"


def test_a_mixer_is_composed_of_its_scans() -> None:
    mixer = Mixer(16, engine="toy")
    mixer.reset_parameters()
    tokens = torch.randn(2, 5, 16)
    got = mixer(tokens)
    assert toy_engine.calls == {"scan": 3, "conv": 3}
    mixer.engine = "reference"
    assert torch.equal(got, mixer(tokens))


def test_auto_tries_it_first() -> None:
    assert (choose_engine("auto", CPU).name, choose_engine("auto", "meta").name) == ("toy", "torch")


def test_auto_passes_it_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy_engine, "missing", "it was not built")
    chosen = choose_engine("auto", CPU)
    assert chosen.name in ("kernel", "torch")
    assert chosen.reason.startswith("toy cannot be used: it was not built")
    assert not isinstance(chosen, SecondChoice)
    monkeypatch.setattr(toy_engine, "missing", None)
    monkeypatch.setattr(toy_engine, "factor", 1.1)
    chosen = choose_engine("auto", CPU)
    assert isinstance(chosen, SecondChoice)
    assert chosen.reason.startswith("toy cannot be used: it computes something else than the recurrence")
    with pytest.raises(ConfigError, match="it computes something else") as caught:
        pick_engine(RunConfig(engine="toy"), CPU)
    assert "got `toy`, allowed on cpu here: auto, " in caught.value.message


def test_training_with_it(tmp_path, capsys) -> None:
    assert train(tmp_path / "toy", "train.steps=1", "engine=toy", "train.precision=fp32") == 0
    assert json.loads((tmp_path / "toy" / "run.json").read_text())["engine"]["name"] == "toy"
    assert toy_engine.calls["scan"] > 1
    capsys.readouterr()
    assert (
        dis("sample", "--ckpt", tmp_path / "toy", "-n", 1, "--out", tmp_path / "out", "sample.steps=1", "--json") == 0
    )
    assert json.loads((tmp_path / "out" / "samples.json").read_text())["engine"] == "toy"


def test_doctor(capsys) -> None:
    assert dis("doctor", "--device", "cpu", "--json") == 0
    report = result(capsys)
    assert report["devices"]["cpu"]["engine"] == {"name": "toy", "reason": "the fastest on cpu"}
    assert report["engines"]["cpu"]["toy"]["parity_error"] <= report["parity_limit"]


def test_settings(tmp_path, capsys) -> None:
    preset = tmp_path / "toy.toml"
    preset.write_text('engine = "toy"\n')
    assert dis("presets", "validate", preset) == 0
    preset.write_text('engine = "toi"\n')
    assert dis("presets", "validate", preset) == 3
    error = capsys.readouterr().out
    assert 'got `"toi"`, allowed: one of auto, kernel, torch, reference, mamba_ssm, triton, toy' in error
    assert dis("train", "--out", tmp_path / "run", "engine=kernle") == 2
    assert "Did you mean `kernel`?" in capsys.readouterr().err
    allowed = "auto, kernel, torch, reference, mamba_ssm, triton, toy"
    with pytest.raises(ValueError, match=f"engine must be one of {allowed}, got"):
        choose_engine("toi", CPU)


@pytest.mark.parametrize("name", [*ENGINES])
def test_modules_keep_the_contract(name: str) -> None:
    module = import_module(ENGINES[name].module)
    promised = {key: member for key, member in vars(EngineModule).items() if not key.startswith("_")}
    there = {key for key in promised if hasattr(module, key)}
    forwards = {"ends_shape", "scan_forward", "scan_backward", "conv_silu_forward", "conv_silu_backward"}
    assert "why_not" in there
    assert there >= forwards or (there >= {"selective_scan", "causal_conv_silu"} and not there & forwards)
    for group in ({"norm_forward", "norm_backward"}, {"runs_whole_mixer", "mixer_forward", "mixer_backward"}):
        assert there >= group or not there & group
    for key in there if there >= forwards else ():
        _, *names = inspect.signature(promised[key]).parameters
        assert list(inspect.signature(getattr(module, key)).parameters) == names, key
