"""GPUs that are known, and the least time that a scan and a matrix product can take on them, on paper."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Card:
    """What a GPU can do at most, by its data sheet.

    Args:
        sms: Multiprocessors.
        ghz: Their clock under load.
        terabytes: Bytes read and written a second, in 10^12.
        lanes: float32 multiply-adds that a multiprocessor starts in a clock.
        tflops: 10^12 dense FLOPs a second of matrix products, by "fp32" (no TF32) and "bf16".
    """

    sms: int
    ghz: float
    terabytes: float
    lanes: int
    tflops: dict[str, float]


CARDS: Final[dict[str, Card]] = {
    "H200": Card(132, 1.755, 4.8, 128, {"fp32": 67, "bf16": 989}),
    "H100": Card(132, 1.755, 3.35, 128, {"fp32": 67, "bf16": 989}),
    "A100": Card(108, 1.41, 2.0, 64, {"fp32": 19.5, "bf16": 312}),
}


def card_named(name: str) -> Card | None:
    """The card whose name is part of what the driver calls it, such as "NVIDIA H200"; None where it is not known."""
    return next((card for key, card in CARDS.items() if key in name), None)


@dataclass(frozen=True)
class Work:
    """What 32 (token, channel) pairs of one direction take, counted in the machine code for sm_90 at 16 states.

    Args:
        instructions: Of a warp, of which a multiprocessor starts four in a clock.
        special: Of them on the special function units (exponentials, reciprocals), which do half a warp in a clock.
        moves: Loads, stores and shuffles, one warp in a clock.
        multiply_adds: float32 arithmetic.
        bytes_moved: To and from memory, for one pair.
    """

    instructions: float
    special: float
    moves: float
    multiply_adds: float
    bytes_moved: float


# Eight tokens in registers, two channels a thread, states kept every 64 tokens.
SCAN: Final[dict[tuple[str, str], Work]] = {
    ("forward", "fp32"): Work(154.5, 20.0, 28.0, 86.0, 17),
    ("forward", "bf16"): Work(158.9, 20.0, 26.0, 85.0, 11),
    ("backward", "fp32"): Work(534.5, 39.8, 76.1, 351.1, 36),
    ("backward", "bf16"): Work(534.6, 39.8, 69.3, 335.1, 23),
}


def scan_bound(direction: str, precision: str, card: Card) -> float:
    """The least picoseconds that a (token, channel) pair of a scan can take: the slowest of the units it needs.

    Args:
        direction: "forward" or "backward".
        precision: "fp32" or "bf16", of the sequences in memory.
    """
    work = SCAN[direction, precision]
    clocks = max(work.instructions / 4, work.special * 2, work.moves, work.multiply_adds * 32 / card.lanes)
    return max(clocks / 32 / card.sms / card.ghz * 1e3, work.bytes_moved / card.terabytes)


def product_bound(macs: float, precision: str, card: Card) -> float:
    """The least picoseconds that so many multiply-accumulates of matrix products can take."""
    return 2 * macs / card.tflops[precision]
