import contextlib
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dis_cli.checkpoints import store
from dis_cli.checkpoints.store import (
    checkpoint_bytes,
    latest_checkpoint,
    list_checkpoints,
    prune,
    read_checkpoint,
    resolve_checkpoint,
    write_checkpoint,
)
from dis_cli.errors import CheckpointError, StorageError
from dis_cli.runtime.files import remove_temporaries

FILES = ("ema.safetensors", "manifest.json", "meta.json", "model.safetensors")


def tensors(value: float) -> dict[str, dict[str, Tensor]]:
    return {
        "model": {"w": torch.full((5, 3), value), "b": torch.tensor([value, -value])},
        "ema": {"w": torch.full((5, 3), value / 2)},
    }


def save(root: Path, step: int, value: float | None = None) -> Path:
    return write_checkpoint(root, step, tensors(step if value is None else value), {"config": {"name": "x"}})


def value_of(checkpoint: store.Checkpoint | None) -> float:
    """The value that all of its tensors were made from."""
    assert checkpoint is not None
    value = checkpoint.tensors["model"]["b"][0].item()
    for group, expected in tensors(value).items():
        for name, tensor in expected.items():
            assert torch.equal(checkpoint.tensors[group][name], tensor)
    return value


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    # A process that dies loses nothing that the kernel has; only a power cut would. The order of fsyncs is tested in
    # tests/unit/test_files.py.
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints"


# What is saved comes back.


def test_tensors_of_every_kind_come_back_with_their_bits(root: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    group = {
        "whole": base,
        "transposed": base.t(),
        "row": base[1],
        "same": base,
        "expanded": torch.ones(1).expand(5),
        "scalar": torch.tensor(3.0, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
        "half": torch.tensor([1.5, float("nan"), float("inf")]).bfloat16(),
        "flag": torch.tensor([True, False]),
        "long": torch.tensor([2**62 + 1]),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "parameter": torch.ones(2, requires_grad=True),
    }
    meta = {"config": {"betas": [0.9, 0.999], "name": "é"}, "loss": 0.1 + 0.2}
    folder = write_checkpoint(root, 12, {"optimizer": group, "none": {}}, meta)
    assert folder == root / "step-00000012"
    assert names_in(folder) == ["manifest.json", "meta.json", "none.safetensors", "optimizer.safetensors"]
    checkpoint = read_checkpoint(folder)
    assert (checkpoint.step, checkpoint.path, checkpoint.notes) == (12, folder, ())
    assert checkpoint.meta == {"step": 12, **meta}
    assert checkpoint.tensors["none"] == {}
    loaded = checkpoint.tensors["optimizer"]
    assert loaded.keys() == group.keys()
    for name, tensor in group.items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(loaded[name].nan_to_num(), tensor.nan_to_num())
    # Tensors that shared memory are separate, and can be written to.
    loaded["row"].zero_()
    assert loaded["whole"][1, 0].item() == 4.0
    assert checkpoint_bytes(folder) == sum((folder / name).stat().st_size for name in names_in(folder))
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


@pytest.mark.parametrize(
    ("step", "groups", "meta"),
    [
        (-1, {"a": {}}, {}),
        (1, {"a": {}}, {"step": 2}),
        (1, {"../a": {}}, {}),
        (1, {"A": {}}, {}),
        (1, {}, {"x": 1e999}),
    ],
)
def test_broken_contracts_write_nothing(root: Path, step: int, groups: dict[str, Any], meta: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        write_checkpoint(root, step, groups, meta)
    assert not root.exists() or names_in(root) == []


def test_a_part_can_be_read_when_the_rest_is_damaged(root: Path) -> None:
    folder = save(root, 1)
    flip(folder / "model.safetensors", 77)
    assert read_checkpoint(folder, names=("ema",)).tensors.keys() == {"ema"}
    assert resolve_checkpoint(root.parent, names=iter(("ema",))).step == 1
    with pytest.raises(CheckpointError, match=r"model\.safetensors` is damaged"):
        read_checkpoint(folder, names=("ema", "model"))
    with pytest.raises(CheckpointError, match="holds no optimizer, only model, ema"):
        read_checkpoint(folder, names=("optimizer",))
    flip(folder / "meta.json", 13)
    with pytest.raises(CheckpointError, match=r"meta\.json` is damaged"):
        read_checkpoint(folder, names=("ema",))


# What a path can stand for.


def test_a_run_its_checkpoints_and_one_of_them_can_be_named(root: Path) -> None:
    for step in (99_999_999, 100_000_000, 5):
        save(root, step)
    assert [path.name for path in list_checkpoints(root)] == ["step-00000005", "step-99999999", "step-100000000"]
    assert resolve_checkpoint(root.parent).step == 100_000_000
    assert resolve_checkpoint(root).step == 100_000_000
    assert resolve_checkpoint(root / "step-00000005").step == 5
    shutil.copytree(root / "step-00000005", root.parent / "best")
    assert resolve_checkpoint(root.parent / "best").step == 5


@pytest.mark.parametrize(
    ("path", "message", "hint"),
    [
        ("absent", "Checkpoint not found: `{}`", "run folder"),
        ("run/checkpoints/step-00000009", "Checkpoint not found: `{}`", "run folder"),
        ("run/config.toml", "`{}` is a file, not a checkpoint folder", "run folder"),
        ("photos", "`{}` is not a checkpoint: it has no `manifest.json`", "run folder"),
        ("new", "The run `{}` has no checkpoint yet", "save_every"),
        ("run/checkpoints/step-00000002", "`{}` is not complete: `manifest.json` is missing", "another checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_said_to_be_none(root: Path, path: str, message: str, hint: str) -> None:
    here = root.parent.parent
    save(root, 1)
    (save(root, 2) / "manifest.json").unlink()
    (here / "photos").mkdir()
    (here / "new" / "checkpoints").mkdir(parents=True)
    (here / "run" / "config.toml").write_text("")
    with pytest.raises(CheckpointError) as error:
        resolve_checkpoint(here / path)
    assert error.value.message == message.format(here / path)
    assert hint in (error.value.hint or "")


def test_a_run_folder_given_for_a_checkpoint_is_recognised(root: Path) -> None:
    folder = save(root, 1)
    for path in (root, root.parent):
        with pytest.raises(CheckpointError, match="is a folder of checkpoints, not one of them") as error:
            read_checkpoint(path)
        assert error.value.hint == f"The newest is `{folder}`"


# Damage.


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(data)


def damages(name: str, size: int) -> Iterator[Callable[[bytes], bytes]]:
    """30 truncations and 60 flipped bits; every bit of the manifest, which is itself not hashed."""
    for length in {size * part // 30 for part in range(30)} | {size - 1}:
        yield lambda data, length=length: data[:length]
    bits = range(8 * size) if name == "manifest.json" else random.Random(0).sample(range(8 * size), 60)
    for bit in bits:
        yield lambda data, bit=bit: data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


@pytest.mark.parametrize("name", FILES)
def test_no_damage_is_loaded(root: Path, name: str) -> None:
    save(root, 1)
    path = save(root, 2) / name
    sound = path.read_bytes()
    count = 0
    for damage in damages(name, len(sound)):
        # A new file: cutting an old one short makes ext4 wait for the disk.
        path.unlink()
        path.write_bytes(damage(sound))
        with pytest.raises(CheckpointError) as error:
            read_checkpoint(path.parent)
        assert str(path.parent) in error.value.message
        count += 1
    assert count >= 90
    path.write_bytes(sound)
    assert read_checkpoint(path.parent).step == 2


@pytest.mark.parametrize("name", FILES)
def test_the_previous_checkpoint_takes_over_with_a_note(root: Path, name: str) -> None:
    save(root, 1)
    path = save(root, 2) / name
    sound = path.read_bytes()
    for damage in itertools.islice(damages(name, len(sound)), 0, 90, 9):
        path.write_bytes(damage(sound))
        checkpoint, notes = latest_checkpoint(root)
        assert value_of(checkpoint) == 1
        [note] = notes
        assert resolve_checkpoint(root.parent).notes == (note,)
        assert str(path.parent) in note
        if name != "manifest.json":
            entry = json.loads((path.parent / "manifest.json").read_text())["files"][name]
            found = re.search(r"found ([0-9a-f]{64})", note)
            assert f"`{path}` is damaged: expected sha256 {entry['sha256']}" in note
            assert found
            assert found[1] != entry["sha256"]


def test_when_all_are_damaged_nothing_is_loaded(root: Path) -> None:
    for step in (1, 2):
        flip(save(root, step) / "ema.safetensors", 400)
    checkpoint, notes = latest_checkpoint(root)
    assert checkpoint is None
    assert ["step-00000002" in notes[0], "step-00000001" in notes[1]] == [True, True]
    with pytest.raises(CheckpointError, match="All 2 checkpoints in"):
        resolve_checkpoint(root.parent)


def delete(folder: Path) -> None:
    (folder / "ema.safetensors").unlink()


def exchange_within(folder: Path) -> None:
    (folder / "ema.safetensors").rename(folder / "x")
    (folder / "model.safetensors").rename(folder / "ema.safetensors")
    (folder / "x").rename(folder / "model.safetensors")


def exchange_between(folder: Path) -> None:
    shutil.copy(folder.with_name("step-00000001") / "ema.safetensors", folder)


def exchange_with_manifest(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("step-00000001"), folder)


def add(folder: Path) -> None:
    (folder / "extra.safetensors").write_bytes(b"")


def make_a_folder(folder: Path) -> None:
    (folder / "ema.safetensors").unlink()
    (folder / "ema.safetensors").mkdir()


def set_version(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"version": 2}))


def nest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[" * 100_000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (delete, "is not complete: `ema.safetensors` missing"),
        (exchange_within, "safetensors` is damaged: expected sha256"),
        (exchange_between, "ema.safetensors` is damaged: expected sha256"),
        (exchange_with_manifest, "is named after step 2 but holds step 1"),
        (add, "holds files that are not its own: `extra.safetensors`"),
        (make_a_folder, "ema.safetensors`: Is a directory"),
        (set_version, "is of format version 2, this `dis` reads version 1"),
        (nest, "manifest.json` is damaged: it is not JSON"),
    ],
)
def test_changed_folders_are_passed_over(root: Path, change: Callable[[Path], None], message: str) -> None:
    save(root, 1)
    folder = save(root, 2)
    change(folder)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_checkpoint(folder)
    checkpoint, notes = latest_checkpoint(root)
    assert value_of(checkpoint) == 1
    assert message in notes[0]


def test_what_an_operating_system_leaves_behind_does_no_harm(root: Path) -> None:
    folder = save(root, 1)
    (folder / ".DS_Store").write_bytes(b"x")
    assert value_of(read_checkpoint(folder)) == 1


# Pruning.


def test_pruning_keeps_the_newest_and_a_sound_one(root: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        save(root, step)
    assert [path.name for path in prune(root, 3)] == ["step-00000001", "step-00000002"]
    for step in (4, 5):
        flip(root / f"step-0000000{step}" / "model.safetensors", 500)
    assert prune(root, 1) == [root / "step-00000004"]
    assert names_in(root) == ["step-00000003", "step-00000005"]
    assert value_of(latest_checkpoint(root)[0]) == 3
    flip(root / "step-00000003" / "model.safetensors", 500)
    assert prune(root, 1) == []
    with pytest.raises(ValueError, match="at least 1"):
        prune(root, 0)


def test_pruning_believes_what_was_just_verified(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = [save(root, step) for step in (1, 2, 3)][-1]
    monkeypatch.setattr(store, "verify_folder", lambda _folder: pytest.fail("read again"))
    assert len(prune(root, 1, verified=newest)) == 2
    assert names_in(root) == ["step-00000003"]


# Kills. The child process dies as of kill -9: nothing is flushed and nothing cleaned up.


def dies(work: Callable[[], object], prepare: Callable[[], object]) -> bool:
    """Whether a child process that calls ``prepare`` and ``work`` was killed on the way; it may not fail otherwise."""
    with warnings.catch_warnings():
        # PyTorch's threads, which the child does not use.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            prepare()
            work()
            os._exit(0)
        os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL, -signal.SIGXFSZ)
    return code != 0


def at_change(number: int) -> Callable[[], None]:
    """Die just before the ``number``-th time that Python makes, opens for writing, renames or deletes anything."""

    def prepare() -> None:
        count = itertools.count()
        changes = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")

        def on_event(event: str, arguments: tuple[Any, ...]) -> None:
            changing = event in changes or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))
            if changing and next(count) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(on_event)

    return prepare


def at_byte(number: int) -> Callable[[], None]:
    """Die when a file is about to grow beyond ``number`` bytes, having been written up to there."""

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))

    return prepare


def test_a_kill_at_any_point_leaves_a_complete_checkpoint(root: Path) -> None:
    def work() -> None:
        # Replaces the only checkpoint there is, adds another, and deletes the first.
        save(root, 1, value=7)
        save(root, 2)
        prune(root, 1)

    template = root.with_name("template")
    save(template, 1)
    seen: list[float] = []
    for point in itertools.count():
        shutil.copytree(template, root)
        killed = dies(work, at_change(point))
        remove_temporaries(root)
        assert all(read_checkpoint(folder) and re.match("step-", folder.name) for folder in root.iterdir())
        checkpoint, notes = latest_checkpoint(root)
        seen.append(value_of(checkpoint))
        assert notes == []
        # Doing it again always gets to the same end.
        work()
        assert names_in(root) == ["step-00000002"]
        assert value_of(latest_checkpoint(root)[0]) == 2
        shutil.rmtree(root)
        if not killed:
            break
    # The old one, the one in its place, the new one, in this order and each for a while.
    assert [value for value, _ in itertools.groupby(seen)] == [1, 7, 2]
    assert min(seen.count(value) for value in (1, 7, 2)) > 5


def test_a_replacement_that_was_damaged_while_it_waited_replaces_nothing(root: Path) -> None:
    save(root.with_name("other"), 1, value=7).rename(save(root, 1).with_name("step-00000001.new"))
    assert value_of(latest_checkpoint(root)[0]) == 7
    flip(root / "step-00000001.new" / "ema.safetensors", 600)
    with pytest.raises(StorageError), largest_file(0):
        save(root, 1, value=8)
    assert value_of(latest_checkpoint(root)[0]) == 1
    save(root, 1, value=8)
    assert names_in(root) == ["step-00000001"]
    assert value_of(latest_checkpoint(root)[0]) == 8


def test_a_kill_in_the_middle_of_a_file_leaves_a_complete_checkpoint(root: Path) -> None:
    sizes = {path.stat().st_size for path in save(root, 1).iterdir()}
    for limit in sorted({max(sizes) * part // 8 for part in range(8)}):
        assert dies(lambda: save(root, 2), at_byte(limit))
        assert len(remove_temporaries(root)) == 1
        assert names_in(root) == ["step-00000001"]
        assert value_of(latest_checkpoint(root)[0]) == 1
    assert not dies(lambda: save(root, 2), at_byte(max(sizes)))


# Disks.


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [0, 100, 299, 300])
def test_a_full_disk_is_named_and_harms_nothing(root: Path, limit: int) -> None:
    folder = save(root, 1)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    with pytest.raises(StorageError) as error, largest_file(limit):
        save(root, 2)
    found = re.fullmatch(
        r"Cannot write `(.+)`: File too large \(needs ([\d,]+) bytes, [\d,]+ bytes free\)", error.value.message
    )
    assert found
    assert Path(found[1]).parent == root / "step-00000002"
    assert int(found[2].replace(",", "")) == sizes[Path(found[1]).name] > limit
    assert names_in(root) == ["step-00000001"]
    assert value_of(latest_checkpoint(root)[0]) == 1


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    # Not a matter of modes, which do not bind the superuser.
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"Cannot write `.*/file/checkpoints/step-00000001`: Not a directory"):
        save(tmp_path / "file" / "checkpoints", 1)


def test_a_disk_that_keeps_other_bytes_than_it_was_given_is_caught(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(root, 1)
    write_hashed = store.write_hashed

    def bad_disk(path: Path, *arguments: Any, **keywords: Any) -> str:
        sha256 = write_hashed(path, *arguments, **keywords)
        if path.name == "ema.safetensors":
            flip(path, 600)
        return sha256

    monkeypatch.setattr(store, "write_hashed", bad_disk)
    with pytest.raises(StorageError, match=r"step-00000002` was not saved: .*ema\.safetensors` is damaged"):
        save(root, 2)
    assert names_in(root) == ["step-00000001"]
    assert value_of(latest_checkpoint(root)[0]) == 1
