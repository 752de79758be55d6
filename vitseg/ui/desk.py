"""What the controls of a workbench say: edits of a recipe, where training starts, and what is wrong
with either. No widgets.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from vitseg.errors import RunError, VitsegError
from vitseg.recipe import Recipe
from vitseg.runs.folder import RunFolder
from vitseg.runs.fork import differences
from vitseg.runs.store import StageEnd
from vitseg.settings import Constant, CosineRestarts, Exponential, Schedule, Stage, WarmupPoly
from vitseg.training.job import Job

SCHEDULERS: dict[str, type[Schedule]] = {
    "Cosine restarts / batch": CosineRestarts,
    "Exponential / epoch": Exponential,
    "Constant": Constant,
    "Warm-up, polynomial / batch": WarmupPoly,
}
"""The schedulers by the words of the control, each with its clock."""


class Desk:
    """The controls' state. `stage` is the row being edited, from 1; `this_stage_only` ends the run
    after it; training starts from `start`, else from pretrained weights; `retrain` trains stages
    again that an earlier run has finished alike.

    `recipe` is `base` with all `edits`, or with the last that were valid. After a change call
    `check`: `problem` is then the reason why Start is off, if it is.
    """

    def __init__(self, base: Recipe, job_of: Callable[[Recipe], Job]):
        self.base, self.job_of, self.retrain = base, job_of, False
        self.depth = job_of(base).model.encoder.depth
        self.take(base)

    def take(self, recipe: Recipe) -> None:
        """Put another recipe in the place of what the controls say. After one that has only stage 1
        the later stages stay at hand.
        """
        later = self.base.stages[1:] if len(recipe.stages) == 1 else ()
        self.base = self.recipe = recipe.replace({"stages": recipe.stages + later})
        self.stage, self.this_stage_only = 1, bool(later)
        self.start: StageEnd | None = None
        self.edits, self._valid, self.problem = {}, {}, ""

    def edit(self, setting: str, value: Any) -> None:
        """Change a setting of the stage being edited (`lr`), or of the recipe (`batch_size`)."""
        place = f"stages.{self.stage - 1}." if setting in Stage.model_fields else ""
        self.edits[place + setting] = value

    def turn_to(self, stage: int) -> None:
        """Edit another stage. Edits that were refused are dropped: no control shows them any more."""
        self.stage, self.edits = stage, dict(self._valid)

    def check(self) -> None:
        """Work out `recipe` and `problem` anew."""
        self.problem = ""
        try:
            recipe, _ = self.base.settle(self.edits)  # at depth 0 the encoder's own settings go
            self.job_of(recipe)  # is there such a device, are there so many blocks?
            self.recipe, self._valid = recipe, dict(self.edits)
            self._check_start()
        except VitsegError as error:
            pattern = r"\bstages\.(\d+)"
            self.problem = re.sub(pattern, lambda n: f"stage {int(n[1]) + 1}", str(error))

    def _check_start(self) -> None:
        start, last = self.start, len(self.chosen().stages)
        done = start.stage if start else 0
        if done >= last:
            raise RunError(f"There is no stage after {start} to train.", "Choose another start.")
        if self.this_stage_only and done < last - 1:
            problem = f"Stage {last} alone starts from the end of stage {last - 1}."
            raise RunError(problem, "Choose one in Start from, or run all stages.")
        if start and (found := differences(RunFolder(start.run).recipe, self.recipe, done)):
            problem = f"{start} does not fit. {' '.join(found)}"
            raise RunError(problem, "Change that back, or choose another start.")

    def chosen(self) -> Recipe:
        """The recipe that Start trains: up to the edited stage if only that one is to run."""
        last = self.stage if self.this_stage_only else None
        return self.recipe.replace({"stages": self.recipe.stages[:last]})

    def choice(self) -> tuple[Any, ...]:
        """What Start would do, to be compared."""
        return self.chosen(), self.start, self.problem

    def schedule_of(self, name: str) -> Schedule:
        """The scheduler of that name: as the base has it in this stage, else in the first other
        one, else its defaults.
        """
        for stage in (self.base.stages[self.stage - 1], *self.base.stages):
            if isinstance(stage.schedule, SCHEDULERS[name]):
                return stage.schedule
        return SCHEDULERS[name]()
