"""The controls of the workbench: ipywidgets with visible labels, each with room for a sentence
below it; and what they come to: a recipe, where training starts, and what is wrong with either.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ipywidgets as w

from vitseg.errors import ConfigError, RunError, VitsegError
from vitseg.recipe import Recipe
from vitseg.runs.folder import RunFolder, runs_root
from vitseg.runs.store import StageEnd, differences
from vitseg.settings import Constant, CosineRestarts, Exponential, Schedule, Stage, WarmupPoly
from vitseg.sweep.grid import short_path, total_epochs
from vitseg.training.job import Job
from vitseg.ui import theme
from vitseg.ui.markup import html

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

ALL, ONE = "all stages", "this stage"
PRETRAINED = StageEnd(Path(), 0)
"""Where a run of its own starts."""

MOST_EPOCHS = 10_000
"""Of a run: the plan of more takes too long to draw."""

_BESIDE = html("<p class=bad style='max-width:260px' role=alert>{}</p>")
_WIDE = {"Freeze depth", "Scheduler", "Start from"}


def recent_runs() -> list[RunFolder]:
    """The 20 newest runs in the runs root."""
    logs = sorted(runs_root().glob("*/events.jsonl"), key=lambda log: log.stat().st_mtime)
    return [RunFolder(log.parent) for log in logs[:-21:-1]]


class Controls:
    """What a person sets: `controls["Epochs"]` is a widget, and `says["Epochs"]` the sentence below
    it. `changed` is called after every change.

    `recipe` is `base` with all `edits`, or with the last that were valid; `problems` are the
    reasons why Start is off, by the control they are about.
    """

    def __init__(self, base: Recipe, job_of: Callable[[Recipe], Job]):
        self.base, self.job_of, self.changed = base, job_of, lambda: None
        blocks = job_of(base).model.encoder.depth
        depth = "How many blocks, counted from the last, train. 0: the encoder is frozen"
        self.by_label: dict[str, Any] = {
            "Stage": w.Dropdown(tooltip="The row that the controls beside it edit"),
            "Freeze depth": w.IntSlider(max=blocks, tooltip=depth, style=theme.HANDLE),
            "Scheduler": w.Dropdown(options=SCHEDULERS.keys()),
            "Learning rate": w.FloatText(
                step=1e-5, tooltip="Base rate; the encoder may have a factor of it"
            ),
            "Epochs": w.IntText(),
            "Batch size": w.IntText(tooltip="Images of one optimizer step"),
            "Seed": w.IntText(
                tooltip="Draws the decoder's weights, the order of images, and dropout"
            ),
            "Device": w.Dropdown(options=["auto", "cpu", "cuda", "mps"]),
            "Run": w.Dropdown(options=[ALL, ONE]),
            "Start from": w.Dropdown(),
            "Retrain": w.Checkbox(
                indent=False, tooltip="Also the stages that an earlier run has finished alike"
            ),
        }
        self.says, places = {}, []
        for label, control in self.by_label.items():
            control.description, control.style.description_width = label, "initial"
            control.layout.width = "270px" if label in _WIDE else "160px"
            control.observe(self._on_change, "value")
            self.says[label] = w.HTML()
            places.append(w.VBox([control, self.says[label]]))
        self.box = w.Box(places, layout={"flex_flow": "row wrap", "grid_gap": "2px 14px"})
        self.take(base)

    def __getitem__(self, label: str) -> Any:
        return self.by_label[label]

    @property
    def stage(self) -> int:
        """The row being edited, from 1."""
        return self["Stage"].value

    @property
    def start(self) -> StageEnd:
        """Where training starts."""
        return self["Start from"].value

    def take(self, recipe: Recipe) -> None:
        """Put another recipe in the place of what the controls say. After one that has only stage 1
        the later stages stay at hand.
        """
        later = self.base.stages[1:] if len(recipe.stages) == 1 else ()
        self.base = self.recipe = recipe.replace({"stages": recipe.stages + later})
        self.edits, self._valid = {}, {}
        self._set("Run", ONE if later else ALL)
        self.turn_to(1, PRETRAINED)

    def turn_to(self, stage: int, start: StageEnd) -> None:
        """Edit a stage, and start from somewhere."""
        self.offer(start)
        self._fill(stage)
        self.check()

    def offer(self, start: StageEnd) -> None:
        """Offer places to start from: the ends of stages of recent runs from which the recipe may go
        on, newest first. `start` is chosen.
        """
        options = {"pretrained weights": PRETRAINED}
        for run in recent_runs():
            with suppress(VitsegError):
                old = run.recipe
                for number in reversed(run.ended_stages()):
                    if not differences(old, self.recipe, number):
                        end = StageEnd(run.path, number)
                        options[str(end)] = end
        if start.stage:
            options[str(start)] = start
        self._set("Start from", start, options)

    def chosen(self) -> Recipe:
        """The recipe that Start trains: up to the edited stage if only that one is to run."""
        last = self.stage if self["Run"].value == ONE else None
        return self.recipe.replace({"stages": self.recipe.stages[:last]})

    def choice(self) -> tuple[Any, ...]:
        """What Start would do, to be compared."""
        return self.chosen(), self.start, self.problems

    def _fill(self, stage: int) -> None:
        """Show a stage."""
        recipe = self.recipe
        names = [(f"{n} {stage.name}", n) for n, stage in enumerate(recipe.stages, start=1)]
        self._set("Stage", stage, names)
        settings = dict(recipe) | dict(recipe.stages[stage - 1])
        for label, setting in SETTINGS.items():
            value = settings[setting]
            if value == "all":
                value = self["Freeze depth"].max
            if label == "Scheduler":
                value = next(n for n, kind in SCHEDULERS.items() if isinstance(value, kind))
            self._set(label, value)
        self["Freeze depth"].disabled = stage == 1  # the stage with a frozen encoder

    def _set(self, label: str, value: Any, options: Any = None) -> None:
        """Set a control, which is no change by a person."""
        control = self[label]
        control.unobserve(self._on_change, "value")
        if options and options != control.options:  # for it chooses the first of them
            control.options = options
        control.value = value
        control.observe(self._on_change, "value")

    def _on_change(self, change: dict) -> None:
        label, value = change["owner"].description, change["new"]
        if label == "Stage":  # no control shows any more what was refused of the one before
            self.edits = dict(self._valid)
            self._fill(value)
        elif label in SETTINGS:
            setting = SETTINGS[label]
            if label == "Scheduler":
                kind, stages = SCHEDULERS[value], self.base.stages
                value = kind()
                # as the base has it in this stage, else in the first other one
                for stage in (*reversed(stages), stages[self.stage - 1]):
                    if isinstance(stage.schedule, kind):
                        value = stage.schedule
            place = f"stages.{self.stage - 1}." if setting in Stage.model_fields else ""
            self.edits[place + setting] = value
        elif value == ONE and not self.start.stage:
            ends = self["Start from"].options.values()
            before = (end for end in ends if end.stage == self.stage - 1)
            self._set("Start from", next(before, PRETRAINED))
        self.check()
        self.changed()

    def check(self) -> None:
        """Work out `recipe` and `problems` anew: each beside the control it is about, or beside
        Start from.
        """
        self.problems: dict[str, str] = {}
        try:
            recipe, _ = self.base.settle(self.edits)  # at depth 0 the encoder's own settings go
            self.job_of(recipe)  # is there such a device, are there so many blocks?
            if (epochs := total_epochs(recipe)) > MOST_EPOCHS:
                allowed = f"at most {MOST_EPOCHS:,} in all"
                raise ConfigError("epochs", epochs, allowed, "vitseg.train takes any number.")
            self.recipe, self._valid = recipe, dict(self.edits)
            self._check_start()
        except VitsegError as error:
            for field, _, _, says in error.refusals:
                names = field.split(".")
                about = [label for label, setting in SETTINGS.items() if setting in names]
                problem = f"{short_path(field)}: {says} {error.mend}".strip()
                self.problems[about[0] if about else "Start from"] = problem
            self.problems = self.problems or {"Start from": str(error)}
        for label, place in self.says.items():
            problem = self.problems.get(label)
            place.value = _BESIDE.format(problem) if problem else ""

    def _check_start(self) -> None:
        start, done, last = self.start, self.start.stage, len(self.chosen().stages)
        if done >= last:
            raise RunError(f"There is no stage after {start} to train.", "Choose another start.")
        if self["Run"].value == ONE and done < last - 1:
            problem = f"Stage {last} alone starts from the end of stage {last - 1}."
            raise RunError(problem, "Choose one in Start from, or run all stages.")
        if done and (found := differences(RunFolder(start.run).recipe, self.recipe, done)):
            problem = f"{start} does not fit. {' '.join(found)}"
            raise RunError(problem, "Change that back, or choose another start.")
