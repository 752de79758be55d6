"""The controls of the workbench: ipywidgets with visible labels, each with room for a sentence
beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape

import ipywidgets as w

from vitseg.recipe import Recipe
from vitseg.runs.store import StageEnd
from vitseg.ui import theme
from vitseg.ui.desk import SCHEDULERS, Desk
from vitseg.ui.panels import html

PRETRAINED = "pretrained weights"
ALL, ONE = "all stages", "this stage"
_WIDTHS = {
    "Stage": "180px",
    "Freeze depth": "250px",
    "Scheduler": "250px",
    "Learning rate": "180px",
    "Run": "150px",
    "Start from": "300px",
}
_WIDE = {"description_width": "initial"}


class Controls:
    """What a person sets. `changed` is called after every change, once the desk knows of it."""

    def __init__(self, desk: Desk, changed: Callable[[], None]):
        self.desk, self._changed, self._filling, self._offering = desk, changed, False, False
        self.stage = w.Dropdown(
            description="Stage", tooltip="The row that the controls beside it edit"
        )
        self.depth = w.IntSlider(
            description="Freeze depth",
            min=0,
            max=desk.depth,
            continuous_update=True,
            tooltip="How many blocks, counted from the last, train. 0: the encoder is frozen",
        )
        self.scheduler = w.Dropdown(
            description="Scheduler", options=list(SCHEDULERS), tooltip="And the clock that moves it"
        )
        self.lr = w.FloatText(
            description="Learning rate",
            step=1e-5,
            tooltip="Base rate; the encoder may have a factor of it",
        )
        self.epochs = w.IntText(description="Epochs")
        self.batch_size = w.IntText(
            description="Batch size", tooltip="Images of one optimizer step"
        )
        self.seed = w.IntText(
            description="Seed",
            tooltip="Draws the decoder's weights, the order of images, and dropout",
        )
        self.device = w.Dropdown(description="Device", options=["auto", "cpu", "cuda", "mps"])
        self.scope = w.Dropdown(description="Run", options=[ALL, ONE])
        self.start = w.Dropdown(description="Start from", options=[PRETRAINED])
        self.retrain = w.Checkbox(
            description="Retrain",
            indent=False,
            tooltip="Also the stages that an earlier run has finished alike",
        )
        self.by_label = {
            c.description: c
            for c in (
                self.stage,
                self.depth,
                self.scheduler,
                self.lr,
                self.epochs,
                self.batch_size,
                self.seed,
                self.device,
                self.scope,
                self.start,
                self.retrain,
            )
        }
        self._says = {label: w.HTML() for label in self.by_label}
        self._settings = {
            self.depth: "unfrozen_blocks",
            self.lr: "lr",
            self.epochs: "epochs",
            self.batch_size: "batch_size",
            self.seed: "seed",
            self.device: "device",
        }
        for label, control in self.by_label.items():
            control.style, control.layout.width = _WIDE, _WIDTHS.get(label, "130px")
            control.observe(self._on_change, "value")
        self.depth.style = _WIDE | theme.HANDLE
        self.offer_starts([])
        self.fill()
        row = w.Layout(flex_flow="row wrap", grid_gap="2px 14px")
        self.box = w.Box(
            [w.VBox([c, self._says[label]]) for label, c in self.by_label.items()], layout=row
        )

    def fill(self) -> None:
        """Show the desk in the controls."""
        recipe, desk = self.desk.recipe, self.desk
        stage = recipe.stages[desk.stage - 1]
        self._filling = True
        try:
            self.stage.options = [
                (f"{n} {s.name}", n) for n, s in enumerate(recipe.stages, start=1)
            ]
            self.stage.value = desk.stage
            self.depth.value = (
                desk.depth if stage.unfrozen_blocks == "all" else stage.unfrozen_blocks
            )
            self.depth.disabled = (
                desk.stage == 1
            )  # the first stage is the one with a frozen encoder
            self.scheduler.value = desk.scheduler()
            self.lr.value, self.epochs.value = stage.lr, stage.epochs
            self.batch_size.value, self.seed.value, self.device.value = (
                recipe.batch_size,
                recipe.seed,
                recipe.device,
            )
            self.scope.value, self.retrain.value = (
                ONE if desk.this_stage_only else ALL,
                desk.retrain,
            )
            self._choose_start()
        finally:
            self._filling = False
        self.say()

    def say(self) -> None:
        """Put each problem beside its control."""
        for label, place in self._says.items():
            problem = self.desk.problems.get(label, "")
            place.value = (
                html(f"<p class=bad style='max-width:260px' role=alert>{escape(problem)}</p>")
                if problem
                else ""
            )

    def offer_starts(self, ends: list[StageEnd]) -> None:
        self._offering = True
        try:
            self.start.options = [(PRETRAINED, PRETRAINED), *((str(end), end) for end in ends)]
            self._choose_start()
        finally:
            self._offering = False

    def _start_before(self) -> None:
        """A later stage alone starts from the newest end of the stage before it, where there is
        one.
        """
        ends = [
            end
            for _, end in self.start.options
            if isinstance(end, StageEnd) and end.stage == self.desk.stage - 1
        ]
        if self.desk.this_stage_only and self.desk.start is None and ends:
            self.desk.start, self._filling = ends[0], True
            self._choose_start()
            self._filling = False

    def _choose_start(self) -> None:
        if self.desk.start is not None and self.desk.start not in dict(self.start.options).values():
            self.start.options = [*self.start.options, (str(self.desk.start), self.desk.start)]
        self.start.value = self.desk.start or PRETRAINED

    def _on_change(self, change: dict) -> None:
        if self._filling or (self._offering and change["owner"] is self.start):
            return
        control, value, desk = change["owner"], change["new"], self.desk
        if control is self.stage:
            desk.turn_to(value)
            self.fill()
        elif control is self.scheduler:
            desk.edit("schedule", desk.schedule_of(value))
        elif control is self.scope:
            desk.this_stage_only = value == ONE
            self._start_before()
            desk.check()
        elif control is self.retrain:
            desk.retrain = value
        elif control is self.start:
            desk.start = None if value == PRETRAINED else value
            desk.check()
        else:
            desk.edit(self._settings[control], value)
        self.say()
        self._changed()


def recipe_line(recipe: Recipe, images: dict[str, int], source: dict[str, str], device: str) -> str:
    """Data, encoder, decoder and device in one line."""
    counts = f"{images['train']} / {images['validation']}"
    name = recipe.data.source.kind if recipe.data.source.kind == "generated" else recipe.name
    encoder = f"{source['name']} ({source['source']})"
    return html(
        f"<p><b>{escape(name)}</b> ({counts}) · {escape(encoder)} · {recipe.model.decoder} · "
        f"{device}</p>"
    )
