"""The processes that train one run: each takes its part of every step, and all of them have the
same sums.

Losses are sums over counts, and noise is keyed by a sample's place in the step. So a step of four
processes is the step of one, up to the order of its sums.
"""

from __future__ import annotations

import copy
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vitseg.errors import TrainingError, VitsegError

_COMING, _PATIENCE = timedelta(minutes=10), timedelta(days=30)
"""How long to wait for the place where all meet, and for each other: a pause may last, and the dead
are noticed otherwise.
"""
_FINE, _FAILED, _LEFT = range(3)
_TOLD = -1


class Left(Exception):
    """Process 0 has left between two events, and so do the others."""


class Team:
    """The processes of a run as one of them, number `rank`, sees it. One that is alone exchanges
    nothing.

    Whatever is exchanged begins with a word on how each is doing, so that nobody waits for one who
    will not come: where one fails, all of them raise.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size
        self._over = size == 1

    def bounds(self, count: int) -> tuple[int, int]:
        """The part of `count` things that is this process's: first, and behind the last. Parts
        differ by one at most.
        """
        return count * self.rank // self.size, count * (self.rank + 1) // self.size

    def part(self, things: Sequence[Any]) -> list[Any]:
        """This process's part of a sequence, maybe nothing."""
        first, behind = self.bounds(len(things))
        return list(things[first:behind])

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work that may fail in one process: then all raise its error, the others with its
        number.
        """
        try:
            yield
        except Exception as error:
            self._agree(error)
            raise
        self._agree()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            self._agree(about=tensor.numel())
            self._exchange(lambda: _patiently(dist.all_reduce(tensor, async_op=True)))
        return tensor

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Sum what each process has found. A parameter that no process has a gradient of keeps
        none.
        """
        if self.size == 1:
            return
        found = self.sum(torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32))
        moved = [p for p, count in zip(parameters, found.tolist(), strict=True) if count]
        flat = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in moved]
        )
        parts = self.sum(flat).split([p.numel() for p in moved])
        for parameter, part in zip(moved, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def same(self, what: str, facts: dict[str, Any]) -> None:
        """Raises TrainingError, naming what differs, unless all processes have the same facts."""
        if self.size == 1:
            return
        first = self.tell(facts)
        with self.together():
            if other := [name for name in facts if facts[name] != first.get(name)]:
                said = "; ".join(
                    f"{name}: {facts[name]!r:.80}, there {first.get(name)!r:.80}"
                    for name in other[:3]
                )
                raise TrainingError(
                    f"{what} is not that of process 0. {said}.", "All must have the same."
                )

    def tell(self, value: Any = None) -> Any:
        """What process 0 has to say."""
        if self.size > 1:
            self._agree(about=_TOLD)
            told = [value]
            self._exchange(lambda: dist.broadcast_object_list(told, device=torch.device("cpu")))
            value = told[0]
        return value

    def leave(self, error: BaseException | None = None) -> None:
        """Tell the others that there is nothing more to come from here. Does nothing once it is
        over.
        """
        try:
            self._agree(error or Left())
        except (VitsegError, Left):
            return

    def _agree(self, error: BaseException | None = None, about: int = 0) -> None:
        """Everybody says how they are, and what they are about to exchange: who waited for other
        things would wait for ever.

        Raises Left or TrainingError if others are not fine; our own error is the caller's.
        """
        if self._over:
            return
        own = _FINE if error is None else _LEFT if isinstance(error, Left) else _FAILED
        heard, errors = (
            torch.tensor([own, about, -about]),
            list[VitsegError | None]([None] * self.size),
        )
        self._exchange(lambda: _patiently(dist.all_reduce(heard, dist.ReduceOp.MAX, async_op=True)))
        worst, most, least = heard.tolist()
        if worst == _FINE and most == -least:
            return
        self._over = True
        if worst == _FINE:
            raise TrainingError(
                (
                    f"The {self.size} processes that train this run are out of step, by {most} and "
                    f"{-least}."
                ),
                _MEND,
            )
        self._exchange(
            lambda: dist.all_gather_object(errors, _telling(error) if own == _FAILED else None)
        )
        if own == _FINE:
            raise next(
                (_of_process(n, self.size, told) for n, told in enumerate(errors) if told), Left()
            )

    def _exchange(self, act: Callable[[], None]) -> None:
        """Whatever ends an exchange before its time ends all of them: the others wait for what will
        not come.
        """
        was_over, self._over = self._over, True
        try:
            act()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # so says torch when a connection is closed
            reason = str(error).partition("\n")[0][:200]
            raise TrainingError(
                f"One of the {self.size} processes that train this run has ended ({reason}).", _MEND
            ) from None
        self._over = was_over


_MEND = "What was saved is whole: go on with vitseg resume."


def _patiently(work: Any) -> None:
    """Wait in Python, where an interrupt is heard."""
    pause = 0.0
    while not work.is_completed():
        time.sleep(pause)
        pause = min(pause + 1e-5, 0.002)
    work.wait()


def _telling(error: BaseException) -> VitsegError:
    return (
        error
        if isinstance(error, VitsegError)
        else TrainingError(f"{type(error).__name__}: {error}", _MEND)
    )


def _of_process(rank: int, size: int, error: VitsegError) -> VitsegError:
    """The same, with the number of the process that it comes from."""
    told = copy.copy(error)
    told.args = (f"Process {rank} of {size}: {error}",)
    return told


@contextmanager
def joined(
    meeting: str, rank: int, size: int, meanwhile: Callable[[], None] | None = None
) -> Iterator[Team]:
    """The team that meets at `meeting`, an address as `torch.distributed` takes it. Until all are
    there, `meanwhile` is called again and again: it may raise.
    """
    store, rank, size = next(dist.rendezvous(meeting, rank, size, timeout=_COMING))
    store.set(f"vitseg {rank}", "is here")
    while not store.check([f"vitseg {n}" for n in range(size)]):
        if meanwhile:
            meanwhile()
        time.sleep(0.02)
    # words go over the CPU also where gradients go from GPU to GPU: a GPU that waits for a word
    # waits at full load
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _loopback() if meeting.startswith("file:") else nullcontext():
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    try:
        yield Team(rank, size)
    finally:
        dist.destroy_process_group()


@contextmanager
def _loopback() -> Iterator[None]:
    """Those who meet in a file are on one machine, and need not listen to any other."""
    names = {name for _, name in socket.if_nameindex()} & {"lo", "lo0"}
    before = os.environ.get("GLOO_SOCKET_IFNAME")
    if names and before is None:
        os.environ["GLOO_SOCKET_IFNAME"] = names.pop()
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("GLOO_SOCKET_IFNAME", None)
