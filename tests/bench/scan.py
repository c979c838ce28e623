"""The plain PyTorch scan against the recurrence written token by token: ``python tests/bench/scan.py [--json FILE]``.

Interleaved medians in one process, as ratios: how many times faster the scan is than ``selective_scan_reference``,
forward alone and forward with backward. The reference's backward is autograd's.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from dis_cli.scan import selective_scan
from dis_cli.scan.reference import selective_scan_reference

# (batch, length, channels, states): the digits preset's, and the one the literature of the scan is measured at.
SHAPES = [(32, 18, 192, 16), (1, 66, 768, 16), (1, 257, 768, 16)]
ROUNDS = 7


def inputs(b: int, length: int, d: int, n: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"u": (b, length, d), "delta": (b, length, d), "B": (b, length, n), "C": (b, length, n)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    tensors |= {"A": -torch.arange(1.0, n + 1).expand(d, n).contiguous(), "D": torch.ones(d)}
    tensors |= {"z": torch.randn(b, length, d, generator=generator), "delta_bias": torch.full((d,), -4.0)}
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def timed(engine, tensors: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Seconds of a forward without gradients, and of a forward with its backward."""
    started = time.perf_counter()
    with torch.no_grad():
        engine(**tensors)
    between = time.perf_counter()
    engine(**tensors).sum().backward()
    return between - started, time.perf_counter() - between


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for shape in SHAPES:
        tensors = inputs(*shape)
        engines = {"scan": selective_scan, "reference": selective_scan_reference}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
        for _ in range(ROUNDS):
            for name, engine in engines.items():
                times[name].append(timed(engine, tensors))
        medians = {name: [statistics.median(part) for part in zip(*of, strict=True)] for name, of in times.items()}
        elements = shape[0] * shape[1] * shape[2] * shape[3]
        rows.append(
            {
                "shape": "x".join(map(str, shape)),
                "forward_ns_per_element": medians["scan"][0] / elements * 1e9,
                "forward_backward_ns_per_element": medians["scan"][1] / elements * 1e9,
                "forward_ratio": medians["reference"][0] / medians["scan"][0],
                "forward_backward_ratio": medians["reference"][1] / medians["scan"][1],
            }
        )
    print(f"threads {torch.get_num_threads()}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    for row in rows:
        print(
            "  ".join(f"{name} {value:.3g}" if isinstance(value, float) else str(value) for name, value in row.items())
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
