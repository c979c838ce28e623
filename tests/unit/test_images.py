import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from support.archives import pack
from support.cifar import make_cifar10

from dis_cli.data.images.files import FileSource, FolderFiles
from dis_cli.data.open import KINDS, kind_of, open_source
from dis_cli.data.published.cifar import Cifar10Source
from dis_cli.data.published.digits import DigitsSource
from dis_cli.data.source import ImageSource
from dis_cli.errors import DataError, RefusedError, UsageError


def write_image(path, seed=0, size=(12, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(levels).save(path)
    return levels


@pytest.fixture
def folder(tmp_path):
    """Three classes, named so that their order is not the order of writing; four images of 12x12."""
    root = tmp_path / "set"
    for seed, name in enumerate(["dog/b.png", "dog/a.png", "ant/nested/c.png", "cat/D.PNG"]):
        write_image(root / name, seed)
    return root


def to_levels(grid):
    return ((grid + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()


def test_digits_are_the_published_ones_divided_by_8():
    images = load_digits().images
    everything = DigitsSource("all")
    assert len(everything) == 1797
    assert np.array_equal(everything.labels, load_digits().target)
    for index in (0, 1796):
        grid = everything.load(index, None)
        assert grid.dtype == torch.float32
        assert np.array_equal(grid.numpy(), images[index][None] / 8 - 1)


def test_the_digits_split_is_stratified_and_complete():
    train, test = DigitsSource("train"), DigitsSource("test")
    assert (len(train), len(test)) == (1347, 450)

    def grids(source):
        return sorted((int(source.labels[i]), *source.load(i, None).flatten().tolist()) for i in range(len(source)))

    assert sorted(grids(train) + grids(test)) == grids(DigitsSource("all"))
    share = np.bincount(train.labels) / 1347 - np.bincount(test.labels) / 450
    assert np.abs(share).max() < 1 / 450
    assert len({train.fingerprint, test.fingerprint, DigitsSource("all").fingerprint}) == 3
    assert train.fingerprint == DigitsSource("train").fingerprint


def test_enlarged_digits_keep_their_levels():
    small, large = DigitsSource("test"), DigitsSource("test", image_size=32, channels=3)
    assert large.fingerprint == small.fingerprint
    for index in (0, 449):
        grid = large.load(index, None)
        assert grid.shape == (3, 32, 32)
        assert torch.equal(grid[0], grid[1])
        assert torch.equal(grid[0], grid[2])
        # averaging back blurs by a share of a level step (2 of 16 is 0.25), no more
        back = torch.nn.functional.avg_pool2d(grid[:1], 4)
        assert (back - small.load(index, None)).abs().mean() < 0.1
    assert (large.load(0, np.random.default_rng(0)) == large.load(0, None)).all()


def test_class_folders_give_sorted_names_as_labels(folder):
    source = FileSource(FolderFiles(folder), image_size=12)
    assert source.class_names == ("ant", "cat", "dog")
    assert source.num_classes == 3
    assert source.labels.tolist() == [0, 1, 2, 2]
    assert source.labels.dtype == np.int64
    # written as seeds 2, 3, 1, 0
    for index, seed in enumerate([2, 3, 1, 0]):
        expected = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        grid = source.load(index, None)
        assert np.array_equal(to_levels(grid), expected)
        assert grid.dtype == torch.float32


def test_a_flat_folder_is_unlabelled(tmp_path):
    for name in ("b.jpg", "a.webp", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "empty folder").mkdir()
    source = FileSource(FolderFiles(tmp_path), image_size=8)
    assert len(source) == 2
    assert (source.num_classes, source.class_names, source.labels.tolist()) == (0, (), [0, 0])
    assert source.files.skipped == ()


def test_images_reach_the_ends_of_the_range_in_the_size_and_channels_asked(tmp_path):
    levels = np.zeros((20, 40), np.uint8)
    levels[:, 20:] = 255
    Image.fromarray(levels).save(tmp_path / "a.png")
    for channels in (1, 3):
        grid = FileSource(FolderFiles(tmp_path), image_size=10, channels=channels).load(0, None)
        assert grid.shape == (channels, 10, 10)
        assert (grid[:, :, 0].unique().tolist(), grid[:, :, -1].unique().tolist()) == ([-1.0], [1.0])


def test_the_generator_mirrors_half_of_the_images(folder):
    source = FileSource(FolderFiles(folder), image_size=12, hflip=True)
    plain = source.load(0, None)
    mirrored = 0
    for seed in range(500):
        grid = source.load(0, np.random.default_rng(seed))
        assert torch.equal(grid, source.load(0, np.random.default_rng(seed)))
        mirrored += torch.equal(grid, plain.flip(2))
        assert torch.equal(grid, plain) or torch.equal(grid, plain.flip(2))
    # four standard deviations of a fair coin
    assert abs(mirrored - 250) <= 45
    without = FileSource(FolderFiles(folder), image_size=12)
    assert all(torch.equal(without.load(0, np.random.default_rng(seed)), plain) for seed in range(10))


def test_odd_entries_are_skipped_with_a_reason(folder):
    (folder / "cat/link.png").symlink_to("nowhere.png")
    (folder / "cat/self.png").symlink_to("self.png")
    (folder / "cat/up").symlink_to("..")
    (folder / "again").symlink_to(".")
    (folder / "cat/folder.png").mkdir()
    os.mkfifo(folder / "cat/pipe.png")
    write_image(folder / "loose.png")
    source = FileSource(FolderFiles(folder), image_size=8)
    assert source.labels.tolist() == [0, 1, 2, 2]
    assert {line.rpartition(": ")[0]: line.rpartition(": ")[2] for line in source.files.skipped} == {
        "cat/link.png": "a broken link",
        "cat/self.png": "cannot be followed (Too many levels of symbolic links)",
        "cat/up": "a link to a folder around it",
        "again": "a link to a folder around it",
        "cat/folder.png": "a folder named like an image",
        "cat/pipe.png": "not a regular file",
        "loose.png": "lies beside the class folders",
    }


def test_names_that_are_no_utf_8_are_read_and_escaped(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)  # noqa: PTH102 - a name in bytes
    write_image(tmp_path / "plain.png")
    (tmp_path / "plain.png").rename(os.fsdecode(folder + b"/\xff[x].png"))
    source = FileSource(FolderFiles(tmp_path), image_size=8)
    assert source.class_names == ("caf\\udce9",)
    assert source.load(0, None).shape == (3, 8, 8)
    assert len(source.fingerprint) == 64
    (tmp_path / source.class_names[0]).mkdir()
    with pytest.raises(DataError, match=r"without images in `.*`: caf"):
        FileSource(FolderFiles(tmp_path), image_size=8)


def test_folder_errors_say_what_is_wrong(folder, tmp_path):
    def message(path):
        with pytest.raises(DataError) as caught:
            FileSource(FolderFiles(path), image_size=8)
        assert caught.value.hint
        return caught.value.message

    assert message(tmp_path / "absent") == f"Folder not found: `{tmp_path}/absent`"
    assert message(folder / "cat/D.PNG") == f"Not a folder: `{folder}/cat/D.PNG`"
    (folder / "bee").mkdir()
    assert message(folder) == f"Class folder without images in `{folder}`: bee"
    (folder / "bee/link.png").symlink_to("nowhere")
    assert message(folder / "bee") == f"No images in `{folder}/bee`\n  link.png: a broken link"


def test_a_corrupt_image_is_named_with_its_index(folder):
    damaged = folder / "dog/a.png"
    damaged.write_bytes(damaged.read_bytes()[:100])
    source = FileSource(FolderFiles(folder), image_size=8)
    source.load(3, None)
    with pytest.raises(DataError, match=r"dog/a\.png` \(.*\), image 2 of 4"):
        source.load(2, None)


def test_the_fingerprint_of_a_folder_follows_names_and_sizes(folder):
    first = FileSource(FolderFiles(folder), image_size=8).fingerprint
    assert FileSource(FolderFiles(folder), image_size=12, channels=1).fingerprint == first
    (folder / "dog/a.png").rename(folder / "dog/c.png")
    renamed = FileSource(FolderFiles(folder), image_size=8).fingerprint
    with (folder / "dog/c.png").open("ab") as file:
        file.write(b" ")
    assert len({first, renamed, FileSource(FolderFiles(folder), image_size=8).fingerprint}) == 3


def test_a_divided_folder_gives_the_part_asked_for(tmp_path):
    def opened(split):
        return open_source("folder", tmp_path, split=split, image_size=8, channels=3)

    write_image(tmp_path / "train/ant/a.png")
    # one part alone is a class like any other
    assert opened("train").class_names == opened("test").class_names == ("train",)
    write_image(tmp_path / "lone/val/a.png")
    assert open_source("folder", tmp_path / "lone", split="test", image_size=8, channels=3).class_names == ("val",)
    (tmp_path / "lone").rename(tmp_path / ".lone")
    for name in ("test/ant/a.png", "test/ant/b.png"):
        write_image(tmp_path / name)
    assert (len(opened("train")), len(opened("test"))) == (1, 2)
    for name in ("val/ant/a.png", "val/ant/b.png", "val/ant/c.png"):
        write_image(tmp_path / name)
    assert len(opened("test")) == 3
    with pytest.raises(UsageError, match="train and val"):
        opened("all")


def test_cifar10_is_read_from_its_batches(tmp_path):
    written = make_cifar10(tmp_path, num_images=12)
    for split, (images, labels) in written.items():
        # the folder itself is accepted too
        for path in (tmp_path, tmp_path / "cifar-10-batches-py"):
            source = Cifar10Source(path, split)
            assert np.array_equal(source.labels, labels)
            for index in range(len(images)):
                assert np.array_equal(to_levels(source.load(index, None)), images[index])
    everything = Cifar10Source(tmp_path, "all", image_size=8, channels=1)
    assert len(everything) == 18
    assert everything.load(17, None).shape == (1, 8, 8)
    assert len({Cifar10Source(tmp_path, split).fingerprint for split in ("train", "test", "all")}) == 3


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", "i8", ">u2"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar10_batches_of_ones_own_may_be_of_any_whole_numbers(tmp_path, order, dtype, protocol):
    images, labels = make_cifar10(tmp_path)["test"]
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), 3072)
    batch = {"data": np.asarray(rows, dtype, order=order), "labels": labels.astype(np.uint8)}
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(pickle.dumps(batch, protocol=protocol))
    source = Cifar10Source(tmp_path, "test")
    assert np.array_equal(source.labels, labels)
    assert all(np.array_equal(to_levels(source.load(index, None)), image) for index, image in enumerate(images))


def test_missing_cifar10_says_what_to_put_where(tmp_path):
    with pytest.raises(DataError, match="Folder not found") as caught:
        Cifar10Source(tmp_path)
    for word in ("cifar-10-python.tar.gz", "cifar-10-batches-py", "--data DIR", "data.download=true"):
        assert word in caught.value.hint
    (tmp_path / "cifar-10-python.tar.gz").touch()
    with pytest.raises(DataError) as caught:
        Cifar10Source(tmp_path)
    assert f"tar -xzf {tmp_path}/cifar-10-python.tar.gz -C {tmp_path}" in caught.value.hint


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


ROWS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        ({"data": np.zeros((2, 1)), "labels": [0, 1]}, "not rows of 3072 bytes"),
        ({"data": ROWS.astype(np.float32), "labels": [0, 1]}, "the data are float32 (2, 3072), not rows of"),
        ({"data": ROWS.reshape(2, 3, 32, 32), "labels": [0, 1]}, "the data are uint8 (2, 3, 32, 32), not rows of"),
        ({"data": [[0] * 3072], "labels": [0]}, "the data are not an array, but of type list"),
        ({"data": ROWS.astype(np.int64) - 1, "labels": [0, 1]}, "levels must be 0 to 255, got -1 to -1"),
        ({"data": ROWS.astype(np.uint16) + 256, "labels": [0, 1]}, "levels must be 0 to 255, got 256 to 256"),
        ({"data": ROWS, "labels": [0.0, 1.0]}, "need as many whole-number labels, got float64 (2,)"),
        ({"data": ROWS, "labels": [0]}, "2 images need as many"),
        ({"data": ROWS, "labels": [0, 10]}, "labels must be 0 to 9, got 0 to 10"),
        ({"labels": [0, 1]}, "KeyError"),
        ([], "TypeError"),
    ],
)
def test_batches_that_are_none_are_errors(tmp_path, batch, reason):
    make_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py/test_batch"
    path.write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(DataError) as caught:
        Cifar10Source(tmp_path, "test")
    assert f"`{path}`" in caught.value.message
    assert reason in caught.value.message


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (pickle.dumps({"data": ROWS, "labels": Malicious()}, protocol=2), "posix.mkdir"),
        (pickle.dumps({"labels": Malicious()}, protocol=5), "posix.mkdir"),
        (pickle.dumps(np.zeros((2, 2)), protocol=5), "_frombuffer"),
        (pickle.dumps(eval, protocol=2), "eval"),
        (b"cos\n\x1b[0m\n(tR.", "os.\\x1b[0m"),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x04\x00\x00\x00hex_tR.", "'hex_'"),
    ],
)
def test_batches_that_name_code_are_refused_and_never_executed(tmp_path, monkeypatch, content, named):
    monkeypatch.chdir(tmp_path)
    make_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py/data_batch_2"
    path.write_bytes(content)
    with pytest.raises(RefusedError) as caught:
        open_source("cifar10", tmp_path, image_size=32, channels=3)
    assert caught.value.exit_code == 2
    assert caught.value.message.startswith(f"`{path}` was refused, nothing in it was run")
    assert named in caught.value.message
    assert not (tmp_path / "executed").exists()


def test_truncated_and_absent_batches_are_named(tmp_path):
    make_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py/data_batch_3"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match="data_batch_3"):
        Cifar10Source(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"data_batch_3` \(No such file"):
        Cifar10Source(tmp_path)


def test_every_source_refuses_an_index_out_of_range_and_survives_pickling(folder, tmp_path):
    make_cifar10(tmp_path / "cifar")
    for source in (
        DigitsSource("test"),
        FileSource(FolderFiles(folder), image_size=8),
        Cifar10Source(tmp_path / "cifar"),
    ):
        assert isinstance(source, ImageSource)
        for index in (-1, len(source)):
            with pytest.raises(IndexError, match=f"index must be 0 to {len(source) - 1}, got {index}"):
                source.load(index, None)
        copy = pickle.loads(pickle.dumps(source))
        assert torch.equal(copy.load(len(source) - 1, None), source.load(len(source) - 1, None))
        assert not source.labels.flags.writeable


def test_open_source_chooses_by_kind(folder, tmp_path):
    make_cifar10(tmp_path / "cifar")
    assert len(open_source("digits", None, split="test", image_size=8, channels=1)) == 450
    source = open_source("cifar10", tmp_path / "cifar", split="test", image_size=16, channels=3)
    assert (source.name, len(source), source.image_size, source.channels) == ("cifar10", 10, 16, 3)
    source = open_source("folder", folder, split="all", image_size=16, channels=1)
    assert (source.name, len(source), source.load(0, None).shape) == (str(folder), 4, (1, 16, 16))


@pytest.mark.parametrize(
    ("kind", "path", "channels", "expected"),
    [
        ("folder", None, 3, "--data DIR"),
        ("cifar10", None, 3, "cifar-10-batches-py"),
        ("cifar10", None, 3, "data.download=true"),
        ("celeba", None, 3, "data.download=true"),
        ("imagenet", None, 3, "--data DIR"),
        ("zip", None, 3, "--data FILE"),
        ("tar", None, 3, "--data FILE"),
        ("zip", "x", 4, "1 or 3"),
        ("folder", "x", 4, "1 or 3"),
        ("digits", "x", 1, "data.source=folder"),
        ("digits", None, 4, "1 or 3"),
    ],
)
def test_impossible_settings_are_usage_errors_with_a_hint(tmp_path, kind, path, channels, expected):
    with pytest.raises(UsageError) as caught:
        open_source(kind, path and tmp_path / path, image_size=8, channels=channels)
    assert expected in caught.value.hint


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "digits"])
def test_a_path_for_another_kind_is_a_usage_error_that_names_the_kind(folder, tmp_path, kind):
    paths = {"folder": folder, "zip": pack(folder, tmp_path / "x.ZIP"), "tar": pack(folder, tmp_path / "x.tar")}
    # refused with the command to use, by the reader of tar files
    paths["tar "] = tmp_path / "x.tar.gz"
    paths["tar "].touch()
    reads = kind if kind in ("zip", "tar") else "folder"
    for fitting, path in paths.items():
        if fitting.strip() == reads:
            continue
        with pytest.raises(UsageError) as caught:
            open_source(kind, path, image_size=8, channels=3)
        assert caught.value.message.startswith(f"data.source `{kind}` reads a {reads}")
        assert f"`{path}`" in caught.value.message
        assert caught.value.hint == f"Set data.source={fitting.strip()}"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "digits"])
@pytest.mark.parametrize("name", ["absent", "absent.zip", "absent.tar", "file", "x" * 300])
def test_paths_that_no_kind_reads_are_data_errors(tmp_path, kind, name):
    (tmp_path / "file").write_bytes(b"neither this nor that")
    with pytest.raises(DataError) as caught:
        open_source(kind, tmp_path / name, image_size=8, channels=3)
    assert f"{tmp_path}/{name}" in caught.value.message
    assert caught.value.hint


def test_the_kind_is_guessed_from_the_path(folder, tmp_path):
    make_cifar10(tmp_path / "cifar")
    (tmp_path / "notes.txt").touch()
    expected = {"set": "folder", "cifar": "cifar10", "cifar/cifar-10-batches-py": "cifar10", ".": "folder"}
    for name in ("x.zip", "x.ZIP", "x.tar", "x.tar.gz", "x.tgz", "x.tar.xz", "x.tar.bz2", "x.tar.zst"):
        (tmp_path / name).touch()
        expected[name] = "zip" if name.lower().endswith("zip") else "tar"
    assert {name: kind_of(tmp_path / name) for name in expected} == expected
    for name in ("notes.txt", "absent", "absent.zip", "set/dog/a.png"):
        with pytest.raises(UsageError, match=f"`{tmp_path}/{name}`"):
            kind_of(tmp_path / name)
    with pytest.raises(DataError, match="File name too long"):
        kind_of(tmp_path / ("x" * 300))


def test_arrays_are_listed_where_they_are_read(tmp_path):
    (tmp_path / "a.npy").touch()
    with pytest.raises(UsageError, match=r"\.tar\.zst, \.npz file") as caught:
        kind_of(tmp_path / "a.npy", or_npz=True)
    assert "npz" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        kind_of(tmp_path / "a.npy")
    assert "npz" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize("kind", ["cifar10", "celeba", "imagenet"])
@pytest.mark.parametrize("classes", [True, False])
def test_images_of_ones_own_for_a_published_set_are_told_their_source(folder, tmp_path, kind, classes):
    path = folder if classes else folder / "dog"
    with pytest.raises(DataError) as caught:
        open_source(kind, path, image_size=8, channels=3)
    assert "data.source=folder" in caught.value.hint
    assert len(open_source("folder", path, image_size=8, channels=3)) > 0


@pytest.mark.parametrize("kind", ["folder", "imagenet", "celeba", "digits"])
def test_published_sets_and_latents_for_another_source_are_told_theirs(tmp_path, kind):
    make_cifar10(tmp_path / "cifar")
    (tmp_path / "latents").mkdir()
    (tmp_path / "latents" / "manifest.json").write_text("{}")
    for name, source in (("cifar", "cifar10"), ("cifar/cifar-10-batches-py", "cifar10"), ("latents", "latents")):
        with pytest.raises((DataError, UsageError)) as caught:
            open_source(kind, tmp_path / name, image_size=8, channels=1)
        assert f"data.source={source}" in caught.value.hint


def test_what_is_given_to_the_digits_is_told_its_source(folder, tmp_path):
    given = {"folder": folder, "zip": pack(folder, tmp_path / "x.zip"), "tar": pack(folder, tmp_path / "x.tar")}
    for source, path in given.items():
        with pytest.raises(UsageError, match="The bundled digits take no folder") as caught:
            open_source("digits", path, image_size=8, channels=1)
        assert f"Set data.source={source} " in caught.value.hint
        assert len(open_source(source, path, image_size=8, channels=1)) > 0


def test_the_archive_of_cifar10_is_no_tar_of_images(tmp_path):
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.touch()
    for path in (tmp_path, archive):
        with pytest.raises((DataError, UsageError)) as caught:
            open_source("cifar10", path, image_size=32, channels=3)
        assert f"tar -xzf {archive} -C {tmp_path}`; give `--data {tmp_path}`" in caught.value.hint


def test_unknown_kinds_and_splits_are_refused(tmp_path):
    with pytest.raises(ValueError, match="kind must be"):
        open_source("mnits", tmp_path, image_size=8, channels=3)
    for opened in (
        lambda: DigitsSource("val"),
        lambda: Cifar10Source(tmp_path, "val"),
        lambda: open_source("folder", tmp_path, split="val", image_size=8, channels=3),
    ):
        with pytest.raises(ValueError, match="split must be one of train, test, all"):
            opened()


def test_importing_the_module_loads_neither_sklearn_nor_torchvision():
    code = "import sys, dis_cli.data.open; sys.exit(bool({'sklearn', 'torchvision'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("colour", ["pinkish", "#12345", ""])
def test_an_unknown_background_is_refused(folder, colour):
    with pytest.raises(UsageError, match="Unknown colour") as caught:
        open_source("folder", folder, image_size=8, channels=3, background=colour)
    assert "#rrggbb" in caught.value.hint
