"""The controls of the workbench: ipywidgets with visible labels, each with room for a sentence
below it.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

import ipywidgets as w

from vitseg.runs.store import StageEnd
from vitseg.ui import theme
from vitseg.ui.desk import ALL, ONE, PRETRAINED, SCHEDULERS, SETTINGS, Desk
from vitseg.ui.markup import html

_BESIDE = html("<p class=bad style='max-width:260px' role=alert>{}</p>")
_WIDE = {"Freeze depth", "Scheduler", "Start from"}


class Controls:
    """What a person sets: `controls["Epochs"]` is a widget, and `says["Epochs"]` the sentence below
    it. `changed` is called after every change, once the desk knows of it, and is to `draw`.
    """

    def __init__(self, desk: Desk, changed: Callable[[], None]):
        self.desk, self._changed = desk, changed
        depth = "How many blocks, counted from the last, train. 0: the encoder is frozen"
        self.by_label: dict[str, Any] = {
            "Stage": w.Dropdown(tooltip="The row that the controls beside it edit"),
            "Freeze depth": w.IntSlider(max=desk.depth, tooltip=depth, style=theme.HANDLE),
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
        self.fill()

    def __getitem__(self, label: str) -> Any:
        return self.by_label[label]

    def fill(self) -> None:
        """Show the desk in the controls."""
        desk, recipe = self.desk, self.desk.recipe
        settings = dict(recipe) | dict(recipe.stages[desk.stage - 1])
        for label, setting in SETTINGS.items():
            value = settings[setting]
            if value == "all":
                value = desk.depth
            if label == "Scheduler":
                value = next(n for n, kind in SCHEDULERS.items() if isinstance(value, kind))
            self._set(label, value)
        self._set("Run", ONE if desk.this_stage_only else ALL)
        self._set("Retrain", desk.retrain)
        names = [(f"{n} {stage.name}", n) for n, stage in enumerate(recipe.stages, start=1)]
        self._set("Stage", desk.stage, names)
        self["Freeze depth"].disabled = desk.stage == 1  # the stage with a frozen encoder

    def draw(self, ends: list[StageEnd]) -> None:
        """Offer places to start from, and put each problem beside its control."""
        self.desk.ends, start, options = ends, self.desk.start, {"pretrained weights": PRETRAINED}
        for end in (*ends, start):
            if end.stage:
                options[str(end)] = end
        self._set("Start from", start, options)
        for label, place in self.says.items():
            problem = self.desk.problems.get(label)
            place.value = _BESIDE.format(escape(problem)) if problem else ""

    def _set(self, label: str, value: Any, options: Any = None) -> None:
        """Set a control, which is no change by a person."""
        control = self[label]
        control.unobserve(self._on_change, "value")
        if options:
            control.options = options
        control.value = value
        control.observe(self._on_change, "value")

    def _on_change(self, change: dict) -> None:
        label = change["owner"].description
        self.desk.set(label, change["new"])
        if label == "Stage":
            self.fill()
        self._changed()
