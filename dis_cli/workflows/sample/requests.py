"""Requested images: their seeds and classes, with one meaning for a number, a list and a range.

A class has a place in the model, from 0, and often a name: that of its folder. The folders 1, 2, 3 and 10 stand in the
order 1, 10, 2, 3, so that a number could mean either. The rule: where any name is a number other than its place,
every number is a name; otherwise every number is a place. A name as it is written comes before everything else.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dis_cli.config.sampling import LARGEST_SEED
from dis_cli.errors import MAX_LISTED, UsageError, did_you_mean

_NUMBER = re.compile(r"-?[0-9]{1,18}")
_RANGE = re.compile(rf"({_NUMBER.pattern})\s*-\s*({_NUMBER.pattern})")
_MOST_LABEL_LETTERS = 40
MOST_IMAGES = 10_000_000


def parse_seeds(text: str) -> list[int]:
    """Seeds from numbers and ranges with both ends, such as ``0-15,40``, in this order.

    Raises:
        UsageError: It is no such text, a seed is beyond 2**31 - 1, or one is named twice.
    """
    seeds: list[int] = []
    for part in _parts(text):
        if not re.fullmatch(r"[0-9]{1,18}(-[0-9]{1,18})?", part):
            raise UsageError(
                f"`--seeds`: got `{part}`, allowed are numbers and ranges", "For example `--seeds 0-15,40`"
            )
        first, last = map(int, part.split("-")) if "-" in part else (int(part), int(part))
        _require_forwards(part, first, last, "--seeds")
        if last > LARGEST_SEED:
            raise UsageError(f"Seed {last} is out of range: seeds are 0 to {LARGEST_SEED}")
        _require_few(len(seeds) + last - first + 1)
        seeds.extend(range(first, last + 1))
    if not seeds:
        raise UsageError("`--seeds` names no seed", "For example `--seeds 0-15,40`")
    if len(set(seeds)) < len(seeds):
        twice = next(seed for seed, times in Counter(seeds).items() if times > 1)
        raise UsageError(f"`--seeds` names seed {twice} twice", "Name each seed once: it always makes the same image")
    return seeds


def choose_seeds(seed: int | None, seeds: str | None, num_images: int | None) -> list[int]:
    """The seed of each image.

    Args:
        seed: That of the first image, to which image i adds i; None is 0.
        seeds: All of them, as for ``parse_seeds``; None takes ``seed``.
        num_images: Number; None takes as many as ``seeds`` names, else 16.

    Raises:
        UsageError: The three contradict each other, or a seed is out of range.
    """
    if seeds is None:
        _require_few(num_images or 16)
        first = seed or 0
        last = first + (num_images or 16) - 1
        if last > LARGEST_SEED:
            raise UsageError(f"Seed {last} of the last image is out of range: seeds are 0 to {LARGEST_SEED}")
        return list(range(first, last + 1))
    if seed is not None:
        raise UsageError("`--seed` and `--seeds` exclude each other", "Give one of them")
    chosen = parse_seeds(seeds)
    if num_images not in (None, len(chosen)):
        raise UsageError(
            f"`-n` is {num_images}, but `--seeds` names {len(chosen)}", "Leave `-n` out: each seed makes one image"
        )
    return chosen


@dataclass(frozen=True)
class ChosenClasses:
    """The classes asked for.

    Attributes:
        places: Of each, in the order asked for; empty when each image's seed is to choose.
        notes: Readings that were chosen, where there could be two.
    """

    places: list[int]
    notes: tuple[str, ...] = ()


def parse_classes(values: Sequence[str], names: Sequence[str], count: int) -> ChosenClasses:
    """Classes from what the user wrote: numbers, names, ranges, comma-separated lists of them, or "all".

    Args:
        values: One for each ``--class``.
        names: One a class, in the order of their places; empty when unknown.

    Raises:
        UsageError: The model has no classes, or not this one, or several are meant.
    """
    # A name may itself hold a comma.
    wanted = [part for value in values for part in ([value] if value in names else _parts(value))]
    if not wanted:
        if values:
            raise UsageError("`--class` names no class", "Leave it out to let each seed draw one")
        return ChosenClasses([])
    if count == 0:
        raise UsageError(f"The model is unconditional and has no class {wanted[0]}", "Leave `--class` out")
    known = _Names(names, count)
    found = [known.places(text) for text in wanted]
    return ChosenClasses([place for places in found for place in places], tuple(_notes(known, wanted, found)))


def numbers_are_names(names: Iterable[str]) -> bool:
    """True if a number stands for the class of this name, and not for a place."""
    return any(_NUMBER.fullmatch(name) and int(name) != place for place, name in enumerate(names))


def file_labels(names: Sequence[str], count: int) -> list[str]:
    """The names of classes in file names: their own, fit for every file system, or else their numbers.

    Args:
        names: One a class; empty when unknown.
    """
    labels = [re.sub(r"[^\w.+-]+", "_", name)[:_MOST_LABEL_LETTERS] for name in names]
    times = Counter(label.casefold() for label in labels)
    # Where two names would look the same, their places tell them apart.
    told = [label if times[label.casefold()] == 1 else f"{label}-{place}" for place, label in enumerate(labels)]
    return told or [str(place) for place in range(count)]


def as_ranges(numbers: Sequence[int]) -> str:
    """Numbers as text that ``parse_seeds`` reads: what counts up by one becomes a range."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in ranges)


class _Names:
    """The names of a model's classes.

    Args:
        names: One a class; empty when unknown.
    """

    def __init__(self, names: Sequence[str], count: int) -> None:
        self.names = names
        self.count = count
        self.by_number = numbers_are_names(names)
        self._values: dict[int, list[int]] = {}
        for place, name in enumerate(names):
            if _NUMBER.fullmatch(name):
                self._values.setdefault(int(name), []).append(place)

    def places(self, text: str) -> Sequence[int]:
        if text in self.names:
            return [self.names.index(text)]
        if bounds := _RANGE.fullmatch(text):
            return self._range(text, bounds[1], bounds[2])
        if _NUMBER.fullmatch(text):
            return [self._number(text)]
        alike = [place for place, name in enumerate(self.names) if _folded(name) == _folded(text)]
        if len(alike) == 1:
            return alike
        if alike:
            raise UsageError(f"`--class {text}` may be any of {self.told(alike)}", "Write it as the class is written")
        if text.casefold() == "all":
            return range(self.count)
        close = did_you_mean(text, self.names)
        raise UsageError(f"Unknown class: `{text}`", f"Did you mean `{close}`?" if close else self._allowed())

    def _number(self, text: str) -> int:
        if not self.by_number:
            if not 0 <= int(text) < self.count:
                raise UsageError(
                    f"Class {int(text)} is out of range: the model has {self.count} classes, 0 to {self.count - 1}",
                    self._allowed() if self.names else None,
                )
            return int(text)
        if text in self.names:
            return self.names.index(text)
        # 1 for a folder 01.
        found = self._values.get(int(text), [])
        if not found:
            raise UsageError(f"No class is named {text}; this model's class names are numbers", self._allowed())
        if len(found) > 1:
            raise UsageError(f"`--class {text}` may be any of {self.told(found)}", "Write it as the class is written")
        return found[0]

    def _range(self, text: str, first: str, last: str) -> Sequence[int]:
        _require_forwards(text, int(first), int(last), "--class")
        ends = self._number(first), self._number(last)
        if not self.by_number:
            return range(ends[0], ends[1] + 1)
        # Both ends are there; between them, those that are.
        inner = sorted(value for value in self._values if int(first) < value < int(last))
        return list(dict.fromkeys([ends[0], *(self._number(str(value)) for value in inner), ends[1]]))

    def told(self, places: Sequence[int]) -> str:
        names = [f"`{self.names[place]}`" for place in places[:MAX_LISTED]]
        return ", ".join(names) + (f" and {len(places) - MAX_LISTED} more" if len(places) > MAX_LISTED else "")

    def _allowed(self) -> str:
        if not self.names:
            return f"Classes are numbers, 0 to {self.count - 1}, ranges, or `all`; this checkpoint does not name them"
        named = self.told(range(self.count))
        if self.by_number:
            return f"The classes are named {named}; ranges of these and `all` are allowed too"
        return f"Classes are numbers, 0 to {self.count - 1}, ranges, `all`, or names: {named}"


def _notes(known: _Names, wanted: Sequence[str], found: Sequence[Sequence[int]]) -> Iterable[str]:
    """Notes on words that could have been read in another way."""
    numbers = [
        (text, places)
        for text, places in zip(wanted, found, strict=True)
        if _NUMBER.fullmatch(text) or (_RANGE.fullmatch(text) and text not in known.names)
    ]
    if known.by_number and numbers:
        told = known.told([place for _, places in numbers for place in places])
        asked = ", ".join(text for text, _ in numbers)
        yield f"Class names are numbers here: `--class {asked}` means the classes named {told}"
    for text in dict.fromkeys(wanted):
        if text in known.names and (text == "all" or "," in text or _RANGE.fullmatch(text)):
            yield f"`--class {text}` is taken as the one class of this name"


def _require_few(count: int) -> None:
    if count > MOST_IMAGES:
        raise UsageError(f"Asked for {count} images; at most {MOST_IMAGES} are made at a time", "Make them in parts")


def _require_forwards(text: str, first: int, last: int, option: str) -> None:
    if first > last:
        raise UsageError(f"`{option}`: the range `{text}` runs backwards", f"Write `{last}-{first}`")


def _parts(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _folded(name: str) -> str:
    """A name without what a keyboard or a file system makes of it: capitals, and accents as letters of their own."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
