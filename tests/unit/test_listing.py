import json

import numpy as np
import pytest
import torch
from support.archives import png

from dis_cli.data.images.files import FileSource, FolderFiles
from dis_cli.data.images.listing import list_by_folders, list_by_labels
from dis_cli.data.open import open_source
from dis_cli.errors import DataError, UsageError

# -- classes from folders


def test_classes_stand_in_the_order_of_their_names_whatever_the_order_of_whole_paths():
    # "-" sorts before "/"
    images = ["b/z.png", "a-b/x.png", "a/y.png", "a/b/c.png", "loose.png"]
    listing = list_by_folders(images, ["a-b", "b", "a"], ["odd.png: a link"], "place")
    assert listing.class_names == ("a", "a-b", "b")
    assert listing.names == ["a/b/c.png", "a/y.png", "a-b/x.png", "b/z.png"]
    assert listing.labels == [0, 0, 1, 2]
    assert listing.skipped == ("odd.png: a link", "loose.png: lies beside the class folders")


def test_a_folder_with_one_class_has_one_class(tmp_path):
    (tmp_path / "only").mkdir()
    (tmp_path / "only/a.png").write_bytes(png())
    source = open_source("folder", tmp_path, image_size=8, channels=3)
    assert (source.num_classes, source.class_names, source.labels.tolist()) == (1, ("only",), [0])


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DataError) as caught:
        open_source("folder", tmp_path, image_size=8, channels=3)
    assert caught.value.message == f"No images in `{tmp_path}`"
    assert ".webp" in caught.value.hint


# -- classes from dataset.json

IMAGES = ["00000/b.png", "00000/a.png", "c.png"]


def labelled(labels, images=IMAGES):
    return list_by_labels(json.dumps({"labels": labels}).encode(), images, (), "place")


def test_labels_are_taken_from_the_file_and_may_leave_classes_without_images():
    listing = labelled([["c.png", 0], ["00000/b.png", 4], ["00000/a.png", 0], ["c.png", 0]])
    assert listing.names == ["00000/a.png", "00000/b.png", "c.png"]
    assert listing.labels == [0, 4, 0]
    assert listing.class_names == ("0", "1", "2", "3", "4")
    assert labelled([[name, 99_999] for name in IMAGES]).class_names[-1] == "99999"


def test_labels_of_null_mean_unlabelled():
    listing = labelled(None)
    assert (listing.class_names, listing.labels) == ((), [0, 0, 0])
    assert listing.names == sorted(IMAGES)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "JSONDecodeError"),
        (b"{", "JSONDecodeError"),
        (b"\xff\xfe\xff", "UnicodeDecodeError"),
        (b"[" * 100_000, "RecursionError"),
        (b"[]", "TypeError"),
        (b"3", "TypeError"),
        (b"{}", "KeyError"),
        (b'{"labels": 3}', "labels are not a list"),
        (b'{"labels": {"c.png": 1}}', "labels are not a list"),
        (b'{"labels": [["c.png", ' + b"9" * 5000 + b"]]}", "ValueError"),
    ],
)
def test_files_of_another_content_are_errors(content, reason):
    with pytest.raises(DataError, match=rf"^Labels cannot be read: `place/dataset\.json` \(.*{reason}") as caught:
        list_by_labels(content, IMAGES, (), "place")
    assert '{"labels": null}' in caught.value.hint
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (["c.png", 1.0], "c.png: label 1.0 is not a whole number"),
        (["c.png", True], "c.png: label True is not a whole number"),
        (["c.png", None], "c.png: label None is not a whole number"),
        (["c.png", "1"], "c.png: label '1' is not a whole number"),
        (["c.png", [0, 1]], "c.png: label [0, 1] is not a whole number"),
        (["c.png", [0.5] * 500], "c.png: label [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, ...] is not a whole number"),
        (["c.png", -1], "c.png: label -1 is not in 0 to 99999"),
        (["c.png", 100_000], "c.png: label 100000 is not in 0 to 99999"),
        (["c.png", 2], "c.png: has the labels 1 and 2"),
        (["c.png"], "['c.png']: not a name and a label"),
        ([1, 1], "[1, 1]: not a name and a label"),
        ({"c.png": 1}, "{'c.png': 1}: not a name and a label"),
        ("c1", "'c1': not a name and a label"),
        (["a\n\x1b.png", -1], "a\\n\\x1b.png: label -1 is not in 0 to 99999"),
    ],
)
def test_labels_that_are_none_are_named(row, fault):
    with pytest.raises(DataError) as caught:
        labelled([["c.png", 1], row])
    assert caught.value.message == f"Labels cannot be used: `place/dataset.json`, 1 of them\n  {fault}"


def test_images_and_labels_must_be_the_same_and_ten_examples_are_listed():
    images = [f"{i:02d}.png" for i in range(30)]
    with pytest.raises(DataError) as caught:
        labelled([[name, 0] for name in images[3:]] + [["gone.png", 1]], images)
    assert caught.value.message == (
        "Labels and images differ: `place/dataset.json`, 4 names\n  00.png: an image without a label\n"
        "  01.png: an image without a label\n  02.png: an image without a label\n  gone.png: a label without an image"
    )
    with pytest.raises(DataError, match="30 names") as caught:
        labelled([], images)
    assert caught.value.message.count("\n") == 10
    with pytest.raises(DataError, match="30 of them") as caught:
        labelled([[name, -1] for name in images], images)
    assert caught.value.message.count("\n") == 10
    with pytest.raises(DataError, match="No images in `place`"):
        labelled([["x.png", 0]], [])


def test_a_folder_with_a_labels_file_is_read_by_it(tmp_path):
    for i, name in enumerate(IMAGES):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(i))
    # no class, though it holds no images
    (tmp_path / "empty").mkdir()
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": [[name, i] for i, name in enumerate(IMAGES)]}))
    source = FileSource(FolderFiles(tmp_path), image_size=12)
    assert source.class_names == ("0", "1", "2")
    assert source.labels.tolist() == [1, 0, 2]
    assert source.files.skipped == ()
    assert source.sample_name(2) == "c.png"
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DataError, match=rf"^Labels cannot be read: `{tmp_path}/dataset\.json`"):
        FolderFiles(tmp_path)


# -- ImageNet


@pytest.fixture
def imagenet(tmp_path):
    """Two classes in train and val, one image each; three images in test, without labels."""
    for seed, name in enumerate(
        (
            "train/n02119789/n02119789_1.JPEG",
            "train/n01440764/n01440764_1.JPEG",
            "val/n02119789/ILSVRC2012_val_00000002.JPEG",
            "val/n01440764/ILSVRC2012_val_00000001.JPEG",
            "test/ILSVRC2012_test_00000001.JPEG",
        )
    ):
        file = tmp_path / "set" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(seed))
    return tmp_path / "set"


def opened(path, split):
    return open_source("imagenet", path, split=split, image_size=12, channels=3)


def test_imagenet_is_read_by_its_parts(imagenet):
    train, test = opened(imagenet, "train"), opened(imagenet, "test")
    assert train.class_names == test.class_names == ("n01440764", "n02119789")
    assert train.sample_name(0) == "n01440764/n01440764_1.JPEG"
    assert test.sample_name(1) == "n02119789/ILSVRC2012_val_00000002.JPEG"
    assert train.labels.tolist() == test.labels.tolist() == [0, 1]
    levels = ((train.load(0, None) + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert np.array_equal(levels, np.random.default_rng(1).integers(0, 256, (12, 12, 3), np.uint8))
    for split in ("train", "test", "all"):
        # one of the parts itself serves every split
        itself = opened(imagenet / "train", split)
        assert itself.fingerprint == train.fingerprint
        assert torch.equal(itself.load(1, None), train.load(1, None))
    with pytest.raises(UsageError, match="train and val"):
        opened(imagenet, "all")


def test_what_imagenet_lacks_is_said(imagenet, tmp_path):
    def message(path, split):
        with pytest.raises(DataError) as caught:
            opened(path, split)
        return caught.value.message, caught.value.hint

    for file in (imagenet / "val").glob("*/*"):
        file.rename(imagenet / "val" / file.name)
    for folder in [path for path in (imagenet / "val").iterdir() if path.is_dir()]:
        folder.rmdir()
    found, hint = message(imagenet, "test")
    assert found == f"No class folders in `{imagenet}/val`"
    assert "Sort the images into one folder per class" in hint
    assert len(opened(imagenet, "train")) == 2
    (imagenet / "val").rename(tmp_path / "val")
    (imagenet / "test").rename(tmp_path / "test")
    found, hint = message(imagenet, "test")
    assert found == f"Folder not found: `{imagenet}/val`"
    assert "val/n01440764/*.JPEG" in hint
    assert len(opened(imagenet, "train")) == len(opened(imagenet, "all")) == 2
    (imagenet / "train").rename(imagenet / "pictures")
    found, hint = message(imagenet, "train")
    assert found.startswith(f"Not an ImageNet folder: `{imagenet}`")
    assert "data.source=folder" in hint
    found, _ = message(tmp_path / "absent", "train")
    assert found == f"Folder not found: `{tmp_path}/absent`"
