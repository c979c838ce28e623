"""What training runs came to: losses, checkpoints, and how far two of them are apart."""

from pathlib import Path
from typing import Any

from support.oracle import relative_error
from torch import Tensor

from dis_cli.checkpoints.store import list_checkpoints, read_checkpoint
from dis_cli.runs.folder import read_events

Tensors = dict[str, dict[str, Tensor]]


def tensors(run: Path, step: int) -> Tensors:
    """All that is in a run's checkpoint of a step."""
    return read_checkpoint(run / "checkpoints" / f"step-{step:08d}").tensors


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    """A run's records of one kind, in order."""
    return [record for record in read_events(run / "events.jsonl") if record["event"] == kind]


def losses(run: Path) -> list[tuple[int, float]]:
    """Each step with its loss, in the order in which they were taken."""
    return [(record["step"], record["loss"]) for record in events(run, "step")]


def saved_steps(run: Path) -> list[int]:
    """The steps of a run's checkpoints, each of which is read and verified."""
    return [read_checkpoint(folder).step for folder in list_checkpoints(run / "checkpoints")]


def assert_equal(got: Tensors, expected: Tensors) -> None:
    """Every bit."""
    assert got.keys() == expected.keys()
    for group, named in expected.items():
        assert got[group].keys() == named.keys()
        for name, tensor in named.items():
            assert got[group][name].equal(tensor), (group, name)


def assert_close(got: Tensors, expected: Tensors, tolerance: float = 1e-5) -> None:
    """Each tensor, relative to its largest entry; the weights and their averages."""
    assert got.keys() == expected.keys()
    compared = [group for group in expected if group != "optimizer"]
    assert compared
    for group in compared:
        assert got[group].keys() == expected[group].keys()
        for name, tensor in expected[group].items():
            assert relative_error(got[group][name], tensor) <= tolerance, (group, name)


def assert_close_losses(got: Path, expected: Path, tolerance: float = 1e-5) -> None:
    """Every step once, and its loss."""
    assert [step for step, _ in losses(got)] == [step for step, _ in losses(expected)]
    for (step, loss), (_, wanted) in zip(losses(got), losses(expected), strict=True):
        assert abs(loss - wanted) <= tolerance * abs(wanted), (step, loss, wanted)
