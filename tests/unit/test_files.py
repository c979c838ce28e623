import os
import stat
from pathlib import Path

import pytest

from dis_cli.errors import StorageError
from dis_cli.runtime.files import (
    atomic_folder,
    atomic_write_bytes,
    atomic_write_text,
    discard_folder,
    remove_temporaries,
    sha256_file,
    write_durably,
)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def disk_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The fsyncs, renames and replaces in their order, with the base name of what they were called on."""
    calls: list[tuple[str, str]] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def recorded_fsync(descriptor: int) -> None:
        calls.append(("fsync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        fsync(descriptor)

    def recorded_rename(old: str, new: str) -> None:
        calls.append(("rename", Path(new).name))
        (replace if Path(new).is_file() else rename)(old, new)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    monkeypatch.setattr(os, "replace", recorded_rename)
    return calls


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, disk_calls: list[tuple[str, str]]) -> None:
    (tmp_path / "a.txt").write_text("old")
    atomic_write_text(tmp_path / "a.txt", "né")
    assert (tmp_path / "a.txt").read_bytes() == b"n\xc3\xa9"
    assert [kind for kind, _ in disk_calls] == ["fsync", "rename", "fsync"]
    assert disk_calls[1:] == [("rename", "a.txt"), ("fsync", tmp_path.name)]
    assert names_in(tmp_path) == ["a.txt"]


def test_a_folder_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, disk_calls: list[tuple[str, str]]) -> None:
    with atomic_folder(tmp_path / "made" / "final") as folder:
        assert folder.name.startswith(".tmp-")
        (folder / "inner").mkdir()
        (folder / "inner" / "x").write_text("x")
        (folder / "y").write_text("y")
    renamed = disk_calls.index(("rename", "final"))
    assert {name for _, name in disk_calls[:renamed]} == {"x", "y", "inner", folder.name}
    assert disk_calls[renamed + 1 :] == [("fsync", "made")]
    assert sorted(path.name for path in (tmp_path / "made").rglob("*")) == ["final", "inner", "x", "y"]


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        atomic_write_bytes(tmp_path / "file", b"")
        with atomic_folder(tmp_path / "folder") as folder:
            write_durably(folder / "inner", b"")
    finally:
        os.umask(old)
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "folder", "folder/inner")}
    assert modes == {"file": 0o640, "folder": 0o750, "folder/inner": 0o640}


def test_an_error_leaves_the_old_file_and_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        StorageError, match=r"No space left on device \(needs 12,345 bytes, [\d,]+ bytes free\)"
    ) as error:
        atomic_write_bytes(path, bytes(12_345))
    assert f"`{path}`" in error.value.message
    with pytest.raises(StorageError, match=r"`.*/new`"), atomic_folder(tmp_path / "new") as folder:
        (folder / "x").write_text("x")
    assert (names_in(tmp_path), path.read_bytes()) == (["a"], b"old")


def test_a_failing_body_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "final") as folder:
        (folder / "x").write_text((folder / "absent").read_text())
    assert names_in(tmp_path) == []


def test_a_folder_with_content_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "precious").write_text("x")
    with pytest.raises(StorageError, match="final"), atomic_folder(tmp_path / "final") as folder:
        (folder / "x").write_text("x")
    assert [path.name for path in tmp_path.rglob("*")] == ["final", "precious"]


@pytest.mark.parametrize("where", ["file/below", "folder", "fifo", "long" * 100])
def test_places_that_cannot_be_written_are_named(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    before = names_in(tmp_path)
    with pytest.raises(StorageError) as error:
        atomic_write_bytes(tmp_path / where, b"data")
    assert str(tmp_path / where) in error.value.message
    assert error.value.hint
    assert names_in(tmp_path) == before
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "target").write_text("old")
    (tmp_path / "link").symlink_to("elsewhere/target")
    atomic_write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "elsewhere" / "target").read_text() == "new"


def test_discarding_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "x").write_text("x")
    # What a kill right after the rename leaves behind.
    monkeypatch.setattr("shutil.rmtree", lambda *_args, **_kwargs: None)
    discard_folder(tmp_path / "old")
    monkeypatch.undo()
    assert [name.startswith(".tmp-") for name in names_in(tmp_path)] == [True]
    assert len(remove_temporaries(tmp_path)) == 1
    assert names_in(tmp_path) == []
    with pytest.raises(StorageError, match="Cannot delete"):
        discard_folder(tmp_path / "old")


def test_only_temporaries_are_removed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "x").write_text("x")
    (tmp_path / ".tmp-1").mkdir()
    (tmp_path / ".tmp-1" / "x").write_text("x")
    (tmp_path / ".tmp-2").write_text("x")
    (tmp_path / ".tmp-3").symlink_to("precious")
    (tmp_path / ".hidden").write_text("x")
    assert [path.name for path in remove_temporaries(tmp_path)] == [".tmp-1", ".tmp-2", ".tmp-3"]
    assert names_in(tmp_path) == [".hidden", "precious"]
    assert (tmp_path / "precious" / "x").exists()
    assert remove_temporaries(tmp_path / "absent") == []


def test_sha256_of_a_known_text(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
