"""A process that shares the steps of a run whose folder another one keeps. It does as that one does, and leaves with it.

python -m vitseg.runs.follow MEETING RANK SIZE THERE     what `assembled` begins
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path

import torch

from vitseg.errors import VitsegError
from vitseg.recipe import parse
from vitseg.runs.environment import environment
from vitseg.runs.run import decisive, stages
from vitseg.runs.work import prepare
from vitseg.training.team import Left, joined


def follow(meeting: str, rank: int, size: int) -> int:
    """Meet the others, and train what process 0 says. Returns an exit code."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)))
    try:
        with suppress(Left), joined(meeting, rank, size) as team:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # process 0 answers, between two steps
            recipe = parse(team.tell())
            with team.together():
                work = prepare(recipe)
                facts = decisive(environment(work.data, work.model, work.machine))
            team.same("an environment", facts)
            start = team.tell()
            try:
                for _ in stages(recipe, work, start, team):
                    pass
            except Exception as error:
                team.leave(error)
                raise
    except VitsegError as error:
        sys.stderr.write(f"vitseg: process {rank} of {size}: {error}\n")
        return 2
    return 0


def _end_with(parent: int) -> None:
    """Standard input is the parent's hand: let go, also by a kill, it leaves nothing to do here."""
    while os.read(parent, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    meeting, rank, size, there = sys.argv[1:]
    threading.Thread(target=_end_with, args=(sys.stdin.fileno(),), daemon=True).start()
    Path(there).touch()
    sys.exit(follow(meeting, int(rank), int(size)))
