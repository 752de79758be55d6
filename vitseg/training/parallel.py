"""One run in several processes: each computes its part of every step, and all have the same sums.

Losses are sums over counts, and noise is keyed by a sample's place in the step. So a step of four
processes is the step of one, up to the order of its sums.

A process that fails leaves its error in the group's store and closes its connections. Then the
collectives of the others raise, and they look for the error there. Being killed closes connections
too, and ends the standard input of the workers that a process has started. No timeout is involved:
a pause may last for days.
"""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse
from urllib.request import url2pathname

import torch
import torch.distributed as dist
from torch import Tensor

from vitseg.errors import ConfigError, TrainingError, VitsegError

RENDEZVOUS_TIMEOUT, COLLECTIVE_TIMEOUT = timedelta(minutes=10), timedelta(days=30)
_LEAVE_SECONDS = 5.0
_LOOK_SECONDS = 5.0
_LAST_WORD, _WAITS, _NOWHERE = "vitseg last word", "vitseg {} waits", "nowhere"
"""What processes write to the store: why one has left; where one waits for long, if it does."""
_MEND = "What was saved is whole: go on with vitseg resume."


class Left(Exception):
    """Another process has stopped between two events, without an error."""


class ProcessGroup:
    """The processes of a run, as the one of this `rank` sees them; alone by default.

    Every collective must be called by all processes in the same order. It raises TrainingError if
    another process has ended, the error of that process if it left one, or `Left`.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: dist.Store | None = None):
        self.rank, self.size, self._store = rank, size, store
        self._calls, self._broken = 0, False

    def bounds(self, count: int) -> tuple[int, int]:
        """This process's part of `count` things: first, and behind the last. Parts differ by one
        at most.
        """
        return count * self.rank // self.size, count * (self.rank + 1) // self.size

    def part(self, things: Sequence[Any]) -> list[Any]:
        """This process's part of a sequence, maybe nothing."""
        first, behind = self.bounds(len(things))
        return list(things[first:behind])

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes. It goes over the CPU: a GPU that waits for another process
        waits at full load.
        """
        if self.size == 1:
            return tensor
        total = tensor.cpu()
        self._all_reduce(total)
        return total.to(tensor.device)

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Sum the gradients over all processes, in place. A parameter that has one in no process
        keeps none.
        """
        if self.size == 1:
            return
        found = self.sum(torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32))
        moved = [p for p, count in zip(parameters, found.tolist(), strict=True) if count]
        for parameter in moved:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([p.grad.flatten() for p in moved])
        self._all_reduce(flat)
        parts = flat.split([p.numel() for p in moved])
        for parameter, part in zip(moved, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def broadcast(self, value: Any = None) -> Any:
        """The value that process 0 gives, in every process."""
        if self.size == 1:
            return value
        self.sum(torch.zeros(1))  # waits in Python until all are here: the next call does not
        values = [value]
        with self._connected():
            dist.broadcast_object_list(values, device=torch.device("cpu"))
        return values[0]

    def same(self, what: str, facts: dict[str, Any]) -> None:
        """Raises TrainingError, naming what differs, unless process 0 has the same facts."""
        first = self.broadcast(facts)
        other = [name for name in facts if facts[name] != first.get(name)]
        if not other:
            return
        said = [f"{name}: {facts[name]!r:.80}, there {first.get(name)!r:.80}" for name in other[:3]]
        problem = f"{what} is not that of process 0. {'; '.join(said)}."
        raise TrainingError(problem, "All must have the same.")

    def leave(self, error: BaseException) -> None:
        """Say why this process ends, before its connections are closed: by an error, or because it
        was stopped.
        """
        if self.size == 1 or self._broken:
            return
        cause = None
        if isinstance(error, VitsegError):
            cause = error
        elif isinstance(error, Exception):
            cause = TrainingError(f"{type(error).__name__}: {error}", _MEND)
        with suppress(RuntimeError):  # the store may be gone with the process that held it
            self._store.set(_LAST_WORD, pickle.dumps((self.rank, cause)))

    def _all_reduce(self, tensor: Tensor) -> None:
        """Sum in place. Waits in Python, where an interrupt is heard."""
        self._calls += 1
        with self._connected():
            work, pause = dist.all_reduce(tensor, async_op=True), 0.0
            look, waiting = time.monotonic() + _LOOK_SECONDS, False
            while not work.is_completed():
                time.sleep(pause)
                pause = min(pause + 1e-5, 0.002)
                if time.monotonic() > look:
                    look, waiting = look + _LOOK_SECONDS, True
                    self._check_in_step(tensor.numel())
            work.wait()
            if waiting:
                self._store.set(_WAITS.format(self.rank), _NOWHERE)

    def _check_in_step(self, count: int) -> None:
        """Raises TrainingError if all wait for each other in different collectives, for ever: a
        mistake of the program.
        """
        self._store.set(_WAITS.format(self.rank), f"{self._calls} {count}")
        names = [_WAITS.format(rank) for rank in range(self.size)]
        if not self._store.check(names):
            return
        places = {self._store.get(name).decode() for name in names}
        if _NOWHERE in places or len(places) == 1:
            return
        counts = [int(place.split()[1]) for place in places]
        problem = f"The {self.size} processes that train this run are out of step"
        raise TrainingError(f"{problem}, by {max(counts)} and {min(counts)}.", _MEND)

    @contextmanager
    def _connected(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # which torch raises when a connection is closed
            self._broken = True
            raise self._cause(error) from None

    def _cause(self, error: RuntimeError) -> Exception:
        """Why another process has closed its connections."""
        last_word = None
        with suppress(RuntimeError):
            if self._store.check([_LAST_WORD]):
                # written by a process of this very run; torch's own object collectives do the same
                last_word = pickle.loads(self._store.get(_LAST_WORD))
        if last_word is None:
            reason = str(error).partition("\n")[0][:200]
            problem = f"One of the {self.size} processes that train this run has ended ({reason})."
            return TrainingError(problem, _MEND)
        rank, cause = last_word
        if cause is None:
            return Left()
        told = copy.copy(cause)
        told.args = (f"Process {rank} of {self.size}: {cause}",)
        return told


@contextmanager
def process_group(size: int, worker: str) -> Iterator[ProcessGroup]:
    """The group of `size` processes of which this one, maybe a notebook's kernel, is number 0.

    The others are started on this machine as `python -m worker` and end with this one, unless
    `torchrun` has started them.
    """
    if size == 1:
        yield ProcessGroup()
        return
    with ExitStack() as stack, ExitStack() as workers:
        # workers are stopped before the group is closed, which would wait for one that hangs
        meeting, check = "env://", None
        if not launched():
            meeting, check = _start_workers(size, worker, stack, workers)
        group = stack.enter_context(_joined(meeting, 0, size, check))
        try:
            yield group
        except BaseException as error:
            group.leave(error)
            raise


def refuse_a_second_group(size: int) -> None:
    """Raises TrainingError where this process cannot be number 0 of `size`."""
    if size > 1 and dist.is_initialized():
        problem = "A run of several processes is under way in this kernel."
        raise TrainingError(problem, "Stop it first: close() of its events, or wb.stop().")
    launch = launched()
    if launch and launch.rank:
        problem = f"Process {launch.rank} of torchrun does not train by itself."
        raise TrainingError(problem, "Begin it with vitseg run.")


def _start_workers(
    size: int, worker: str, stack: ExitStack, workers: ExitStack
) -> tuple[str, Callable[[], None]]:
    """Start processes 1 .. `size` - 1. Returns where they meet, a file in a private folder, and a
    check that none has ended.
    """
    private = tempfile.TemporaryDirectory(prefix="vitseg-", ignore_cleanup_errors=True)
    folder = Path(stack.enter_context(private))
    meeting = (folder / "meeting").as_uri()
    environment = {name: value for name, value in os.environ.items() if name not in _TORCHRUN}
    started = []
    for rank in range(1, size):
        log = folder / f"{rank}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", worker, meeting, str(rank), str(size)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,  # a keyboard interrupt is for this process to answer
            )
        workers.callback(_stop, process)
        started.append((process, log))

    def check() -> None:
        for process, log in started:
            if process.poll() is not None:
                lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                problem = "A process that was to share the training ended as it began"
                raise TrainingError(f"{problem}: {lines[-1] if lines else 'no word'}")

    return meeting, check


def _stop(process: subprocess.Popen) -> None:
    process.stdin.close()
    try:
        process.wait(_LEAVE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _joined(
    meeting: str, rank: int, size: int, check: Callable[[], None] | None = None
) -> Iterator[ProcessGroup]:
    """The group that meets at `meeting`, an address as `torch.distributed` takes it. Calls `check`,
    which may raise, until all are there.
    """
    store, rank, size = next(dist.rendezvous(meeting, rank, size, timeout=RENDEZVOUS_TIMEOUT))
    store.set(f"vitseg {rank}", "is here")
    while not store.check([f"vitseg {n}" for n in range(size)]):
        if check:
            check()
        time.sleep(0.02)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _loopback() if meeting.startswith("file:") else nullcontext():
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=size, timeout=COLLECTIVE_TIMEOUT
        )
    try:
        yield ProcessGroup(rank, size, store)
    finally:
        dist.destroy_process_group()


@contextmanager
def _loopback() -> Iterator[None]:
    """Processes that meet in a file are on one machine, and need not listen to any other."""
    names = {name for _, name in socket.if_nameindex()} & {"lo", "lo0"}
    if not names or "GLOO_SOCKET_IFNAME" in os.environ:
        yield
        return
    os.environ["GLOO_SOCKET_IFNAME"] = names.pop()
    try:
        yield
    finally:
        del os.environ["GLOO_SOCKET_IFNAME"]


# ---- the other processes

Work = Callable[[ProcessGroup], None]
"""What the processes other than number 0 do in their group."""


def follow(work: Work, meeting: str, rank: int, size: int, local_rank: int) -> int:
    """Join the group as process `rank`, and do its `work`. Returns an exit code."""
    if local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)
    try:
        with suppress(Left), _joined(meeting, rank, size) as group:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # process 0 answers, between two steps
            try:
                work(group)
            except Exception as error:
                group.leave(error)
                raise
    except VitsegError as error:
        sys.stderr.write(f"vitseg: process {rank} of {size}: {error}\n")
        return 2
    return 0


def follow_parent(work: Work, arguments: Sequence[str]) -> int:
    """`follow` in a worker that `process_group` has started, with its command line's arguments. It
    ends when its standard input does, and so with its parent, even if that is killed.
    """
    meeting, rank, size = arguments
    threading.Thread(target=_end_with_the_parent, args=(meeting,), daemon=True).start()
    return follow(work, meeting, int(rank), int(size), local_rank=int(rank))


def _end_with_the_parent(meeting: str) -> None:
    while os.read(0, 1024):
        pass
    shutil.rmtree(Path(url2pathname(urlparse(meeting).path)).parent, ignore_errors=True)
    os._exit(1)


# ---- torchrun


class Launch(NamedTuple):
    """This process's number among those that `torchrun` has started, and among those of this
    machine.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int


_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What `torchrun` sets in the environment of each."""


def launched() -> Launch | None:
    """None unless `torchrun` has started this process. Raises ConfigError for a number that is
    none.
    """
    values = [os.environ.get(name, "") for name in _TORCHRUN]
    if not all(values):
        return None
    for name, value in zip(_TORCHRUN[:4], values, strict=False):
        if not value.isdecimal():
            raise ConfigError(name, value, "a number in the environment, as torchrun sets it")
    return Launch(*map(int, values[:4]))
