"""One run in several processes: each computes its part of every step, and all have the same sums.

Losses are sums over counts, and noise is keyed by a sample's place in the step. So a step of four
processes is the step of one, up to the order of its sums.

A process that fails leaves its error in the group's store and closes its connections. Then the
collectives of the others raise, and they look for the error there. Being killed closes connections
too, and ends the standard input of the workers that a process has started. No timeout is involved:
a pause may last for days.
"""

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
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from vitseg.errors import ConfigError, TrainingError, VitsegError

RENDEZVOUS_TIMEOUT, COLLECTIVE_TIMEOUT = timedelta(minutes=10), timedelta(days=30)
_LEAVE_SECONDS = 5.0
_HERE, _LAST_WORD = "vitseg here", "vitseg last word"
"""What processes write to the store: how many have come, why one left."""
_INTERFACE = "GLOO_SOCKET_IFNAME"
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

    def part(self, things: Sequence[Any]) -> Sequence[Any]:
        """This process's part of a sequence, maybe nothing. Parts differ by one at most."""
        count, rank, size = len(things), self.rank, self.size
        return things[count * rank // size : count * (rank + 1) // size]

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
        for parameter, part in zip(moved, flat.split([p.numel() for p in moved]), strict=True):
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
        first, other = self.broadcast(facts), []
        for name, fact in facts.items():
            if fact != first.get(name):
                other.append(f"{name}: {fact!r:.80}, there {first.get(name)!r:.80}")
        if other:
            problem = f"{what} is not that of process 0. {'; '.join(other[:3])}."
            raise TrainingError(problem, "All must have the same.")

    def leave(self, error: BaseException) -> None:
        """Say why this process ends, before its connections are closed: by an error, or because it
        was stopped. Nobody hears it who has heard another's reason.
        """
        cause = error if isinstance(error, VitsegError) else None
        if isinstance(error, Exception) and not cause:
            cause = TrainingError(f"{type(error).__name__}: {error}", _MEND)
        with suppress(RuntimeError):  # the store may be gone with the process that held it
            if not self._store.check([_LAST_WORD]):
                self._store.set(_LAST_WORD, pickle.dumps((self.rank, cause)))

    def _all_reduce(self, tensor: Tensor) -> None:
        """Sum in place. Waits in Python, where an interrupt is heard."""
        with self._connected():
            work, pause = dist.all_reduce(tensor, async_op=True), 0.0
            while not work.is_completed():
                time.sleep(pause)
                pause = min(pause + 1e-5, 0.002)
            work.wait()

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Raises why another process has closed its connections, if one does meanwhile."""
        try:
            yield
        except RuntimeError as error:
            with suppress(RuntimeError):
                if self._store.check([_LAST_WORD]):
                    # written by a process of this run; torch's object collectives do the same
                    rank, cause = pickle.loads(self._store.get(_LAST_WORD))
                    if cause is None:
                        raise Left from None
                    cause.args = (f"Process {rank} of {self.size}: {cause}",)
                    raise cause from None
            reason = str(error).partition("\n")[0][:200]
            problem = f"One of the {self.size} processes that train this run has ended ({reason})."
            raise TrainingError(problem, _MEND) from None


@contextmanager
def process_group(size: int, worker: str) -> Iterator[ProcessGroup]:
    """The group of `size` processes of which this one, maybe a notebook's kernel, is number 0.

    The others are started on this machine as `python -m worker` and end with this one, unless
    `torchrun` has started them.
    """
    if size == 1:
        yield ProcessGroup()
        return
    with ExitStack() as stack:
        stack.callback(_close)  # once workers are stopped: it would wait for one that hangs
        meeting, workers = "env://", []
        if not launched():
            meeting, workers = _start_workers(size, worker, stack)
        yield stack.enter_context(_joined(meeting, 0, size, workers))


def refuse_a_second_group(size: int) -> None:
    """Raises TrainingError where this process cannot be number 0 of `size`."""
    if size > 1 and dist.is_initialized():
        problem = "A run of several processes is under way in this kernel."
        raise TrainingError(problem, "Stop it first: close() of its events, or wb.stop().")
    launch = launched()
    if launch and launch.rank:
        problem = f"Process {launch.rank} of torchrun does not train by itself."
        raise TrainingError(problem, "Begin it with vitseg run.")


Worker = tuple[subprocess.Popen, Path]
"""A process, and the log of its errors."""


def _start_workers(size: int, worker: str, stack: ExitStack) -> tuple[str, list[Worker]]:
    """Start processes 1 .. `size` - 1, until `stack` is closed. Returns where they meet, a file in
    a private folder, and them.
    """
    private = tempfile.TemporaryDirectory(prefix="vitseg-", ignore_cleanup_errors=True)
    meeting = Path(stack.enter_context(private)) / "meeting"
    loopback = {"lo", "lo0"} & set(chain.from_iterable(socket.if_nameindex()))
    if loopback and _INTERFACE not in os.environ:  # on one machine nobody listens to any other
        os.environ[_INTERFACE] = loopback.pop()
        stack.callback(os.environ.pop, _INTERFACE)
    started = []
    for rank in range(1, size):
        place = map(str, (rank, size, rank, size))
        log = meeting.with_name(f"{rank}.log")
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", worker, str(meeting)],
                env=os.environ | dict(zip(_TORCHRUN, place, strict=True)),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,  # a keyboard interrupt is for this process to answer
            )
        stack.callback(_stop, process)
        started.append((process, log))
    return meeting.as_uri(), started


def _stop(process: subprocess.Popen) -> None:
    process.stdin.close()
    try:
        process.wait(_LEAVE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _joined(
    meeting: str, rank: int, size: int, workers: Sequence[Worker] = ()
) -> Iterator[ProcessGroup]:
    """The group that meets at `meeting`, an address as `torch.distributed` takes it; it hears why
    this process leaves. Raises TrainingError if one of the `workers` ends before all are there.
    """
    store, rank, size = next(dist.rendezvous(meeting, rank, size, timeout=RENDEZVOUS_TIMEOUT))
    store.add(_HERE, 1)
    while store.add(_HERE, 0) < size:
        for process, log in workers:
            if process.poll() is not None:
                lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
                problem = "A process that was to share the training ended as it began"
                raise TrainingError(f"{problem}: {(lines or ['no word'])[-1]}")
        time.sleep(0.02)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=COLLECTIVE_TIMEOUT
    )
    group = ProcessGroup(rank, size, store)
    try:
        yield group
    except BaseException as error:
        group.leave(error)
        raise


def _close() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


# ---- the other processes

Work = Callable[[ProcessGroup], None]
"""What the processes other than number 0 do in their group."""


def follow(work: Work, meeting: Path | None = None) -> int | None:
    """Join the group as the process that the environment says, and do its `work`. Returns an exit
    code; None where this is process 0, or the only one.

    A worker that `process_group` has started is given the file where they meet. It ends when its
    standard input does, and so with its parent, even if that is killed.
    """
    if meeting:
        folder = meeting.parent
        threading.Thread(target=_end_with_the_parent, args=(folder,), daemon=True).start()
    launch = launched()
    if not launch or not launch.rank:
        return None
    if launch.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(launch.local_rank)
    address = meeting.as_uri() if meeting else "env://"
    with ExitStack() as stack, suppress(Left):
        stack.callback(_close)
        group = stack.enter_context(_joined(address, launch.rank, launch.size))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # process 0 answers, between two steps
        work(group)
    return 0


def _end_with_the_parent(folder: Path) -> None:
    while os.read(0, 1024):
        pass
    shutil.rmtree(folder, ignore_errors=True)
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


_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""What `torchrun` sets in the environment of each, and we in that of our workers."""


def launched() -> Launch | None:
    """None unless `torchrun` has started this process. Raises ConfigError for a number that is
    none.
    """
    values = [os.environ.get(name, "") for name in _TORCHRUN]
    if not all(values):
        return None
    try:
        return Launch(*map(int, values))
    except ValueError:
        allowed = "numbers in the environment, as torchrun sets them"
        raise ConfigError(", ".join(_TORCHRUN), values, allowed) from None
