"""One run on many GPUs, or cores: the processes that share its steps are begun here, or have been
by `torchrun`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch.distributed as dist

from vitseg.errors import TrainingError
from vitseg.recipe import Recipe
from vitseg.training.device import LAUNCHED, launched
from vitseg.training.team import Team, joined

_LEAVE_SECONDS = 5.0


@contextmanager
def assembled(recipe: Recipe) -> Iterator[Team]:
    """The team of a recipe's processes, this one being number 0: it keeps the run folder, and may
    be a notebook's kernel.

    The others are begun on this machine and end with it, unless `torchrun` has begun them. Whoever
    leaves tells them so.
    """
    size = recipe.processes
    if size == 1:
        yield Team()
        return
    with ExitStack() as stack, ExitStack() as others:
        meeting, meanwhile = ("env://", None) if launched() else _begin(size, stack, others)
        team = stack.enter_context(joined(meeting, 0, size, meanwhile))
        try:
            yield team
        except BaseException as error:
            team.leave(error if isinstance(error, Exception) else None)
            raise


def refuse_a_second_team(recipe: Recipe) -> None:
    """Raises TrainingError where this process cannot be number 0 of several."""
    if recipe.processes > 1 and dist.is_initialized():
        problem = "A run of several processes is under way in this kernel."
        raise TrainingError(problem, "Stop it first: close() of its events, or wb.stop().")
    if (launch := launched()) and launch.rank:
        raise TrainingError(
            f"Process {launch.rank} of torchrun does not train by itself.",
            "Begin it with vitseg run.",
        )


def _begin(size: int, stack: ExitStack, others: ExitStack) -> tuple[str, Callable[[], None]]:
    """Begin processes 1 .. `size` - 1 on this machine. Where they meet, a file in a folder that is
    nobody else's, and what to ask until they have. They are let go before the group is left, lest a
    lost one be waited for.
    """
    private = Path(
        stack.enter_context(
            tempfile.TemporaryDirectory(prefix="vitseg-", ignore_cleanup_errors=True)
        )
    )
    meeting, logs = (
        (private / "meeting").as_uri(),
        [private / f"{rank}.log" for rank in range(1, size)],
    )
    begun = [
        others.enter_context(_begun(meeting, n, size, log)) for n, log in enumerate(logs, start=1)
    ]

    def none_has_ended() -> None:
        for process, log in zip(begun, logs, strict=True):
            if process.poll() is not None:
                words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[
                    -1:
                ] or ["no word"]
                raise TrainingError(
                    f"A process that was to share the training ended as it began: {words[0]}"
                )

    return meeting, none_has_ended


@contextmanager
def _begun(meeting: str, rank: int, size: int, log: Path) -> Iterator[subprocess.Popen]:
    """A process that follows. It ends when its standard input does, and so with this one, however
    that ends.
    """
    command = [sys.executable, "-m", "vitseg.runs.follow", meeting, str(rank), str(size)]
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    with log.open("wb") as file:
        begun = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=file,
            start_new_session=True,  # an interrupt from the keyboard is for this process to answer
        )
    try:
        yield begun
    finally:
        begun.stdin.close()
        try:
            begun.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            begun.kill()
            begun.wait()
