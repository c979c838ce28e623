import argparse
import math
import os
import pickle
import random
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dis_cli.checkpoints.published import read_reference
from dis_cli.errors import CheckpointError, DisError, MismatchError, RefusedError
from dis_cli.models.dis.backbone import DiS
from dis_cli.models.families import FAMILIES

Shape = tuple[int, ...]

# What else weights of the published code tell.
PUBLISHED = {"directions": "both", "conditioning": "tokens", "skip": "concat"}
CLASS_10 = {
    "image_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "embed_dim": 48,
    "depth": 7,
    "num_classes": 10,
    "learn_sigma": True,
    "d_state": 16,
    "d_conv": 4,
    "expand": 2,
} | PUBLISHED
UNCONDITIONAL = {
    "image_size": 6,
    "patch_size": 3,
    "in_channels": 1,
    "embed_dim": 17,
    "depth": 3,
    "num_classes": 0,
    "learn_sigma": False,
    "d_state": 5,
    "d_conv": 3,
    "expand": 3,
} | PUBLISHED


def class_10_shapes() -> dict[str, Shape]:
    """The published model's parameters as its own code lists them (image 8, patch 2, width 48, 4 channels)."""
    mixer = {
        "A_log": (96, 16),
        "D": (96,),
        "A_b_log": (96, 16),
        "D_b": (96,),
        "in_proj.weight": (192, 48),
        "conv1d.weight": (96, 1, 4),
        "conv1d.bias": (96,),
        "x_proj.weight": (35, 96),
        "dt_proj.weight": (96, 3),
        "dt_proj.bias": (96,),
        "conv1d_b.weight": (96, 1, 4),
        "conv1d_b.bias": (96,),
        "x_proj_b.weight": (35, 96),
        "dt_proj_b.weight": (96, 3),
        "dt_proj_b.bias": (96,),
        "out_proj.weight": (48, 96),
    }
    shapes: dict[str, Shape] = {
        "pos_embed": (1, 18, 48),
        "patch_embed.proj.weight": (48, 4, 2, 2),
        "patch_embed.proj.bias": (48,),
        "time_embed.0.weight": (192, 48),
        "time_embed.0.bias": (192,),
        "time_embed.2.weight": (48, 192),
        "time_embed.2.bias": (48,),
        "label_emb.embedding_table.weight": (11, 48),
        "norm_f.weight": (48,),
        "final_layer.linear.weight": (32, 48),
        "final_layer.linear.bias": (32,),
        "final_layer.adaLN_modulation.1.weight": (96, 48),
        "final_layer.adaLN_modulation.1.bias": (96,),
    }
    for block in (*(f"in_blocks.{i}" for i in range(3)), "mid_block", *(f"out_blocks.{i}" for i in range(3))):
        shapes[f"{block}.norm.weight"] = (48,)
        shapes |= {f"{block}.mixer.{name}": shape for name, shape in mixer.items()}
        if block.startswith("out"):
            shapes |= {f"{block}.skip_linear.weight": (48, 96), f"{block}.skip_linear.bias": (48,)}
    return shapes


def unconditional_shapes() -> dict[str, Shape]:
    """The same by hand for image 6, patch 3, width 17, 1 channel, 3 blocks, no labels, fixed variance."""
    mixer: dict[str, Shape] = {"in_proj.weight": (102, 17), "out_proj.weight": (17, 51)}
    for b in ("", "_b"):
        mixer |= {f"A{b}_log": (51, 5), f"D{b}": (51,), f"x_proj{b}.weight": (12, 51)}
        mixer |= {f"conv1d{b}.weight": (51, 1, 3), f"conv1d{b}.bias": (51,)}
        mixer |= {f"dt_proj{b}.weight": (51, 2), f"dt_proj{b}.bias": (51,)}
    shapes: dict[str, Shape] = {
        "pos_embed": (1, 5, 17),
        "patch_embed.proj.weight": (17, 1, 3, 3),
        "patch_embed.proj.bias": (17,),
        "time_embed.0.weight": (68, 17),
        "time_embed.0.bias": (68,),
        "time_embed.2.weight": (17, 68),
        "time_embed.2.bias": (17,),
        "norm_f.weight": (17,),
        "final_layer.linear.weight": (9, 17),
        "final_layer.linear.bias": (9,),
        "out_blocks.0.skip_linear.weight": (17, 34),
        "out_blocks.0.skip_linear.bias": (17,),
    }
    for block in ("in_blocks.0", "mid_block", "out_blocks.0"):
        shapes[f"{block}.norm.weight"] = (17,)
        shapes |= {f"{block}.mixer.{name}": shape for name, shape in mixer.items()}
    return shapes


def weights(shapes: dict[str, Shape], seed: int, prefix: str = "") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {prefix + name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def publish(path: Path, shapes: dict[str, Shape], prefix: str = "") -> Path:
    """Write what the published training code writes: weights of seed 1, their average of seed 2."""
    content = {
        "model": weights(shapes, 1, prefix),
        "ema": weights(shapes, 2, prefix),
        "opt": {
            "state": {0: {"step": torch.tensor(5.0), "exp_avg": torch.zeros(3)}},
            "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0]}],
        },
        "args": argparse.Namespace(model="DiS-S/2", image_size=256, ckpt_every=5000, resume=None, latent_space=True),
    }
    torch.save(content, path)
    return path


def refused(path: Path, kind: type[DisError] = CheckpointError) -> DisError:
    with pytest.raises(kind) as error:
        read_reference(path)
    assert str(path) in error.value.message
    assert error.value.message.count("\n") == 0
    assert len(error.value.message) < 1500
    return error.value


def test_the_published_list_is_complete() -> None:
    shapes = class_10_shapes()
    # Counted on the published code.
    assert (len(shapes), sum(map(math.prod, shapes.values()))) == (138, 220_256)


@pytest.mark.parametrize(
    ("embed_dim", "depth", "patch_size", "unconditional", "class_1000_latent"),
    [
        (368, 25, 2, 28_488_008, 29_132_752),
        (368, 25, 4, 28_457_168, 29_115_184),
        (768, 49, 2, 229_454_616, 231_414_560),
        (1024, 49, 4, 404_026_464, 407_200_896),
        (1536, 49, 2, 900_687_384, 906_966_560),
    ],
)
def test_sizes_have_the_published_number_of_parameters(
    embed_dim: int, depth: int, patch_size: int, unconditional: int, class_1000_latent: int
) -> None:
    common = {"image_size": 32, "patch_size": patch_size, "embed_dim": embed_dim, "depth": depth}
    rest = {"learn_sigma": True, "d_state": 16, "d_conv": 4, "expand": 2}
    pixels = FAMILIES["dis"].parameter_shapes(**common, **rest, in_channels=3, num_classes=0)
    latents = FAMILIES["dis"].parameter_shapes(**common, **rest, in_channels=4, num_classes=1000)
    assert [sum(map(math.prod, shapes.values())) for shapes in (pixels, latents)] == [unconditional, class_1000_latent]


@pytest.mark.parametrize(("shapes", "kwargs"), [(class_10_shapes(), CLASS_10), (unconditional_shapes(), UNCONDITIONAL)])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_published_checkpoint_is_understood(
    tmp_path: Path, shapes: dict[str, Shape], kwargs: dict[str, Any], prefix: str
) -> None:
    checkpoint = read_reference(publish(tmp_path / "a.pt", shapes, prefix))
    assert checkpoint.model_kwargs == kwargs
    assert list(checkpoint.model_kwargs) == list(kwargs)
    assert (checkpoint.source, checkpoint.held) == ("ema", ("ema", "model"))
    expected = weights(shapes, 2)
    assert checkpoint.state_dict.keys() == expected.keys()
    assert all(torch.equal(checkpoint.state_dict[name], tensor) for name, tensor in expected.items())
    # The weights do not depend on the file any more.
    (tmp_path / "a.pt").write_bytes(bytes((tmp_path / "a.pt").stat().st_size))
    assert all(torch.equal(checkpoint.state_dict[name], tensor) for name, tensor in expected.items())
    DiS(**checkpoint.model_kwargs).load_state_dict(checkpoint.state_dict, strict=True)


@pytest.mark.parametrize("wrapped", [True, False])
def test_weights_without_an_average_are_taken_as_they_are(tmp_path: Path, wrapped: bool) -> None:
    state = weights(unconditional_shapes(), 3)
    torch.save({"model": state, "epoch": 7} if wrapped else state, tmp_path / "a.pt")
    for source in (None, "model"):
        checkpoint = read_reference(tmp_path / "a.pt", source)
        assert (checkpoint.source, checkpoint.held) == ("model", ("model",))
        assert torch.equal(checkpoint.state_dict["pos_embed"], state["pos_embed"])
    with pytest.raises(MismatchError, match=r"holds no moving average .* only weights as they were trained"):
        read_reference(tmp_path / "a.pt", "ema")


def test_either_of_two_weights_is_read(tmp_path: Path) -> None:
    path = publish(tmp_path / "a.pt", unconditional_shapes())
    for source, seed in (("model", 1), ("ema", 2)):
        checkpoint = read_reference(path, source)
        assert checkpoint.source == source
        assert torch.equal(checkpoint.state_dict["pos_embed"], weights(unconditional_shapes(), seed)["pos_embed"])
    torch.save({"ema": weights(unconditional_shapes(), 2)}, path)
    with pytest.raises(MismatchError, match=r"holds no weights as they were trained .* only moving average"):
        read_reference(path, "model")


def test_weights_are_read_in_the_numbers_that_they_are_used_in(tmp_path: Path) -> None:
    state = {name: tensor.double() for name, tensor in weights(unconditional_shapes(), 3).items()}
    torch.save(state, tmp_path / "a.pt")
    assert {tensor.dtype for tensor in read_reference(tmp_path / "a.pt").state_dict.values()} == {torch.float32}
    state["norm_f.weight"][3] = 1e300
    torch.save(state, tmp_path / "a.pt")
    assert "NaN or infinite: `norm_f.weight`" in refused(tmp_path / "a.pt").message


# Damage.


def damaged(data: bytes) -> Iterator[bytes]:
    for part in range(30):
        yield data[: len(data) * part // 30]
    yield data[:-1]
    for bit in random.Random(0).sample(range(8 * len(data)), 60):
        yield data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def test_no_damage_is_loaded(tmp_path: Path) -> None:
    path = publish(tmp_path / "a.pt", unconditional_shapes())
    expected = weights(unconditional_shapes(), 2)
    loaded = 0
    for data in damaged(path.read_bytes()):
        path.unlink()
        path.write_bytes(data)
        try:
            checkpoint = read_reference(path)
        except (CheckpointError, RefusedError):
            continue
        # Dates and padding of the archive carry nothing: what was loaded is right all the same.
        loaded += 1
        assert checkpoint.model_kwargs == UNCONDITIONAL
        assert all(torch.equal(checkpoint.state_dict[name], tensor) for name, tensor in expected.items())
    assert loaded < 30


def test_a_flipped_bit_in_a_weight_is_caught(tmp_path: Path) -> None:
    path = publish(tmp_path / "a.pt", unconditional_shapes())
    data = path.read_bytes()
    weight = weights(unconditional_shapes(), 2)["norm_f.weight"].numpy().tobytes()
    assert data.count(weight) == 1
    place = data.index(weight) + 9
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    # PyTorch itself says nothing.
    assert torch.load(path, weights_only=False)["ema"].keys() == unconditional_shapes().keys()
    assert "CRC-32" in refused(path).message


@pytest.mark.parametrize(
    "data", [b"", b"hello world\n" * 100, b"\x80\x02}.", b"PK\x03\x04" + bytes(100), bytes(10_000)]
)
def test_files_that_are_something_else(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(data)
    error = refused(tmp_path / "a.pt")
    assert "is damaged or not a PyTorch file" in error.message
    assert error.hint


def test_places_that_hold_no_file(tmp_path: Path) -> None:
    assert "it does not exist" in refused(tmp_path / "absent.pt").message
    assert "it is not a file" in refused(tmp_path).message


# Malice.


class Evil:
    """An object that runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.marker}",)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    content = {"ema": weights(unconditional_shapes(), 2), "args": Evil(marker)}
    torch.save(content, tmp_path / "zip.pt")
    torch.save(content, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(content))
    for name, what in (("zip.pt", "posix.system"), ("legacy.pt", "posix.system"), ("plain.pt", "STACK_GLOBAL")):
        error = refused(tmp_path / name, RefusedError)
        assert "nothing in it was run" in error.message
        assert what in error.message
    assert not marker.exists()
    # The trap does work.
    pickle.loads((tmp_path / "plain.pt").read_bytes())
    assert marker.exists()


def test_settings_may_hold_plain_values_only(tmp_path: Path) -> None:
    content = {"ema": weights(unconditional_shapes(), 2), "args": argparse.Namespace(path=Path("x"))}
    torch.save(content, tmp_path / "a.pt")
    assert "pathlib" in refused(tmp_path / "a.pt", RefusedError).message


def test_bombs_are_refused_before_they_grow(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "deflated.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    assert "compressed or overlap" in refused(tmp_path / "deflated.pt", RefusedError).message
    state = weights(unconditional_shapes(), 2)
    state["pos_embed"] = torch.zeros(1).expand(1, 5, 2**40)
    torch.save(state, tmp_path / "expanded.pt")
    assert "larger than the file" in refused(tmp_path / "expanded.pt", RefusedError).message


# Other contents.


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def with_(name: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda state: {**state, name: value}


def without_block(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if not key.startswith("out_blocks.0.")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("pos_embed"), "`pos_embed` is missing"),
        (without("norm_f.weight"), "1 missing: `norm_f.weight`"),
        (without_block, "19 missing: `out_blocks.0.mixer.A_log`, .* and 15 more"),
        (with_("x_embedder.weight", torch.zeros(3)), "1 not expected: `x_embedder.weight`"),
        (with_("norm_f.weight", torch.zeros(18)), r"1 of another shape: `norm_f.weight has shape \(18,\), .*\(17,\)`"),
        (
            with_("pos_embed", torch.zeros(1, 7, 17)),
            r"`pos_embed` has 7 in dimension 1, expected a square number .* \+ 1",
        ),
        (with_("pos_embed", torch.zeros(1, 1, 17)), "`pos_embed` has 1 in dimension 1"),
        (with_("pos_embed", torch.zeros(5, 17)), r"`pos_embed` has shape \(5, 17\), expected 3 dimensions"),
        (with_("final_layer.linear.weight", torch.zeros(27, 17)), r"has 27 in dimension 0, expected 18 .* or 9 "),
        (with_("mid_block.mixer.A_log", torch.zeros(50, 5)), "has 50 in dimension 0, expected a multiple .* 17"),
        (
            with_("patch_embed.proj.weight", torch.zeros(17, 1, 3, 2)),
            r"has shape \(17, 1, 3, 2\), expected \(17, 1, 3, 3\)",
        ),
        (with_("in_blocks.99999999999.norm.weight", torch.zeros(17)), "does not hold a DiS model"),
        (with_("norm_f.weight", torch.zeros(17, dtype=torch.int64)), "`norm_f.weight` is of type torch.int64 tensor"),
        (with_("module.norm_f.weight", torch.zeros(17)), "holds `norm_f.weight` twice"),
        (with_("norm_f.weight", 3), "`norm_f.weight` is of type int"),
        (lambda state: {"state_dict": state}, "`state_dict` is of type dict; its keys are `state_dict`"),
        (lambda _state: {"ema": {}}, "holds no weights"),
        (lambda state: list(state.values()), "holds a list"),
        (lambda _state: {}, "holds no weights"),
        (lambda _state: {"model": "DiS-S/2"}, "`model` is of type str; its keys are `model`"),
        (with_("a\nb" * 1000, torch.zeros(3)), r"1 not expected: `a\\nba\\nb.*\.\.\.`"),
        (with_("a\nb" * 1000, 3), r"`a\\nba\\nb.*\.\.\.` is of type int"),
    ],
)
def test_what_is_not_this_model_is_said_in_one_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    torch.save(change(weights(unconditional_shapes(), 2)), tmp_path / "a.pt")
    error = refused(tmp_path / "a.pt", MismatchError)
    assert re.search(message, error.message), error.message
    assert error.hint


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_damage(number: float, tmp_path: Path) -> None:
    torch.save(weights(unconditional_shapes(), 2) | {"norm_f.weight": torch.full((17,), number)}, tmp_path / "a.pt")
    assert "NaN or infinite: `norm_f.weight`" in refused(tmp_path / "a.pt").message


def test_the_old_format_is_told_from_damage(tmp_path: Path) -> None:
    torch.save(weights(unconditional_shapes(), 2), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    error = refused(tmp_path / "a.pt", MismatchError)
    assert "before 1.6" in error.message
    assert "torch.save" in str(error.hint)
