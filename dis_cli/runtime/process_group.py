"""The processes that work on one model together: those that `torchrun` started, or just this one.

Every process is a rank, rank 0 is the leader. What the ranks tell each other goes through gloo on the CPU, small as it
is; gradients travel by themselves (``training.parallel``). A rank that fails says why in the store that all share, and
a thread on every other rank looks there, so that no rank waits forever for one that is gone.
"""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from dis_cli.errors import DisError, Interrupted, MismatchError, PeerError, first_line
from dis_cli.events import Waiting
from dis_cli.runtime.distributed import WORK_ALONE, WorkShare, part_from_environment, require_meeting_place
from dis_cli.runtime.signals import CONTINUE_HINT, StopRequest

T = TypeVar("T")

_FAILURE = "dis/failure"
_INTERRUPTION = "dis/interruption"
# How many ranks know of the failure, and how many need the others no more.
_AWARE = "dis/aware"
_LEFT = "dis/left"
_POLL_SECONDS = 0.1
# How long a failing rank waits for the others to notice, and how long those try to leave in order: `torchrun` ends
# all as soon as the first is gone, and a rank that waits for a GPU cannot be reached otherwise.
_FAREWELL_SECONDS = 3.0
# A rank says why it leaves before it breaks its connections, so that whoever feels them break can read it. This is for
# the ways of the network.
_LAST_WORD_SECONDS = 1.0
# How long the others may take to come before that is told.
_SILENT_SECONDS = 3.0
# Beyond any pause between two words of the ranks: encoding and scoring happen in between.
_TIMEOUT = timedelta(days=1)


class ProcessGroup:
    """All ranks of a job as one of them sees them. Every method has to be called by all ranks, in the same order.

    Args:
        part: Rank and number of ranks.
        peers: Through whom they leave word; None when there is only one.
    """

    def __init__(self, part: WorkShare = WorkShare(), peers: "_Peers | None" = None) -> None:  # noqa: B008 - a frozen default
        self.rank = part.index
        self.world_size = part.count
        self._peers = peers
        self._store = peers.store if peers else None
        self._num_meetings = 0

    @property
    def is_leader(self) -> bool:
        """True if this rank speaks and writes for all."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums over all ranks, in float64; the same bits on every rank."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def maximum(self, values: Sequence[float]) -> list[float]:
        """The largest over all ranks of each value, in float64."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def mean(self, values: Sequence[float]) -> list[float]:
        """The means over all ranks, in float64; the values themselves when there is one."""
        return [total / self.world_size for total in self.sum(values)]

    def _reduced(self, values: Sequence[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
        if self.world_size == 1:
            return list(values)
        reduced = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(reduced, op=operation)
        return reduced.tolist()

    def from_leader(self, make: Callable[[], T]) -> T:
        """The leader's result of ``make``, on every rank; it must be picklable, and is made there only."""
        if self.world_size == 1:
            return make()
        box: list[Any] = [make() if self.is_leader else None]
        dist.broadcast_object_list(box, src=0)
        return cast("T", box[0])

    def gather(self, value: T) -> list[T] | None:
        """Every rank's value by rank, on the leader; None on the others."""
        if self.world_size == 1:
            return [value]
        box: list[Any] | None = [None] * self.world_size if self.is_leader else None
        dist.gather_object(value, box)
        return box

    def cause_of(self, error: BaseException) -> PeerError | None:
        """The failure of another rank that ``error`` is a consequence of; None when it is this rank's own."""
        return self._peers.cause_of(error) if self._peers else None

    def barrier(self) -> None:
        """Return once all ranks have called it."""
        self.sum([0.0])

    def obey(self, stop: StopRequest, state: str, hint: str = CONTINUE_HINT) -> None:
        """End the work here, on all ranks, if one of them was asked to; see `StopRequest.obey`."""
        StopRequest(int(self.maximum([stop.requested or 0])[0]) or None).obey(state, hint)

    def wait_for_leader(self, stop: StopRequest, state: str) -> None:
        """Return on every rank once the leader has called it too, however long that takes.

        Args:
            state: Progress of the work, for the message of ``Interrupted``.

        Raises:
            Interrupted: This rank was asked to stop while it waited.
            PeerError: The leader was.
        """
        self._num_meetings += 1
        if self._store is None:
            return
        key = f"dis/leader-{self._num_meetings}"
        if self.is_leader:
            self._store.set(key, "here")
            return
        while not self._store.check([key]):
            stop.obey(state)
            word = _read(self._store, _INTERRUPTION)
            if word is not None:
                raise _peer_error(word)
            time.sleep(_POLL_SECONDS)

    def require_agreement(self, facts: Mapping[str, object]) -> None:
        """Refuse to go on unless all ranks have the same.

        Args:
            facts: By name, what JSON can hold.

        Raises:
            MismatchError: A rank has another value than the leader; names it and both values. Raised on all ranks.
        """
        mine = {name: json.dumps(value, sort_keys=True) for name, value in facts.items()}
        theirs = self.gather(mine)
        lines = self.from_leader(lambda: _disagreements(cast("list[dict[str, str]]", theirs)))
        if lines:
            raise MismatchError(
                "The processes of the job do not agree:" + "".join(f"\n  {line}" for line in lines),
                "Start all of them with the same command, on the same data and the same version of `dis`",
            )


def _disagreements(by_rank: list[dict[str, str]]) -> list[str]:
    return [
        f"{name}: {by_rank[0][name][:200]} on rank 0, {other[name][:200]} on rank {rank}"
        for rank, other in enumerate(by_rank)
        for name in other
        if other[name] != by_rank[0][name]
    ][:8]


@dataclass(frozen=True)
class Meeting:
    """All ranks have come."""

    store: Store
    rank: int
    world_size: int


def meet(stop: StopRequest) -> Generator[Waiting, None, Meeting | None]:
    """Wait for the other ranks, if `torchrun` started any, and say so when that takes long.

    Returns:
        What `join_process_group` takes; None when this process was started alone.

    Raises:
        Interrupted: This rank was asked to stop before all had come.
        UsageError: The environment does not say where the ranks meet.
        DisError: The ranks cannot reach each other.
    """
    part = part_from_environment()
    if part.count == 1:
        return None
    place = require_meeting_place(part)
    meeting: Future[tuple[Store, int, int]] = Future()

    def rendezvous_with_all() -> None:
        try:
            meeting.set_result(next(rendezvous("env://")))
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            meeting.set_exception(error)

    # In a thread, because it takes minutes to give up, and no signal is heard meanwhile.
    threading.Thread(target=rendezvous_with_all, daemon=True, name="rendezvous").start()
    told_at: float | None = time.monotonic() + _SILENT_SECONDS
    while not wait([meeting], timeout=_POLL_SECONDS).done:
        stop.obey("the other processes have not arrived")
        if told_at is not None and time.monotonic() >= told_at:
            told_at = None
            yield Waiting(
                message=f"Waiting for the other processes of the job: RANK={part.index} and WORLD_SIZE={part.count} "
                f"are set, so {part.count} must meet at {place} (MASTER_ADDR and MASTER_PORT). Ctrl-C stops the "
                f"waiting. {WORK_ALONE}"
            )
    with _reaching_others(part):
        return Meeting(*meeting.result())


@contextlib.contextmanager
def _reaching_others(part: WorkShare) -> Generator[None]:
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise DisError(
            f"Rank {part.index} of {part.count} cannot reach the others: {error}",
            f"Start the processes with `torchrun`; on several machines all need the same --rdzv-endpoint. {WORK_ALONE}",
        ) from error


def _met_in_silence() -> Meeting | None:
    meeting = meet(StopRequest())
    while True:
        try:
            next(meeting)
        except StopIteration as end:
            return end.value


@contextlib.contextmanager
def join_process_group(device: torch.device, meeting: Meeting | None = None) -> Generator[ProcessGroup]:
    """Work with the other ranks, if `torchrun` started any, and part from them at the end.

    An exception that leaves the block on one rank ends the block on all others: with `PeerError` where they can still
    be told, and by ending their process where they cannot. `Interrupted` is meant to be raised on all ranks together;
    where it is not, the others end with it at their next word to each other.

    Args:
        device: Device of this rank's tensors: gradients travel by NCCL between GPUs, by gloo between CPUs.
        meeting: Result of `meet`; None meets the others here.

    Raises:
        DisError: The ranks cannot reach each other.
        PeerError: Another rank failed; carries its message, hint and exit code.
    """
    part = part_from_environment()
    meeting = meeting or _met_in_silence()
    if meeting is None:
        yield ProcessGroup()
        return
    store, rank, world_size = meeting.store, meeting.rank, meeting.world_size
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with _reaching_others(part):
        store.set_timeout(_TIMEOUT)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=_TIMEOUT)
    peers = _Peers(store, rank, world_size)
    try:
        yield ProcessGroup(part, peers)
    except GeneratorExit:
        raise
    except BaseException as error:
        cause = peers.cause_of(error)
        if cause is not None:
            raise cause from error
        peers.tell(error)
        raise
    finally:
        peers.leave()
        with contextlib.suppress(RuntimeError, ValueError):
            dist.destroy_process_group()
        peers.linger()


class _Peers:
    """The last words of a rank to the others, and theirs to it."""

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self.store = store
        self._rank = rank
        self._world_size = world_size
        self._left = threading.Event()
        self._heard: dict[str, Any] | None = None
        self._num_gone = 0
        self._watching = threading.Thread(target=self._watch, daemon=True, name="peers")
        self._watching.start()

    def cause_of(self, error: BaseException) -> PeerError | None:
        """The failure of another rank that ``error`` is a consequence of; None when it is this rank's own."""
        # The leader speaks for all, so what it found itself is worth more than what it heard.
        if isinstance(error, Interrupted | KeyboardInterrupt | PeerError) or (
            self._rank == 0 and isinstance(error, DisError)
        ):
            return None
        is_broken = isinstance(error, dist.DistError) or (
            isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "onnection"))
        )
        deadline = time.monotonic() + (_LAST_WORD_SECONDS if is_broken else 0.0)
        while True:
            try:
                # A signal that one rank obeyed by itself breaks the connections too.
                word = self._heard or _read(self.store, _FAILURE)
                if word is None and is_broken:
                    word = _read(self.store, _INTERRUPTION)
            except RuntimeError:
                # The store is gone with the rank that kept it.
                break
            if word is not None:
                return None if word["rank"] == self._rank else _peer_error(word)
            if time.monotonic() >= deadline:
                break
            time.sleep(_POLL_SECONDS / 4)
        if not is_broken:
            return None
        gone = PeerError(
            f"Another process of the job ended without a message: {first_line(error)[:200]}",
            "Look at its own output, and at the system's log if it was killed. Run the same command again to continue",
            1,
        )
        self.tell(gone)
        return gone

    def tell(self, error: BaseException) -> None:
        """Say why this rank leaves, unless another said so before, and give the others time to hear it."""
        own = error if isinstance(error, DisError) else None
        word: dict[str, Any] = {
            # None: of a rank that cannot say so any more.
            "rank": None if isinstance(error, PeerError) else self._rank,
            "message": own.message if own else f"{type(error).__name__}: {error}",
            "hint": own.hint if own else None,
            "code": own.code if own else 1,
        }
        if isinstance(error, KeyboardInterrupt):
            word |= {"message": "Interrupted", "code": 128 + signal.SIGINT}
        text = json.dumps(word)
        with contextlib.suppress(RuntimeError):
            if isinstance(error, Interrupted):
                self.store.compare_set(_INTERRUPTION, "", text)
            elif self.store.compare_set(_FAILURE, "", text).decode() == text:
                self._num_gone = int(word["rank"] is None)
                self._wait_for_others(_AWARE, _FAREWELL_SECONDS)

    def leave(self) -> None:
        """This rank parts from the others: what becomes of them does not concern it any more."""
        self._left.set()
        self._watching.join()
        with contextlib.suppress(RuntimeError):
            # Whoever has left need not be told.
            self.store.add(_AWARE, int(self._heard is None))
            self.store.add(_LEFT, 1)

    def linger(self) -> None:
        """Stay until the others have left too, a little while, when the store may go with this process."""
        if self._rank == 0:
            with contextlib.suppress(RuntimeError):
                self._wait_for_others(_LEFT, _LAST_WORD_SECONDS, but=0)

    def _wait_for_others(self, what: str, seconds: float, *, but: int = 1) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.store.add(what, 0) < self._world_size - self._num_gone - but:
            time.sleep(_POLL_SECONDS / 4)

    def _watch(self) -> None:
        """End this process when another rank failed and this one does not leave by itself."""
        while not self._left.wait(_POLL_SECONDS):
            with contextlib.suppress(RuntimeError):
                word = _read(self.store, _FAILURE)
                if word is None:
                    continue
                if word["rank"] != self._rank:
                    self._heard = word
                    self.store.add(_AWARE, 1)
                    if not self._left.wait(_FAREWELL_SECONDS):
                        os._exit(word["code"])
                return


def _read(store: Store, key: str) -> dict[str, Any] | None:
    """The words of a rank.

    Raises:
        RuntimeError: The store is gone.
    """
    return json.loads(store.get(key)) if store.check([key]) else None


def _peer_error(word: dict[str, Any]) -> PeerError:
    what = "was interrupted" if word["code"] > 128 else "failed"
    who = "" if word["rank"] is None else f"Rank {word['rank']} {what}: "
    return PeerError(who + word["message"], word["hint"], word["code"])
