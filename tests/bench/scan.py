"""The selective scan against three ways of writing it in torch, at batch 1, 768 channels and 16 states.

Timed are the forward without a graph, and the forward with its backward for a given gradient of the result, all with
bias, softplus, skip and gate, on one thread. Contenders: the published loop (``peers.published_scan``), the reference
(``engine="reference"``, which takes the exponential token by token), and the plain torch form (``engine="torch"``).
The published loop gets its inputs in its own layout, so nobody pays for a transposition. Targets are against it.

The backward of both loops is autograd's: it adds up a tensor of the full length for every token, so that it is run up
to ``LONGEST_LOOP_BACKWARD`` tokens only. ns/el is the time divided by batch x channels x states x tokens.
"""

from collections.abc import Callable, Iterator

import torch
from common import Record, Settings, Target, at_least, clock_name, interleaved, no_grad, require_close
from peers import published_scan
from torch import Tensor

from dis_cli.scan import selective_scan

CHANNELS, STATES = 768, 16
LENGTHS = (66, 257, 1026, 4098)
TARGET_LENGTH = 257
LONGEST_LOOP_BACKWARD = 257
LOOPS = ("published loop", "reference loop")
FORWARD_TARGET = at_least(18, 9)
BOTH_TARGET = at_least(200, 120)


def inputs(length: int) -> dict[str, Tensor]:
    """Inputs of a scan as a trained model has them: decay between 0.2 and 1, all of ordinary size."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    tensors = {
        "u": normal(1, length, CHANNELS),
        "delta": normal(1, length, CHANNELS),
        "A": -torch.arange(1.0, STATES + 1).repeat(CHANNELS, 1),
        "B": normal(1, length, STATES),
        "C": normal(1, length, STATES),
        "D": torch.ones(CHANNELS),
        "z": normal(1, length, CHANNELS),
        "delta_bias": torch.full((CHANNELS,), -4.0),
    }
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def channels_first(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same inputs for the published loop."""
    return {
        name: tensor.detach().transpose(1, 2).contiguous().requires_grad_() if tensor.ndim == 3 else tensor
        for name, tensor in tensors.items()
    }


def forward_and_backward(scan: Callable[..., Tensor], tensors: dict[str, Tensor], grad: Tensor) -> Callable[[], object]:
    """A call with its backward into all inputs; gradients are made anew each time, not added to old ones."""
    leaves = list(tensors.values())
    return lambda: torch.autograd.grad(scan(**tensors), leaves, grad)


def contenders(settings: Settings, length: int) -> dict[str, tuple[Callable[..., Tensor], dict[str, Tensor], Tensor]]:
    """Function, inputs and gradient of the result of each."""
    tensors = inputs(length)
    grad = torch.randn(1, length, CHANNELS, generator=torch.Generator().manual_seed(1))

    def with_engine(engine: str) -> Callable[..., Tensor]:
        return lambda **arguments: selective_scan(**arguments, engine=engine)

    return {
        "scan": (with_engine(settings.engine), tensors, grad),
        "published loop": (published_scan, channels_first(tensors), grad.transpose(1, 2).contiguous()),
        "reference loop": (with_engine("reference"), tensors, grad),
        "torch form": (with_engine("torch"), tensors, grad),
    }


def measure(settings: Settings) -> Iterator[Record]:
    """The figures of this subject."""
    for length in LENGTHS:
        everyone = contenders(settings, length)
        _require_same(everyone)
        rounds = settings.rounds(15 if length <= TARGET_LENGTH else 7)
        forward = interleaved(
            {name: no_grad(lambda run=run, of=of: run(**of)) for name, (run, of, _) in everyone.items()},
            threads=1,
            rounds=rounds,
        )
        yield from _records("forward", length, forward, FORWARD_TARGET)
        timed = {name: entry for name, entry in everyone.items() if _is_timed(name, length)}
        both = interleaved(
            {name: forward_and_backward(*entry) for name, entry in timed.items()},
            threads=1,
            rounds=settings.rounds(7),
        )
        yield from _records("forward+backward", length, both, BOTH_TARGET)
        for name in everyone.keys() - timed.keys():
            yield Record(
                f"scan, {length} tokens, forward+backward: {name} / scan",
                None,
                "x",
                note="its backward grows with the square of the length",
            )


def _is_timed(name: str, length: int) -> bool:
    return name not in LOOPS or length <= LONGEST_LOOP_BACKWARD


def _records(what: str, length: int, seconds: dict[str, float], target: Target) -> Iterator[Record]:
    elements = CHANNELS * STATES * length
    for name, value in seconds.items():
        yield Record(f"{name}, {length} tokens, {what}", value / elements * 1e9, "ns/el", clock_name(1))
    for name, value in seconds.items():
        if name != "scan":
            aimed = target if name == "published loop" and length == TARGET_LENGTH else None
            ratio = value / seconds["scan"]
            yield Record(f"scan, {length} tokens, {what}: {name} / scan", ratio, "x", clock_name(1), aimed)


def _require_same(everyone: dict[str, tuple[Callable[..., Tensor], dict[str, Tensor], Tensor]]) -> None:
    with torch.no_grad():
        results = {name: run(**of) for name, (run, of, _) in everyone.items()}
    wanted = results["reference loop"]
    for name, result in results.items():
        require_close(name, result.transpose(1, 2) if name == "published loop" else result, wanted)
