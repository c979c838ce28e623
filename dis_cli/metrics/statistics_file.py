"""Files of statistics, so that a data set need not be looked at again: own ones, and those of ADM and pytorch-fid.

An ``.npz`` file with ``mu`` and ``sigma``, and ``mu_s`` and ``sigma_s`` of the spatial features, as ADM's evaluator
reads and writes them; the arrays beside them say what was measured: ``format``, ``n``, ``extractor``,
``extractor_sha256``, ``preprocessing``, ``data``, ``data_sha256``.
"""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from dis_cli.errors import MismatchError
from dis_cli.metrics.extractors.base import FEATURES, SPATIAL, Extractor, identity
from dis_cli.metrics.extractors.inception import InceptionFeatures
from dis_cli.metrics.images.npz import NpzFile, open_npz
from dis_cli.metrics.statistics import Statistics
from dis_cli.runtime.files import atomic_write_bytes

FORMAT: Final = 1
# Wider than any extractor here; a covariance then has 128 MiB at most.
MAX_FEATURES: Final = 4096
MAX_TEXT_BYTES: Final = 1 << 16

_IDENTITY: Final = ("extractor", "extractor_sha256", "preprocessing")
_DATA: Final = ("data", "data_sha256")
_KEYS: Final = {FEATURES: ("mu", "sigma"), SPATIAL: ("mu_s", "sigma_s")}
_MAKE_HINT: Final = "`dis eval-fid stats --data PATH --out FILE.npz` makes one with the extractor of your choice"


@dataclass(frozen=True)
class Reference:
    """The reference that images are compared with.

    Args:
        spatial: Of the spatial features, for sFID; None without them.
        made_with: The ``identity`` of the extractor; None when the file does not say, as ADM's do not.
        data: Name of the images.
        data_sha256: Of their content; empty when not known.
    """

    statistics: Statistics
    spatial: Statistics | None = None
    made_with: Mapping[str, str] | None = None
    data: str = ""
    data_sha256: str = ""


def write_reference(path: Path, reference: Reference) -> None:
    """Write a file of statistics, whole or not at all.

    Raises:
        StorageError: It could not be written.
    """
    arrays: dict[str, Any] = {"format": np.int64(FORMAT)}
    for statistics, (mu, sigma) in zip((reference.statistics, reference.spatial), _KEYS.values(), strict=True):
        if statistics is not None:
            arrays |= {mu: statistics.mean, sigma: statistics.covariance}
    if reference.statistics.count is not None:
        arrays["n"] = np.int64(reference.statistics.count)
    facts = dict(reference.made_with or {}) | {"data": reference.data, "data_sha256": reference.data_sha256}
    arrays |= {key: np.array(text) for key, text in facts.items()}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    atomic_write_bytes(path, file.getvalue())


def read_reference(path: Path) -> Reference:
    """Read a file of statistics.

    Raises:
        DataError: It is missing or damaged.
        MismatchError: Its arrays are no statistics: names the array.
        RefusedError: It holds objects.
    """
    with open_npz(path) as file:
        version = _number(file, path, "format")
        if version not in (None, FORMAT):
            raise MismatchError(
                f"`{path}`: format is {version}, this version of dis reads {FORMAT}", "Install a newer `dis`"
            )
        count = _number(file, path, "n")
        main = _statistics(file, path, *_KEYS[FEATURES], count)
        spatial = _statistics(file, path, *_KEYS[SPATIAL], count) if _KEYS[SPATIAL][0] in file.keys else None
        made_with = {key: _text(file, path, key) for key in _IDENTITY} if _IDENTITY[0] in file.keys else None
        data, data_sha256 = (_text(file, path, key) if key in file.keys else "" for key in _DATA)
    return Reference(main, spatial, made_with, data, data_sha256)


def require_same_extractor(reference: Reference, extractor: Extractor, path: Path) -> str | None:
    """Make sure that statistics can be compared with an extractor's features.

    Args:
        extractor: Extractor of the images to be scored.

    Returns:
        What to tell the user when the file does not say what it was made with; None when it does.

    Raises:
        MismatchError: They were made by another extractor: says both values of each difference.
    """
    wanted = identity(extractor)
    if reference.made_with is not None:
        pairs = [(key, reference.made_with[key], wanted[key]) for key in _IDENTITY]
        different = [
            f"\n  {key}: `{theirs}` in the file, `{ours}` here" for key, theirs, ours in pairs if theirs != ours
        ]
        if different:
            raise MismatchError(
                f"The statistics in `{path}` were made by another extractor:{''.join(different)}", _MAKE_HINT
            )
    size = extractor.sizes[FEATURES]
    if reference.statistics.mean.size != size:
        raise MismatchError(
            f"`{path}`: mu has {reference.statistics.mean.size} features, {extractor.name} has {size}", _MAKE_HINT
        )
    if reference.spatial is not None and reference.spatial.mean.size != extractor.sizes.get(SPATIAL):
        raise MismatchError(
            f"`{path}`: mu_s has {reference.spatial.mean.size} features, {extractor.name} has "
            f"{extractor.sizes.get(SPATIAL, 'none')}",
            _MAKE_HINT,
        )
    if reference.made_with is not None:
        return None
    if not isinstance(extractor, InceptionFeatures):
        raise MismatchError(
            f"`{path}` does not name its extractor, and is taken to be Inception's, not {extractor.name}'s",
            _MAKE_HINT,
        )
    return f"`{path}` does not name its extractor: the published Inception is assumed"


def _statistics(file: NpzFile, path: Path, mu: str, sigma: str, count: int | None) -> Statistics:
    mean = _floats(file, path, mu, MAX_FEATURES * 8)
    covariance = _floats(file, path, sigma, min(mean.size, MAX_FEATURES) ** 2 * 8)
    try:
        return Statistics(mean, covariance, count)
    except ValueError as error:
        names = {"mean": mu, "covariance": sigma, "count": "n"}
        told = re.sub("^(mean|covariance|count)", lambda match: names[match[0]], str(error))
        raise MismatchError(f"`{path}`: {told}", _MAKE_HINT) from error


def _floats(file: NpzFile, path: Path, key: str, max_bytes: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    array = file.read(key, max_bytes=max_bytes)
    # in any byte order
    if array.dtype.newbyteorder("=") not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise MismatchError(f"`{path}`: {key} must be float32 or float64, got {array.dtype}", _MAKE_HINT)
    return np.array(array, dtype=np.float64)


def _number(file: NpzFile, path: Path, key: str) -> int | None:
    if key not in file.keys:
        return None
    array = file.read(key, max_bytes=MAX_TEXT_BYTES)
    if array.shape != () or not np.issubdtype(array.dtype, np.integer):
        raise MismatchError(f"`{path}`: {key} must be one whole number, got {array.dtype} {array.shape}", _MAKE_HINT)
    return int(array)


def _text(file: NpzFile, path: Path, key: str) -> str:
    array = file.read(key, max_bytes=MAX_TEXT_BYTES)
    if array.shape != () or array.dtype.kind != "U":
        raise MismatchError(f"`{path}`: {key} must be a text, got {array.dtype} {array.shape}", _MAKE_HINT)
    return str(array)
