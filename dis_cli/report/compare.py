"""Comparison of runs: settings that differ, names by them, and scores against cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Of these every run has its own.
_OF_NO_INTEREST = frozenset({"name", "description"})
_LONGEST = 60


def differing(settings: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """The settings that are not the same in all, each with its values; "-" where one has none."""
    keys = dict.fromkeys(key for own in settings for key in own if key not in _OF_NO_INTEREST)
    table = {key: [own.get(key, "-") for own in settings] for key in keys}
    return {key: values for key, values in table.items() if len(set(values)) > 1}


def names_of(folders: Sequence[str], differences: Mapping[str, Sequence[str]]) -> list[str]:
    """A name for each run: of what differs where that is short, else of its folder; each name once."""
    told = [
        ", ".join(f"{key.rpartition('.')[2]} {values[place]}" for key, values in differences.items())
        for place in range(len(folders))
    ]
    fit = 0 < len(differences) <= 3 and len(set(told)) == len(told) and max(map(len, told)) <= _LONGEST
    names = told if fit else [_short(folder) for folder in folders]
    return [name if names.count(name) == 1 else f"{name} ({place + 1})" for place, name in enumerate(names)]


@dataclass(frozen=True)
class Fit:
    """A line fitted to points, and how alike their orders are.

    Args:
        slope: Change of y for ten times x.
        at_one: y where log10 x is 0.
        spearman: Rank correlation, -1 to 1.
    """

    slope: float
    at_one: float
    spearman: float


def fit_to_log(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> Fit | None:
    """The line of least squares of y over log10 x, (n,) each; None of fewer than three places."""
    if len(set(x.tolist())) < 3 or len(set(y.tolist())) < 2:
        return None
    slope, at_one = np.polyfit(np.log10(x), y, 1)
    return Fit(float(slope), float(at_one), float(np.corrcoef(_ranks(x), _ranks(y))[0, 1]))


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ranks from 1; equal values share their mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
