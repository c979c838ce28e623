"""Saving without a pause: training goes on while a thread writes a copy of the state."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dis_cli.checkpoints.store import prune, write_checkpoint

Tensors = Mapping[str, Mapping[str, Tensor]]


class Snapshot:
    """A copy of tensors in main memory, which is taken into the same memory every time.

    Args:
        whole: Makes all of a tensor of its part; all ranks have to take a snapshot together where that talks to them.
    """

    def __init__(self, whole: Callable[[Tensor], Tensor]) -> None:
        self._whole = whole
        self._copies: dict[str, dict[str, Tensor]] = {}

    def take(self, tensors: Tensors, *, keep: bool = True) -> Tensors:
        """Copy ``tensors``, over the copy that was taken before.

        Args:
            tensors: By group and name.
            keep: False on ranks that only help to make tensors whole.
        """
        taken: dict[str, dict[str, Tensor]] = {}
        for group, group_tensors in tensors.items():
            before = self._copies.get(group, {})
            taken[group] = {}
            for name, tensor in group_tensors.items():
                whole = self._whole(tensor)
                if keep:
                    copy = before.get(name)
                    if copy is None or copy.shape != whole.shape:
                        copy = torch.empty(whole.shape, dtype=whole.dtype, pin_memory=whole.device.type == "cuda")
                    taken[group][name] = copy.copy_(whole)
        self._copies = taken
        return taken


class CheckpointWriter:
    """Writes checkpoints one after the other in a thread, and deletes old ones once a newer one is verified.

    Args:
        root: The folder of all checkpoints of a run.
        keep_last: Number of newest ones to keep.
        keep: Whether the checkpoint of a step is kept however old it is; called in the thread.
        whole: See `Snapshot`.
        writes: False on ranks that only help to make tensors whole.
    """

    def __init__(
        self,
        root: Path,
        *,
        keep_last: int,
        keep: Callable[[int], bool],
        whole: Callable[[Tensor], Tensor],
        writes: bool = True,
    ) -> None:
        self._root = root
        self._keep_last = keep_last
        self._keep = keep
        self._snapshot = Snapshot(whole)
        self._writes = writes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[Path] | None = None
        self._newest: Path | None = None

    def begin(self, step: int, tensors: Tensors, meta: Mapping[str, Any]) -> None:
        """Copy the state and begin to write it. The one before must be finished: see ``finished``."""
        if self._running is not None:
            raise ValueError("the checkpoint before was not waited for")
        copy = self._snapshot.take(tensors, keep=self._writes)
        if self._writes:
            self._running = self._thread.submit(self._write, step, copy, dict(meta))

    def finished(self, *, wait: bool) -> Path | None:
        """The checkpoint that was begun, once it is complete; None while it is not, or when none was begun.

        Raises:
            StorageError: It could not be written; those before are as they were.
        """
        if self._running is None or not (wait or self._running.done()):
            return None
        running, self._running = self._running, None
        self._newest = running.result()
        return self._newest

    def prune(self) -> None:
        """Delete what need not be kept any more, if a checkpoint was written; none may be under way."""
        if self._newest is not None:
            prune(self._root, self._keep_last, verified=self._newest, keep=self._keep)

    def close(self) -> None:
        """Wait for the thread, whatever comes of it."""
        self._thread.shutdown(wait=True)

    def _write(self, step: int, tensors: Tensors, meta: Mapping[str, Any]) -> Path:
        path = write_checkpoint(self._root, step, tensors, meta)
        prune(self._root, self._keep_last, verified=path, keep=self._keep)
        return path
