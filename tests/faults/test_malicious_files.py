"""Files made to do harm: nothing in them runs, nothing is written, memory does not grow, and the exit status is 2."""

import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from support.processes import python
from support.tiny import save_latent_run, train
from support.vae import save_tiny_vae

from dis_cli.checkpoints.manifest import MANIFEST, entry_of, manifest_bytes
from dis_cli.checkpoints.store import list_checkpoints, read_checkpoint
from dis_cli.codecs.locate import WEIGHTS
from dis_cli.errors import CheckpointError

MOST_GROWTH = 256_000_000

# The peak is that of this program: ru_maxrss begins with that of the process which started it.
SCRIPT = """
import contextlib, io, json, sys
from pathlib import Path
from dis_cli.cli.app import run

for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        status = run([*arguments, "--json"])
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) << 10
    print(json.dumps({"status": status, "peak": peak, "error": json.loads(stdout.getvalue())["error"]}))
"""

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads a process's peak from Linux's /proc"
)


def outcomes(*commands: list[object]) -> list[dict[str, Any]]:
    """What each command answers, one after another in one process."""
    done = python("-c", SCRIPT, json.dumps([[str(argument) for argument in command] for command in commands]))
    lines = done.stdout.splitlines()
    assert len(lines) == len(commands), done.stderr
    return [json.loads(line) for line in lines]


def assert_refused(folder: Path, harmless: list[object], *malicious: list[object]) -> None:
    """Run commands on files in ``folder``: one that is merely wrong, for its memory, and those to be refused."""
    before = sorted(folder.rglob("*"))
    first, *others = outcomes(harmless, *malicious)
    assert first["status"] == 1, first
    for command, outcome in zip(malicious, others, strict=True):
        assert outcome["status"] == 2, (command, outcome)
        assert outcome["error"]["kind"] == "RefusedError", (command, outcome)
        assert outcome["error"]["message"].count("\n") == 0
        assert len(outcome["error"]["message"]) < 500
        assert outcome["error"]["hint"]
        # From the harmless one on: what is imported is paid for by then.
        assert outcome["peak"] - first["peak"] < MOST_GROWTH, (command, outcome)
    assert sorted(folder.rglob("*")) == before


class Evil:
    """An object that makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.marker}",)


def write_archive(path: Path, *parts: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    """An archive of torch.save, its pickle in parts."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        with archive.open("archive/data.pkl", "w") as file:
            for part in parts:
                file.write(part)
        archive.writestr("archive/version", "3\n")


def write_pickles(folder: Path) -> list[Path]:
    """Files that run a command, or take gigabytes, when they are loaded as weights."""
    content = {"ema": {"pos_embed": torch.zeros(1, 5, 16)}, "args": Evil(folder / "executed")}
    folder.mkdir()
    torch.save(content, folder / "archive.pt")
    torch.save(content, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    (folder / "bare.pt").write_bytes(pickle.dumps(content))
    (folder / "bare-2.pt").write_bytes(pickle.dumps(content, protocol=2))
    # PyTorch allows bytearray(n), and sets.
    write_archive(folder / "bytearray.pt", b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x7f\x85R.")
    write_archive(folder / "sets.pt", b"\x80\x02" + b"\x8f" * 8_000_000 + b".")
    text = [b"\x80\x02X", struct.pack("<I", 500_000_000), *[bytes(1_000_000)] * 500, b"."]
    write_archive(folder / "compressed.pt", *text, compression=zipfile.ZIP_DEFLATED)
    np.savez(folder / "objects.npz", x=np.array([Evil(folder / "executed")], dtype=object))
    files = sorted(folder.iterdir())
    # The traps do work.
    pickle.loads((folder / "bare-2.pt").read_bytes())
    (folder / "executed").unlink()
    np.load(folder / "objects.npz", allow_pickle=True)["x"]
    (folder / "executed").unlink()
    return files


@pytest.fixture(scope="module")
def pickles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_pickles(tmp_path_factory.mktemp("malicious") / "pickles")


def header_bytes(header: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header


def tensor(start: int, end: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": [(end - start) // 4], "data_offsets": [start, end]}


def safetensors_files() -> dict[str, bytes]:
    """Overlapping tensors, and headers that claim more, or take more memory, than there is."""
    names = (f'"{number:x}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for number in range(700_000))
    return {
        "overlapping": header_bytes(json.dumps({"a": tensor(0, 16), "b": tensor(8, 24)}).encode()) + bytes(24),
        "same-bytes": header_bytes(json.dumps({"a": tensor(0, 16), "b": tensor(0, 16)}).encode()) + bytes(16),
        "claims": header_bytes(b"{}", 2**62),
        "crowded": header_bytes(f"{{{','.join(names)}}}".encode()),
    }


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert train(folder, "train.steps=2", "train.save_every=1", "sample.steps=2") == 0
    return folder


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vae(tmp_path_factory.mktemp("vae"))


def test_pickles_as_checkpoints(pickles: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("hello")
    expanded = {"pos_embed": torch.zeros(1).expand(1, 5, 2**40)}
    torch.save(expanded, tmp_path / "expanded.pt")
    commands = [["sample", "--ckpt", path, "--out", tmp_path / "out"] for path in [*pickles, tmp_path / "expanded.pt"]]
    assert_refused(tmp_path, ["sample", "--ckpt", tmp_path / "text.pt", "--out", tmp_path / "out"], *commands)
    assert not (pickles[0].parent / "executed").exists()


def test_what_is_shown_exported_and_imported(pickles: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("hello")
    files = [path for path in pickles if path.suffix == ".pt"]
    for name, data in safetensors_files().items():
        files.append(tmp_path / f"{name}.safetensors")
        files[-1].write_bytes(data)
    commands: list[list[object]] = [["checkpoint", "show", path] for path in files]
    commands += [["checkpoint", "export", path, "--out", tmp_path / "out.pt"] for path in files]
    commands += [["checkpoint", "import", path, "--out", tmp_path / "run"] for path in files]
    assert_refused(tmp_path, ["checkpoint", "show", tmp_path / "text.pt"], *commands)
    assert not (pickles[0].parent / "executed").exists()


def test_pickles_as_inception(pickles: list[Path], digits_run: Path, tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("hello")
    with (tmp_path / "large.pth").open("wb") as file:
        file.truncate(10**10)
    shutil.copy(pickles[0], tmp_path / "archive.pth")

    def command(path: Path) -> list[object]:
        return ["eval-fid", "--ckpt", digits_run, "--inception", path, "--out", tmp_path / "out.json"]

    files = [*pickles, tmp_path / "archive.pth", tmp_path / "large.pth"]
    assert_refused(tmp_path, command(tmp_path / "text.pth"), *map(command, files))
    assert not (pickles[0].parent / "executed").exists()


def with_weights(folder: Path, content: bytes) -> None:
    (folder / WEIGHTS).write_bytes(content)


def with_index(folder: Path, _content: bytes) -> None:
    (folder / f"{WEIGHTS}.index.json").write_text('{"metadata": {}, "weight_map": {"a": "../elsewhere.safetensors"}}')


@pytest.mark.parametrize("command_name", ["sample", "encode-latents"])
def test_safetensors_as_a_vae(command_name: str, vae: Path, tmp_path: Path) -> None:
    run = save_latent_run(tmp_path / "run", "absent/vae")
    (tmp_path / "images" / "class").mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(tmp_path / "images" / "class" / "0.png")

    def command(folder: Path) -> list[object]:
        given = ["--ckpt", run] if command_name == "sample" else ["--data", tmp_path / "images"]
        return [command_name, *given, "--vae", folder, "--out", tmp_path / "out"]

    def changed(name: str, change: Callable[[Path, bytes], None], content: bytes = b"") -> Path:
        folder = shutil.copytree(vae, tmp_path / name)
        change(folder, content)
        return folder

    truncated = changed("truncated", with_weights, (vae / WEIGHTS).read_bytes()[:-100])
    folders = [changed(name, with_weights, content) for name, content in safetensors_files().items()]
    assert_refused(tmp_path, command(truncated), *map(command, [*folders, changed("index", with_index)]))


def replace_weights(checkpoint: Path, content: bytes, *, vouched_for: bool) -> None:
    """Put other averaged weights into a checkpoint, and into its manifest when they are to be ``vouched_for``."""
    (checkpoint / "ema.safetensors").write_bytes(content)
    if vouched_for:
        entries = json.loads((checkpoint / MANIFEST).read_bytes())["files"]
        entries["ema.safetensors"] = entry_of(content)
        (checkpoint / MANIFEST).write_bytes(manifest_bytes(entries))


def test_safetensors_in_a_run_whose_manifest_vouches_for_them(digits_run: Path, tmp_path: Path) -> None:
    commands: list[list[object]] = []
    for name, content in {"truncated": b"hello", **safetensors_files()}.items():
        run = shutil.copytree(digits_run, tmp_path / name)
        newest = list_checkpoints(run / "checkpoints")[-1]
        replace_weights(newest, content, vouched_for=name != "truncated")
        commands.append(["sample", "--ckpt", newest if name == "truncated" else run, "--out", tmp_path / "out"])
    assert_refused(tmp_path, *commands)


def test_safetensors_in_a_run_that_no_manifest_vouches_for_are_damage(digits_run: Path, tmp_path: Path) -> None:
    commands: list[list[object]] = []
    for name, content in safetensors_files().items():
        run = shutil.copytree(digits_run, tmp_path / name)
        newest = list_checkpoints(run / "checkpoints")[-1]
        replace_weights(newest, content, vouched_for=False)
        commands.append(["sample", "--ckpt", newest, "--out", tmp_path / "out"])
        # The run has a sound checkpoint beside it.
        commands.append(["sample", "--ckpt", run, "--out", tmp_path / "out", "--preset", "dis-m-cifar"])
    found = outcomes(*commands)
    for outcome in found[::2]:
        assert outcome["status"] == 1
        assert outcome["error"]["kind"] == "CheckpointError"
        assert "damaged: expected sha256" in outcome["error"]["message"]
    for outcome in found[1::2]:
        assert outcome["error"]["kind"] == "MismatchError"
        assert "step-00000001" in outcome["error"]["message"]
    assert max(outcome["peak"] for outcome in found) - found[0]["peak"] < MOST_GROWTH


def test_safetensors_where_other_files_belong(digits_run: Path, tmp_path: Path) -> None:
    commands: list[list[object]] = []
    for name, content in safetensors_files().items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        commands.append(["eval-fid", "--ckpt", digits_run, "--inception", path])
    for command, outcome in zip(commands, outcomes(*commands), strict=True):
        assert outcome["status"] == 2, (command, outcome)
        assert "is a safetensors file" in outcome["error"]["message"]


def test_a_manifest_that_leads_elsewhere_is_not_followed(digits_run: Path, tmp_path: Path) -> None:
    newest = list_checkpoints(shutil.copytree(digits_run, tmp_path / "run") / "checkpoints")[-1]
    secret = tmp_path / "secret.safetensors"
    save_file({"x": np.zeros(3, dtype=np.float32)}, secret)
    entries = json.loads((newest / MANIFEST).read_bytes())["files"]
    for name in ("../../../secret.safetensors", str(secret)):
        (newest / MANIFEST).write_bytes(manifest_bytes(entries | {name: entry_of(secret.read_bytes())}))
        with pytest.raises(CheckpointError, match=f"`{name}` missing"):
            read_checkpoint(newest)
