"""What is known of the time to come: the forecast, stages that are trained already, how fast a run
really goes. No widgets.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from vitseg.recipe import Recipe
from vitseg.runs.forecast import Cost, StageForecast, forecast, measure
from vitseg.runs.run import trained_already
from vitseg.runs.store import environment, stage_keys
from vitseg.training.job import Job

LONGEST = 60.0
"""Seconds that a step may take; more was a machine asleep."""


class Ahead:
    """`cost` is None until a few batches have been timed. `count` is told of every event of a
    run.
    """

    def __init__(self):
        self.cost: Cost | None = None
        self._facts: dict[str, Any] = {}
        self._timing = threading.Lock()
        self._weighed, self._weights = None, list[float]()
        self.start()

    def start(self) -> None:
        """Another run begins."""
        self._last: float | None = None
        self._seconds = self._done = 0.0

    def measure(self, job: Job, untouched: bool) -> None:
        """Time a few batches, once. An `untouched` job has the weights that a run begins with: only
        then are they looked up.
        """
        with self._timing:
            if self.cost is None:
                facts = environment(job) if untouched else {}
                self.cost, self._facts = measure(job), facts

    def forecast(self, job: Job, inherited: int = 0) -> list[StageForecast]:
        return forecast(job, self.cost, inherited)

    def trained(self, job: Job) -> int:
        """How many stages of a job other runs have finished; 0 where only Start can tell."""
        facts = {"device": str(job.machine.device)}
        for name in ("precision", "threads", "processes"):
            facts[name] = getattr(job.machine, name)
        if not facts.items() <= self._facts.items():
            return 0
        found = trained_already(stage_keys(job, self._facts))
        return found.stage if found else 0

    def weight(self, stage: int, recipe: Recipe | None, job: Job) -> float:
        """How long a step of a stage of this recipe takes, beside those of others: by forecast, or
        all alike.
        """
        if self.cost is None or recipe is None:
            return 1.0
        if self._weighed is not recipe:
            ahead = self.forecast(job.replace(recipe))
            self._weighed, self._weights = recipe, [f.seconds / f.steps for f in ahead]
        return self._weights[stage - 1]

    def count(self, working: bool, weight: float) -> None:
        """Since the last event a step of this weight was taken, or none (0). A pause is no work."""
        now = time.monotonic()
        if working and self._last is not None:
            self._seconds += min(now - self._last, LONGEST)
            self._done += weight
        self._last = now

    def left(self, steps: Mapping[int, int], recipe: Recipe | None, job: Job) -> float | None:
        """Seconds that so many steps of each stage will take, once that can be said."""
        ahead = sum(self.weight(stage, recipe, job) * count for stage, count in steps.items())
        return ahead * self._seconds / self._done if self._done else None
