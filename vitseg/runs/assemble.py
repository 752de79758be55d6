"""One run on many GPUs, or cores: the processes that share its steps are begun here, or have been by `torchrun`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vitseg.errors import ConfigError, TrainingError
from vitseg.recipe import Recipe
from vitseg.training.team import Team, joined

_LEAVE_SECONDS = 30.0


@contextmanager
def assembled(recipe: Recipe) -> Iterator[Team]:
    """The team of a recipe's processes, this one being number 0: it keeps the run folder, and may be a notebook's kernel.

    The others are begun on this machine and end with it, unless `torchrun` has begun them. Whoever leaves tells them so.
    """
    rank, size = launched()
    if size > 1 and size != recipe.processes:
        mend = f'recipe.replace({{"processes": {size}}}), or --set processes={size}'
        raise ConfigError("processes", recipe.processes, f"{size}, as torchrun has begun so many", mend)
    if recipe.processes == 1:
        yield Team()
        return
    with ExitStack() as stack:
        meeting = "env://" if size > 1 else stack.enter_context(_others(recipe.processes))
        team = stack.enter_context(joined(meeting, rank, recipe.processes))
        try:
            yield team
        except BaseException as error:
            team.leave(error if isinstance(error, Exception) else None)
            raise


def launched() -> tuple[int, int]:
    """This process's number, and how many `torchrun` has begun: 0 of 1 without it."""
    environment = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR")]
    return (int(environment[0]), int(environment[1])) if all(environment) else (0, 1)


@contextmanager
def _others(size: int) -> Iterator[str]:
    """Processes 1 .. `size` - 1 on this machine; where they meet is a file in a folder that is nobody else's."""
    with tempfile.TemporaryDirectory(prefix="vitseg-") as private, ExitStack() as stack:
        meeting, logs = Path(private, "meeting").as_uri(), [Path(private, f"{rank}.log") for rank in range(1, size)]
        begun = [stack.enter_context(_begun(meeting, n, size, log)) for n, log in enumerate(logs, start=1)]
        _wait_for(begun, logs)
        yield meeting


@contextmanager
def _begun(meeting: str, rank: int, size: int, log: Path) -> Iterator[subprocess.Popen]:
    """A process that follows. It ends when its standard input does, and so with this one, however that ends."""
    command = [sys.executable, "-m", "vitseg.runs.follow", meeting, str(rank), str(size), str(log.with_suffix(".there"))]
    with log.open("wb") as file:
        # a session of its own: an interrupt from the keyboard is for this process to answer
        begun = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True)
    try:
        yield begun
    finally:
        begun.stdin.close()
        try:
            begun.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            begun.kill()
            begun.wait()


def _wait_for(begun: Sequence[subprocess.Popen], logs: Sequence[Path]) -> None:
    """Until all are there to meet. Raises TrainingError with the last words of one that has ended before."""
    while not all(log.with_suffix(".there").exists() for log in logs):
        for process, log in zip(begun, logs, strict=True):
            if process.poll() is not None:
                words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] or ["no word"]
                raise TrainingError(f"A process that was to share the training ended as it began: {words[0]}")
        time.sleep(0.05)
