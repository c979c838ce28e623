"""The order of the training samples: a pure function of (seed, position), so there is no state to save.

Position counts the samples drawn since the start of a run. Neither the batch size, nor the number of processes, nor
an interruption changes which sample stands at a position.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Int64

from dis_cli.runtime.seed import Stream, generator


# A batch can straddle an epoch's end, and loader processes read ahead: keep the two neighbours.
@lru_cache(maxsize=2)
def epoch_permutation(epoch: int, *, num_samples: int, seed: int) -> Int64[np.ndarray, "num_samples"]:
    """The order in which one epoch visits the samples.

    The samples sorted by the raw 64-bit draws of a generator keyed by (seed, epoch). NumPy promises those draws, not
    the results of ``Generator.permutation``, to be the same in every release, so a run can outlive an upgrade.

    Args:
        epoch: Pass over the samples, from 0.
        num_samples: Samples in the source, at least 1.
        seed: The run's seed, 0 to 2**63 - 1.

    Returns:
        A permutation of 0 .. num_samples - 1. It is shared with later callers and therefore read-only.

    Raises:
        ValueError: When epoch is negative or num_samples is below 1.
    """
    if epoch < 0 or num_samples < 1:
        raise ValueError(f"epoch must be at least 0 and num_samples at least 1, got {epoch} and {num_samples}")
    draws = generator(seed, Stream.ORDER, epoch).bit_generator.random_raw(num_samples)
    # stable: equal draws, however unlikely, keep one order on every machine
    order = np.argsort(draws, kind="stable").astype(np.int64, copy=False)
    order.flags.writeable = False
    return order


def index_at(position: int, *, num_samples: int, seed: int) -> int:
    """The sample that stands at a position of the endless training sequence.

    Every run of ``num_samples`` positions that starts at a multiple of ``num_samples`` visits each sample once, in an
    order of its own. Memory: two permutations at most, 8 bytes per sample each.

    Args:
        position: Samples drawn before this one since the start of the run, 0 or more.
        num_samples: Samples in the source, at least 1.
        seed: The run's seed, 0 to 2**63 - 1.

    Returns:
        An index, 0 to num_samples - 1.

    Raises:
        ValueError: When position is negative or num_samples is below 1.
    """
    if position < 0 or num_samples < 1:
        raise ValueError(f"position must be at least 0 and num_samples at least 1, got {position} and {num_samples}")
    epoch, place = divmod(position, num_samples)
    return int(epoch_permutation(epoch, num_samples=num_samples, seed=seed)[place])
