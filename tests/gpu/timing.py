"""Medians of calls that take turns, by CUDA's events; on the CPU, where only the path is tried, by the wall clock."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping

import torch

# Turns of each contender, whatever the time: fewer have no quartiles.
FEWEST_TURNS = 3


def milliseconds(
    contenders: Mapping[str, Callable[[], object]], device: torch.device, seconds: float
) -> dict[str, dict[str, object]]:
    """Median milliseconds of one call of each contender, the contenders taking turns after two calls of warm-up.

    One that fails has its error instead, and the others go on without it.

    Args:
        device: What they compute on.
        seconds: For all turns together, without the warm-up; at least ``FEWEST_TURNS`` turns are taken. With 0 there is
            one call of warm-up and one turn: the path is tried, and nothing is measured.

    Returns:
        By contender: "ms"; "spread", the third quartile over the first; and "turns".
    """
    result: dict[str, dict[str, object]] = {}
    running = dict(contenders)
    for name, run in contenders.items():
        try:
            for _ in range(2 if seconds else 1):
                run()
            _wait(device)
        except Exception as error:  # noqa: BLE001 - out of memory, or an engine that cannot take these numbers
            result[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
            del running[name]
    turns: dict[str, list[float]] = {name: [] for name in running}
    gc.collect()
    fewest = FEWEST_TURNS if seconds else 1
    end = time.perf_counter() + seconds
    while running and (time.perf_counter() < end or len(next(iter(turns.values()))) < fewest):
        for name, run in running.items():
            turns[name].append(_one_turn(run, device))
    for name, found in turns.items():
        low, median, high = statistics.quantiles(found * 2 if len(found) == 1 else found, n=4)
        result[name] = {"ms": _rounded(median), "spread": round(high / low, 3), "turns": len(found)}
    return {name: result[name] for name in contenders}


def _one_turn(run: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        began = time.perf_counter()
        run()
        return (time.perf_counter() - began) * 1e3
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    run()
    last.record()
    last.synchronize()
    return first.elapsed_time(last)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _rounded(value: float, digits: int = 4) -> float:
    """A value to so many significant digits."""
    return value if value == 0 else round(value, digits - 1 - math.floor(math.log10(abs(value))))
