"""Reading a file of ``torch.save`` that anybody may have made: nothing in it is executed, its records are checked."""

import argparse
import pickle
import warnings
import zipfile
from pathlib import Path

import torch

from dis_cli.errors import CheckpointError, DisError, MismatchError, first_line
from dis_cli.runtime.untrusted import check_torch_file, refused_pickle

DAMAGED_HINT = "Copy or download the file again"
FOREIGN_HINT = (
    "Give a run folder of `dis train`, a file of `dis checkpoint export`, or a `.pt` of the published DiS code"
)


def read_torch_file(path: Path) -> object:
    """The content of a file of ``torch.save``: tensors, plain values, and an ``argparse.Namespace``.

    The tensors are mapped, not read: they are good as long as the file is.

    Raises:
        CheckpointError: It is missing or damaged, or not a file of ``torch.save``; its CRC-32 are checked.
        MismatchError: It is of the format before PyTorch 1.6, which has no checksums.
        RefusedError: It holds more than weights and plain settings: names it.
    """
    _check(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise refused_pickle(path, "PyTorch's loader of weights refuses it") from error
    # A damaged or hostile pickle can raise anything.
    except Exception as error:
        raise CheckpointError(f"`{path}` cannot be read: {first_line(error)}", DAMAGED_HINT) from error


def _check(path: Path) -> None:
    """Refuse a file that is not an undamaged archive of `torch.save`, or that holds more than weights and settings."""
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise CheckpointError(f"Cannot read `{path}`: it {what}", FOREIGN_HINT)
    try:
        opened = path.open("rb")
    except OSError as error:
        raise CheckpointError(f"Cannot read `{path}`: {error.strerror or error}") from error
    try:
        with opened as file:
            check_torch_file(path, file, FOREIGN_HINT)
            if not zipfile.is_zipfile(file):
                raise MismatchError(
                    f"`{path}` is of the format that PyTorch wrote before 1.6, which has no checksums",
                    "Load it with torch.load and write it again with torch.save, if you trust whoever made it",
                )
    except DisError:
        raise
    except (zipfile.BadZipFile, ValueError) as error:
        raise CheckpointError(
            f"`{path}` is damaged or not a PyTorch file: {error} ({path.stat().st_size} bytes)",
            "A checkpoint is written by torch.save of PyTorch 1.6 or later; if it is one, copy or download it again",
        ) from error
    # A damaged archive can raise anything.
    except Exception as error:
        raise CheckpointError(f"`{path}` is damaged: {first_line(error)}", DAMAGED_HINT) from error
