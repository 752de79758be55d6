"""The curves of a run, gathered event by event: learning rate, loss, IoU and F1 over epochs. No
torch.

One gatherer serves live, replayed and reported runs, so all of them show the same.
"""

import json
import math
from array import array
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from vitseg import plan
from vitseg.events import BatchEnded, EpochEnded, Event, RunStarted, StageEnded, StageStarted
from vitseg.recipe import Recipe, parse

NAMES = (
    "LR (planned)",
    "LR",
    "LR, encoder",
    "train loss",
    "valid loss",
    "train IoU",
    "valid IoU",
    "valid F1",
)


class Points:
    """One curve: fractional epochs, values (nan is a gap), and the steps behind them."""

    def __init__(self) -> None:
        self._flat = array("d")

    def __len__(self) -> int:
        return len(self._flat) // 3

    def add(self, epoch: float, value: float | None, step: int) -> None:
        # in one call: another thread may be reading
        self._flat.extend((epoch, math.nan if value is None else value, step))

    def trace(self, most: int | None = None) -> dict[str, np.ndarray]:
        """As plotly has it: `x` epochs, `y` values, `customdata` the steps. With `most` in single
        precision, and of more points every bucket's lowest and highest: no spike is lost.
        """
        columns = np.frombuffer(self._flat[:]).reshape(-1, 3).T
        if most and len(self) > most:
            columns = columns[:, _extremes(columns[1], most // 2)]
        if most:
            columns = columns.astype(np.float32)
        return dict(zip(("x", "y", "customdata"), columns, strict=True))


def _extremes(y: np.ndarray, buckets: int) -> np.ndarray:
    """Places of the first lowest and first highest value of each bucket, in order; a gap counts as
    0, so that it stays one.
    """
    width = -(-len(y) // buckets)
    rows = np.pad(np.nan_to_num(y), (0, -len(y) % width), "edge").reshape(-1, width)
    places = np.arange(0, len(y), width) + np.stack([rows.argmin(1), rows.argmax(1)])
    return np.unique(np.append(places, len(y) - 1))


class Band(NamedTuple):
    """A stage on the epoch axis."""

    stage: int
    name: str
    start: int
    end: int


class Curves:
    """Give it the events of a run with `add`; read `points` and `bands` at any time.

    With `promise` the planned LR of all stages is there before the first event. Where a stage ended
    early, the plan of the later ones is moved to where they really began.
    """

    def __init__(self, events: Iterable[Event] = ()):
        self.points = {name: Points() for name in NAMES}
        self.bands: list[Band] = []
        self._took = {}
        for event in events:
            self.add(event)

    def promise(self, recipe: Recipe, n: int) -> None:
        """Draw up the plan of `recipe`, of `n` batches an epoch, around what has happened so
        far.
        """
        self._promised = recipe, n
        planned, bands, before = Points(), [], 0
        for number, stage in enumerate(recipe.stages, start=1):
            epochs = self._took.get(number, stage.epochs)
            for batch, lr in enumerate(plan.rates(stage, n)[: epochs * n], start=1):
                planned.add(plan.epochs_done(before, batch, n), lr, before * n + batch)
            bands.append(Band(number, stage.name, before, before + epochs))
            before += epochs
        # whole: another thread may be drawing them
        self.points["LR (planned)"], self.bands = planned, bands

    def add(self, event: Event) -> None:
        match event:
            case RunStarted():
                recipe = parse(json.dumps(event.recipe))
                self.promise(recipe, event.batches_per_epoch)
            case StageStarted():
                # a gap, for the start weights' score begins a new piece
                self._validation(event, dict.fromkeys(event.validation))
                self._validation(event, event.validation)
            case BatchEnded(step=step):
                epoch, base = event.epoch - 1 + event.batch / event.batches, event.lr["decoder"]
                encoder = base
                for group, lr in event.lr.items():
                    if not group.startswith("decoder"):
                        encoder = lr
                self.points["LR"].add(epoch, base, step)
                self.points["LR, encoder"].add(epoch, encoder if encoder != base else None, step)
                self.points["train loss"].add(epoch, event.loss, step)
            case EpochEnded():
                self.points["train IoU"].add(event.epoch, event.train["iou"], event.step)
                self._validation(event, event.validation)
            case StageEnded():
                self._took[event.stage] = event.epochs
                self.promise(*self._promised)

    def _validation(self, event: StageStarted | EpochEnded, scores: dict) -> None:
        for name, key in (("valid loss", "loss"), ("valid IoU", "iou"), ("valid F1", "f1")):
            self.points[name].add(event.epoch, scores[key], event.step)
