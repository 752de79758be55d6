"""A process of a run whose folder process 0 keeps: it trains what that one does, and ends with it.

python -m vitseg.runs.follow MEETING RANK SIZE     as `process_group` starts it
"""

from __future__ import annotations

import sys

from vitseg.recipe import parse
from vitseg.runs.checkpoint import Saver
from vitseg.runs.run import stages
from vitseg.runs.store import decisive, environment
from vitseg.training.job import Job
from vitseg.training.parallel import ProcessGroup, follow, follow_parent, launched


def train_along(group: ProcessGroup) -> None:
    """Train what process 0, in `vitseg.runs.run`, broadcasts."""
    recipe, start = group.broadcast()
    job = Job(parse(recipe))
    group.same("The environment", decisive(environment(job)))
    for _ in stages(job, start, group, Saver()):
        pass


def follow_launched() -> int | None:
    """The exit code of a process that `torchrun` has started; None where this is process 0, or the
    only one.
    """
    launch = launched()
    if not launch or not launch.rank:
        return None
    return follow(train_along)


if __name__ == "__main__":
    sys.exit(follow_parent(train_along, sys.argv[1:]))
