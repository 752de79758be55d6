"""What a workbench shows: a run, how long it takes, and what is said of it."""

import threading
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
)
from vitseg.plan import batches_per_epoch
from vitseg.recipe import Recipe
from vitseg.runs.checkpoint import steps_saved
from vitseg.runs.folder import Failure, RunFolder, new_run
from vitseg.runs.forecast import StageForecast, forecast, measure
from vitseg.runs.narrate import inherited_words, number_or_na
from vitseg.runs.run import TrainingRun, fork, kept_events, resume, train, trained_already
from vitseg.runs.store import StageEnd, environment, stage_keys
from vitseg.training.job import Job
from vitseg.ui.controls import Controls
from vitseg.ui.curves import Curves
from vitseg.ui.live import Task, launching, why_busy

_SAME_COST = {"name", "stages", "batch_size", "seed"}
"""Settings that timed batches do not depend on."""


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
        self.controls = Controls(recipe, lambda edited: self.job.replace(edited))
        self.samples = self.job.data.splits["validation"][:4]  # predicted after every epoch
        self.run: RunFolder | None = None
        self.path, self.idle, self.preview = None, "ready", True
        self.predictions: dict[int, list[np.ndarray]] = {}
        self._choice, self._timing = None, threading.Lock()
        super().__init__()

    def _clear(self) -> None:
        super()._clear()
        self.curves, self.parent = self.planned(self.trained), Curves()
        self.ended: list[StageEnded] = []
        self.features: FeaturesUsed | None = None
        self.unsaved = ""
        self._training, self._weights, self._inherited, self._epoch = None, [], 0, 0.0

    # ---- what there is

    def plan_of(self, recipe: Recipe) -> Job:
        """A recipe on this session's data and model, and on the device that is used here, wherever
        it would train.
        """
        here = self.job.recipe.model_dump(include={"device", "precision", "threads"})
        return self.job.replace(recipe.replace(here))

    def planned(self, recipe: Recipe) -> Curves:
        """The promised curve of a recipe."""
        curves = Curves()
        curves.promise(recipe, batches_per_epoch(recipe, self.job.images))
        return curves

    @property
    def recipe(self) -> Recipe:
        """That of the run on the screen, or of what Start would train."""
        return self.controls.recipe if self.preview else self.trained

    @property
    def resumable(self) -> bool:
        """Whether the run that is shown can be continued: it has not ended, and nobody trains it."""
        run = self.run
        return bool(run) and not self.alive and run.events_file.exists() and run.is_cut_off()

    @property
    def edited(self) -> bool:
        """Whether the controls say something else than the run that is shown."""
        return self._choice != self.controls.choice()

    def why_not_start(self) -> str:
        return why_busy() or " ".join(self.controls.problems.values())

    def failure(self) -> Failure | None:
        """What ended the run that is shown: as it happened here, or as its folder remembers."""
        if self.error:
            return Failure.of(self.error)
        return self.run and self.run.failure()

    def fork_point(self) -> StageEnd:
        """Where Fork starts: the last finished stage before the edited one, of the run on the
        screen; stage 0 if there is none.
        """
        before = max(1, self.controls.stage - 1)
        finished = min(before, len(self.controls.recipe.stages) - 1, len(self.ended))
        return StageEnd(self.path, finished)

    # ---- what can be done

    def _begin(self) -> None:
        """Train what the controls say, in a new run folder."""
        if reason := self.why_not_start():
            raise TrainingError(reason)
        recipe, start = self.controls.chosen(), self.controls.start
        run = new_run(recipe.name)
        begin = partial(train, folder=run.path, reuse=not self.controls["Retrain"].value)
        if start.stage:
            begin = partial(fork, *start, folder=run.path)
        self._turn_to(run, recipe)
        self._launch(self._stream(recipe, begin))

    def _turn_to(self, run: RunFolder, recipe: Recipe) -> None:
        """Show a run that the controls describe."""
        self.run, self.path, self.idle = run, run.path, "shown"
        self.trained, self.preview = recipe, False
        self._choice, self.predictions = self.controls.choice(), {}

    def _stream(self, recipe: Recipe, begin: Callable[[Job], TrainingRun]) -> Generator[Event]:
        """What was recorded of the run that is shown, and what `begin` makes of its job."""
        self.job = Job(recipe)
        yield from kept_events(self.run)
        with closing(begin(self.job)) as self._training:
            yield from self._training

    def _save(self) -> None:
        try:
            if self._training:
                self._training.save()
        except Exception as error:  # the training itself goes on
            self.unsaved = f" What came after the last save is not saved: {error}"

    def resume(self) -> None:
        """Go on after a pause; or continue the run that is shown, if it was cut off, from its last
        checkpoint.
        """
        with launching:
            self.unsaved = ""
            if self.resumable:
                recipe = self.run.resolved_recipe()
                self._launch(self._stream(recipe, partial(resume, self.path)))
                self.preview = False
            else:
                super().resume()

    def fork(self) -> None:
        """Take the end of the stage before the edited one as the place to start from. Start then
        trains the rest.
        """
        start = self.fork_point()
        if not start.stage:
            hint = "Wait for the end of stage 1, or choose a run in Runs."
            raise RunError("There is no finished stage to fork from.", hint)
        self.controls.turn_to(max(self.controls.stage, start.stage + 1), start)

    def show(self, folder: str | Path) -> None:
        """Show a run of the past in place of the one that is shown, and its settings in the
        controls.
        """
        if self.alive:
            raise TrainingError(why_busy())
        run, base = RunFolder(folder), self.controls.base
        events, recipe = list(run.events()), run.recipe
        if (recipe.data, recipe.model) != (base.data, base.model):
            raise RunError(
                f"{run.path} has other data, or another model.",
                f"Open it in a cell: vitseg.Workbench({str(run.path)!r}).",
            )
        if recipe.model_dump(exclude=_SAME_COST) != base.model_dump(exclude=_SAME_COST):
            self.cost = None
        self.controls.take(recipe)
        self._turn_to(run, recipe)
        self._clear()
        for event in events:
            self.take(event)

    # ---- what has happened

    def _note(self, event: Event) -> None:
        own = self._training and isinstance(event, StageEvent) and event.stage > self._inherited
        if own:
            self._count()
        self.curves.add(event)
        match event:
            case RunStarted() if event.parent:
                self._inherited = event.parent["stage"]
                with suppress(VitsegError):  # it may have been deleted
                    self.parent = Curves(RunFolder(self.run.forked()["parent"]).events())
            case FeaturesUsed():
                self.features = event
            case BatchEnded():
                self._epoch = event.epoch - 1 + event.batch / event.batches
            case StageStarted() | EpochEnded() if own:
                self._predict(event.epoch)
            case StageEnded():
                self.ended.append(event)
            case RunEnded() if self._training and not self.predictions:  # all was inherited
                self._predict(self.ended[-1].epoch)

    def _predict(self, epoch: int) -> None:
        images = [self.job.data.load(name)[0] for name in self.samples]
        self.predictions[epoch] = list(map(self.job.model.predict, images))

    # ---- how long it takes

    def measure(self) -> None:
        """Time a few batches, once, and look up what the keys of stages follow from."""
        with self._timing:
            if self.cost is None:
                job = self.plan_of(self.controls.base)
                self._facts, self.cost = environment(job), measure(job)

    def forecast(self) -> list[StageForecast]:
        """What the stages on the screen will take; nothing for a device that no batch was timed on.
        The first call times a few batches.
        """
        self.measure()
        inherited = self._inherited
        with suppress(ConfigError):  # of a device that is not here
            job = self.job.replace(self.recipe)
            if not self.alive:  # as many as Start would take from other runs
                keys = stage_keys(job, self._facts | job.machine._asdict())
                found = trained_already(keys, not self.controls["Retrain"].value)
                inherited = self.controls.start.stage or (found.stage if found else 0)
            if job.machine.device == self.job.machine.device:
                return forecast(job, self.cost, inherited)
        return []

    def share(self) -> float:
        """By the epochs of the run, weighed by what they take once there is a forecast; nothing is
        done of what Start would train.
        """
        if self.preview:
            return 0.0
        if self.cost and not self._weights:
            ahead = forecast(self.plan_of(self.trained), self.cost)
            self._weights = [f.seconds / f.steps for f in ahead]
        epochs = [band.end - band.start for band in self.curves.bands]
        work = np.cumsum([0, *np.repeat(self._weights or [1.0] * len(epochs), epochs)])
        return np.interp(self._epoch, range(len(work)), work) / work[-1]

    # ---- what is said

    def heading(self) -> str:
        """What the screen shows: a run, or what Start would train."""
        words, name = "What Start would train.", self.path and self.path.name
        if self.alive:
            return f"Run {name}, in training."
        if not self.preview:
            return (
                f"Run {name}. The controls hold its settings; Start would train them as a new run."
            )
        if name:
            words += f" For comparison, grey and dotted: run {name}."
        if self.resumable:
            words += f" Resume would go on with {name}, unchanged."
        return words

    def status(self) -> tuple[str, list[str]]:
        moved = " A control was moved: that takes effect at the next start." * self.edited
        words = f"{self.doing()}{self.unsaved}{moved}" if self.alive else self._outcome()
        if self.preview:
            return words, []
        if failure := self.failure():
            return words, [f"{failure.kind}: {failure.says}"]
        return words, [stage.warning for stage in self.ended[-1:]]

    def _outcome(self) -> str:
        """What Start would train, or how the run that is shown came to its end, and whether it can
        go on.
        """
        run, start = self.run, self.controls.start
        if self.preview:
            first, last = start.stage + 1, len(self.controls.chosen().stages)
            which = f"stages {first} to {last}" if first < last else f"stage {last}"
            source = f" from {start}" if start.stage else ""
            return "" if self.why_not_start() else f"Ready. Start trains {which}{source}."
        if self.resumable:
            again = "begins again: nothing had been saved."
            if step := steps_saved(run):
                again = f"goes on after step {step}."
            return f"Stopped. Resume {again}"
        if not run.events_file.exists():
            return "Stopped before anything was recorded."
        if not run.summary_file.exists():
            return f"{run.path.name} is being trained elsewhere."
        best, parent, again = run.summary["best"], self.events[0].parent, ""
        if parent and not start.stage:
            again = f" {inherited_words(parent)} Tick Retrain to do so."
        scores = f"IoU {number_or_na(best['iou'])}, F1 {number_or_na(best['f1'])}"
        return f"Ended. Best valid {scores}.{again}"
