"""What names mean, in folders, zip files and tar files alike: parts of a set, junk, other files."""

import os
import shutil
import unicodedata
import zipfile
from pathlib import Path

import pytest
from support.archives import pack, png, write_archive

from dis_cli.data import decode
from dis_cli.data.images import other_files
from dis_cli.data.images.files import FileSource
from dis_cli.data.images.folders import split_folder
from dis_cli.data.images.layout import find_parts, is_image_name, is_junk
from dis_cli.data.images.listing import list_by_labels
from dis_cli.data.images.other_files import advise_on_other_files, tell_other_files
from dis_cli.data.open import open_source
from dis_cli.errors import DataError, UsageError

KINDS = ("folder", "zip", "tar")


def write(folder: Path, names) -> Path:
    for seed, name in enumerate(names):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(seed) if is_image_name(name) else b"x")
    return folder


@pytest.fixture(params=KINDS)
def opened(request, tmp_path):
    """Opens files of these names in a folder, a zip file and a tar file."""

    def open_it(names, split="train") -> FileSource:
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        folder = write(tmp_path / "set", names)
        path = folder if request.param == "folder" else pack(folder, tmp_path / f"set.{request.param}")
        source = open_source(request.param, path, split=split, image_size=8, channels=3)
        assert isinstance(source, FileSource)
        return source

    return open_it


def found(source):
    return source.class_names, [source.sample_name(index) for index in range(len(source))]


# -- parts


@pytest.mark.parametrize(
    ("train", "held_out", "others"),
    [
        ("train", "val", ["test"]),
        ("train", "test", []),
        ("train", "valid", []),
        ("train", "valid", ["test"]),
        ("train", "validation", []),
        ("train", "dev", []),
        ("train", "eval", []),
        ("training", "validation", ["testing"]),
        ("training", "testing", []),
        ("Training", "Testing", []),
        ("TRAIN", "VAL", ["TEST"]),
        ("Train", "test", []),
        ("training_set", "test_set", []),
        ("trainset", "testset", []),
        ("train", "test_set", []),
        ("train", "test1", []),
        ("train2017", "val2017", ["test2015"]),
        ("train_64x64", "valid_64x64", []),
        ("images_train", "images_val", []),
        ("seg_train", "seg_test", ["seg_pred"]),
        ("imagenet-train", "imagenet-val", []),
    ],
)
def test_every_usual_spelling_of_parts_is_one(opened, train, held_out, others):
    names = [f"{train}/ant/a.png", f"{train}/bee/b.png", f"{held_out}/ant/c.png", f"{held_out}/bee/d.png"]
    names += [f"{other}/e.png" for other in others]
    assert found(opened(names)) == (("ant", "bee"), ["ant/a.png", "bee/b.png"])
    assert found(opened(names, "test")) == (("ant", "bee"), ["ant/c.png", "bee/d.png"])
    with pytest.raises(UsageError, match=f"is divided into parts: `.*` holds {train} and {held_out}$"):
        opened(names, "all")
    # and so is a set in a folder of its own
    around = [f"set/{name}" for name in names]
    assert found(opened(around)) == (("ant", "bee"), ["ant/a.png", "bee/b.png"])
    assert opened(around, "test").name.endswith(f"set/{held_out}")


@pytest.mark.parametrize(
    "classes",
    [
        ("bus", "train"),
        ("bus", "test", "val"),
        ("test-drive", "train-station"),
        ("constrain", "contest"),
        ("tester", "trainer"),
        ("crash_test", "express_train"),
        ("latest", "retrained"),
    ],
)
def test_classes_that_are_called_like_parts_stay_classes(opened, classes):
    assert opened([f"{name}/a.png" for name in classes]).class_names == classes


def test_a_division_without_a_part_to_train_on_is_an_error(opened):
    names = ["val/ant/a.png", "test/ant/b.png", "test/ant/c.png"]
    assert found(opened(names, "test")) == (("ant",), ["ant/a.png"])
    with pytest.raises(UsageError, match=r"is divided into parts and has none to train on: `.*` holds val and test$"):
        opened(names)


def test_parts_that_cannot_be_told_apart_are_an_error(opened):
    for names in (
        ["train1/a.png", "train2/b.png", "val/c.png"],
        ["a_train/a.png", "b_train/a.png", "a_test/b.png", "b_test/b.png"],
    ):
        with pytest.raises(UsageError, match=r"has more than one part to train on: `.*` holds \w+ and \w+$") as caught:
            opened(names)
        assert caught.value.hint
    # the plain spelling wins
    assert found(opened(["train/a.png", "train_old/b.png", "val/c.png"])) == ((), ["a.png"])


def test_the_hint_of_a_divided_folder_names_a_part_that_can_be_given(tmp_path):
    folder = write(tmp_path / "set", ["Train/a.png", "Valid/b.png"])
    with pytest.raises(UsageError) as caught:
        split_folder(folder, "all")
    part = caught.value.hint.split("`")[1]
    assert split_folder(Path(part), "all").folder == folder / "Train"


def test_what_lies_beside_parts_is_told(opened):
    names = ["train/ant/a.png", "val/ant/b.png", "loose.png", "extra/c.png", "@eaDir/train/x.jpg", ".hidden/y.png"]
    assert opened(names).files.notes == ("Beside its parts the set holds 1 image and the folder extra: not read",)
    assert opened(names[:2]).files.notes == ()


def test_a_labels_file_counts_for_all_folders_at_the_top(opened, tmp_path):
    names = ["train/a.png", "val/b.png"]
    folder = write(tmp_path / "made", names)
    content = '{"labels": [["train/a.png", 0], ["val/b.png", 1]]}'
    (folder / "dataset.json").write_text(content)
    for source in (
        open_source("folder", folder, image_size=8, channels=3),
        open_source("zip", pack(folder, tmp_path / "made.zip"), image_size=8, channels=3),
        open_source("tar", pack(folder, tmp_path / "made.tar"), image_size=8, channels=3),
    ):
        assert found(source) == (("0", "1"), names)
    # and in a part for the part
    (folder / "dataset.json").rename(folder / "train/dataset.json")
    (folder / "train/dataset.json").write_text('{"labels": [["a.png", 0]]}')
    for kind in KINDS:
        path = folder if kind == "folder" else pack(folder, tmp_path / f"part.{kind}")
        source = open_source(kind, path, image_size=8, channels=3)
        assert found(source) == (("0",), ["a.png"])
        assert not source.files.other_files


def test_imagenet_in_other_spellings(tmp_path):
    folder = write(tmp_path / "set", ["Train/n01440764/a.JPEG", "Validation/n01440764/b.JPEG"])
    for split, name in (("train", "a.JPEG"), ("test", "b.JPEG")):
        source = open_source("imagenet", folder, split=split, image_size=8, channels=3)
        assert found(source) == (("n01440764",), [f"n01440764/{name}"])
    shutil.rmtree(folder / "Validation")
    assert len(open_source("imagenet", folder, image_size=8, channels=3)) == 1


def test_names_are_parts_by_what_they_say():
    assert find_parts(["Trn", "Tst"]) == {"train": ["Trn"], "test": ["Tst"]}
    assert find_parts(["train", "val", "validation"]) == {"train": ["train"], "val": ["val"]}
    assert find_parts(["train", "dev", "validation"]) == {"train": ["train"], "val": ["dev", "validation"]}
    assert find_parts(["train"]) == find_parts(["training", "trn"]) == find_parts([]) == {}


# -- junk

JUNK = [
    "__MACOSX/ant/._a.png",
    "ant/._a.png",
    "ant/.DS_Store",
    "ant/Thumbs.db",
    "ant/desktop.ini",
    "Desktop.ini",
    "ant/@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg",
    "@eaDir/x.jpg",
    ".@__thumb/s100a.jpg",
    "@__thumb/s100a.jpg",
    "#recycle/old.png",
    "#snapshot/ant/a.png",
    "@Recycle/old.png",
    "@Recently-Snapshot/ant/a.png",
    "$RECYCLE.BIN/S-1-5/$R1.png",
    "RECYCLER/old.png",
    "System Volume Information/x.png",
    "lost+found/x.png",
    "found.000/x.png",
    ".ipynb_checkpoints/a-checkpoint.png",
    ".thumbnails/normal/x.png",
    ".Trash-1000/files/x.png",
    ".Spotlight-V100/x.png",
    "Network Trash Folder/x.png",
    "Temporary Items/x.png",
    "Icon\r",
    "ant/a.png@SynoEAStream",
    "__pycache__/x.png",
]


def test_junk_is_neither_class_nor_image_nor_told(opened):
    real = ["ant/a.png", "bee/b.png"]
    source = opened([*real, *JUNK])
    assert found(source) == (("ant", "bee"), real)
    assert (source.files.skipped, source.files.other_files, source.files.notes) == ((), {}, ())
    # in a folder around everything, and beside parts
    around = [*(f"set/train/{name}" for name in [*real, *JUNK]), "set/val/c.png"]
    source = opened([*around, *(f"{top}{name}" for name in JUNK if "ant" not in name for top in ("", "set/"))])
    assert found(source) == (("ant", "bee"), real)
    assert (source.files.skipped, source.files.other_files, source.files.notes) == ((), {}, ())


def test_what_only_resembles_junk_is_kept():
    kept = ("thumbs", "recycle", "icon", "Icon.png", "snapshot", "desktop", "macosx", "found.001", "trash", "@home")
    assert [name for name in kept if is_junk(name)] == []


# -- classes that may not be meant


@pytest.mark.parametrize(
    ("first", "second"),
    [("Cat", "cat"), (unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")), ("cat", "cat ")],
)
def test_class_folders_that_look_alike_are_told(opened, first, second):
    source = opened([f"{first}/a.png", f"{second}/b.png"])
    assert len(source.class_names) == 2
    (note,) = source.files.notes
    assert note.startswith("Class folders that look alike are different classes: `")
    assert opened(["cat/a.png", "cot/b.png"]).files.notes == ()


def test_one_class_around_folders_is_told(opened, tmp_path):
    # an archive passes through one of them
    source = opened(["outer/set/ant/a.png", "outer/set/bee/b.png"])
    (note,) = source.files.notes
    assert note.startswith("All images are taken for one class, `")
    assert note.endswith("as classes, give that folder itself, or an archive of it")
    assert opened(["set/a.png", "set/more/b.png"]).files.notes == ()
    assert open_source("folder", write(tmp_path / "x", ["x/ant/a.png"]), image_size=8, channels=3).files.notes == (
        "All images are taken for one class, `x`; for its folders (ant) as classes, give that folder itself, or an "
        "archive of it",
    )


def test_parts_inside_class_folders_are_told(opened):
    source = opened(["ant/train/a.png", "ant/val/b.png", "bee/train/c.png"])
    assert source.class_names == ("ant", "bee")
    assert source.files.notes == (
        "Folders named like parts of a set lie inside class folders and are read together: train, val",
    )


def test_parts_among_classes_are_told(opened):
    assert opened(["cat/a.png", "test/b.png", "val/c.png"]).files.notes == (
        "Folders named like parts of a set are taken for classes: test, val",
    )


def test_classes_without_images_and_other_ways_to_write_a_name_in_a_labels_file(tmp_path):
    composed = unicodedata.normalize("NFC", "café.png")
    images = ["0/a.png", "0/b.png", unicodedata.normalize("NFD", composed)]
    rows = f'[["0\\\\a.png", 4], ["./0/b.png", 1], ["{composed}", 4]]'
    listing = list_by_labels(f'{{"labels": {rows}}}'.encode(), images, (), "place")
    assert listing.labels == [4, 1, 4]
    assert listing.notes == ("3 of the 5 classes in dataset.json have no images: 0, 2, 3",)
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-32"):
        content = '{"labels":\r\n [["0/a.png", 0], ["0/b.png", 1]]}\r\n'.encode(encoding)
        assert list_by_labels(content, images[:2], (), "place").labels == [0, 1]


# -- backslashes


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_archives_of_windows_programs_have_folders(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    names = ["ant\\a.png", "ant\\more\\b.png", "bee/c.png", "bee\\d.png", "ant\\", "bee\\notes.txt"]
    entries = [(name, png(seed)) for seed, name in enumerate(names)]
    source = open_source(suffix, write_archive(path, entries), image_size=8, channels=3)
    assert found(source) == (("ant", "bee"), ["ant/a.png", "ant/more/b.png", "bee/c.png", "bee/d.png"])
    assert source.load(3, None).shape == (3, 8, 8)
    assert source.files.other_files == {".txt": 1}
    around = [(f"set\\train\\{name}", content) for name, content in entries] + [("set\\valid\\a.png", png())]
    source = open_source(suffix, write_archive(path, around), image_size=8, channels=3)
    assert source.class_names == ("ant", "bee")
    with pytest.raises(DataError, match=r"more than once: .*1 times\n  a/b.png"):
        open_source(suffix, write_archive(path, [("a\\b.png", b""), ("a/b.png", b"")]), image_size=8, channels=3)
    with pytest.raises(DataError, match=r"Class folder without images in .*: bee"):
        open_source(suffix, write_archive(path, [("ant\\a.png", b""), ("bee\\", b"")]), image_size=8, channels=3)


def test_a_folder_with_names_of_a_windows_archive_is_told(tmp_path):
    folder = write(tmp_path / "set", ["ant\\a.png", "bee\\b.png"])
    source = open_source("folder", folder, image_size=8, channels=3)
    assert found(source) == ((), ["ant\\a.png", "bee\\b.png"])
    (note,) = source.files.notes
    assert note.startswith("2 names hold a backslash")


# -- suffixes


def test_all_that_pillow_reads_of_these_formats_is_an_image(opened, tmp_path):
    suffixes = sorted({".jfif", ".JPE", ".jif", ".pjpeg", ".apng", ".pnm", ".pbm", ".Jpeg", ".WEBP"})
    source = opened([f"ant/{index:02d}{suffix}" for index, suffix in enumerate(suffixes)])
    assert len(source) == len(suffixes)
    assert source.files.other_files == {}


def test_avif_and_webp_are_read_where_this_pillow_can(tmp_path):
    from PIL import Image, features

    for name in ("AVIF", "WEBP"):
        suffix = f".{name.lower()}"
        can = name.lower() in features.modules and features.check(name.lower())
        assert (name in decode.FORMATS, suffix in decode.SUFFIXES) == (can, can)
        if can:
            path = tmp_path / f"a{suffix}"
            Image.new("RGB", (12, 12), "red").save(path)
            red, green, _ = decode.read_image(path, channels=3).getpixel((5, 5))
            assert red > 240
            assert green < 15


def test_a_decoder_that_is_not_built_in_is_named(monkeypatch):
    monkeypatch.setattr(decode.features, "check_module", lambda name: name != "avif")
    assert [decode._is_built_in(name) for name in ("AVIF", "WEBP", "PNG")] == [False, True, True]
    monkeypatch.setattr(other_files, "_MISSING_DECODERS", {".avif": "AVIF"})
    assert advise_on_other_files({".avif": 3}, 5) == [
        "This Pillow cannot read AVIF: `pip install -U pillow` brings one that can"
    ]


def test_other_files_are_counted_by_suffix(opened):
    names = [
        "ant/a.png",
        "bee/b.png",
        "ant/c.heic",
        "ant/d.HEIC",
        "bee/e.svg",
        "bee/noend",
        "readme.txt",
        "ant/dataset.json",
    ]
    source = opened(names)
    assert source.files.other_files == {".heic": 2, ".svg": 1, "": 1, ".txt": 1, ".json": 1}
    assert tell_other_files(source.files.other_files) == (
        "6 files with other suffixes were left out: .heic 2, without a suffix 1, .json 1, .svg 1, .txt 1"
    )
    # of the part that is read only
    source = opened([*(f"train/{name}" for name in names), "val/a.png", "val/b.psd", "c.psd"])
    assert source.files.other_files == {".heic": 2, ".svg": 1, "": 1, ".txt": 1, ".json": 1}


def test_other_files_in_words():
    assert tell_other_files({}) == ""
    assert tell_other_files({".svg": 1}) == "1 file with another suffix was left out: .svg 1"
    many = tell_other_files({f".{number}\n": 1000 for number in range(30)})
    assert many.startswith("30,000 files with other suffixes were left out: .0\\n 1,000, .1\\n 1,000, ")
    assert many.endswith(" and 20 more")


@pytest.mark.parametrize(
    ("counts", "num_images", "words"),
    [
        ({".txt": 1, ".csv": 2, ".json": 1}, 50, []),
        ({".heic": 3}, 50, ["heif-convert"]),
        ({".psd": 3, ".jxl": 1}, 50, ["Convert what of these are images to PNG or JPEG: .jxl, .psd"]),
        ({"": 3}, 50, ["without a suffix"]),
        ({".cls": 50}, 50, ["webdataset"]),
        ({".cls": 50, ".txt": 50, ".json": 40}, 50, ["webdataset", ".txt and .json files beside the images"]),
        ({".tar": 8}, 0, ["Archives inside (.tar) are not opened"]),
        ({".zip": 1, ".7z": 1}, 5, ["Archives inside (.zip and .7z) are not opened"]),
    ],
)
def test_each_kind_of_other_files_has_its_advice(counts, num_images, words):
    advice = advise_on_other_files(counts, num_images)
    assert len(advice) == len(words)
    assert all(word in sentence for word, sentence in zip(words, advice, strict=True))


def test_sets_without_images_say_what_they_hold(opened):
    for names, words in (
        (["inner.zip"], [".zip 1", "not opened"]),
        (["ant/a.heic", "bee/b.heic"], [".heic 2", "heif-convert"]),
        (["a.cls", "a.npy"], [".cls 1", ".npy 1", "webdataset"]),
    ):
        with pytest.raises(DataError, match=r"^No images in ") as caught:
            opened(names)
        assert [word for word in words if word not in caught.value.hint] == []
    with pytest.raises(DataError, match=r"^Class folder without images in .*: bee$") as caught:
        opened(["ant/a.png", "bee/b.heic"])
    assert "1 file with another suffix was left out: .heic 1" in caught.value.hint


def test_the_fingerprint_of_a_folder_without_new_suffixes_is_what_it_was(tmp_path):
    folder = write(tmp_path / "set", ["ant/a.png", "bee/b.jpg", "bee/c.txt"])
    for name in ("ant/a.png", "bee/b.jpg"):
        (folder / name).write_bytes(b"12345")
    source = open_source("folder", folder, image_size=8, channels=3)
    assert source.fingerprint == "bc2b1ed25ff2913960df3662b41e7129ac8e312676cee910fba7eeba8dfcee5a"


def test_zip_entries_keep_their_own_bytes(tmp_path):
    """A name in code page 437 with a backslash is found at its place."""
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("x")
        info.filename = info.orig_filename = "ant\\\\\u00e9.png"
        archive.writestr(info, png(7))
    source = open_source("zip", path, image_size=12, channels=3)
    assert source.class_names == ("ant",)
    assert os.fsencode(source.sample_name(0)).endswith(b".png")
    assert source.load(0, None).shape == (3, 12, 12)


def test_what_the_program_writes_beside_its_images_is_not_counted(opened):
    assert opened(["0.png", "samples.json", "more/1.txt"]).files.other_files == {".txt": 1}
