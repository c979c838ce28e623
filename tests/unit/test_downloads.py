import hashlib
import shutil
import tarfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from support.celeba import PARTITION, make_celeba
from support.cifar import make_cifar10
from support.mnist import make_mnist
from torchvision.datasets import CIFAR10, MNIST, CelebA

from dis_cli.data.open import kind_of, open_source, recognise
from dis_cli.data.published import celeba
from dis_cli.data.published.celeba import ANNOTATIONS, CelebaFiles
from dis_cli.errors import DataError, MissingResourceError, RefusedError


def opened(kind, path, split="train", download=False):
    return open_source(kind, path, split=split, image_size=12, channels=3, download=download)


# -- CIFAR-10, fetched from this machine


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path):
    """The URL at which the files of ``tmp_path`` stand."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def published(tmp_path, served, monkeypatch):
    """What the archive holds, as `make_cifar10` returns it; the archive stands at torchvision's URL."""
    images = make_cifar10(tmp_path / "unpacked", num_images=10)
    archive = tmp_path / "published/cifar-10-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "unpacked/cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(CIFAR10, "url", f"{served}/published/cifar-10-python.tar.gz")
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    return images


def test_cifar10_is_fetched_once_and_only_when_asked(published, tmp_path, monkeypatch):
    path = tmp_path / "new/data"
    with pytest.raises(DataError, match="Folder not found") as caught:
        opened("cifar10", path)
    assert "data.download=true" in caught.value.hint
    assert not path.exists()
    source = opened("cifar10", path, download=True)
    assert np.array_equal(source.labels, published["train"][1])
    levels = open_source("cifar10", path, image_size=32, channels=3).load(3, None)
    assert np.array_equal(((levels + 1) * 127.5).round().permute(1, 2, 0).numpy(), published["train"][0][3])
    assert sorted(file.name for file in path.iterdir()) == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]
    monkeypatch.setattr(CIFAR10, "url", "file:///gone")
    (path / "cifar-10-python.tar.gz").unlink()
    for where in (path, path / "cifar-10-batches-py"):
        assert opened("cifar10", where, download=True).fingerprint == source.fingerprint


def test_an_archive_that_is_there_is_unpacked(published, tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", "file:///gone")
    assert len(opened("cifar10", tmp_path / "published", "test", download=True)) == 5


def test_what_keeps_cifar10_from_being_fetched_is_one_clear_line(published, served, tmp_path, monkeypatch):
    def message():
        with pytest.raises(MissingResourceError) as caught:
            opened("cifar10", tmp_path / "data", download=True)
        assert caught.value.exit_code == 1
        assert f"by hand and unpack it in `{tmp_path}/data`" in caught.value.hint
        assert not (tmp_path / "data/cifar-10-batches-py").exists()
        # nothing half unpacked
        assert not list((tmp_path / "data").glob(".*"))
        assert "\n" not in caught.value.message
        return caught.value.message

    begin = f"CIFAR-10 cannot be downloaded to `{tmp_path}/data` ("
    with monkeypatch.context() as patch:
        patch.setattr(CIFAR10, "url", f"{served}/gone")
        assert message() == f"{begin}HTTP Error 404: File not found)"
        patch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
        assert "refused" in message()
    with monkeypatch.context() as patch:
        patch.setattr(CIFAR10, "tgz_md5", "0" * 32)
        assert message() == f"{begin}File not found or corrupted.)"
    # of the right checksum, but not what it should hold
    with monkeypatch.context() as patch:
        archive = tmp_path / "other/cifar-10-python.tar.gz"
        archive.parent.mkdir()
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(tmp_path / "unpacked/cifar-10-batches-py/test_batch", "cifar-10-batches-py.old/test_batch")
        patch.setattr(CIFAR10, "url", f"{served}/other/cifar-10-python.tar.gz")
        patch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
        assert message().startswith(begin)
    assert len(opened("cifar10", tmp_path / "data", download=True)) == 10


def test_what_was_fetched_is_not_trusted_either(published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    batch = tmp_path / "unpacked/cifar-10-batches-py/data_batch_1"
    batch.write_bytes(b"cos\nmkdir\n(X\x08\x00\x00\x00executedtR.")
    archive = tmp_path / "published/cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(batch.parent, "cifar-10-batches-py")
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    with pytest.raises(RefusedError, match=r"names `os\.mkdir`"):
        opened("cifar10", tmp_path / "data", download=True)
    assert not (tmp_path / "executed").exists()


# -- MNIST, fetched from this machine


@pytest.fixture
def mnist_files(tmp_path, served, monkeypatch):
    """The folder whose files stand at torchvision's URL."""
    make_mnist(tmp_path / "published")
    files = sorted((tmp_path / "published").iterdir())
    monkeypatch.setattr(MNIST, "mirrors", [f"{served}/published/"])
    resources = [(file.name, hashlib.md5(file.read_bytes()).hexdigest()) for file in files]
    monkeypatch.setattr(MNIST, "resources", resources)
    return tmp_path / "published"


def test_mnist_is_fetched_once_and_only_when_asked(mnist_files, tmp_path, monkeypatch):
    path = tmp_path / "new"
    with pytest.raises(DataError, match="Folder not found") as caught:
        opened("mnist", path)
    assert "data.download=true" in caught.value.hint
    assert not path.exists()
    source = opened("mnist", path, download=True)
    assert source.fingerprint == opened("mnist", mnist_files).fingerprint
    monkeypatch.setattr(MNIST, "mirrors", ["file:///gone/"])
    assert opened("mnist", path, "all", download=True).fingerprint == opened("mnist", mnist_files, "all").fingerprint
    with pytest.raises(MissingResourceError, match="MNIST cannot be downloaded"):
        opened("mnist", tmp_path / "other", download=True)


@pytest.mark.parametrize(
    "layout", ["{}-images-idx3-ubyte.gz", "MNIST/raw/{}-images-idx3-ubyte", "{}-images.idx3-ubyte"]
)
def test_mnist_is_read_as_it_is_found(tmp_path, layout):
    images, labels = make_mnist(tmp_path / "data", layout)["test"]
    assert kind_of(tmp_path / "data") == recognise(tmp_path / "data") == "mnist"
    source = open_source("mnist", tmp_path / "data", split="test", image_size=28, channels=1)
    assert np.array_equal(source.labels, labels)
    assert np.array_equal(((source.load(2, None)[0] + 1) * 127.5).round().numpy(), images[2])
    padded = open_source("mnist", tmp_path / "data", split="test", image_size=32, channels=3).load(2, None)
    assert np.array_equal(((padded + 1) * 127.5).round().numpy(), np.broadcast_to(np.pad(images[2], 2), (3, 32, 32)))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda content: content[:-1], "or damaged"),
        (lambda content: content + b"0", "or damaged"),
        (lambda _: b"", "or damaged"),
        (lambda _: b"<html>", "or damaged"),
        (lambda content: content[:3] + bytes([2]) + content[4:], "or damaged"),
        (lambda content: content[:-1] + bytes([10]), "are not 0 to 9: 10"),
        (None, "is missing"),
    ],
)
def test_damaged_mnist_is_named(tmp_path, damage, told):
    make_mnist(tmp_path, "{}-images-idx3-ubyte")
    file = tmp_path / "train-labels-idx1-ubyte"
    content = file.read_bytes()
    file.unlink() if damage is None else file.write_bytes(damage(content))
    with pytest.raises(DataError, match=told):
        opened("mnist", tmp_path)
    assert len(opened("mnist", tmp_path, "test")) == 10


def test_a_truncated_archive_of_mnist_is_named(tmp_path):
    make_mnist(tmp_path)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match="Cannot be read"):
        opened("mnist", tmp_path)


# -- CelebA, fetched by a stand-in for gdown


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A small CelebA, whose checksums stand for the published ones."""
    monkeypatch.setattr(CelebA, "file_list", make_celeba(tmp_path / "set"))
    return tmp_path / "set"


def test_celeba_is_read_by_its_partition_without_labels(root):
    for split, parts in {"train": (0,), "test": (2,), "all": (0, 1, 2)}.items():
        source = opened("celeba", root, split)
        numbers = [index for index, part in enumerate(PARTITION) if part in parts]
        assert [source.sample_name(i) for i in range(len(source))] == [f"{n + 1:06d}.jpg" for n in numbers]
        assert (source.num_classes, source.class_names, source.labels.tolist()) == (0, (), [0] * len(numbers))
        for index, seed in enumerate(numbers):
            expected = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
            levels = ((source.load(index, None) + 1) * 127.5).round().permute(1, 2, 0).numpy()
            assert np.array_equal(levels, expected)
    assert source.name == str(root / "celeba/img_align_celeba")
    assert len({opened("celeba", root, split).fingerprint for split in ("train", "test", "all")}) == 3
    with pytest.raises(ValueError, match="split must be"):
        CelebaFiles(root, "valid")


def test_a_missing_or_damaged_celeba_says_what_goes_where(root, tmp_path):
    def message(path):
        with pytest.raises(DataError) as caught:
            opened("celeba", path)
        for word in ("DIR/celeba/img_align_celeba", "000001.jpg", *ANNOTATIONS, "data.download=true"):
            assert word in caught.value.hint
        return caught.value.message

    assert message(tmp_path / "absent") == f"Folder not found: `{tmp_path}/absent`"
    (tmp_path / "empty").mkdir()
    assert message(tmp_path / "empty") == f"CelebA is missing or damaged in `{tmp_path}/empty`"
    for name in ("000001.jpg", "000003.jpg"):
        (root / "celeba/img_align_celeba" / name).rename(tmp_path / name)
    assert message(root) == (
        f"2 of 2 images are missing in `{root}/celeba/img_align_celeba`\n  000001.jpg\n  000003.jpg"
    )
    for name in ("000001.jpg", "000003.jpg"):
        (tmp_path / name).rename(root / "celeba/img_align_celeba" / name)
    for name in ANNOTATIONS:
        file = root / "celeba" / name
        content = file.read_text()
        file.write_text(content + "\n")
        assert message(root) == f"CelebA is missing or damaged in `{root}`"
        file.unlink()
        assert message(root) == f"CelebA is missing or damaged in `{root}`"
        file.write_text(content)
    assert len(opened("celeba", root)) == 2


def test_a_bad_image_of_celeba_is_named(root):
    (root / "celeba/img_align_celeba/000003.jpg").write_bytes(b"")
    source = opened("celeba", root)
    with pytest.raises(DataError, match=r"celeba/img_align_celeba/000003\.jpg` \(the file is empty\), image 1 of 2"):
        source.load(1, None)


def test_celeba_is_fetched_when_asked(root, tmp_path, monkeypatch):
    asked = []

    def fetched(file_id, folder, name, md5):
        asked.append((file_id, name, md5))
        (tmp_path / "new/celeba").mkdir(exist_ok=True, parents=True)
        shutil.copy(root / "celeba" / name, folder)

    monkeypatch.setattr("torchvision.datasets.celeba.download_file_from_google_drive", fetched)
    source = opened("celeba", tmp_path / "new", "all", download=True)
    assert asked == [(file_id, name, md5) for file_id, md5, name in CelebA.file_list]
    here = opened("celeba", root, "all")
    assert source.fingerprint == here.fingerprint
    assert torch.equal(source.load(4, None), here.load(4, None))
    opened("celeba", tmp_path / "new", download=True)
    assert len(asked) == 6


class TooManyUsersError(Exception):
    """As gdown words a quota that is used up."""

    def __str__(self):
        return "\n\tToo many users have viewed or downloaded this file recently.\n\nYou may still be able to ...\n"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("To download files from GDrive, 'gdown' is required."), "'gdown' is required."),
        (OSError(101, "Network is unreachable"), "Network is unreachable"),
        (TooManyUsersError(), "(Too many users have viewed or downloaded this file recently.)"),
        (zipfile.BadZipFile(), "BadZipFile"),
    ],
)
def test_what_keeps_celeba_from_being_fetched_is_one_clear_line(tmp_path, monkeypatch, error, reason):
    def failing(*_):
        raise error

    monkeypatch.setattr("torchvision.datasets.celeba.download_file_from_google_drive", failing)
    with pytest.raises(MissingResourceError) as caught:
        opened("celeba", tmp_path / "new", download=True)
    assert caught.value.message.startswith(f"CelebA cannot be downloaded to `{tmp_path}/new` (")
    assert reason in caught.value.message
    assert "\n" not in caught.value.message
    assert celeba.HINT in caught.value.hint
