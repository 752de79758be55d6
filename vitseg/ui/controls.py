"""The controls of the workbench: ipywidgets with visible labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets as w

from vitseg.runs.store import StageEnd
from vitseg.ui import theme
from vitseg.ui.desk import SCHEDULERS, Desk

PRETRAINED = "pretrained weights"
ALL, ONE = "all stages", "this stage"
_SETTINGS = {
    "Freeze depth": "unfrozen_blocks",
    "Learning rate": "lr",
    "Epochs": "epochs",
    "Batch size": "batch_size",
    "Seed": "seed",
    "Device": "device",
}
"""The settings by the labels of their controls."""

_WIDE = {"Freeze depth", "Scheduler", "Start from"}


class Controls:
    """What a person sets: `controls["Epochs"]` is a widget. `changed` is called after every change,
    once the desk knows of it.
    """

    def __init__(self, desk: Desk, changed: Callable[[], None]):
        self.desk, self._changed = desk, changed
        self._starts: list[StageEnd] = []
        depth = "How many blocks, counted from the last, train. 0: the encoder is frozen"
        self.by_label: dict[str, Any] = {
            "Stage": w.Dropdown(tooltip="The row that the controls beside it edit"),
            "Freeze depth": w.IntSlider(max=desk.depth, tooltip=depth),
            "Scheduler": w.Dropdown(options=SCHEDULERS.keys()),
            "Learning rate": w.FloatText(
                step=1e-5, tooltip="Base rate; the encoder may have a factor of it"
            ),
            "Epochs": w.BoundedIntText(max=10_000),  # the plan of more takes too long to draw
            "Batch size": w.IntText(tooltip="Images of one optimizer step"),
            "Seed": w.IntText(
                tooltip="Draws the decoder's weights, the order of images, and dropout"
            ),
            "Device": w.Dropdown(options=["auto", "cpu", "cuda", "mps"]),
            "Run": w.Dropdown(options=[ALL, ONE]),
            "Start from": w.Dropdown(options=[PRETRAINED]),
            "Retrain": w.Checkbox(
                indent=False, tooltip="Also the stages that an earlier run has finished alike"
            ),
        }
        for label, control in self.by_label.items():
            control.description = label
            control.style = {"description_width": "initial"}
            control.layout.width = "270px" if label in _WIDE else "160px"
            control.observe(self._on_change, "value")
        self["Freeze depth"].style.handle_color = theme.TRAIN
        self.fill()
        layout = {"flex_flow": "row wrap", "grid_gap": "2px 14px"}
        self.box = w.Box(list(self.by_label.values()), layout=layout)

    def __getitem__(self, label: str) -> Any:
        return self.by_label[label]

    def fill(self) -> None:
        """Show the desk in the controls."""
        desk, recipe = self.desk, self.desk.recipe
        stage = recipe.stages[desk.stage - 1]
        depth = desk.depth if stage.unfrozen_blocks == "all" else stage.unfrozen_blocks
        schedule = next(n for n, kind in SCHEDULERS.items() if isinstance(stage.schedule, kind))
        values = {
            "Freeze depth": depth,
            "Scheduler": schedule,
            "Learning rate": stage.lr,
            "Epochs": stage.epochs,
            "Batch size": recipe.batch_size,
            "Seed": recipe.seed,
            "Device": recipe.device,
            "Run": ONE if desk.this_stage_only else ALL,
            "Retrain": desk.retrain,
        }
        for label, value in values.items():
            self._set(label, value)
        names = [(f"{n} {stage.name}", n) for n, stage in enumerate(recipe.stages, start=1)]
        self._set("Stage", desk.stage, names)
        self["Freeze depth"].disabled = desk.stage == 1  # the stage with a frozen encoder

    def offer(self, starts: list[StageEnd]) -> None:
        """Offer places to start from."""
        start, self._starts = self.desk.start, starts
        if start and start not in starts:
            starts = [*starts, start]
        options = [(str(end), end) for end in (PRETRAINED, *starts)]
        self._set("Start from", start or PRETRAINED, options)

    def _set(self, label: str, value: Any, options: Any = None) -> None:
        """Set a control, which is no change by a person."""
        control = self[label]
        control.unobserve(self._on_change, "value")
        if options:
            control.options = options
        control.value = value
        control.observe(self._on_change, "value")

    def _on_change(self, change: dict) -> None:
        label, value, desk = change["owner"].description, change["new"], self.desk
        match label:
            case "Stage":
                desk.turn_to(value)
            case "Scheduler":
                desk.edit("schedule", desk.schedule_of(value))
            case "Run":
                desk.this_stage_only = value == ONE
                if desk.this_stage_only and not desk.start:
                    before = [end for end in self._starts if end.stage == desk.stage - 1]
                    desk.start = before[0] if before else None
            case "Retrain":
                desk.retrain = value
            case "Start from":
                desk.start = None if value == PRETRAINED else value
            case _:
                desk.edit(_SETTINGS[label], value)
        desk.check()
        if label == "Stage":
            self.fill()
        self._changed()
