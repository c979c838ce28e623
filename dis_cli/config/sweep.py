"""Grids of settings from the command line: KEY=A,B,C for each axis, every combination a point. Without torch."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dis_cli.config.overrides import apply_overrides
from dis_cli.config.schema import RunConfig
from dis_cli.errors import UsageError, did_you_mean

# Short names, which no setting has, and what they stand for.
SHORT_KEYS: Final = {
    "cfg": "sample.cfg_scale",
    "steps": "sample.steps",
    "sampler": "sample.sampler",
    "ema": "sample.ema",
    "eta": "sample.eta",
}
MAX_POINTS: Final = 400


@dataclass(frozen=True)
class Axis:
    """A setting that is varied.

    Attributes:
        name: As the user called it.
        values: At least one, as text.
    """

    name: str
    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Point:
    """One combination.

    Attributes:
        values: By the name of the axis.
        overrides: The settings, as ``KEY=VALUE``.
    """

    values: dict[str, str]
    overrides: tuple[str, ...]


def parse_axes(texts: Sequence[str]) -> list[Axis]:
    """The axes of a sweep.

    Args:
        texts: Such as "cfg=1.0,1.5 steps=20,50"; several in one are separated by spaces.

    Raises:
        UsageError: One has no values, cannot be varied, or is there twice.
    """
    axes: list[Axis] = []
    for text in (part for given in texts for part in given.split()):
        name, _, listed = text.partition("=")
        key = SHORT_KEYS.get(name, name)
        values = tuple(value for value in listed.split(",") if value)
        leaf = key.removeprefix("sample.")
        if not key.startswith("sample.") or leaf not in type(RunConfig().sample).model_fields or leaf == "cfg_interval":
            near = did_you_mean(name, SHORT_KEYS)
            raise UsageError(
                f"--sweep: got `{text}`, allowed: KEY=A,B,... with {', '.join(SHORT_KEYS)} or a sample.* setting",
                f"Did you mean `{near}`?" if near else "Try `--sweep cfg=1.0,1.25,1.5 steps=20,50`",
            )
        if not values:
            raise UsageError(f"--sweep: `{text}` has no values", f"Write `{name}=A,B,...`")
        if key in [axis.key for axis in axes]:
            raise UsageError(f"--sweep: {key} is there twice", f"Put all its values into one list: `{name}=A,B,...`")
        if len(set(values)) < len(values):
            raise UsageError(f"--sweep: `{text}` holds a value twice", "Leave it out once")
        axes.append(Axis(name, key, values))
    return axes


def points_of(axes: Sequence[Axis]) -> list[Point]:
    """Every combination, the last axis changing fastest.

    Raises:
        UsageError: There are more than MAX_POINTS.
    """
    points: list[Point] = []
    # A run's number of steps is that of its own sampler.
    varies = {axis.key for axis in axes}
    usual = ("sample.steps=auto",) if "sample.sampler" in varies and "sample.steps" not in varies else ()
    for values in itertools.product(*(axis.values for axis in axes)):
        named = {axis.name: value for axis, value in zip(axes, values, strict=True)}
        own = tuple(f"{axis.key}={value}" for axis, value in zip(axes, values, strict=True))
        points.append(Point(named, (*usual, *own)))
        if len(points) > MAX_POINTS:
            raise UsageError(f"--sweep: more than {MAX_POINTS} combinations", "Give fewer values")
    return points


def check_points(config: RunConfig, points: Sequence[Point]) -> None:
    """Refuse a sweep of which one point cannot run, before the first is computed.

    Raises:
        ConfigError: Says what is wrong with it.
    """
    for point in points:
        apply_overrides(config, point.overrides)
