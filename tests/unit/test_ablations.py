"""The ablations of DiS: against their equations, and in everything that a model goes through."""

import json
from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.compare import output_weights
from support.naive_dis import ABLATED, naive_dis
from support.oracle import assert_matches
from support.tiny import dis, trained
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import dis_cli
from dis_cli.config.backbones import DisConfig
from dis_cli.models.dis.backbone import DiS
from dis_cli.models.dis.flops import count
from dis_cli.models.dis.order import turn
from dis_cli.models.dis.sizes import CONDITIONINGS, DIRECTIONS, SCAN_ORDERS, SKIPS, Shape
from dis_cli.models.families import FAMILIES

NAMES = {"skip": SKIPS, "directions": DIRECTIONS, "conditioning": CONDITIONINGS, "scan_order": SCAN_ORDERS}
# All pairs of any two.
COMBINATIONS = [
    (skip, DIRECTIONS[index % 2], CONDITIONINGS[index // 2 % 2], order)
    for index, (skip, order) in enumerate(product(SKIPS, SCAN_ORDERS))
]
OVERRIDES = [f"model.{name}={value}" for name, value in ABLATED.items()]
SETTINGS: dict[str, Any] = {"image_size": 6, "patch_size": 2, "in_channels": 2, "embed_dim": 8, "depth": 5}


def model_of(shape: Shape, dtype: torch.dtype, **changes: Any) -> DiS:
    """All parameters random: at first those of a modulation are zero, and hide what they act on.

    With this seed no gradient is the small rest of large terms: in float32 the equations alone are off by 4e-6 at most.
    """
    model = DiS(**asdict(shape), **changes)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return model.to(dtype)


def inputs(shape: Shape, dtype: torch.dtype, batch: int = 4) -> tuple[Tensor, Tensor, Tensor | None]:
    # Samples enough for the kernel to run a mixer as one call.
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, shape.in_channels, shape.image_size, shape.image_size, generator=generator).to(dtype)
    labels = torch.arange(batch) % (shape.num_classes + 1) if shape.num_classes else None
    return x.requires_grad_(), torch.arange(batch) * 77, labels


def outcome(compute: Callable[..., Tensor], model: DiS, given: tuple[Tensor, ...]) -> dict[str, Tensor]:
    out = compute(*given)
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(out, [given[0], *parameters], output_weights(out.detach()).to(out.dtype))
    return {"out": out.detach(), "x": found[0], **dict(zip(names, found[1:], strict=True))}


@pytest.mark.parametrize("names", COMBINATIONS, ids="-".join)
def test_output_and_every_gradient_equal_the_equations(names: tuple[str, ...]) -> None:
    classes = 3 * (COMBINATIONS.index(names) % 2)
    shape = Shape(**SETTINGS, num_classes=classes, d_state=3, d_conv=9, **dict(zip(NAMES, names, strict=True)))
    model = model_of(shape, torch.float64).eval()
    parameters = dict(model.named_parameters())
    given = inputs(shape, torch.float64)
    expected = outcome(lambda *arguments: naive_dis(parameters, shape, *arguments), model, given)
    for dtype in (torch.float64, torch.float32):
        model.to(dtype)
        got = outcome(model, model, inputs(shape, dtype))
        for name, tensor in expected.items():
            assert_matches(got[name], tensor, dtype, f"{dtype} {name}")


@pytest.mark.parametrize("extras", [0, 2])
def test_a_turn_exchanges_rows_and_columns(extras: int) -> None:
    tokens = torch.randn(2, extras + 9, 3, dtype=torch.float64).requires_grad_()
    order = [*range(extras), *(extras + place for place in (0, 3, 6, 1, 4, 7, 2, 5, 8))]
    out = turn(tokens, extras)
    assert torch.equal(out, tokens[:, order])
    assert torch.equal(turn(out, extras), tokens)
    assert torch.equal(turn(tokens.transpose(0, 1).contiguous().transpose(0, 1), extras), out)
    weights = torch.randn_like(out)
    (gradient,) = torch.autograd.grad(out, tokens, weights)
    assert torch.equal(gradient[:, order], weights)


def test_columns_are_the_rows_of_a_turned_image() -> None:
    shape = Shape(**SETTINGS, scan_order="column")
    model = model_of(shape, torch.float64)
    with torch.no_grad():
        # Neither patches nor positions tell rows from columns.
        model.pos_embed.fill_(0.3)
        weight = model.patch_embed.proj.weight
        weight.copy_(weight + weight.transpose(2, 3))
    raster = DiS(**asdict(shape) | {"scan_order": "raster"}).to(torch.float64)
    raster.load_state_dict(model.state_dict())
    x, t, _ = inputs(shape, torch.float64)
    turned = raster(x.transpose(2, 3), t)

    def patches(grid: Tensor) -> Tensor:
        return grid.unflatten(3, (3, 2)).unflatten(2, (3, 2)).transpose(3, 4)  # (b, c, rows, columns, 2, 2)

    torch.testing.assert_close(patches(model(x, t)), patches(turned).transpose(2, 3), rtol=0, atol=1e-12)


def test_a_modulated_block_begins_as_nothing() -> None:
    model = DiS(**SETTINGS, conditioning="adaln_zero")
    assert (model.extras, model.num_tokens) == (0, 9)
    for block in model.blocks():
        out, stream = block(torch.randn(1, 9, 8), None, condition=torch.randn(1, 8))
        assert not out.any()
        assert stream.any()


@pytest.mark.parametrize("name", NAMES)
def test_unknown_names_list_what_is_allowed(name: str) -> None:
    allowed = " or ".join(map(repr, NAMES[name]))
    for build in (DiS, Shape):
        with pytest.raises(ValueError, match=f"{name} must be {allowed}, got 'other'"):
            build(**SETTINGS, **{name: "other"})


def test_settings_are_refused_with_what_is_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for key, value, allowed in (
        ("skip", "cat", "one of concat, add, none"),
        ("directions", "backward", "one of both, forward"),
        ("conditioning", "adaln", "one of tokens, adaln_zero"),
        ("scan_order", "diagonal", "one of raster, column, alternate"),
        ("d_conv", "34", "an integer >= 1 and <= 33"),
        ("d_conv", "0", "an integer >= 1 and <= 33"),
    ):
        assert dis("train", "--preset", "dis-xs-digits", "--out", tmp_path / "run", f"model.{key}={value}") == 2
        assert f"`model.{key}`: got `{value}`, allowed: {allowed}" in capsys.readouterr().err
    with pytest.raises(ValidationError):
        DisConfig(d_conv=34)


@pytest.mark.parametrize("names", COMBINATIONS, ids="-".join)
def test_weights_tell_what_they_can(names: tuple[str, ...]) -> None:
    shape = Shape(**SETTINGS, num_classes=3, d_conv=9, **dict(zip(NAMES, names, strict=True)))
    family = FAMILIES["dis"]
    found = family.parameter_shapes(**asdict(shape))
    assert family.settings_of(found, asdict(shape)) == asdict(shape)
    told = family.recognize(found)
    assert "scan_order" not in told
    assert ("skip" in told) == (shape.skip == "concat")
    assert {key: told[key] for key in ("directions", "conditioning", "d_conv")} == {
        "directions": shape.directions,
        "conditioning": shape.conditioning,
        "d_conv": 9,
    }
    if shape.skip != "concat":
        # Without settings it is taken for a published one, which it is not.
        with pytest.raises(ValueError, match=r"missing: `out_blocks.0.skip_linear.weight`"):
            family.settings_of(found)


def test_what_an_ablation_changes_in_the_cost() -> None:
    def cost(**changes: str) -> tuple[int, int]:
        found = count(Shape(8, 2, 3, 40, 5, 3, **changes))
        return found.parameters, found.macs

    C, E, N, K, R, L = 40, 80, 16, 4, 3, 18
    parameters, macs = cost()
    scan = E * K + E * (R + 2 * N) + R * E
    assert cost(skip="add") == cost(skip="none") == (parameters - 2 * (2 * C * C + C), macs - 2 * L * 2 * C * C)
    # The second of each: taps, their bias, x_proj, dt_proj, its bias, A and D.
    less = 5 * (scan + E + E + E * N + E)
    assert cost(directions="forward") == (parameters - less, macs - 5 * L * (scan + 2 * E * N + E))
    without_tokens = (macs - 5 * 2 * (2 * C * E + E * C + 2 * (scan + 2 * E * N + E)) - 2 * 2 * 2 * C * C) - 2 * C * 24
    assert cost(conditioning="adaln_zero") == (
        parameters - 2 * C + 5 * (3 * C * C + 3 * C),
        without_tokens + 5 * 3 * C * C,
    )
    assert cost(scan_order="alternate") == cost(scan_order="column") == (parameters, macs)


def test_the_counter_sees_what_the_closed_form_counts() -> None:
    shape = Shape(8, 2, 3, 40, 5, 3, **ABLATED)
    with FlopCounterMode(display=False) as counter:
        DiS(**asdict(shape))(*inputs(shape, torch.float32))
    # No token is dropped before the head.
    assert counter.get_total_flops() == 2 * 4 * count(shape).macs


@pytest.mark.parametrize("changes", [{"scan_order": "alternate"}, {"scan_order": "column"}, {"skip": "add"}, ABLATED])
@pytest.mark.parametrize("bf16", [False, True])
def test_checkpointed_gradients_are_equal_in_every_bit(changes: dict[str, Any], bf16: bool) -> None:
    shape = Shape(**SETTINGS, num_classes=3, **changes)
    model = model_of(shape, torch.float32, label_drop=0.0).train()
    found = []
    for checkpointing in (False, True):
        model.gradient_checkpointing = checkpointing
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            found.append(outcome(model, model, inputs(shape, torch.float32)))
    assert [name for name, tensor in found[0].items() if not tensor.equal(found[1][name])] == []
    assert [name for name, tensor in found[0].items() if not tensor.any()] == []


@pytest.mark.parametrize("changes", [{"scan_order": "alternate"}, ABLATED])
def test_a_sample_has_the_same_bits_in_any_batch(changes: dict[str, Any]) -> None:
    shape = Shape(**SETTINGS, num_classes=3, **changes)
    model = model_of(shape, torch.float32).eval()
    x, t, labels = inputs(shape, torch.float32, batch=9)
    with torch.no_grad():
        together = model(x, t, labels)
        for batch in (1, 4):
            assert model(x[:batch], t[:batch], None if labels is None else labels[:batch]).equal(together[:batch])


def test_a_run_is_continued_exported_imported_and_sampled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    straight = trained(tmp_path / "straight", "train.steps=2", *OVERRIDES)
    run = trained(tmp_path / "run", "train.steps=1", *OVERRIDES)
    trained(run, "train.steps=2", *OVERRIDES)
    one, model = (dis_cli.load_model(folder, device="cpu") for folder in (straight, run))
    assert all(tensor.equal(one.state_dict()[name]) for name, tensor in model.state_dict().items())
    images = dis_cli.sample_images(model, n=2, steps=2)
    places = [tmp_path / name for name in ("x.safetensors", "x.pt", "x")]
    for place in places:
        assert dis("checkpoint", "export", run, "--out", place) == 0
    assert dis("checkpoint", "import", places[0], "--out", tmp_path / "imported") == 0
    for place in (*places, tmp_path / "imported"):
        again = dis_cli.load_model(place, device="cpu")
        assert {key: getattr(again.config.model, key) for key in ABLATED} == ABLATED
        assert np.array_equal(dis_cli.sample_images(again, n=2, steps=2), images)
    assert json.loads((tmp_path / "x" / "config.json").read_text())["scan_order"] == "alternate"
    capsys.readouterr()
    for key, other in (("scan_order", "raster"), ("skip", "none"), ("directions", "both")):
        assert dis("sample", "--ckpt", run, "--out", tmp_path / "s", "-n", 1, f"model.{key}={other}") == 2
        assert f"model.{key}: {ABLATED[key]} in the checkpoint, {other} asked for" in capsys.readouterr().err
        assert dis("train", "--out", run, "-q", f"model.{key}={other}") == 2
        assert f"model.{key}: " in capsys.readouterr().err
