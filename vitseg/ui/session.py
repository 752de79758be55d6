"""A workbench without its widgets: the run that is shown, how long it takes, and what is said of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import numpy as np

from vitseg.errors import ConfigError, RunError, TrainingError, VitsegError
from vitseg.events import (
    BatchEnded,
    EpochEnded,
    Event,
    FeaturesUsed,
    RunEnded,
    RunStarted,
    StageEnded,
    StageEvent,
    StageStarted,
    ValidationBatch,
)
from vitseg.recipe import Recipe
from vitseg.runs.checkpoint import steps_saved
from vitseg.runs.folder import Failure, RunFolder, new_run, runs_root
from vitseg.runs.forecast import StageForecast, forecast, measure
from vitseg.runs.narrate import inherited_words, number_or_na
from vitseg.runs.run import TrainingRun, fork, kept_events, resume, train, trained_already
from vitseg.runs.store import StageEnd, differences, environment, stage_keys
from vitseg.training.job import Job
from vitseg.ui.curves import Curves
from vitseg.ui.desk import Desk
from vitseg.ui.live import Said, Task, current, launching, refuse_a_second

_BEGINS_AGAIN = "Stopped. Resume begins again: nothing had been saved."

LONGEST = 60.0
"""Seconds that a step may take; more was a machine asleep."""

_SAME_COST = {"name", "stages", "batch_size", "seed"}
"""Settings that timed batches do not depend on."""


def recent_runs() -> list[RunFolder]:
    """The 20 newest runs in the runs root."""
    found = [p for p in runs_root().glob("*/recipe.json") if p.with_name("events.jsonl").exists()]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [RunFolder(path.parent) for path in found[:20]]


class Session(Task):
    """Start, pause, resume, stop, fork. Raises VitsegError for what cannot be done; a second press
    does no harm.

    The state is "ready" before the first run, "shown" for a run read from disk, else the live
    run's. `trained` is the recipe of the run that is shown, `parent` the curves of the run from
    which it was forked, `ended` its finished stages. With `preview` the screen shows what Start
    would do, and not a run.
    """

    def __init__(self, recipe: Recipe):
        self.asked = self.trained = recipe
        self.job = Job(recipe)
        self.desk = Desk(recipe, lambda edited: self.job.replace(edited))
        self.samples = self.job.data.splits["validation"][:4]  # predicted after every epoch
        self.run: RunFolder | None = None
        self.preview = True
        self.predictions: dict[int, list[np.ndarray]] = {}
        self._choice: object = None
        self._timing = threading.Lock()
        super().__init__()

    def _clear(self) -> None:
        super()._clear()
        self.curves, self.parent = self.planned(self.trained), Curves()
        self.ended: list[StageEnded] = []
        self.features: FeaturesUsed | None = None
        self.no_pictures = self.unsaved = ""
        self._training: TrainingRun | None = None
        self._inherited, self._epoch = 0, 0.0
        self._weights: list[float] = []
        self._last, self._seconds, self._done = time.monotonic(), 0.0, 0.0

    # ---- what there is

    def plan_of(self, recipe: Recipe) -> Job:
        """A recipe on this session's data and model, and on the device that is used here, wherever
        it would train.
        """
        here = {name: getattr(self.job.recipe, name) for name in ("device", "precision", "threads")}
        return self.job.replace(recipe.replace(here))

    def planned(self, recipe: Recipe) -> Curves:
        """The promised curve of a recipe."""
        return Curves(recipe, self.plan_of(recipe).batches)

    @property
    def recipe(self) -> Recipe:
        """That of the run on the screen, or of what Start would train."""
        return self.desk.recipe if self.preview else self.trained

    @property
    def idle(self) -> str:
        return "shown" if self.run else "ready"

    @property
    def path(self) -> Path | None:
        return self.run.path if self.run else None

    @property
    def stoppable(self) -> Task | None:
        """Also a run of another workbench, whose own button may be gone."""
        return current()

    @property
    def resumable(self) -> bool:
        """Whether the run that is shown can be continued: it has not ended, and nobody trains it."""
        run = self.run
        if run is None or self.alive or not run.events_file.exists():
            return False
        return run.is_cut_off()

    @property
    def edited(self) -> bool:
        """Whether the controls say something else than the run that is shown."""
        return self._choice != self.desk.choice()

    def why_not_start(self) -> str:
        return super().why_not_start() or self.desk.problem

    def failure(self) -> Failure | None:
        """What ended the run that is shown: as it happened here, or as its folder remembers."""
        if self.error:
            return Failure.of(self.error)
        return self.run.failure() if self.state == "shown" else None

    def starts(self) -> list[StageEnd]:
        """The ends of stages of recent runs from which the desk's recipe may go on, newest first."""
        found, new = [], self.desk.recipe
        for run in recent_runs():
            with suppress(VitsegError):
                old, ends = run.recipe, reversed(run.ended_stages())
                found += [StageEnd(run.path, n) for n in ends if not differences(old, new, n)]
        return found

    def fork_point(self) -> StageEnd | None:
        """Where Fork starts: the last finished stage before the edited one, of the run on the
        screen.
        """
        edited = min(max(2, self.desk.stage), len(self.desk.recipe.stages))
        finished = min(edited - 1, len(self.ended))
        return StageEnd(self.run.path, finished) if finished else None

    # ---- what can be done

    def _begin(self) -> None:
        """Train what is on the desk, in a new run folder."""
        if reason := self.why_not_start():
            raise TrainingError(reason)
        recipe, start = self.desk.chosen(), self.desk.start
        begin = partial(fork, *start) if start else partial(train, reuse=not self.desk.retrain)
        self._choice, self.predictions = self.desk.choice(), {}
        self._train(new_run(recipe.name), recipe, begin)

    def _train(
        self, run: RunFolder, recipe: Recipe, begin: Callable[[Job, Path], TrainingRun]
    ) -> None:
        """Show a run, and launch what `begin` makes of its job and folder."""

        def stream() -> Generator[Event]:
            self.job = Job(recipe)
            yield from kept_events(run)
            with closing(begin(self.job, run.path)) as self._training:
                yield from self._training

        refuse_a_second()
        self.run, self.trained, self.preview = run, recipe, False
        self._launch(stream())

    def pause(self) -> None:
        super().pause()
        self.later(self._save)

    def _save(self) -> None:
        """On the training thread: what is paused may never be resumed here."""
        try:
            self.unsaved = ""
            if self._training:
                self._training.save()
        except VitsegError as error:
            self.unsaved = f"What came after the last save is not saved: {error}"
        self.turns += 1

    def resume(self) -> None:
        """Go on after a pause; or continue the run that is shown, if it was cut off, from its last
        checkpoint.
        """
        with launching:
            if self.alive:
                super().resume()
                self.turns += 1
            elif self.resumable:
                recipe = self.run.resolved_recipe()
                self._train(self.run, recipe, lambda job, folder: resume(folder, job))
            else:
                raise RunError("There is nothing to resume.", "Press Start.")

    def fork(self) -> None:
        """Take the end of the stage before the edited one as the place to start from. Start then
        trains the rest.
        """
        desk, start = self.desk, self.fork_point()
        if start is None:
            hint = "Wait for the end of stage 1, or choose a run in Runs."
            raise RunError("There is no finished stage to fork from.", hint)
        desk.start, desk.stage = start, max(desk.stage, start.stage + 1)
        desk.check()

    def show(self, folder: str | Path) -> None:
        """Show a run of the past in place of the one that is shown, and its settings in the
        controls.
        """
        if self.alive:
            raise TrainingError(f"{self.path.name} is training.", "Stop it, or wait for its end.")
        run, base = RunFolder(folder), self.desk.base
        events, recipe = list(run.events()), run.recipe
        if (recipe.data, recipe.model) != (base.data, base.model):
            raise RunError(
                f"{run.path} has other data, or another model.",
                f"Open it in a cell: vitseg.Workbench({str(run.path)!r}).",
            )
        if recipe.model_dump(exclude=_SAME_COST) != base.model_dump(exclude=_SAME_COST):
            self.cost = None
        self.desk.take(recipe)
        self.desk.check()
        self._choice, self.predictions = self.desk.choice(), {}
        self.run, self.trained, self.preview = run, recipe, False
        self._clear()
        for event in events:
            self.take(event)

    # ---- what has happened

    def _note(self, event: Event) -> None:
        work = 0.0
        match event:
            case RunStarted() if event.parent:
                self._inherited = event.parent["stage"]
                with suppress(VitsegError):  # it may have been deleted
                    self.parent = Curves.of(RunFolder(self.run.forked()["parent"]).events())
            case FeaturesUsed():
                self.features = event
            case BatchEnded():
                self._epoch = event.epoch - 1 + event.batch / event.batches
                work = self._weight(event.stage) / event.batches
            case StageEnded():
                self.ended.append(event)
            case RunEnded() if self._training and not self.predictions:  # all was inherited
                self._predict(self.ended[-1].epoch)
        new = self._training and isinstance(event, StageEvent) and event.stage > self._inherited
        if new and isinstance(event, StageStarted | EpochEnded):
            self._predict(event.epoch)
        now = time.monotonic()
        if new and self.phase == "running":  # a pause is no work
            self._seconds += min(now - self._last, LONGEST)
            self._done += work
        self._last = now
        if not event.transient:
            self.curves.add(event)

    def _predict(self, epoch: int) -> None:
        """Pictures are no reason for a training to end: what goes wrong is said beside them."""
        try:
            model, data = self.job.model, self.job.data
            masks = [model.predict(data.load(name)[0]) for name in self.samples]
            self.predictions[epoch] = masks
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            self.no_pictures = f"No prediction after epoch {epoch} ({reason}). Training goes on."

    # ---- how long it takes

    def measure(self) -> None:
        """Time a few batches, once, and look up what the keys of stages follow from."""
        with self._timing:
            if self.cost is None:
                job = self.plan_of(self.desk.base)
                self._facts, self.cost = environment(job), measure(job)

    def forecast(self) -> list[StageForecast]:
        """What the stages on the screen will take; nothing for a device that no batch was timed on.
        The first call times a few batches.
        """
        self.measure()
        try:
            job = self.job.replace(self.recipe)
        except ConfigError:  # of a device that is not here
            return []
        if job.machine.device != self.job.machine.device:
            return []
        return forecast(job, self.cost, self._inherited if self.alive else self._found(job))

    def _found(self, job: Job) -> int:
        """How many stages Start would take from other runs; 0 where only Start can tell."""
        if self.desk.start:
            return self.desk.start.stage
        if self.desk.retrain:
            return 0
        here = {name: getattr(job.machine, name) for name in ("precision", "threads")}
        found = trained_already(stage_keys(job, self._facts | here))
        return found.stage if found else 0

    def _weight(self, stage: int) -> float:
        """How long a step of a stage takes, beside those of others: by forecast, or all alike."""
        if self.cost is None:
            return 1.0
        if not self._weights:
            ahead = forecast(self.plan_of(self.trained), self.cost)
            self._weights = [f.seconds / f.steps for f in ahead]
        return self._weights[stage - 1]

    def progress(self) -> tuple[float, float | None]:
        """By the epochs of the run; nothing is done of what Start would train."""
        bands, work = self.curves.bands, 0.0
        if self.preview or not bands:
            return 0.0, None
        for band in bands:
            work += max(0.0, band.end - max(band.start, self._epoch)) * self._weight(band.stage)
        left = work * self._seconds / self._done if self._done else None
        return self._epoch / bands[-1].end, left

    # ---- what is said

    def heading(self) -> str:
        """What the screen shows: a run, or what Start would train."""
        if self.run is None:
            return "What Start would train."
        name = self.run.path.name
        if self.alive:
            return f"Run {name}, in training."
        if not self.preview:
            return (
                f"Run {name}. The controls hold its settings; Start would train them as a new run."
            )
        words = f"What Start would train. For comparison, grey and dotted: run {name}."
        if self.resumable:
            words += f" Resume would go on with {name}, unchanged."
        return words

    def sentence(self, note: str = "") -> Said:
        wrong = [self.incomplete]
        if self.alive:
            moved = "A control was moved: that takes effect at the next start."
            words = [self._doing(), note or moved * self.edited]
            wrong.append(self.desk.problem)
        else:
            off = self.why_not_start()
            words = [self._ready(off) if self.preview else self._outcome()]
            wrong += [note, off and f"Start is off: {off}"]
        if not self.preview:
            if failure := self.failure():
                wrong.append(f"{failure.kind}: {failure.says}")
            elif self.ended:
                wrong.append(self.ended[-1].warning)
        return " ".join(filter(None, words + wrong)), "bad" if any(wrong) else ""

    def _doing(self) -> str:
        match self.state, self.position:
            case "paused", _:
                return f"Paused. Resume goes on. {self.unsaved}"
            case "pausing" | "stopping" as state, _:
                return f"{state.capitalize()} after this batch."
            case _, None:
                return "Reading data and weights."
            case _, BatchEnded() | ValidationBatch() as p:
                what = "Training" if isinstance(p, BatchEnded) else "Scoring"
                return f"{what} stage {p.stage}: epoch {p.epoch}, batch {p.batch} of {p.batches}."
        return "Training."

    def _ready(self, off: str) -> str:
        start, last = self.desk.start, len(self.desk.chosen().stages)
        first = start.stage + 1 if start else 1
        which = f"stages {first} to {last}" if first < last else f"stage {last}"
        source = f" from {start}" if start else ""
        return "" if off else f"Ready. Start trains {which}{source}."

    def _outcome(self) -> str:
        """How the run that is shown came to its end, and whether it can go on."""
        run = self.run
        if self.resumable:
            step = steps_saved(run)
            return f"Stopped. Resume goes on after step {step}." if step else _BEGINS_AGAIN
        if not run.events_file.exists():
            return "Stopped before anything was recorded."
        if not run.summary_file.exists():
            return f"{run.path.name} is being trained elsewhere."
        best, parent, again = run.summary["best"], self.events[0].parent, ""
        if parent and not self.desk.start:
            again = f" {inherited_words(parent)} Tick Retrain to do so."
        scores = f"IoU {number_or_na(best['iou'])}, F1 {number_or_na(best['f1'])}"
        return f"Ended. Best valid {scores}.{again}"
