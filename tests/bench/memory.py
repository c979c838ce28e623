"""Memory of a scan at 1 x 768 x 1026 with 16 states, beyond its inputs: result, gradients, saved states and scratch.

Measured as what one call adds to the peak of a fresh process's resident memory, so that the compiled code's own
buffers count too, which torch cannot see. The inputs and the gradient of the result exist before; a call at two tokens
has loaded the code. glibc is told to give freed memory back at once (``common.EXACT_MEMORY``), so that the peak is what
was held at one time. In MB of 10^6 bytes, with one thread; the result and the gradients of u, delta and z alone are
3.2 MB each.
"""

import os
import subprocess
import sys
from collections.abc import Iterator

from common import EXACT_MEMORY, Record, Settings, at_most, can_measure_memory, extra_peak

LENGTH = 1026
TARGETS = {"forward": at_most(20), "forward+backward": at_most(70)}


def measure(settings: Settings) -> Iterator[Record]:
    """The figures of this subject, each from a process of its own."""
    engines = {"scan": settings.engine, "torch form": "torch"}
    for what, target in TARGETS.items():
        for name, engine in engines.items():
            label = f"{name}, {LENGTH} tokens, {what}: extra memory"
            if not can_measure_memory():
                yield Record(label, None, "MB", note="needs Linux's /proc")
                continue
            done = subprocess.run(
                [sys.executable, __file__, engine, what],
                capture_output=True,
                text=True,
                check=True,
                env=os.environ | EXACT_MEMORY | {"OMP_NUM_THREADS": "1"},
            )
            yield Record(label, int(done.stdout) / 1e6, "MB", "peak", target if name == "scan" else None)


def print_extra(engine: str, what: str) -> None:
    """Print the bytes that one call adds to this process's peak."""
    import torch
    from scan import forward_and_backward, inputs

    from dis_cli.scan import selective_scan

    torch.set_num_threads(1)

    def call(length: int):
        tensors = inputs(length)
        grad = torch.ones(1, length, tensors["u"].shape[2])

        def scan(**arguments: torch.Tensor) -> torch.Tensor:
            return selective_scan(**arguments, engine=engine)

        if what == "forward+backward":
            return forward_and_backward(scan, tensors, grad)

        def forward() -> torch.Tensor:
            with torch.no_grad():
                return scan(**tensors)

        return forward

    call(2)()
    print(extra_peak(call(LENGTH)))


if __name__ == "__main__":
    print_extra(*sys.argv[1:])
