"""What is refused before a library reads it, and what is left to the library."""

import argparse
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from dis_cli.errors import RefusedError, UsageError
from dis_cli.models.families import FAMILIES
from dis_cli.runtime.untrusted import MAX_HEADER_BYTES, check_safetensors, check_torch_file

HINT = "Give another"


def check(path: Path) -> None:
    with path.open("rb") as file:
        check_torch_file(path, file, HINT)


def largest_checkpoint() -> dict[str, Any]:
    """What the published code writes for its largest model, but for the numbers: each tensor is one, expanded."""
    shapes = FAMILIES["dis"].parameter_shapes(
        image_size=32,
        patch_size=2,
        in_channels=4,
        embed_dim=1536,
        depth=49,
        num_classes=1000,
        learn_sigma=True,
        d_state=16,
        d_conv=4,
        expand=2,
    )

    def weights() -> dict[str, torch.Tensor]:
        return {f"module.{name}": torch.zeros(1).expand(shape) for name, shape in shapes.items()}

    moments = {
        index: {"step": torch.tensor(5.0), "exp_avg": first, "exp_avg_sq": second}
        for index, (first, second) in enumerate(zip(weights().values(), weights().values(), strict=True))
    }
    groups = [{"lr": 1e-4, "betas": (0.9, 0.999), "weight_decay": 0, "amsgrad": False, "params": list(moments)}]
    args = argparse.Namespace(model="DiS-H/2", image_size=256, resume=None, lr=1e-4, latent_space=True)
    return {"model": weights(), "ema": weights(), "opt": {"state": moments, "param_groups": groups}, "args": args}


@pytest.mark.parametrize("zipped", [True, False])
def test_the_largest_published_checkpoint_passes(zipped: bool, tmp_path: Path) -> None:
    torch.save(largest_checkpoint(), tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    check(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "content",
    [
        {"weight": torch.nn.Parameter(torch.zeros(2))},
        {"weight": torch.zeros(2, dtype=torch.bfloat16), "dtype": torch.float16, "count": torch.tensor(1)},
        {"shape": torch.Size([2]), "device": torch.device("cpu"), "none": None, "nested": [{"a": (1, 2.0, True)}]},
    ],
)
def test_weights_and_plain_values_pass(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    check(tmp_path / "a.pt")
    torch.load(tmp_path / "a.pt", weights_only=True)


def test_what_is_damaged_is_left_to_the_reader(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(100)}, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    for data in (b"", b"hello", whole[:-10], b"\x80\x02X\xff\xff\xff\xff"):
        (tmp_path / "a.pt").write_bytes(data)
        with pytest.raises(ValueError, match="neither an archive nor a row of pickles"):
            check(tmp_path / "a.pt")
    place = whole.index(bytes(100)) + 50
    (tmp_path / "a.pt").write_bytes(whole[:place] + b"x" + whole[place + 1 :])
    with pytest.raises(zipfile.BadZipFile, match="CRC-32"):
        check(tmp_path / "a.pt")


def test_a_name_that_only_pytorch_finds_is_looked_at_too(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/DATA.PKL", b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00ls\x85R.")
    with pytest.raises(RefusedError, match=r"posix\.system"):
        check(tmp_path / "a.pt")


def test_files_of_another_kind_come_with_the_hint(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(struct.pack("<Q", 2) + b"{}")
    with zipfile.ZipFile(tmp_path / "b", "w") as archive:
        archive.writestr("letter.txt", "hello")
    for name in ("a", "b"):
        with pytest.raises(UsageError) as caught:
            check(tmp_path / name)
        assert str(tmp_path / name) in caught.value.message
        assert caught.value.hint == HINT


def entry(start: object, end: object) -> dict[str, object]:
    return {"dtype": "U8", "shape": [1], "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"__metadata__": {"a": "b"}, "x": entry(0, 4), "y": entry(4, 8)},
        {"x": entry(4, 4), "y": entry(0, 4), "z": entry(4, 8), "w": entry(0, 0)},
        # Not of the format: the library says so.
        {"x": entry(0, None)},
        {"x": entry(0, float("inf"))},
        {"x": {"data_offsets": [1]}},
        {"x": "y"},
        [],
    ],
)
def test_safetensors_without_overlap_pass(header: object, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(text)) + text)
    check_safetensors(tmp_path / "a")


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000, b'{"x":' + b"9" * 5000 + b"}"])
def test_headers_that_are_no_json_pass(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(text)) + text)
    check_safetensors(tmp_path / "a")
    check_safetensors(tmp_path / "absent")


@pytest.mark.parametrize("others", [[entry(3, 5)], [entry(0, 8)], [entry(0, 4)], [entry(0, 1), entry(2, 3)]])
def test_any_overlap_is_refused(others: list[dict[str, object]], tmp_path: Path) -> None:
    text = json.dumps({"x": entry(0, 4)} | {f"y{number}": other for number, other in enumerate(others)}).encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(RefusedError, match="overlap"):
        check_safetensors(tmp_path / "a")


def test_the_largest_header_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(struct.pack("<Q", MAX_HEADER_BYTES) + b"{}")
    check_safetensors(tmp_path / "a")
    (tmp_path / "a").write_bytes(struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}")
    with pytest.raises(RefusedError, match=f"claims {MAX_HEADER_BYTES + 1:,} bytes, at most {MAX_HEADER_BYTES:,}"):
        check_safetensors(tmp_path / "a")
