"""A workbench without its widgets: what is on the desk, the run that is shown, and what may be done
with it now.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Iterator
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
)
from vitseg.model.segmenter import Segmenter, load_segmenter
from vitseg.plan import batches_per_epoch
from vitseg.recipe import Recipe
from vitseg.runs.checkpoint import steps_saved
from vitseg.runs.folder import Failure, RunFolder, new_run, runs_root
from vitseg.runs.forecast import Cost, StageForecast
from vitseg.runs.fork import differences
from vitseg.runs.run import TrainingRun, fork, kept_events, resume, train
from vitseg.runs.store import StageEnd
from vitseg.training.job import Job
from vitseg.ui.ahead import Ahead
from vitseg.ui.curves import Curves
from vitseg.ui.desk import Desk
from vitseg.ui.live import OVER, LiveRun, current

launching = threading.RLock()
"""Held while a run is begun: buttons and cells may press Start from several threads at once."""

COSTLY = (
    "loss",
    "optimizer",
    "precision",
    "threads",
    "processes",
    "recompute",
    "features",
    "cache",
    "device",
)
"""Settings that no control changes, or that choose the machine, and that timed batches depend on.
"""

SAMPLES = 4
"""Validation images that are predicted after every epoch."""


def recent_runs(most: int = 20) -> list[RunFolder]:
    """The newest runs in the runs root."""
    found = [p for p in runs_root().glob("*/recipe.json") if (p.parent / "events.jsonl").exists()]
    return [
        RunFolder(p.parent)
        for p in sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)[:most]
    ]


class Session:
    """Start, pause, resume, stop, fork. Raises VitsegError for what cannot be done; a second press
    does no harm.

    `state` is "ready" before the first run, "shown" for a run read from disk, else the live run's.
    `version` counts what has happened, for whoever draws it.
    """

    def __init__(self, recipe: Recipe):
        self.job, self.asked = Job(recipe), recipe
        self.desk = Desk(recipe, self.job_of)
        self.samples = self.job.data.splits["validation"][:SAMPLES]
        self.run: RunFolder | None = None
        self.live: LiveRun | None = None
        self._training: TrainingRun | None = None
        self.trained: Recipe | None = None
        self.parent: Curves | None = None
        self.view_closed: threading.Event | None = None
        self.ahead = Ahead()
        self._fresh, self.unsaved, self._chosen = False, "", self._choice()
        self._clear()

    def job_of(self, recipe: Recipe) -> Job:
        """A recipe on this session's data and model, for plans and checks."""
        return self.job.replace(recipe)

    def plan_of(self, recipe: Recipe) -> Job:
        """The same on the device that is used here, wherever the recipe would train."""
        here = {name: getattr(self.job.recipe, name) for name in ("device", "precision", "threads")}
        return self.job_of(recipe.replace(here))

    def _clear(self) -> None:
        self.version, self.curves = 0, self.planned()
        self.events: list[Event] = []
        self._ended: list[int] = []
        self.predictions: dict[int, list[np.ndarray]] = {}
        self.no_pictures = self.no_curves = ""
        self._batches = self.batches
        self.position: Event | None = None
        self.features: FeaturesUsed | None = None
        self.ahead.start()

    # ---- what there is

    @property
    def state(self) -> str:
        return self.live.state if self.live else "shown" if self.run else "ready"

    @property
    def alive(self) -> bool:
        return self.live is not None and self.live.state not in OVER

    @property
    def batches(self) -> int:
        """Batches an epoch as the desk stands."""
        return batches_per_epoch(self.desk.recipe, len(self.job.data.splits["train"]))

    def planned(self) -> Curves:
        """The promised curve of what Start would train."""
        return Curves(
            self.desk.chosen() if not self.desk.problems else self.desk.recipe, self.batches
        )

    def why_not_start(self) -> str:
        """Why Start is off; empty if it is not."""
        if other := current():
            return (
                ""
                if other is self.live
                else f"{other.name} is training in this kernel; stop it first, or wait for its end."
            )
        return " ".join(self.desk.problems.values())

    @property
    def resumable(self) -> bool:
        """Whether the run that is shown can be continued: it has not ended, and nobody trains
        it.
        """
        if (
            self.run is None
            or self.alive
            or not self.run.events_file.exists()
            or self.run.summary_file.exists()
        ):
            return False
        return not self.run.is_held()

    @property
    def edited(self) -> bool:
        """Whether the controls say something else than the run that is shown."""
        return self.run is None or self._chosen != self._choice()

    def _choice(self) -> tuple[Recipe, StageEnd | None, dict[str, str]]:
        return self.desk.chosen(), self.desk.start, dict(self.desk.problems)

    def failure(self) -> Failure | None:
        """What ended the run that is shown: as it happened here, or as its folder remembers."""
        if self.live is not None:
            return Failure.of(self.live.error) if self.state == "failed" else None
        return self.run.failure() if self.run else None

    def broken(self) -> dict[int, tuple[str, ...]]:
        """The parts that broke the promise of what trains, by the stage in which they did."""
        failure = self.failure()
        return {max(self._ended, default=0) + 1: failure.parts} if failure else {}

    def goes_on_from(self) -> str:
        """Where Resume would begin."""
        step = steps_saved(self.run.checkpoints)
        return (
            f"Resume goes on after step {step}"
            if step
            else "Resume begins again: nothing had been saved"
        )

    def starts(self) -> list[StageEnd]:
        """The ends of stages of recent runs from which the desk's recipe may go on, newest
        first.
        """
        found = []
        for run in recent_runs():
            with contextlib.suppress(VitsegError):
                old, ends = run.recipe, reversed(run.ended_stages())
                found += [
                    StageEnd(run.path, n) for n in ends if not differences(old, self.desk.recipe, n)
                ]
        return found

    def stage_ends(self) -> list[StageEnd]:
        """The ends of stages of the run that is shown, from which another may start."""
        return [StageEnd(self.run.path, n) for n in self._ended] if self.run else []

    @property
    def model(self) -> Segmenter:
        """A copy of the model as it is now, in eval mode: yours to keep. Of a run of the past, its
        best weights.
        """
        if self.state == "shown":
            return load_segmenter(self.run.path)
        take = lambda: self.job.model.snapshot()  # noqa: E731
        return self.live.between(take) if self.live else take()

    @property
    def cost(self) -> Cost | None:
        """What the forecast rests on; None until a few batches have been timed."""
        return self.ahead.cost

    def forecast(self, recipe: Recipe | None = None) -> list[StageForecast]:
        """What the stages of a recipe will take, by default those of the desk if Start were
        pressed; nothing for a device that no batch was timed on. The first call times a few
        batches.
        """
        self.ahead.measure(self.plan_of(self.desk.base), untouched=self.live is None)
        try:
            job = self.job_of(recipe or self.desk.recipe)
        except ConfigError:  # of a device that is not here
            return []
        if job.machine.device != self.job.machine.device:
            return []
        inherited = 0
        if recipe is None and self.desk.start:
            inherited = self.desk.start.stage
        elif recipe is None and not self.desk.retrain:
            inherited = self.ahead.trained(job)
        return self.ahead.forecast(job, inherited)

    # ---- what can be done

    def start(self) -> None:
        """Train what is on the desk, in a new run folder. Nothing happens if it is training
        already.
        """
        with launching:
            if not self.alive:
                self._begin()

    def _begin(self) -> None:
        if reason := self.why_not_start():
            raise TrainingError(reason)
        recipe, source, reuse = self.desk.chosen(), self.desk.start, not self.desk.retrain
        self._chosen = self._choice()
        run = new_run(recipe.name)

        def stream() -> Generator[Event]:
            self.job = job = Job(recipe)
            if source:
                self._training = fork(source.run, source.stage, job, run.path)
            else:
                self._training = train(job, run.path, reuse=reuse)
            yield from self._told(self._training)

        parent = Curves.of(RunFolder(source.run).events()) if source else None
        self._launch(run, stream(), recipe, parent)

    def pause(self) -> None:
        if self.live is None:
            raise RunError("There is no run to pause.", "Press Start.")
        self.live.pause()
        self.live.later(self._save)

    def _save(self) -> None:
        """On the training thread: what is paused may never be resumed here."""
        self.unsaved = ""
        try:
            if self._training is not None:
                self._training.save()
        except VitsegError as error:
            self.unsaved = f" What came after the last save is not saved: {error}"

    def resume(self) -> None:
        """Go on after a pause; or continue the run that is shown, if it was cut off, from its last
        checkpoint.
        """
        with launching:
            if self.alive:
                self.live.resume()
            elif self.resumable:
                self._continue(self.run)
            else:
                name = f"{self.run.path.name}: there" if self.run else "There"
                raise RunError(
                    f"{name} is nothing to resume.",
                    "Press Start, or Fork." if self.run else "Press Start.",
                )

    def stop(self) -> None:
        """End the run; also one of another workbench, whose own button may be gone."""
        if live := current():
            live.stop()

    def wait(self, timeout: float | None = None) -> str:
        return self.live.wait(timeout) if self.live else self.state

    def follow(self) -> Iterator[Event]:
        """The events so far, and those to come, until the run is over."""
        seen, events, live = 0, self.events, self.live
        while True:
            over = live is None or live.state in OVER
            while seen < len(events):
                yield events[seen]
                seen += 1
            if over:
                return
            live.wait(0.2)

    def fork(self) -> None:
        """Take the end of the stage before the edited one as the place to start from. Start then
        trains the rest.
        """
        ends = {end.stage: end for end in self.stage_ends()}
        wanted = max((n for n in ends if n < max(2, self.desk.stage)), default=None)
        if wanted is None:
            raise RunError(
                "There is no finished stage to fork from yet.",
                "Wait for the end of stage 1, or choose a run in Runs.",
            )
        if wanted >= len(self.desk.recipe.stages):
            raise RunError(
                "There is no stage after the one to fork from.", "Use a recipe with one more stage."
            )
        self.desk.start, self.desk.stage = ends[wanted], max(wanted + 1, self.desk.stage)
        self.desk.check()

    def show(self, folder: str | Path) -> None:
        """Show a run of the past in place of the one that is shown, and its settings in the
        controls.
        """
        if self.alive:
            raise TrainingError(
                f"{self.live.name} is training.", "Stop it first, or wait for its end."
            )
        run = RunFolder(folder)
        events, recipe = list(run.events()), run.recipe
        if (recipe.data, recipe.model) != (self.desk.base.data, self.desk.base.model):
            raise RunError(
                f"{run.path} has other data, or another model.",
                f"Open it in a cell: vitseg.Workbench({str(run.path)!r}).",
            )
        if any(getattr(recipe, name) != getattr(self.desk.base, name) for name in COSTLY):
            self.ahead.cost = None
        self.desk.take(recipe)
        self.run, self.live, self.parent, self.trained, self._fresh = run, None, None, recipe, False
        self._chosen = self._choice()
        self._clear()
        for event in events:
            self._take(event)
        if (forked := run.forked()) and (
            source := RunFolder(forked["parent"])
        ).events_file.exists():
            self.parent = Curves.of(source.events())

    def _continue(self, run: RunFolder) -> None:
        recipe = run.resolved_recipe()

        def stream() -> Generator[Event]:
            self.job, self._fresh = Job(recipe), False
            yield from kept_events(run.path)
            self._training = resume(run.path, self.job)
            yield from self._told(self._training, (run.forked() or {"stage": 0})["stage"])

        # what was predicted after the epochs so far stays on the slider
        seen = dict(self.predictions)
        self._launch(run, stream(), recipe, self.parent, seen)

    def _told(self, events: TrainingRun, inherited: int = 0) -> Generator[Event]:
        """Events as they come, with a note of whether they are of a stage that is trained here."""
        with contextlib.closing(events):  # which saves, and may fail to
            for event in events:
                if isinstance(event, RunStarted) and event.parent:
                    inherited = event.parent["stage"]
                self._fresh = isinstance(event, StageEvent) and event.stage > inherited
                yield event

    def _launch(
        self,
        run: RunFolder,
        stream: Generator[Event],
        recipe: Recipe,
        parent: Curves | None,
        seen: dict | None = None,
    ) -> None:
        if (
            reason := ""
            if (other := current()) is None
            else f"{other.name} is training in this kernel."
        ):
            raise TrainingError(reason, "Stop it first, or wait for its end.")
        self.run, self.parent, self.trained, self._fresh = run, parent, recipe, False
        self._clear()
        self.predictions = seen or {}
        self.live = LiveRun(stream, run.path.name, self._take, owner=self)

    def _take(self, event: Event) -> None:
        """On the training thread, between two steps."""
        if isinstance(event, RunStarted):
            self._batches = event.batches_per_epoch
        if isinstance(event, FeaturesUsed):
            self.features = event
        if isinstance(event, StageEnded):
            self._ended.append(event.stage)
        self._count(event)
        if not event.transient:
            self._draw_up(event)  # before it is among the events: who draws looks there first
            self.events.append(event)
        if self._fresh and isinstance(event, StageStarted | EpochEnded):
            self._predict(event.epoch)
        elif (
            isinstance(event, RunEnded) and self.live and not self.predictions
        ):  # nothing was trained here
            self._predict(self.events[-2].epoch)
        self.version += 1

    def _draw_up(self, event: Event) -> None:
        """Curves are no reason for a training to end, either."""
        try:
            self.curves.add(event)
        except Exception as error:
            self.no_curves = f"The curves are not complete ({type(error).__name__}: {error})."

    def _predict(self, epoch: int) -> None:
        """Pictures are no reason for a training to end: what goes wrong here is said beside
        them.
        """
        try:
            images = (self.job.data.load(name)[0] for name in self.samples)
            self.predictions[epoch] = [self.job.model.predict(image) for image in images]
        except Exception as error:
            self.no_pictures = (
                f"No prediction after epoch {epoch} ({type(error).__name__}: "
                f"{error}). Training goes on."
            )

    def _count(self, event: Event) -> None:
        """Seconds and forecast work of the events that were trained here."""
        working = self._fresh and self.live is not None and self.live.state == "running"
        took_step = working and isinstance(event, BatchEnded)
        self.ahead.count(
            working, self.ahead.weight(event.stage, self.trained, self.job) if took_step else 0.0
        )
        self.position = event

    def progress(self) -> tuple[float, float | None]:
        """How much of the run's steps is done, 0..1, and the seconds left, once something can be
        said about that.
        """
        if self.trained is None or not self.events:
            return 0.0, None
        if isinstance(self.events[-1], RunEnded):
            return 1.0, 0.0
        n, last = (
            self._batches,
            next(
                (
                    e
                    for e in reversed(self.events)
                    if isinstance(e, BatchEnded | StageEnded | StageStarted)
                ),
                None,
            ),
        )
        if last is None:
            return 0.0, None
        before = last.step - self.curves.stage_began(last.stage)[1]
        rest = {
            k: s.epochs * n for k, s in enumerate(self.trained.stages, start=1) if k >= last.stage
        }
        rest[last.stage] = 0 if isinstance(last, StageEnded) else rest[last.stage] - before
        total = last.step + sum(rest.values())
        return last.step / total, self.ahead.left(rest, self.trained, self.job)
