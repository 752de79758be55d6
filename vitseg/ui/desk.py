"""What the controls say: a recipe with changes, where to start from, and what cannot work. No
widgets.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vitseg.errors import ConfigError, VitsegError
from vitseg.recipe import Recipe
from vitseg.runs.folder import RunFolder
from vitseg.runs.fork import differences
from vitseg.runs.store import StageEnd
from vitseg.settings import Constant, CosineRestarts, Exponential, Schedule, WarmupPoly
from vitseg.training.job import Job

SCHEDULERS: dict[str, type[Schedule]] = {
    "Cosine restarts / batch": CosineRestarts,
    "Exponential / epoch": Exponential,
    "Constant": Constant,
    "Warm-up, polynomial / batch": WarmupPoly,
}
"""The schedulers by the words of the control, each with its clock."""

_LABELS = {
    "unfrozen_blocks": "Freeze depth",
    "schedule": "Scheduler",
    "eta_min": "Learning rate",
    "lr": "Learning rate",
    "epochs": "Epochs",
    "batch_size": "Batch size",
    "seed": "Seed",
    "device": "Device",
}
MOST_EPOCHS = 10_000
"""The plan of more could not be drawn while a control is being moved."""


@dataclass
class Desk:
    """The controls' state. `stage` is the row being edited, from 1; `this_stage_only` ends the run
    after it; with `retrain` stages that an earlier run has finished alike are trained all the same.

    `recipe` is the base with all edits; `problems` says by control what is wrong, and is empty if
    Start may be pressed.
    """

    base: Recipe
    job_of: Callable[[Recipe], Job]
    stage: int = 1
    this_stage_only: bool = False
    retrain: bool = False
    start: StageEnd | None = None
    edits: dict[str, Any] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.recipe, self.depth = self.base, self.job_of(self.base).model.encoder.depth
        self._whole: dict[str, Any] = {}

    def take(self, recipe: Recipe) -> None:
        """Another recipe in place of what the controls said. After one that has only stage 1 the
        later stages stay at hand.
        """
        later = self.base.stages[1:] if len(recipe.stages) == 1 else ()
        self.this_stage_only = bool(later)
        recipe = recipe.replace({"stages": recipe.stages + later})
        self.base = self.recipe = recipe
        self.stage, self.start, self.edits, self._whole = 1, None, {}, {}
        self.check()

    def edit(self, setting: str, value: Any) -> None:
        """Change a setting of the stage being edited (`lr`), or of the whole recipe
        (`batch_size`).
        """
        of_stage = setting in {"unfrozen_blocks", "schedule", "lr", "epochs"}
        self.edits[f"stages.{self.stage - 1}.{setting}" if of_stage else setting] = value
        self.check()

    def turn_to(self, stage: int) -> None:
        """Edit another stage. An edit that was refused is dropped: its control would not show it
        any more.
        """
        self.stage, self.edits = stage, dict(self._whole) if self.problems else self.edits
        self.check()

    def check(self) -> None:
        """Work out `recipe` and `problems` anew. With a problem, `recipe` stays the last one that
        was whole.
        """
        self.problems = {}
        try:
            recipe, _ = self.base.settle(self.edits)  # at depth 0 the encoder's own settings go
            self._check_here(recipe)
            self.recipe, self._whole = recipe, dict(self.edits)
        except VitsegError as error:
            self._blame(error)
        try:
            self._check_start()
        except VitsegError as error:
            self.problems["Start from"] = f"{error} Choose another place to start from."

    def _check_here(self, recipe: Recipe) -> None:
        """What only this machine and this encoder know: is there such a device, are there so many
        blocks?
        """
        self.job_of(recipe)
        if (epochs := sum(s.epochs for s in recipe.stages)) > MOST_EPOCHS:
            raise ConfigError(
                "epochs",
                epochs,
                f"at most {MOST_EPOCHS:,} in all",
                "vitseg.train takes any number.",
            )

    def chosen(self) -> Recipe:
        """The recipe that Start trains: up to the edited stage if only that one is to run."""
        stages = self.recipe.stages[: self.stage] if self.this_stage_only else self.recipe.stages
        return self.recipe.replace({"stages": [s.model_dump(mode="json") for s in stages]})

    def first_stage(self) -> int:
        return self.start.stage + 1 if self.start else 1

    def scheduler(self) -> str:
        kind = type(self.recipe.stages[self.stage - 1].schedule)
        return next(name for name, schedule in SCHEDULERS.items() if schedule is kind)

    def schedule_of(self, name: str) -> Schedule:
        """The scheduler of that name: as the base has it in this stage, else in the first other
        one, else its defaults.
        """
        stages = self.base.stages
        has = [
            s.schedule
            for s in (stages[self.stage - 1], *stages)
            if isinstance(s.schedule, SCHEDULERS[name])
        ]
        return has[0] if has else SCHEDULERS[name]()

    def _blame(self, error: VitsegError) -> None:
        """Put each refusal beside the control it is about, or beside Start."""
        if not error.refusals:
            self.problems["Start"] = str(error)
        for refusal in error.refusals:
            names = reversed(refusal.field.split("."))
            label = next((_LABELS[name] for name in names if name in _LABELS), "Start")
            place = re.sub(r"stages\.(\d+)", lambda m: f"stage {int(m[1]) + 1}", refusal.place)
            says = " ".join(filter(None, (refusal.says, error.mend)))
            self.problems[label] = f"{place}: {says}" if place else says

    def _check_start(self) -> None:
        if self.start and self.start.stage >= self.stage and self.this_stage_only:
            self.problems["Start from"] = (
                f"Stage {self.stage} cannot start from {self.start}: that is not before it."
            )
        elif self.start and self.start.stage >= len(self.recipe.stages):
            self.problems["Start from"] = f"There is no stage after {self.start} to train."
        elif self.start and (
            found := differences(RunFolder(self.start.run).recipe, self.recipe, self.start.stage)
        ):
            self.problems["Start from"] = (
                f"{self.start} was trained otherwise. {' '.join(found)} Change that back, or "
                f"start anew."
            )
        elif self.this_stage_only and self.first_stage() < self.stage:
            need = self.stage - 1
            self.problems["Run"] = (
                f"Stage {self.stage} alone starts from the end of stage {need}: choose one in "
                f"Start from, or run all stages."
            )
