"""The curves of a run, gathered event by event: learning rate, loss, IoU and F1 over epochs. No
torch.

One gatherer serves live, replayed and reported runs, so all of them show the same.
"""

from __future__ import annotations

import csv
import json
import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vitseg import plan
from vitseg.events import BatchEnded, EpochEnded, Event, RunStarted, StageEnded, StageStarted
from vitseg.recipe import Recipe

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


@dataclass(slots=True)
class Points:
    """One curve: fractional epochs, values (nan is a gap), and the steps behind them."""

    x: array[float] = field(default_factory=lambda: array("d"))
    y: array[float] = field(default_factory=lambda: array("d"))
    steps: array[int] = field(default_factory=lambda: array("q"))

    def add(self, x: float, y: float | None, step: int) -> None:
        self.x.append(x)
        self.y.append(math.nan if y is None else y)
        self.steps.append(step)

    def arrays(self, most: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, y and steps. Of more than `most` points every bucket's lowest and highest stay: no
        spike is lost.
        """
        n = len(self.steps)  # appended last: another thread may be adding a point
        x, y, steps = (
            np.frombuffer(self.x[:n]),
            np.frombuffer(self.y[:n]),
            np.frombuffer(self.steps[:n], np.int64),
        )
        if most is not None:
            x, y, steps = x.astype(np.float32), y.astype(np.float32), steps.astype(np.int32)
        if most is None or n <= most:
            return x, y, steps
        kept = _extremes(y, most // 2)
        return x[kept], y[kept], steps[kept]


def _extremes(y: np.ndarray, buckets: int) -> np.ndarray:
    """Places of the first lowest and first highest value of each bucket, in order; the last bucket
    may be shorter.
    """
    width = -(-len(y) // buckets)
    padded = np.full(-(-len(y) // width) * width, np.nan)
    padded[: len(y)] = y
    rows = padded.reshape(-1, width)
    starts = np.arange(len(rows)) * width
    low, high = (
        np.where(np.isnan(rows), np.inf, rows).argmin(1),
        np.where(np.isnan(rows), -np.inf, rows).argmax(1),
    )
    return np.unique(np.concatenate([starts + low, starts + high, [len(y) - 1]]))


@dataclass(frozen=True, slots=True)
class Band:
    """A stage on the epoch axis."""

    stage: int
    name: str
    start: float
    end: float


class Curves:
    """Give it the events of a run with `add`; read `points` and `bands` at any time.

    With a recipe the promised LR of all stages is there before the first event. Where a stage ended
    early, the plan of the later ones is moved to where they really began.
    """

    def __init__(self, recipe: Recipe | None = None, batches_per_epoch: int = 0):
        self.points = {name: Points() for name in NAMES}
        self.bands: list[Band] = []
        self._began: dict[int, tuple[int, int]] = {}
        self._took: dict[int, int] = {}
        self.promise(recipe, batches_per_epoch)

    @classmethod
    def of(cls, events: Iterable[Event]) -> Curves:
        curves = cls()
        for event in events:
            curves.add(event)
        return curves

    def promise(self, recipe: Recipe | None, batches_per_epoch: int) -> None:
        """Draw up the plan of `recipe`, around what has happened so far."""
        self._recipe, self._n = recipe, batches_per_epoch
        planned, bands, epoch, step = Points(), [], 0, 0
        for number, stage in enumerate(recipe.stages if recipe else (), start=1):
            epoch, step = self._began.get(number, (epoch, step))
            epochs = self._took.get(number, stage.epochs)
            for batch in range(1, epochs * self._n + 1):
                x = plan.epochs_done(epoch, batch, self._n)
                planned.add(x, plan.planned_lr(stage, batch, self._n), step + batch)
            bands.append(Band(number, stage.name, epoch, epoch + epochs))
            epoch, step = epoch + epochs, step + epochs * self._n
        self.points["LR (planned)"], self.bands = (
            planned,
            bands,
        )  # whole: another thread may be drawing them

    def stage_began(self, stage: int) -> tuple[int, int]:
        """(epoch, step) of the whole run at which a stage began."""
        return self._began[stage]

    def add(self, event: Event) -> None:
        match event:
            case RunStarted():
                self.promise(
                    Recipe.model_validate_json(json.dumps(event.recipe)), event.batches_per_epoch
                )
            case StageStarted():
                self._began[event.stage] = (event.epoch, event.step)
                self.promise(self._recipe, self._n)
                self._start(event)
            case BatchEnded():
                self._batch(event)
            case EpochEnded():
                self.points["train IoU"].add(event.epoch, event.train["iou"], event.step)
                self._validation(event.epoch, event.validation, event.step)
            case StageEnded():
                self._took[event.stage] = event.epochs
                self.promise(self._recipe, self._n)

    def _start(self, event: StageStarted) -> None:
        """The start weights' score begins a new piece of each validation curve."""
        if event.epoch:
            for name in ("valid loss", "valid IoU", "valid F1"):
                self.points[name].add(event.epoch, None, event.step)
        self._validation(event.epoch, event.validation, event.step)

    def _batch(self, event: BatchEnded) -> None:
        x, base = event.epoch - 1 + event.batch / event.batches, event.lr["decoder"]
        own = [lr for name, lr in event.lr.items() if not name.startswith("decoder")]
        self.points["LR"].add(x, base, event.step)
        self.points["LR, encoder"].add(x, own[-1] if own and own[-1] != base else None, event.step)
        self.points["train loss"].add(x, event.loss, event.step)

    def _validation(self, epoch: int, scores: dict, step: int) -> None:
        for name, key in (("valid loss", "loss"), ("valid IoU", "iou"), ("valid F1", "f1")):
            self.points[name].add(epoch, scores[key], step)


def write_csv(folder: Path, events: Iterable[Event]) -> Path:
    """The run's curves as one table: a row for each point, `curve,epoch,step,value`."""
    path = folder / "curves.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("curve", "epoch", "step", "value"))
        for name, points in Curves.of(events).points.items():
            for x, y, step in zip(points.x, points.y, points.steps, strict=True):
                if y == y:  # nan is a gap
                    rows.writerow((name, x, step, y))
    return path
