"""A process of a run whose folder process 0 keeps: it trains what that one does, and ends with it.

python -m vitseg.runs.follow MEETING     as `process_group` starts it
"""

import sys
from pathlib import Path

from vitseg.runs.checkpoint import Saver
from vitseg.runs.run import stages
from vitseg.runs.store import decisive, environment
from vitseg.training.job import Job
from vitseg.training.parallel import ProcessGroup, follow


def train_along(group: ProcessGroup) -> None:
    """Train what process 0, in `vitseg.runs.run`, broadcasts."""
    recipe, start = group.broadcast()
    job = Job(recipe)
    group.same("The environment", decisive(environment(job)))
    for _ in stages(job, start, group, Saver()):
        pass


if __name__ == "__main__":
    sys.exit(follow(train_along, Path(sys.argv[1])))
