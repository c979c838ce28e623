"""Gradient checkpointing changes what is kept for the backward, and no bit of any gradient."""

import pytest
import torch
from torch import Tensor

from dis_cli.config.overrides import apply_overrides
from dis_cli.config.presets import load_preset
from dis_cli.models import DiS
from dis_cli.models.dis.backbone import Block
from dis_cli.runtime.process_group import ProcessGroup
from dis_cli.scan.engines.cpu import kernel
from dis_cli.workflows.train.build import build_training_state

# Samples enough for a mixer to run as one call of the kernel.
BATCH = 5
ENGINES = ["reference", "torch"] if kernel.why_not() else ["reference", "torch", "kernel"]
CASES = [(engine, torch.float32) for engine in ENGINES] + [("auto", torch.float64)]


def model(**changes) -> DiS:
    torch.manual_seed(0)
    settings = {"embed_dim": 16, "depth": 7, "num_classes": 3, "drop_path": 0.5, "label_drop": 0.4, "d_state": 4}
    return DiS(8, 2, 3, **(settings | changes)).train()


def gradients(network: DiS, *, given: bool = True) -> dict[str, Tensor]:
    """Output and gradients of one forward and backward, with every draw given or drawn by the model."""
    generator = torch.Generator().manual_seed(1)
    dtype = network.pos_embed.dtype
    x = torch.randn(BATCH, 3, 8, 8, generator=generator, dtype=dtype).requires_grad_()
    draws = {}
    if given:
        draws["drop_path_uniform"] = torch.rand(network.num_drop_path, BATCH, generator=generator)
        draws["label_drop_uniform"] = torch.rand(BATCH, generator=generator)
    labels = torch.arange(BATCH) % 3 if network.num_classes else None
    torch.manual_seed(2)
    out = network(x, torch.arange(BATCH) * 100, labels, **draws)
    names, parameters = zip(*network.named_parameters(), strict=True)
    found = torch.autograd.grad(out.square().sum(), [x, *parameters])
    return dict(zip(["out", "x", *names], [out.detach(), *found], strict=True))


def require_equal(network: DiS, **options: bool) -> None:
    plain = gradients(network, **options)
    network.gradient_checkpointing = True
    checkpointed = gradients(network, **options)
    different = [name for name, tensor in plain.items() if not torch.equal(tensor, checkpointed[name])]
    assert different == []


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize(("engine", "dtype"), CASES)
def test_gradients_are_equal_in_every_bit(engine: str, dtype: torch.dtype, num_classes: int) -> None:
    network = model(engine=engine, num_classes=num_classes).to(dtype)
    require_equal(network)


def test_gradients_are_equal_where_the_model_draws() -> None:
    require_equal(model(), given=False)


def test_gradients_are_equal_in_bfloat16() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        require_equal(model())


def test_every_block_runs_again_in_the_backward() -> None:
    network = model()
    runs: list[Block] = []
    for block in network.blocks():
        block.register_forward_pre_hook(lambda module, _: runs.append(module))
    blocks = list(network.blocks())
    gradients(network)
    assert runs == blocks

    runs.clear()
    network.gradient_checkpointing = True
    gradients(network)
    assert runs == blocks + blocks[::-1]


def test_without_a_backward_nothing_is_checkpointed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("checkpointed")

    monkeypatch.setattr("dis_cli.models.backbone.checkpoint", refuse)
    network = model(num_classes=0)
    network.gradient_checkpointing = True
    x, t = torch.zeros(1, 3, 8, 8), torch.zeros(1)
    with pytest.raises(AssertionError, match="checkpointed"):
        network(x, t)
    with torch.no_grad():
        network(x, t)
    network.eval()(x, t)


@pytest.mark.parametrize("wanted", [False, True])
def test_the_setting_decides(wanted: bool) -> None:
    overrides = ["model.embed_dim=16", "model.depth=1", f"train.gradient_checkpointing={str(wanted).lower()}"]
    config = apply_overrides(load_preset("dis-xs-digits"), overrides)
    built = build_training_state(config, torch.device("cpu"), ProcessGroup()).model
    assert isinstance(built, DiS)
    assert built.gradient_checkpointing == wanted
