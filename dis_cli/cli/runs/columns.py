"""The columns of the table of runs, and how runs are sorted and filtered by them and by settings."""

import fnmatch
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from dis_cli.cli.display.colour import is_terminal
from dis_cli.cli.display.text import table
from dis_cli.errors import UsageError, did_you_mean, flat
from dis_cli.runs.summary import RunSummary, Score

_ONE_LINE = str.maketrans({"\n": "\\n", "\t": "\\t"})
_NARROWEST_NAME = 12


@dataclass(frozen=True)
class Column:
    """What the table shows of a run, and what runs are sorted and filtered by."""

    cell: Callable[[RunSummary], str]
    value: Callable[[RunSummary], Any]


def _step(run: RunSummary) -> str:
    return f"{_or_dash(run.step)}/{_or_dash(run.steps)}"


def _best(run: RunSummary, *, conditions: bool = True) -> str:
    if run.best is None:
        return "-"
    place = "" if run.best.step is None else f" at {run.best.step}"
    text = f"{run.best.metric} {run.best.value:.4g}"
    return f"{text}{place}{_conditions(run.best)}" if conditions else text


def _conditions(score: Score) -> str:
    """The conditions that scores must share to be compared: number of images, and reference."""
    known = [] if score.num_samples is None else [f"n={score.num_samples}"]
    if score.split is not None:
        known.append(score.split)
    elif score.reference is not None:
        known.append(f"to {Path(score.reference).name.translate(_ONE_LINE)}")
    known += ["not digits"] if score.is_foreign else []
    return f" ({', '.join(known)})" if known else ""


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value).translate(_ONE_LINE)


COLUMNS: Final = {
    "run": Column(lambda run: str(run.path).translate(_ONE_LINE), lambda run: str(run.path)),
    "preset": Column(lambda run: _or_dash(run.preset), lambda run: run.preset),
    "step": Column(_step, lambda run: run.step),
    "loss": Column(lambda run: "-" if run.loss is None else f"{run.loss:.4f}", lambda run: run.loss),
    "eps_mse": Column(
        lambda run: "-" if run.held_out is None else f"{run.held_out.value:.4f}",
        lambda run: None if run.held_out is None else run.held_out.value,
    ),
    "best": Column(_best, lambda run: None if run.best is None else run.best.value),
    "status": Column(lambda run: run.status, lambda run: run.status),
    "updated": Column(lambda run: f"{run.updated.astimezone():%Y-%m-%d %H:%M}", lambda run: -run.updated.timestamp()),
}
# Without a column of its own.
_UNSEEN: Final[dict[str, Callable[[RunSummary], Any]]] = {"parameters": lambda run: run.parameters}
KEYS: Final = (*COLUMNS, *_UNSEEN)
# What a narrow terminal does without, in this order.
_LEFT_OUT: Final = ("updated", "preset", "eps_mse", "loss", "best")


def column_words(incomplete: str) -> list[str]:
    """Columns of the table and settings, for a shell to complete."""
    # Imported late: it checks types, which takes longer than to list runs.
    from dis_cli.config.settings import settings

    return [key for key in (*KEYS, *settings()) if key.startswith(incomplete)]


def lines_of(runs: Sequence[RunSummary]) -> list[str]:
    """The table, a line each; in a terminal at most as wide as that."""
    width = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None
    cells = {name: [name.upper(), *map(column.cell, runs)] for name, column in COLUMNS.items()}
    if _fits(cells, width):
        return _table(cells)
    assert width is not None
    cells["best"] = ["BEST", *map(partial(_best, conditions=False), runs)]
    cells["run"] = _ends(cells["run"], max(_NARROWEST_NAME, width // 3))
    for name in _LEFT_OUT:
        if _fits(cells, width):
            return _table(cells)
        del cells[name]
    rest = max(map(len, _table({name: column for name, column in cells.items() if name != "run"})))
    cells["run"] = _ends(cells["run"], max(_NARROWEST_NAME, width - rest - 2))
    return _table(cells)


def _ends(names: Sequence[str], room: int) -> list[str]:
    """Names in so much room: the end of a path tells more than its beginning."""
    return [name if len(name) <= room else f"...{name[3 - room :]}" for name in names]


def _table(cells: dict[str, list[str]]) -> list[str]:
    return table([list(row) for row in zip(*cells.values(), strict=True)])


def _fits(cells: dict[str, list[str]], width: int | None) -> bool:
    return width is None or max(map(len, _table(cells))) <= width


def sorted_by(runs: Sequence[RunSummary], key: str, *, reverse: bool) -> list[RunSummary]:
    """Runs by a column or a setting, smallest first; those without it are the last either way.

    Raises:
        UsageError: There is no such column or setting.
    """
    value = _value_of(runs, key, "--sort")
    known = [run for run in runs if value(run) is not None]
    return [
        *sorted(known, key=lambda run: _order(value(run)), reverse=reverse),
        *(run for run in runs if value(run) is None),
    ]


def filtered(runs: Sequence[RunSummary], filters: Sequence[str]) -> list[RunSummary]:
    """The runs that all filters fit.

    Args:
        filters: KEY=VALUE, of a column or a setting; ``*`` in a value stands for any text.

    Raises:
        UsageError: A filter is none, or there is no such column or setting.
    """
    kept = list(runs)
    for text in filters:
        key, equals, wanted = text.partition("=")
        if not equals:
            raise UsageError(f"`--filter`: got `{text}`, allowed is KEY=VALUE", "Such as `--filter train.lr=0.003`")
        value = _value_of(runs, key.strip(), "--filter")
        kept = [run for run in kept if _is_like(value(run), wanted.strip())]
    return kept


def _value_of(runs: Sequence[RunSummary], key: str, option: str) -> Callable[[RunSummary], Any]:
    """What a column or a setting is of a run; None where a run has none."""
    name = key.lower()
    if name in COLUMNS:
        return COLUMNS[name].value
    if name in _UNSEEN:
        return _UNSEEN[name]
    settings = {id(run): flat(run.settings) for run in runs}
    keys = dict.fromkeys(found for own in settings.values() for found in own)
    if runs and key not in keys:
        close = did_you_mean(key, [*KEYS, *keys])
        raise UsageError(
            f"`{option}`: there is no column or setting `{key}`",
            f"Did you mean `{close}`?"
            if close
            else f"Columns are {', '.join(KEYS)}; `dis presets keys` lists the settings",
        )
    return lambda run: settings[id(run)].get(key)


def _order(value: Any) -> tuple[int, float, str]:
    if isinstance(value, int | float):
        return 0, float(value), ""
    return 1, 0.0, str(value)


def _is_like(value: Any, wanted: str) -> bool:
    # Imported late, as above.
    from dis_cli.config.settings import as_text

    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(wanted) == value
        except ValueError:
            return False
    return fnmatch.fnmatchcase(as_text(value), wanted)
