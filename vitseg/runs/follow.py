"""A process that shares the steps of a run whose folder another one keeps. It does as that one
does, and leaves with it.

python -m vitseg.runs.follow MEETING RANK SIZE     what `assembled` begins
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import torch

from vitseg.errors import VitsegError
from vitseg.recipe import parse
from vitseg.runs.run import stages
from vitseg.runs.store import decisive, environment
from vitseg.training.device import launched
from vitseg.training.job import Job
from vitseg.training.team import Left, Team, joined


def follow(meeting: str, rank: int, size: int, local_rank: int) -> int:
    """Meet the others, and train what process 0 says. Returns an exit code."""
    if local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)
    try:
        with suppress(Left), joined(meeting, rank, size) as team:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # process 0 answers, between two steps
            try:
                _train(team)
            except Exception as error:
                team.leave(error)
                raise
    except VitsegError as error:
        sys.stderr.write(f"vitseg: process {rank} of {size}: {error}\n")
        return 2
    return 0


def _train(team: Team) -> None:
    recipe = parse(team.tell())
    with team.together():
        job = Job(recipe)
        facts = decisive(environment(job))
    team.same("The environment", facts)
    for _ in stages(job, team.tell(), team):
        pass


def follow_launched() -> int | None:
    """An exit code of one that `torchrun` has begun; None where this is process 0, or the only
    one.
    """
    launch = launched()
    return (
        follow("env://", launch.rank, launch.size, launch.local_rank)
        if launch and launch.rank
        else None
    )


def _end_with_the_parent(meeting: str) -> None:
    """Standard input is the parent's hand: let go, also by a kill, nothing is left to do but to
    clear its folder away.
    """
    while os.read(0, 1024):
        pass
    shutil.rmtree(Path(url2pathname(urlparse(meeting).path)).parent, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    meeting, rank, size = sys.argv[1:]
    threading.Thread(target=_end_with_the_parent, args=(meeting,), daemon=True).start()
    sys.exit(follow(meeting, int(rank), int(size), int(rank)))
