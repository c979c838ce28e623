"""The memory of a training step of the digits preset at batch 128: at most 100 MB beyond weights and optimizer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench" / "train_step.py"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the process's peak from Linux's /proc")
def test_a_step_at_batch_128_stays_below_100_megabytes() -> None:
    # With a fixed threshold glibc returns every freed tensor, so that the peak is what the step asks for.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, BENCH, "--memory"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    # The lower bound: the scan's states of one chunk alone are 3 * 4 MB.
    assert 12_000_000 < int(done.stdout) <= 100_000_000
