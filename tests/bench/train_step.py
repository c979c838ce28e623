"""Time and memory of a training step of the digits preset: ``python tests/bench/train_step.py [--json FILE]``.

The time is the median over steps at the preset's batch size, beside the linear layers' share alone (the same matrix
products on random numbers, interleaved), so that a busy machine shows in both. The memory is what a step at batch 128
adds to the process's peak beyond weights, gradients, optimizer and average, measured in a process of its own.
"""

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

STEPS = 20
MEMORY_BATCH = 128


def build(batch_size: int):
    """A training state of the digits preset, its loss, and a batch."""
    import torch

    from dis_cli.config.overrides import apply_overrides
    from dis_cli.config.presets import load_preset
    from dis_cli.data.batches import TrainingSet, training_batches
    from dis_cli.workflows.build import build_learning_rate, build_loss_function, build_source, build_training_state

    config = apply_overrides(load_preset("dis-xs-digits"), [f"train.batch_size={batch_size}"])
    state = build_training_state(config, torch.device("cpu"))
    dataset = TrainingSet(build_source(config), seed=0, num_timesteps=1000, num_drop_path=0)
    batches = training_batches(
        dataset, first_step=0, last_step=10_000, batch_size=batch_size, accumulation=1, num_workers=0
    )
    return config, state, batches, build_loss_function(config), lambda step: build_learning_rate(config, step)


def steps(batch_size: int):
    import torch

    from dis_cli.training.loop import train_steps

    config, state, batches, loss_function, learning_rate = build(batch_size)
    return train_steps(
        state,
        batches,
        loss_function=loss_function,
        learning_rate=learning_rate,
        accumulation=1,
        clip_norm=config.train.clip_norm,
        device=torch.device("cpu"),
    )


def products(batch_size: int):
    """The matrix products of one step: forward, and twice as many backward, of every linear layer of a block."""
    import torch

    width, inner, tokens, blocks = 96, 192, batch_size * 18, 7
    shapes = [(width, 2 * inner), (inner, width), *[(inner, 38), (6, inner)] * 2]
    layers = [
        (torch.randn(tokens, a), torch.randn(b, a), torch.randn(tokens, b)) for a, b in shapes for _ in range(blocks)
    ]

    def run() -> None:
        for x, weight, grad in layers:
            x @ weight.t()
            grad @ weight
            grad.t() @ x

    return run


def measure_memory() -> None:
    """Print the bytes that a step at MEMORY_BATCH adds to this process's peak."""

    def status(key: str) -> int:
        text = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(key))

    loop = steps(MEMORY_BATCH)
    # The first step makes the optimizer's moments and the libraries' own buffers, which stay; what it freed goes back.
    next(loop)
    ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS:")
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    next(loop)
    print(status("VmHWM:") - before)


def extra_memory(environment: dict[str, str]) -> int:
    """What ``measure_memory`` prints in a process with this environment.

    With a fixed threshold, glibc gives every freed tensor back, and the peak is what the step asks for. As it comes,
    glibc keeps freed tensors for the next ones, and what does not fit into their holes is added.
    """
    command = [sys.executable, __file__, "--memory"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment)
    return int(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory", action="store_true")
    arguments = parser.parse_args()
    if arguments.memory:
        measure_memory()
        return
    import torch

    loop, gemms = steps(32), products(32)
    next(loop)
    gemms()
    times: list[float] = []
    gemm_times: list[float] = []
    for _ in range(STEPS):
        times.append(next(loop).seconds)
        started = time.perf_counter()
        gemms()
        gemm_times.append(time.perf_counter() - started)
    result = {
        "train_step_seconds": statistics.median(times),
        "matrix_products_seconds": statistics.median(gemm_times),
        "step_over_products": statistics.median(times) / statistics.median(gemm_times),
        "extra_memory_batch_128_bytes": extra_memory({"MALLOC_MMAP_THRESHOLD_": "65536"}),
        "extra_memory_batch_128_fragmented_bytes": extra_memory({}),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    for name, value in result.items():
        print(f"{name:42} {value:.4g}" if isinstance(value, float) else f"{name:42} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
