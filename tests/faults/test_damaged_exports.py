"""Exported models that are damaged, forged or of something else: none is loaded as if it were what was written."""

import io
import json
import math
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.exports import FORMS, exported, forge, save_averages, weights_file, weights_of
from support.saved import DIGITS, Refusal, config_of, save_run
from support.tiny import dis

from dis_cli.checkpoints.portable import FORMAT, VERSION
from dis_cli.errors import CheckpointError, DisError, MismatchError, RefusedError
from dis_cli.workflows.load.opened import open_checkpoint
from dis_cli.workflows.load.saved import SavedModel, read_saved

Tally = Callable[[str, object], None]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_averages(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refusal:
    return Refusal(tmp_path, capsys)


def flips(data: bytes, places: range, count: int) -> Iterator[bytes]:
    """``data`` with one bit flipped, each time another one, of the bytes at ``places``."""
    for bit in random.Random(0).sample(range(8 * places.start, 8 * places.stop), count):
        yield data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def is_same(saved: SavedModel, expected: SavedModel) -> bool:
    return (
        saved.config == expected.config
        and (saved.step, saved.average, saved.class_names) == (expected.step, expected.average, expected.class_names)
        and saved.weights.keys() == expected.weights.keys()
        and all(saved.weights[name].equal(tensor) for name, tensor in expected.weights.items())
    )


def outcome(path: Path, data: bytes) -> SavedModel | None:
    """What is read of a file with this content; None when it is refused."""
    # A new file: the old one may be mapped.
    path.unlink()
    path.write_bytes(data)
    try:
        return read_saved(open_checkpoint(path))
    except DisError:
        return None


@pytest.mark.parametrize("form", ["safetensors", "diffusers"])
def test_every_flipped_bit_of_safetensors_is_caught(form: str, run: Path, tmp_path: Path, tally: Tally) -> None:
    out = exported(run, tmp_path, form)
    file = weights_file(out)
    data = file.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    caught = kinds = 0
    for damaged in (*flips(data, range(header), 300), *flips(data, range(header, len(data)), 300)):
        file.unlink()
        file.write_bytes(damaged)
        with pytest.raises(DisError) as error:
            read_saved(open_checkpoint(out))
        caught += 1
        kinds += isinstance(error.value, CheckpointError)
    tally(f"flipped bits caught in {form}", f"{caught}/600, {kinds} of them told to be damage")
    # About 3 of 100 in the header change its layout, and are refused, or what the file says it is.
    assert kinds >= 585


def test_no_flipped_bit_of_pt_changes_a_model(run: Path, tmp_path: Path, tally: Tally) -> None:
    file = exported(run, tmp_path, "pt")
    expected, data = read_saved(open_checkpoint(file)), file.read_bytes()
    found = [outcome(file, damaged) for damaged in flips(data, range(len(data)), 300)]
    same = [saved for saved in found if saved is not None]
    # Dates and padding of the archive carry nothing.
    assert all(is_same(saved, expected) for saved in same)
    tally("flipped bits in pt", f"{len(found) - len(same)} caught, {len(same)} without effect, 0 of 300 silent")
    assert len(same) < 150


def test_every_flipped_bit_of_a_folders_settings_is_caught(run: Path, tmp_path: Path, tally: Tally) -> None:
    out = exported(run, tmp_path, "diffusers")
    file = out / "config.json"
    settings = json.loads(file.read_bytes())
    caught = 0
    for damaged in flips(file.read_bytes(), range(file.stat().st_size), 300):
        file.write_bytes(damaged)
        try:
            read_saved(open_checkpoint(out))
        except DisError:
            caught += 1
        else:
            # 1e-05 may be written with a capital.
            assert json.loads(damaged) == settings
    tally("flipped bits caught in config.json", f"{caught}/300")
    assert caught >= 298


@pytest.mark.parametrize("form", FORMS)
def test_no_truncated_file_is_loaded(form: str, run: Path, tmp_path: Path, tally: Tally) -> None:
    out = exported(run, tmp_path, form)
    file = weights_file(out)
    data = file.read_bytes()
    lengths = sorted({*range(0, len(data), max(1, len(data) // 60)), *range(12), len(data) - 1})
    for length in lengths:
        file.unlink()
        file.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            read_saved(open_checkpoint(out))
    tally(f"truncated {form} refused as damage", f"{len(lengths)}/{len(lengths)}")


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (9, 9)).save(buffer, "PNG")
    return buffer.getvalue()


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("text.txt", "hello")
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ""])
@pytest.mark.parametrize(
    ("content", "status"),
    [(lambda: b"hello world\n" * 100, 1), (png, 1), (lambda: b"", 1), (archive, 2)],
    ids=["text", "png", "empty", "zip"],
)
def test_files_that_are_no_checkpoint(
    content: Callable[[], bytes], status: int, suffix: str, said: Refusal, tmp_path: Path
) -> None:
    file = tmp_path / f"x{suffix}"
    file.write_bytes(content())
    for command in (["show", file], ["export", file, "--out", tmp_path / "y.pt"], ["import", file, "--out", "z"]):
        # A zip named as safetensors claims a header of petabytes, which is refused for what it is.
        lines = said("checkpoint", *command, status=2 if suffix == ".safetensors" and file.stat().st_size else status)
        assert str(file) in lines[0]
        assert lines[-1].startswith("hint: ")


def test_safetensors_of_other_things(said: Refusal, run: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"conv.weight": torch.zeros(3)}, tmp_path / "unet.safetensors")
    assert "holds no settings of a DiS model" in said("checkpoint", "show", tmp_path / "unet.safetensors")[0]
    save_file({"conv.weight": torch.zeros(3)}, tmp_path / "lora.safetensors", {"dis": "{}"})
    assert "says format None" in said("checkpoint", "show", tmp_path / "lora.safetensors")[0]
    # A file of a checkpoint folder, in place of the folder.
    folder = run / "checkpoints" / "step-00000007"
    assert f"`{folder}`" in said("sample", "--ckpt", folder / "ema.safetensors", "--out", tmp_path / "out")[-1]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"version": VERSION + 1}, 2, "is of format version 2, this `dis` reads version 1"),
        ({"format": "other"}, 2, f"says format 'other', expected '{FORMAT}'"),
        ({"config": {"name": "x", "modle": {}}}, 2, "This version cannot read the settings"),
        (
            {"config": config_of(DIGITS, model__embed_dim=32).model_dump(mode="json")},
            2,
            "do not match the model in their settings",
        ),
        ({"class_names": ["a", "b"]}, 2, "names 2 classes, and model.num_classes in its settings is 10"),
        ({"class_names": [1] * 10}, 2, "not a list of names"),
        ({"vae": {"name": "x"}}, 2, "The VAE in the settings"),
        ({"step": -1}, 1, "its record has no usable step"),
        ({"ema_decay": 2}, 1, "its record has no usable ema_decay"),
    ],
)
def test_records_that_are_of_something_else(
    changes: dict[str, Any], status: int, message: str, suffix: str, said: Refusal, tmp_path: Path
) -> None:
    file = forge(tmp_path / f"x{suffix}", weights_of(1), **changes)
    for command in (["checkpoint", "show", file], ["sample", "--ckpt", file, "--out", tmp_path / "out"]):
        assert message in said(*command, status=status)[0]


def test_the_forgery_is_good_enough_to_load(tmp_path: Path) -> None:
    for suffix in (".safetensors", ".pt"):
        assert read_saved(open_checkpoint(forge(tmp_path / f"x{suffix}", weights_of(1)))).step == 1


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_told(number: float, said: Refusal, tmp_path: Path) -> None:
    weights = weights_of(1) | {"norm_f.weight": torch.full((16,), number)}
    files = [forge(tmp_path / f"x{suffix}", weights) for suffix in (".safetensors", ".pt")]
    for path in (*files, save_run(tmp_path / "run", config_of(DIGITS), weights=weights)):
        for command in (
            ["checkpoint", "show", path],
            ["checkpoint", "export", path, "--out", tmp_path / "y.pt"],
            ["sample", "--ckpt", path, "--out", tmp_path / "out"],
        ):
            assert "NaN or infinite: `norm_f.weight`" in said(*command, status=1)[0]


def test_a_pt_whose_dis_is_a_discriminator(said: Refusal, tmp_path: Path) -> None:
    torch.save({"gen": {"conv.weight": torch.zeros(3)}, "dis": {"conv.weight": torch.zeros(3)}}, tmp_path / "gan.pt")
    assert "does not hold weights alone" in said("checkpoint", "show", tmp_path / "gan.pt")[0]


def test_a_pt_without_the_weights_it_speaks_of(run: Path, tmp_path: Path) -> None:
    file = exported(run, tmp_path, "pt")
    content = torch.load(file, weights_only=True)
    for changed in ({"ema": 3}, {"ema": {"pos_embed": "x"}}, {"ema": {3: torch.zeros(3)}}):
        torch.save(content | changed, file)
        with pytest.raises(MismatchError, match="holds no weights as `ema`"):
            read_saved(open_checkpoint(file))
    torch.save(content | {"ema": content["ema"] | {"pos_embed": torch.zeros(1).expand(1, 5, 2**40)}}, file)
    with pytest.raises(RefusedError, match="larger than the file"):
        read_saved(open_checkpoint(file))
    torch.save(content | {"ema": content["ema"] | {"pos_embed": content["ema"]["pos_embed"] + 1}}, file)
    with pytest.raises(CheckpointError, match="of its content"):
        read_saved(open_checkpoint(file))


def test_safetensors_made_to_do_harm(run: Path, tmp_path: Path) -> None:
    file = exported(run, tmp_path, "safetensors")
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    first, second = [name for name in header if name != "__metadata__"][:2]
    header[second]["data_offsets"] = header[first]["data_offsets"]
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    with pytest.raises(RefusedError, match="overlap"):
        read_saved(open_checkpoint(file))
    for claimed in (2**62, 2**33):
        file.write_bytes(struct.pack("<Q", claimed) + data[8:])
        with pytest.raises(RefusedError, match="its header claims"):
            read_saved(open_checkpoint(file))


def test_a_full_disk_leaves_the_earlier_export(run: Path, tmp_path: Path) -> None:
    import resource

    for form in FORMS:
        out = exported(run, tmp_path, form)
        before = weights_file(out).read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
        try:
            assert dis("checkpoint", "export", run, "--out", out, "--force", "sample.ema=0") == 1
            assert dis("checkpoint", "import", out, "--out", tmp_path / "imported") == 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert weights_file(out).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == set(FORMS.values())
