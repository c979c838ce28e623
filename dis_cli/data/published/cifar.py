"""CIFAR-10's batch files, read from the folder its archive unpacks to.

The batches are pickles, and a pickle can run any code. torchvision's reader therefore compares their MD5 with the
published ones and then trusts them. This one trusts nothing: it builds plain values and arrays only and refuses every
other object, so no checksum is needed and a set of one's own in the same layout (a subset, other images) works too.
"""

import pickle
import tempfile
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from jaxtyping import Int64, UInt8

from dis_cli.data.decode import printable
from dis_cli.data.images.folders import require_folder
from dis_cli.data.published.download import downloading
from dis_cli.data.published.stored import StoredSource
from dis_cli.data.source import require_split
from dis_cli.errors import DataError, RefusedError

ARCHIVE = "cifar-10-python.tar.gz"
FOLDER = "cifar-10-batches-py"
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_FILES = ("test_batch",)


class Cifar10Source(StoredSource):
    """CIFAR-10 in the layout its archive unpacks to, held in memory (3 kB an image).

    Args:
        path: The folder that holds ``cifar-10-batches-py``.
        split: "train" (the five data batches), "test" (the test batch), or "all" (both, in this order).
        image_size: Side of the result, in pixels; 32 keeps the images as they are.
        channels: 3, or 1 for grey.
        hflip: Mirror half of the images when augmenting.
        download: Fetch and unpack the archive when the folder is not there.

    Raises:
        DataError: When the folder or a batch is missing or damaged, saying what to put where.
        RefusedError: When a batch holds anything but plain values and arrays.
        MissingResourceError: When the archive cannot be fetched.
        ValueError: When the split has another name.
    """

    name = "cifar10"
    num_classes = len(CLASS_NAMES)
    class_names = CLASS_NAMES

    def __init__(
        self,
        path: Path,
        split: str = "train",
        *,
        image_size: int = 32,
        channels: int = 3,
        hflip: bool = False,
        download: bool = False,
    ) -> None:
        require_split(split)
        if download and not has_batches(path):
            fetch(path)
        files = {"train": TRAIN_FILES, "test": TEST_FILES, "all": TRAIN_FILES + TEST_FILES}
        images, labels = read_batches(find_batches(path), files[split])
        super().__init__(images, labels, split=split, image_size=image_size, channels=channels, hflip=hflip)


def has_batches(path: Path) -> bool:
    """True if a folder holds the folder of the batch files, or is that folder itself."""
    return (path / FOLDER).is_dir() or (path / TRAIN_FILES[0]).is_file()


def find_batches(path: Path) -> Path:
    """The folder of the batch files: inside the folder given, or that folder itself.

    Args:
        path: The folder that the archive was unpacked in.

    Raises:
        DataError: When it is not there, saying what to put where.
    """
    advice = (
        f"Unpack {ARCHIVE} (https://www.cs.toronto.edu/~kriz/cifar.html) in DIR, so that DIR/{FOLDER} exists, "
        "or set data.download=true to have that done"
    )
    hint = f"{advice}; give `--data DIR` (or data.path=DIR)"
    require_folder(path, hint)
    if (path / TRAIN_FILES[0]).is_file():
        return path
    if (path / ARCHIVE).is_file():
        hint = unpack_hint(path / ARCHIVE)
    else:
        hint = f"To read images of your own, set data.source=folder. For CIFAR-10: {hint}"
    require_folder(path / FOLDER, hint)
    return path / FOLDER


def unpack_hint(archive: Path) -> str:
    """A hint on unpacking CIFAR-10's archive."""
    folder = printable(archive.parent)
    return (
        f"Unpack it first: `tar -xzf {printable(archive)} -C {folder}`; give `--data {folder}` (or data.path={folder})"
    )


def fetch(path: Path) -> None:
    """Fetch the archive, unless it is there, compare its MD5 with the published one, and unpack it.

    Args:
        path: The folder to unpack it in.

    Raises:
        MissingResourceError: When that fails.
    """
    # imported here because torchvision takes a second to load
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import download_and_extract_archive

    hint = f"Fetch {CIFAR10.url} by hand and unpack it in `{printable(path)}`"
    with downloading("CIFAR-10", path, hint), warnings.catch_warnings():
        # Python's change of default for extracting tar files
        warnings.simplefilter("ignore", DeprecationWarning)
        path.mkdir(parents=True, exist_ok=True)
        # moved into place when it is whole, so that an interruption leaves nothing that looks like the data
        with tempfile.TemporaryDirectory(dir=path, prefix=".tmp-") as scratch:
            download_and_extract_archive(CIFAR10.url, path, scratch, CIFAR10.filename, CIFAR10.tgz_md5)
            (Path(scratch) / FOLDER).rename(path / FOLDER)


def read_batches(folder: Path, files: tuple[str, ...]) -> tuple[UInt8[np.ndarray, "n 32 32 3"], Int64[np.ndarray, "n"]]:
    """Read the images and labels of some batch files.

    Args:
        folder: The folder that holds them.
        files: Their names, in order.

    Raises:
        DataError: When one is absent, damaged, or holds other values than images and labels, naming it.
        RefusedError: When one holds anything but plain values and arrays, naming it.
    """
    parts = [_read_batch(folder / name) for name in files]
    images = np.concatenate([images for images, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    # stored as three planes, red green blue
    return np.ascontiguousarray(images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


def _read_batch(path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    try:
        with path.open("rb") as file:
            # the published files were written by Python 2, whose strings are bytes
            batch = _ArraysOnly(file, encoding="latin1").load()
        images, labels = batch["data"], np.asarray(batch["labels"])
        if not isinstance(images, np.ndarray):
            raise ValueError(f"the data are not an array, but of type {type(images).__name__}")
        if images.dtype.kind not in "iu" or images.shape[1:] != (3072,):
            raise ValueError(
                f"the data are {images.dtype.name} {images.shape}, not rows of 3072 bytes: 1024 of red, of green and "
                "of blue"
            )
        if images.size and not (images.min() >= 0 and images.max() <= 255):
            raise ValueError(f"levels must be 0 to 255, got {images.min()} to {images.max()}")
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
            raise ValueError(
                f"{images.shape[0]} images need as many whole-number labels, got {labels.dtype.name} {labels.shape}"
            )
        if labels.size and not (labels.min() >= 0 and labels.max() < len(CLASS_NAMES)):
            raise ValueError(f"labels must be 0 to {len(CLASS_NAMES) - 1}, got {labels.min()} to {labels.max()}")
    except _NotAllowed as error:
        raise RefusedError(
            f"`{printable(path)}` was refused, nothing in it was run: it holds more than images and labels ({error})",
            f"Do not load it with anything else either; unpack {ARCHIVE} again",
        ) from error
    # damaged pickles raise anything
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) else printable(f"{type(error).__name__}: {error}")
        raise DataError(
            f"CIFAR-10 batch cannot be read: `{printable(path)}` ({reason})", f"Unpack {ARCHIVE} again"
        ) from error
    return images.astype(np.uint8, copy=False), labels.astype(np.int64)


class _NotAllowed(pickle.UnpicklingError):
    """A name that can do more than make an array of numbers."""


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that knows four names, enough for an array of numbers, and none that does anything else."""

    def find_class(self, module_name: str, global_name: str, /) -> object:
        match module_name, global_name:
            case (("numpy.core.multiarray" | "numpy._core.multiarray"), "_reconstruct"):
                return _empty_array
            # only ever an argument of _reconstruct, which ignores it: as a callable it could claim any memory
            case "numpy", "ndarray":
                return None
            case "numpy", "dtype":
                return np.dtype
            case "_codecs", "encode":
                return _latin1
            case _, "_frombuffer":
                raise _NotAllowed(f"it names `{printable(module_name)}._frombuffer`, which pickle protocol 4 does not")
            case _:
                raise _NotAllowed(f"it names `{printable(f'{module_name}.{global_name}')}`")


def _empty_array(*_: object) -> npt.NDArray[np.uint8]:
    # the pickle then sets shape, type and bytes, and NumPy checks that they agree
    return np.empty(0, np.uint8)


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise _NotAllowed(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")
