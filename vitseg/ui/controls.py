"""The controls of the workbench: ipywidgets with visible labels, each with room for a sentence
beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import ipywidgets as w

from vitseg.runs.store import StageEnd
from vitseg.ui import theme
from vitseg.ui.markup import html
from vitseg.ui.session import OF_RECIPE, OF_STAGE, SCHEDULERS, Desk

PRETRAINED = "pretrained weights"
ALL, ONE = "all stages", "this stage"
_BESIDE = html("<p class=bad style='max-width:260px' role=alert>{}</p>")
SETTINGS = OF_STAGE | OF_RECIPE
_WIDTHS = {
    "Stage": "180px",
    "Freeze depth": "250px",
    "Scheduler": "250px",
    "Learning rate": "180px",
    "Run": "150px",
    "Start from": "300px",
}
_TOOLTIPS = {
    "Stage": "The row that the controls beside it edit",
    "Freeze depth": "How many blocks, counted from the last, train. 0: the encoder is frozen",
    "Scheduler": "And the clock that moves it",
    "Learning rate": "Base rate; the encoder may have a factor of it",
    "Batch size": "Images of one optimizer step",
    "Seed": "Draws the decoder's weights, the order of images, and dropout",
    "Retrain": "Also the stages that an earlier run has finished alike",
}


class Controls:
    """What a person sets: `controls["Epochs"]` is a widget, and `says["Epochs"]` the sentence beside
    it. `changed` is called after every change, once the desk knows of it.
    """

    def __init__(self, desk: Desk, changed: Callable[[], None]):
        self.desk, self._changed = desk, changed
        self._ours: set[str] = set()
        self.by_label: dict[str, w.ValueWidget] = {
            "Stage": w.Dropdown(),
            "Freeze depth": w.IntSlider(min=0, max=desk.depth),
            "Scheduler": w.Dropdown(options=list(SCHEDULERS)),
            "Learning rate": w.FloatText(step=1e-5),
            "Epochs": w.IntText(),
            "Batch size": w.IntText(),
            "Seed": w.IntText(),
            "Device": w.Dropdown(options=["auto", "cpu", "cuda", "mps"]),
            "Run": w.Dropdown(options=[ALL, ONE]),
            "Start from": w.Dropdown(options=[PRETRAINED]),
            "Retrain": w.Checkbox(indent=False),
        }
        self.says = {label: w.HTML() for label in self.by_label}
        places = []
        for label, control in self.by_label.items():
            control.description, control.tooltip = label, _TOOLTIPS.get(label)
            control.style = {"description_width": "initial"}
            control.layout.width = _WIDTHS.get(label, "130px")
            control.observe(self._on_change, "value")
            places.append(w.VBox([control, self.says[label]]))
        self["Freeze depth"].style.handle_color = theme.TRAIN
        self.offer_starts([])
        self.fill()
        self.box = w.Box(places, layout=w.Layout(flex_flow="row wrap", grid_gap="2px 14px"))

    def __getitem__(self, label: str) -> Any:
        return self.by_label[label]

    def fill(self) -> None:
        """Show the desk in the controls."""
        recipe, desk = self.desk.recipe, self.desk
        stage = recipe.stages[desk.stage - 1]
        depth = desk.depth if stage.unfrozen_blocks == "all" else stage.unfrozen_blocks
        values = {
            "Stage": desk.stage,
            "Freeze depth": depth,
            "Scheduler": desk.scheduler(),
            "Learning rate": stage.lr,
            "Epochs": stage.epochs,
            "Batch size": recipe.batch_size,
            "Seed": recipe.seed,
            "Device": recipe.device,
            "Run": ONE if desk.this_stage_only else ALL,
            "Retrain": desk.retrain,
        }
        with self._filling(*self.by_label):
            names = enumerate(recipe.stages, start=1)
            self["Stage"].options = [(f"{n} {stage.name}", n) for n, stage in names]
            for label, value in values.items():
                self[label].value = value
        # the first stage is the one with a frozen encoder
        self["Freeze depth"].disabled = desk.stage == 1
        self._choose_start()
        self.say()

    def say(self) -> None:
        """Put each problem beside its control."""
        for label, place in self.says.items():
            problem = self.desk.problems.get(label)
            place.value = _BESIDE.format(escape(problem)) if problem else ""

    def offer_starts(self, ends: list[StageEnd]) -> None:
        with self._filling("Start from"):
            options = [(str(end), end) for end in ends]
            self["Start from"].options = [(PRETRAINED, PRETRAINED), *options]
        self._choose_start()

    def _choose_start(self) -> None:
        start, chosen = self["Start from"], self.desk.start
        with self._filling("Start from"):
            if chosen is not None and chosen not in dict(start.options).values():
                start.options = [*start.options, (str(chosen), chosen)]
            start.value = chosen or PRETRAINED

    @contextmanager
    def _filling(self, *labels: str) -> Iterator[None]:
        """Changes of these controls are ours meanwhile, not a person's."""
        self._ours = self._ours | {*labels}
        try:
            yield
        finally:
            self._ours = self._ours - {*labels}

    def _start_before(self) -> None:
        """A later stage alone starts from the newest end of the stage before it, where there is
        one.
        """
        if not self.desk.this_stage_only or self.desk.start is not None:
            return
        for _, end in self["Start from"].options:
            if isinstance(end, StageEnd) and end.stage == self.desk.stage - 1:
                self.desk.start = end
                self._choose_start()
                return

    def _on_change(self, change: dict) -> None:
        label, value, desk = change["owner"].description, change["new"], self.desk
        if label in self._ours:
            return
        match label:
            case "Stage":
                desk.turn_to(value)
                self.fill()
            case "Scheduler":
                desk.edit("schedule", desk.schedule_of(value))
            case "Run":
                desk.this_stage_only = value == ONE
                self._start_before()
                desk.check()
            case "Retrain":
                desk.retrain = value
            case "Start from":
                desk.start = None if value == PRETRAINED else value
                desk.check()
            case _:
                desk.edit(SETTINGS[label], value)
        self.say()
        self._changed()
