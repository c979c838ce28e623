"""Which images are asked for: their seeds and their classes, as numbers, lists, ranges and names."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from dis_cli.errors import UsageError, did_you_mean
from dis_cli.workflows.load import LoadedModel

LARGEST_SEED = 2**31 - 1
MOST_IMAGES = 10_000_000
_RANGE = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")


def parse_seeds(text: str) -> list[int]:
    """Seeds from numbers and ranges with both ends, such as ``0-15,40``, in this order.

    Raises:
        UsageError: It is no such text, a seed is beyond 2**31 - 1, or one is named twice.
    """
    seeds: list[int] = []
    for part in _parts([text]):
        if not re.fullmatch(r"[0-9]{1,18}(-[0-9]{1,18})?", part):
            raise UsageError(
                f"`--seeds`: got `{part}`, allowed are numbers and ranges", "For example `--seeds 0-15,40`"
            )
        first, last = _bounds(part, "--seeds") if "-" in part else (int(part), int(part))
        if last > LARGEST_SEED:
            raise UsageError(f"Seed {last} is out of range: seeds are 0 to {LARGEST_SEED}")
        _require_few(len(seeds) + last - first + 1)
        seeds.extend(range(first, last + 1))
    if not seeds:
        raise UsageError("`--seeds` names no seed", "For example `--seeds 0-15,40`")
    if len(set(seeds)) < len(seeds):
        twice = next(seed for seed, times in Counter(seeds).items() if times > 1)
        raise UsageError(f"`--seeds` names seed {twice} twice", "Name each seed once: it always gives the same image")
    return seeds


def choose_seeds(seed: int | None, seeds: str | None, num_images: int | None) -> list[int]:
    """The seed of each image.

    Args:
        seed: That of the first image, to which image i adds i; None is 0.
        seeds: All of them, as for ``parse_seeds``; None takes ``seed``.
        num_images: How many; None takes as many as ``seeds`` names, else 16.

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
            f"`-n` is {num_images}, but `--seeds` names {len(chosen)}", "Leave `-n` out: there is an image a seed"
        )
    return chosen


def parse_classes(values: Sequence[str], loaded: LoadedModel) -> list[int]:
    """Class numbers from what the user wrote: numbers, names, ranges, comma-separated lists of them, or "all".

    Raises:
        UsageError: The model has no classes, or not this one.
    """
    count, names = loaded.saved_config.model.num_classes, loaded.class_names
    # A name may itself hold a comma.
    wanted = [part for value in values for part in ([value] if value in names else _parts([value]))]
    if not wanted:
        if values:
            raise UsageError("`--class` names no class", "Leave it out to let each seed choose")
        return []
    if count == 0:
        raise UsageError(f"The model is unconditional and has no class {wanted[0]}", "Leave `--class` out")
    return [number for text in wanted for number in _parse_class(text, count, names)]


def as_ranges(numbers: Sequence[int]) -> str:
    """Numbers as text that ``parse_seeds`` reads: what counts up by one becomes a range."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in ranges)


def _require_few(count: int) -> None:
    if count > MOST_IMAGES:
        raise UsageError(f"Asked for {count} images; at most {MOST_IMAGES} are made at a time", "Make them in parts")


def _parts(values: Sequence[str]) -> Iterator[str]:
    return (part.strip() for value in values for part in value.split(",") if part.strip())


def _bounds(text: str, option: str) -> tuple[int, int]:
    first, last = map(int, text.split("-"))
    if first > last:
        raise UsageError(f"`{option}`: the range `{text}` runs backwards", f"Write `{last}-{first}`")
    return first, last


def _parse_class(text: str, count: int, names: tuple[str, ...]) -> Sequence[int]:
    if text in names:
        return [names.index(text)]
    if text == "all":
        return range(count)
    first, last = _bounds(text, "--class") if _RANGE.fullmatch(text) else (text, text)
    if isinstance(first, int) or re.fullmatch(r"-?[0-9]{1,18}", text):
        for number in (int(first), int(last)):
            if not 0 <= number < count:
                raise UsageError(f"Class {number} is out of range: the model has {count} classes, 0 to {count - 1}")
        return range(int(first), int(last) + 1)
    close = did_you_mean(text, names)
    if close:
        hint = f"Did you mean `{close}`?"
    elif names:
        hint = f"Classes are numbers, 0 to {count - 1}, ranges, names such as `{names[0]}`, or `all`"
    else:
        hint = f"Classes are numbers, 0 to {count - 1}, ranges, or `all`; this checkpoint does not name them"
    raise UsageError(f"Unknown class: `{text}`", hint)
