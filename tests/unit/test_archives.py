import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext as nothing
from pathlib import Path

import numpy as np
import pytest
import torch
from support.archives import pack, png, write_archive
from support.processes import python

from dis_cli.data.images.archives import MAX_MEMBER_BYTES, TarFiles, ZipFiles
from dis_cli.data.images.files import FileSource, FolderFiles, ImageFiles
from dis_cli.data.open import open_source
from dis_cli.errors import DataError, RefusedError, UsageError

SUFFIXES = ("zip", "tar")


def opened(path):
    return (ZipFiles if path.suffix == ".zip" else TarFiles)(path)


def source_of(path, image_size=12):
    return FileSource(opened(path), image_size=image_size)


def message(path, error=DataError):
    with pytest.raises(error) as caught:
        opened(path)
    assert type(caught.value) is error
    assert caught.value.exit_code == (1 if error is DataError else 2)
    assert caught.value.hint
    assert "\n" not in caught.value.message.split("\n  ")[0]
    return caught.value.message


def reason(path, index=0):
    """Why an image cannot be read."""
    source = source_of(path)
    with pytest.raises(DataError, match=rf"image {index} of {len(source)}$") as caught:
        source.load(index, None)
    assert source.sample_name(index) in caught.value.message
    return caught.value.message


@pytest.fixture
def folder(tmp_path):
    """Three classes, named so that sorting whole paths would mix them; images of 12x12."""
    names = ("dog/b.png", "dog/a.PNG", "ant/nested/deep/c.png", "ant.b/d.png", "café/e.png", "loose.png")
    for seed, name in enumerate(names):
        file = tmp_path / "set" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(seed))
    (tmp_path / "set/dog/notes.txt").write_text("x")
    return tmp_path / "set"


# -- the same images, wherever they lie


@pytest.mark.parametrize("how", ["stored.zip", "deflated.zip", "plain.tar", "gnu.tar", "around.zip", "around.tar"])
def test_an_archive_is_the_folder_it_was_made_of(folder, tmp_path, how):
    path = tmp_path / how
    if how == "gnu.tar":
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
            # as `tar -C set -cf plain.tar .` names them
            archive.add(folder, ".")
    elif how.startswith("around"):
        (tmp_path / "outer").mkdir()
        folder.rename(tmp_path / "outer/set")
        pack(tmp_path / "outer", path)
        folder = tmp_path / "outer/set"
    else:
        pack(folder, path, zipfile.ZIP_STORED if how == "stored.zip" else zipfile.ZIP_DEFLATED)
    expected, found = FileSource(FolderFiles(folder), image_size=12), source_of(path)
    assert isinstance(found.files, ImageFiles)
    assert found.class_names == expected.class_names == ("ant", "ant.b", "café", "dog")
    assert found.labels.tolist() == expected.labels.tolist() == [0, 1, 2, 3, 3]
    assert found.fingerprint == expected.fingerprint
    assert found.files.skipped == expected.files.skipped == ("loose.png: lies beside the class folders",)
    for index in range(len(expected)):
        assert found.sample_name(index) == expected.sample_name(index)
        assert torch.equal(found.load(index, None), expected.load(index, None))
        assert found.facts(index) == (expected.facts(index)[0], path.stat().st_mtime_ns)
    assert found.name == str(path / "set" if how.startswith("around") else path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("names", "class_names", "expected"),
    [
        (["b.png", "a.png"], (), ["a.png", "b.png"]),
        (["set/b.png", "set/a.png"], ("set",), ["set/a.png", "set/b.png"]),
        (["set/b/x.png", "set/a/y.png", "set/readme.txt", "readme.txt"], ("a", "b"), ["a/y.png", "b/x.png"]),
        (["set/a/x.png", "set/loose.png"], ("a",), ["a/x.png"]),
        (["set/a/x.png", "loose.png"], ("set",), ["set/a/x.png"]),
        (["train/a/x/y.png"], ("a",), ["a/x/y.png"]),
        (["a//x.png", "./b/./y.png", "b/", "a/"], ("a", "b"), ["a//x.png", "b/y.png"]),
        (["__MACOSX/a/._x.png", "a/x.png", ".hidden/y.png", "a/.z.png", "a/.cache/z.png"], ("a",), ["a/x.png"]),
    ],
)
def test_folders_are_classes_and_one_around_everything_is_none(tmp_path, suffix, names, class_names, expected):
    files = opened(write_archive(tmp_path / f"x.{suffix}", [(name, b"") for name in names]))
    assert files.class_names == class_names
    assert [os.fsdecode(name) for name in files.names] == [name.replace("//", "/") for name in expected]
    assert len(files.skipped) == sum("loose" in name for name in names)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_sets_without_images_or_with_empty_classes_are_errors(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    assert message(write_archive(path, [])) == f"No images in `{path}`"
    assert message(write_archive(path, [("a/x.txt", b""), (".a.png", b""), ("b.png/", b"")])) == (
        f"No images in `{path}`\n  b.png: a folder named like an image"
    )
    # in the one folder around everything too
    for empty in ("b/", "b/x.txt", "b/.hidden.png", "b/c.png/x.png"):
        for around in ("", "set/"):
            write_archive(path, [(f"{around}a/x.png", b""), (f"{around}{empty}", b"")])
            where = path / around
            assert message(path) == f"Class folder without images in `{where}`: b"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_divided_archives_are_refused_rather_than_taken_for_two_classes(tmp_path, suffix):
    for around in ("", "set/"):
        entries = [(f"{around}{part}/a/x.png", b"") for part in ("train", "val", "test")]
        path = write_archive(tmp_path / f"x.{suffix}", entries)
        assert message(path, UsageError) == (f"Archive is divided into parts: `{path / around}` holds train and val")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_with_odd_characters_are_kept_and_shown_escaped(tmp_path, suffix):
    entries = {b"caf\xe9/\xff\x1b[0m\n.png": b"none", "naïve/é.png".encode(): png(), b"a b/ .png": png()}
    # of the same length, for zipfile writes no bytes that are not UTF-8
    stand_ins = {raw: chr(ord("A") + i) * len(raw) for i, raw in enumerate(entries)}
    path = write_archive(tmp_path / "x.zip", [(stand_ins[raw], content) for raw, content in entries.items()])
    content = path.read_bytes()
    for raw, stand_in in stand_ins.items():
        assert content.count(stand_in.encode()) == 2
        content = content.replace(stand_in.encode(), raw)
    path.write_bytes(content)
    if suffix == "tar":
        path = tmp_path / "x.tar"
        write_archive(path, [(os.fsdecode(raw), content) for raw, content in entries.items()])
    source = source_of(path)
    assert source.class_names == ("a b", "caf\\udce9", "naïve")
    assert set(source.files.names.tolist()) == set(entries)
    assert source.load(2, None).shape == (3, 12, 12)
    with pytest.raises(DataError) as caught:
        source.load(1, None)
    assert f"`{path}/caf\\udce9/\\udcff\\x1b[0m\\n.png`" in caught.value.message


# -- reading from processes and threads


class Grids(torch.utils.data.Dataset):
    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return self.source.load(index, None)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_copies_threads_and_loader_processes_read_the_same(tmp_path, suffix):
    path = write_archive(tmp_path / f"x.{suffix}", [(f"{i:03d}.png", png(i)) for i in range(60)])
    source = source_of(path)
    # before and after the file is opened
    pickled = [pickle.dumps(source)]
    expected = [source.load(index, None) for index in range(len(source))]
    pickled.append(pickle.dumps(source))
    fingerprint = source.fingerprint
    assert len({grid.sum().item() for grid in expected}) == 60
    # a copy must not live on the descriptor of the first
    del source
    for copy in map(pickle.loads, pickled):
        assert copy.fingerprint == fingerprint
        loader = torch.utils.data.DataLoader(
            Grids(copy), batch_size=None, num_workers=2, multiprocessing_context="fork"
        )
        assert all(torch.equal(a, b) for a, b in zip(loader, expected, strict=True))
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(copy.load, list(range(60)) * 5, [None] * 300))
        assert all(torch.equal(a, b) for a, b in zip(found, expected * 5, strict=True))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_descriptors_are_closed_with_the_files(tmp_path, suffix):
    path = write_archive(tmp_path / f"x.{suffix}", [("a.png", png())])

    def descriptors():
        return [link for link in Path("/proc/self/fd").iterdir() if link.resolve() == path]

    files = opened(path)
    assert len(descriptors()) == 0
    files.open(0)
    files.open(0)
    assert len(descriptors()) == 1
    del files
    assert len(descriptors()) == 0


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_archive_that_changes_or_goes_is_an_error(tmp_path, suffix):
    path = write_archive(tmp_path / f"x.{suffix}", [("a.png", png())])
    changed = source_of(path)
    os.utime(path, ns=(0, 0))
    gone = source_of(path)
    with pytest.raises(DataError, match=r"x\.\w+/a\.png` \(the archive has changed since it was opened\)"):
        _ = changed.fingerprint
    for _ in range(3):
        with pytest.raises(DataError, match=r"a\.png` \(the archive has changed since it was opened\), image 0 of 1"):
            changed.load(0, None)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.png` \(No such file or directory\)"):
        _ = gone.fingerprint
    with pytest.raises(DataError, match=r"a\.png` \(No such file or directory\), image 0 of 1"):
        gone.load(0, None)


# -- labels from dataset.json (the rules of its content: test_listing.py)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("around", ["", "set/"])
def test_a_labels_file_replaces_the_folders(tmp_path, suffix, around):
    names = ["00000/b.png", "00000/a.png", "00001/c.png"]
    labels = json.dumps({"labels": [["00000/a.png", 2], ["00000/b.png", 0], ["00001/c.png", 2]]}).encode()
    entries = [(around + name, png(i)) for i, name in enumerate(names)] + [(f"{around}dataset.json", labels)]
    files = opened(write_archive(tmp_path / f"x.{suffix}", entries))
    assert files.class_names == ("0", "1", "2")
    assert files.labels.tolist() == [0 if name == b"00000/b.png" else 2 for name in files.names]
    assert files.names.tolist() == [b"00000/a.png", b"00000/b.png", b"00001/c.png"]
    # a set of one folder keeps its names, for the labels name it
    one = json.dumps({"labels": [["00000/a.png", 1]]}).encode()
    files = opened(write_archive(tmp_path / f"one.{suffix}", [("dataset.json", one), ("00000/a.png", png())]))
    assert (files.names.tolist(), files.labels.tolist()) == ([b"00000/a.png"], [1])
    # of no consequence elsewhere
    files = opened(
        write_archive(tmp_path / f"else.{suffix}", [("a/dataset.json", b"x"), ("b/x.png", b""), ("a/x.png", b"")])
    )
    assert files.class_names == ("a", "b")
    write_archive(tmp_path / f"x.{suffix}", [("dataset.json", b"{"), ("a.png", b"")])
    assert f"`{tmp_path}/x.{suffix}/dataset.json`" in message(tmp_path / f"x.{suffix}")


# -- damage


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_no_archive_is_named(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    assert message(path) == f"Archive cannot be opened: `{path}` (No such file or directory)"
    path.mkdir()
    assert message(path) == f"Not a file: `{path}`"
    path.rmdir()
    os.mkfifo(path)
    assert message(path) == f"Not a file: `{path}`"
    path.unlink()
    for content in (b"", b"no archive at all", png(), np.random.default_rng(0).bytes(5000)):
        path.write_bytes(content)
        assert message(path).startswith(f"Archive cannot be read: `{path}` (")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_truncated_archives_are_errors_wherever_they_end(tmp_path, suffix):
    path = write_archive(tmp_path / f"x.{suffix}", [(f"{i}.png", png(i)) for i in range(4)])
    whole = path.read_bytes()
    # the end mark of a tar file is a block of zeros, to which more are added
    needed = len(whole) if suffix == "zip" else -(-len(whole.rstrip(b"\0")) // 512) * 512 + 512
    for length in (*range(1, needed, 149), needed - 1):
        path.write_bytes(whole[:length])
        assert message(path).startswith(f"Archive cannot be read: `{path}` (")
    path.write_bytes(whole[:needed])
    assert len(source_of(path)) == 4


def test_a_damaged_header_is_not_taken_for_the_end_of_a_tar_file(tmp_path):
    path = write_archive(tmp_path / "x.tar", [(f"{i}.png", b"") for i in range(4)])
    content = bytearray(path.read_bytes())
    content[512 * 2 + 5] ^= 1
    path.write_bytes(content)
    assert "the header at byte 1,024 is damaged" in message(path)


def test_tar_headers_cannot_lead_back_or_claim_memory(tmp_path):
    def header(kind, size):
        info = tarfile.TarInfo("a.png")
        info.type, info.size = kind, size
        return info.tobuf(tarfile.GNU_FORMAT)

    path = tmp_path / "x.tar"
    end = bytes(1024)
    for content, expected in {
        header(tarfile.REGTYPE, -512) + end: "header",
        # back to the second, for ever
        header(tarfile.REGTYPE, 0) * 2 + header(tarfile.REGTYPE, -1024) + end: "header",
        header(tarfile.GNUTYPE_LONGNAME, 1 << 33) + end: "a header of 8589934592 bytes, allowed are",
        header(tarfile.XHDTYPE, -512) + end: "header",
        header(tarfile.GNUTYPE_LONGNAME, 0) * 5000 + end: "",
    }.items():
        path.write_bytes(content)
        found = message(path)
        assert found.startswith(f"Archive cannot be read: `{path}` (")
        assert expected in found


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_duplicate_names_are_listed(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    names = [f"{i:02d}.png" for i in range(12)]
    with pytest.warns(UserWarning, match="Duplicate name") if suffix == "zip" else nothing():
        write_archive(path, [(name, b"") for name in (*names, *names)])
    lines = message(path).splitlines()
    assert lines[0] == f"Archive holds names more than once: `{path}`, 12 times"
    assert [line.strip() for line in lines[1:]] == names[:10]
    write_archive(path, [("a/x.png", b""), ("./a//x.png", b"")])
    assert message(path).endswith("1 times\n  a/x.png")
    # folders, and what is not read
    with pytest.warns(UserWarning, match="Duplicate name") if suffix == "zip" else nothing():
        write_archive(path, [("a/", b""), ("a/", b""), ("a/x.txt", b""), ("a/x.txt", b""), ("a/x.png", b"")])
    assert opened(path).class_names == ("a",)


# -- malice: nothing is ever unpacked, and no memory is taken for what an archive claims

OUTSIDE = (
    "../evil.png",
    "a/../../evil.png",
    "a/..",
    "/tmp/evil.png",
    "//host/evil.png",
    "C:\\evil.png",
    "c:/evil.png",
    "..\\evil.png",
    "a\\..\\..\\evil.png",
    "\\\\host\\evil.png",
    "../notes.txt",
    ".hidden/../../x",
)


def tree(folder):
    return sorted((str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*"))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", OUTSIDE)
def test_archives_with_names_that_lead_outside_are_refused(tmp_path, monkeypatch, suffix, name):
    (tmp_path / "place").mkdir()
    path = write_archive(tmp_path / "place" / f"x.{suffix}", [("a.png", png()), (name, png())])
    monkeypatch.chdir(tmp_path / "place")
    before = tree(tmp_path)
    shown = name.encode("unicode_escape").decode().replace("\\\\", "\\")
    assert message(path, RefusedError) == f"`{path}` was refused: its entry `{shown}` leads out of it"
    assert tree(tmp_path) == before
    # any part of the package gives the same
    with pytest.raises(RefusedError):
        open_source(suffix, path, image_size=8, channels=3)


def test_names_cut_short_by_nul_are_refused(tmp_path):
    path = write_archive(tmp_path / "x.zip", [("a.pngXexe", b"")])
    path.write_bytes(path.read_bytes().replace(b"a.pngXexe", b"a.png\0exe"))
    assert "its entry `a.png\\x00exe`" in message(path, RefusedError)


def add_link(path, name, target, kind=tarfile.SYMTYPE):
    """Append a link, device or other entry without content."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "a") as archive:
            info = zipfile.ZipInfo(name)
            mode = {tarfile.SYMTYPE: 0o120777, tarfile.CHRTYPE: 0o020644, tarfile.FIFOTYPE: 0o010644}[kind]
            info.external_attr = mode << 16
            archive.writestr(info, target)
    else:
        with tarfile.open(path, "a") as archive:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("target", ["/etc/passwd", "../../x.png", "b/../../../x.png", "..\\..\\x.png"])
def test_links_that_lead_outside_are_refused(tmp_path, suffix, target):
    path = write_archive(tmp_path / f"x.{suffix}", [("a/x.png", png())])
    add_link(path, "a/link", target)
    assert "its entry `a/link` -> " in message(path, RefusedError)


def test_hard_links_name_their_target_from_the_top(tmp_path):
    path = write_archive(tmp_path / "x.tar", [("a/x.png", png())])
    add_link(path, "a/link.png", "a/x.png", tarfile.LNKTYPE)
    assert opened(path).skipped == ("a/link.png: a link",)
    add_link(path, "a/out.png", "../x.png", tarfile.LNKTYPE)
    assert "its entry `a/out.png` -> ../x.png leads out of it" in message(path, RefusedError)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_links_devices_and_folders_named_like_images_are_skipped_with_the_reason(tmp_path, suffix):
    path = write_archive(
        tmp_path / f"x.{suffix}", [("a/x.png", png()), ("a/folder.png/y.png", png()), ("folder.gif/", b"")]
    )
    add_link(path, "a/link.png", "x.png")
    add_link(path, "a/up.png", "../a/x.png")
    # might lead to a folder of images
    add_link(path, "b", "a")
    add_link(path, "a/device.png", "", tarfile.CHRTYPE)
    add_link(path, "a/pipe.png", "", tarfile.FIFOTYPE)
    add_link(path, "a/pipe", "", tarfile.FIFOTYPE)
    files = opened(path)
    assert files.names.tolist() == [b"a/x.png"]
    assert files.skipped == (
        "a/device.png: not a regular file",
        "a/folder.png: a folder named like an image",
        "a/link.png: a link",
        "a/pipe.png: not a regular file",
        "a/up.png: a link",
        "b: a link",
        "folder.gif: a folder named like an image",
    )


def test_sparse_files_in_a_tar_are_skipped(tmp_path):
    path = write_archive(tmp_path / "x.tar", [("a.png", png())])
    with tarfile.open(path, "a", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("sparse.png")
        info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,512"}
        info.pax_headers |= {"GNU.sparse.size": "1000000000000", "GNU.sparse.numblocks": "1"}
        info.size = 512
        archive.addfile(info, io.BytesIO(bytes(512)))
    files = opened(path)
    assert files.skipped == ("sparse.png: a sparse file",)
    assert files.names.tolist() == [b"a.png"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_longer_than_any_file_system_takes_are_skipped(tmp_path, suffix):
    path = write_archive(tmp_path / f"x.{suffix}", [("a.png", png()), ("b" * 5000 + ".png", png())])
    files = opened(path)
    assert files.names.nbytes < 100
    assert files.skipped == ("b" * 50 + "...: a name of over 4,096 bytes",)


def test_compressed_tar_files_are_refused_with_the_command_to_use(tmp_path):
    plain = write_archive(tmp_path / "x.tar", [("a.png", png())]).read_bytes()
    for name, content, command in (
        ("x.tar.gz", gzip.compress(plain), "gunzip -k"),
        # whatever it is called
        ("y.tar", gzip.compress(plain), "gunzip -k"),
        ("x.tar.bz2", bz2.compress(plain), "bunzip2 -k"),
        ("x.tar.xz", lzma.compress(plain), "xz -dk"),
        ("x.tar.zst", b"\x28\xb5\x2f\xfd" + plain, "zstd -d"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UsageError, match="Tar file is compressed") as caught:
            open_source("tar", path, image_size=8, channels=3)
        assert f"`{path}`" in caught.value.message
        assert f"`{command} {path}`" in caught.value.hint


def patched(path, name, **fields):
    """Change fields of an entry, in a zip file's table of contents."""
    places = {
        "flags": ("<H", 8),
        "method": ("<H", 10),
        "checksum": ("<I", 16),
        "stored": ("<I", 20),
        "size": ("<I", 24),
    }
    content = bytearray(path.read_bytes())
    start = content.rindex(name.encode()) - 46
    assert content[start : start + 4] == b"PK\1\2"
    for field, value in fields.items():
        layout, offset = places[field]
        struct.pack_into(layout, content, start + offset, value)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"flags": 1}, "it is encrypted"),
        ({"method": 12}, "compression method 12 is not supported"),
        ({"method": 93}, "compression method 93 is not supported"),
        ({"checksum": 1}, "its CRC-32 is wrong"),
        ({"size": 100}, "it does not hold the 100 bytes it declares"),
        ({"size": 100_000}, "it does not hold the 100,000 bytes it declares"),
        ({"size": MAX_MEMBER_BYTES + 1}, "134,217,729 bytes are over the limit of 134,217,728"),
        ({"stored": MAX_MEMBER_BYTES + 1}, "134,217,729 bytes are over the limit of 134,217,728"),
        ({"stored": 100_000}, "its place is not inside the archive"),
        ({"stored": 20}, "it does not hold"),
        ({"method": 0}, "it does not hold"),
    ],
)
def test_entries_of_a_zip_that_are_not_what_they_declare_are_bad_images(tmp_path, fields, expected):
    path = write_archive(tmp_path / "x.zip", [("a.png", png()), ("b.png", png())])
    patched(path, "a.png", **fields)
    assert f"{path}/a.png` ({expected}" in reason(path)
    # one bad image among good ones
    assert source_of(path).load(1, None).shape == (3, 12, 12)


def test_damaged_data_and_headers_in_a_zip_are_bad_images(tmp_path):
    path = write_archive(tmp_path / "x.zip", [("a.png", png()), ("b.png", png())])
    content = path.read_bytes()
    path.write_bytes(content.replace(b"PK\3\4", b"PK\3\5", 1))
    assert "its header is damaged" in reason(path)
    path.write_bytes(content[:60] + bytes(100) + content[160:])
    assert reason(path)
    path.write_bytes(content[:35] + b"\xff" * 20 + content[55:])
    assert "its compressed data are damaged" in reason(path)


def test_a_tar_entry_that_ends_behind_the_file_is_never_read(tmp_path):
    path = write_archive(tmp_path / "x.tar", [("a.png", png())])
    source = source_of(path)
    source.files._table[0, 1] = 10**10
    with pytest.raises(DataError, match="10,000,000,000 bytes are over the limit"):
        source.load(0, None)
    source.files._table[0, 1] = 10**6
    with pytest.raises(DataError, match="its place is not inside the archive"):
        source.load(0, None)


def test_bombs_take_no_memory_and_write_nothing(tmp_path):
    (tmp_path / "place").mkdir()
    path = tmp_path / "place/x.zip"
    zeros = zlib.compressobj(9, zlib.DEFLATED, -15)
    megabyte = zeros.compress(bytes(1 << 20)) + zeros.flush(zlib.Z_FULL_FLUSH)
    # nothing refers to what stands before a full flush
    bomb = megabyte * 1024 + zeros.flush()
    assert len(zlib.decompressobj(-15).decompress(bomb, 1 << 21)) == 1 << 21
    write_archive(path, [("a.png", bomb), ("b.png", bomb), ("c.png", png())], zipfile.ZIP_STORED)
    # inflate to 1 GiB: one declares 100 bytes, the other what it is
    patched(path, "a.png", method=8, size=100)
    patched(path, "b.png", method=8, size=1 << 30)
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("d.png")
        archive.writestr(info, b"small")
        # written with the table of contents, as a 64-bit number
        info.file_size = 10 * 10**9
    sparse = tmp_path / "place/x.tar"
    info = tarfile.TarInfo("a.png")
    info.size = 10 * 10**9
    with sparse.open("wb") as file:
        headers = info.tobuf()
        file.write(headers)
        file.truncate(len(headers) + -(-info.size // 512) * 512 + 1024)
    before = tree(tmp_path)
    code = """
import sys
from pathlib import Path
from dis_cli.data.open import open_source
from dis_cli.errors import DataError

def megabytes(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024

start = megabytes("VmHWM")
for path in sys.argv[1:]:
    source = open_source(path[-3:], Path(path), image_size=8, channels=3)
    for index in range(len(source)):
        try:
            source.load(index, None)
            print("read")
        except DataError as error:
            print(error.message)
print(megabytes("VmHWM") - start)
"""
    result = python("-c", code, str(path), str(sparse))
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.rpartition(" (")[2] for line in lines[:-1]] == [
        "it does not hold the 100 bytes it declares), image 0 of 4",
        "1,073,741,824 bytes are over the limit of 134,217,728), image 1 of 4",
        "read",
        "10,000,000,000 bytes are over the limit of 134,217,728), image 3 of 4",
        "10,000,000,000 bytes are over the limit of 134,217,728), image 0 of 1",
    ]
    assert float(lines[-1]) < 64
    assert tree(tmp_path) == before


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_big_table_of_contents_takes_little_memory_per_image(tmp_path, suffix):
    count = 5000
    path = write_archive(tmp_path / f"x.{suffix}", [(f"{i % 100:02d}/{i:05d}.png", b"x") for i in range(count)])
    files = opened(path)
    assert len(files.labels) == count
    # what a loader process gets: names of 12 bytes, a label and two or five numbers
    assert len(pickle.dumps(files)) < count * (12 + 8 + 5 * 8) * 1.1
