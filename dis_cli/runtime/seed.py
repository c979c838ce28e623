"""Random numbers as pure functions of (seed, stream, position).

Every sample of a run has its own counter-based generator, so its draws do not depend on the batch it is in, on the
number of loader processes, or on how often the run was interrupted.
"""

from collections.abc import Iterable, Iterator
from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """The purpose of a generator. Numbers are part of the file format of a run: never renumber."""

    WEIGHTS = 0
    ORDER = 1
    TRAIN = 2
    SAMPLE = 3
    ENCODE = 4
    HELD_OUT = 5


def generator(seed: int, stream: Stream, position: int = 0) -> np.random.Generator:
    """A generator that depends on its three arguments only (Philox 4x64, 2**128 draws apart).

    Args:
        seed: The run's or image's seed, 0 to 2**63 - 1.
        position: The sample's place in that stream, 0 to 2**63 - 1.
    """
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, position, 0]))


def generators(seed: int, stream: Stream, positions: Iterable[int]) -> Iterator[np.random.Generator]:
    """The generators of many positions, one after another; each serves until the next is asked for.

    One object, moved from place to place: making a generator takes as long as all the draws of a small image.

    Args:
        positions: Places in that stream.
    """
    moving = generator(seed, stream)
    state = moving.bit_generator.state
    counter = state["state"]["counter"]
    for position in positions:
        # The rest of the state is that of a generator which has drawn nothing.
        counter[2] = position
        moving.bit_generator.state = state
        yield moving
