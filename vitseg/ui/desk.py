"""What the controls of a workbench say: edits of a recipe, where training starts, and what is wrong
with either. No widgets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vitseg.errors import ConfigError, RunError, VitsegError
from vitseg.recipe import Recipe
from vitseg.runs.folder import RunFolder
from vitseg.runs.store import StageEnd, differences
from vitseg.settings import Constant, CosineRestarts, Exponential, Schedule, Stage, WarmupPoly
from vitseg.training.job import Job

SCHEDULERS: dict[str, type[Schedule]] = {
    "Cosine restarts / batch": CosineRestarts,
    "Exponential / epoch": Exponential,
    "Constant": Constant,
    "Warm-up, polynomial / batch": WarmupPoly,
}
"""The schedulers by the words of the control, each with its clock."""

SETTINGS = {
    "Freeze depth": "unfrozen_blocks",
    "Scheduler": "schedule",
    "Learning rate": "lr",
    "Epochs": "epochs",
    "Batch size": "batch_size",
    "Seed": "seed",
    "Device": "device",
}
"""The settings by the labels of their controls."""

MOST_EPOCHS = 10_000
"""Of a run: the plan of more takes too long to draw."""


class Desk:
    """The controls' state. `stage` is the row being edited, from 1; `this_stage_only` ends the run
    after it; training starts from `start`, else from pretrained weights; `retrain` trains stages
    again that an earlier run has finished alike.

    `recipe` is `base` with all `edits`, or with the last that were valid. After a change call
    `check`: `problems` are then the reasons why Start is off, by the control they are about.
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
        self.edits, self._valid, self.problems = {}, {}, dict[str, str]()

    def edit(self, setting: str, value: Any) -> None:
        """Change a setting of the stage being edited (`lr`), or of the recipe (`batch_size`)."""
        place = f"stages.{self.stage - 1}." if setting in Stage.model_fields else ""
        self.edits[place + setting] = value

    def turn_to(self, stage: int) -> None:
        """Edit another stage. Edits that were refused are dropped: no control shows them any more."""
        self.stage, self.edits = stage, dict(self._valid)

    @property
    def problem(self) -> str:
        """Why Start is off, if it is."""
        return " ".join(self.problems.values())

    def check(self) -> None:
        """Work out `recipe` and `problems` anew."""
        self.problems = {}
        try:
            recipe, _ = self.base.settle(self.edits)  # at depth 0 the encoder's own settings go
            self.job_of(recipe)  # is there such a device, are there so many blocks?
            if (epochs := sum(stage.epochs for stage in recipe.stages)) > MOST_EPOCHS:
                allowed = f"at most {MOST_EPOCHS:,} in all"
                raise ConfigError("epochs", epochs, allowed, "vitseg.train takes any number.")
            self.recipe, self._valid = recipe, dict(self.edits)
        except VitsegError as error:
            self._blame(error)
        try:
            self._check_start()
        except VitsegError as error:
            self.problems["Start from"] = str(error)

    def _blame(self, error: VitsegError) -> None:
        """Put each refusal beside the control it is about, or beside Start."""
        if not error.refusals:
            self.problems["Start"] = str(error)
        for refusal in error.refusals:
            path = refusal.field.split(".")
            about = [label for label, setting in SETTINGS.items() if setting in path]
            if path[0] == "stages" and len(path) > 1:
                path[:2] = [f"stage {int(path[1]) + 1}"]
            says = f"{'.'.join(path)}: {refusal.says} {error.mend}"
            self.problems[about[0] if about else "Start"] = says.strip()

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
        return self.chosen(), self.start, self.problems

    def schedule_of(self, name: str) -> Schedule:
        """The scheduler of that name: as the base has it in this stage, else in the first other
        one, else its defaults.
        """
        for stage in (self.base.stages[self.stage - 1], *self.base.stages):
            if isinstance(stage.schedule, SCHEDULERS[name]):
                return stage.schedule
        return SCHEDULERS[name]()
