"""A workbench without its widgets: what is edited, the run that is shown, how long it takes, and
what is said of it.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitseg.errors import ConfigError, RunError, TrainingError, VitsegError, is_for_readers
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
from vitseg.model.segmenter import Segmenter, load_segmenter
from vitseg.plan import batches_per_epoch
from vitseg.recipe import Recipe
from vitseg.runs.checkpoint import steps_saved
from vitseg.runs.folder import Failure, RunFolder, new_run, runs_root
from vitseg.runs.forecast import StageForecast, forecast, measure
from vitseg.runs.fork import differences
from vitseg.runs.narrate import inherited_words, number_or_na
from vitseg.runs.run import TrainingRun, fork, kept_events, resume, train, trained_already
from vitseg.runs.store import StageEnd, environment, stage_keys
from vitseg.settings import Constant, CosineRestarts, Exponential, Schedule, WarmupPoly
from vitseg.training.job import Job
from vitseg.ui.curves import Curves
from vitseg.ui.live import LiveRun, Pace, Said, Task, current, launching, refuse_a_second

SCHEDULERS: dict[str, type[Schedule]] = {
    "Cosine restarts / batch": CosineRestarts,
    "Exponential / epoch": Exponential,
    "Constant": Constant,
    "Warm-up, polynomial / batch": WarmupPoly,
}
"""The schedulers by the words of the control, each with its clock."""

OF_STAGE = {
    "Freeze depth": "unfrozen_blocks",
    "Scheduler": "schedule",
    "Learning rate": "lr",
    "Epochs": "epochs",
}
OF_RECIPE = {"Batch size": "batch_size", "Seed": "seed", "Device": "device"}
"""The settings by the labels of their controls."""

_LABELS = {setting: label for label, setting in (OF_STAGE | OF_RECIPE).items()}
_LABELS["eta_min"] = "Learning rate"

MOST_EPOCHS = 10_000
"""The plan of more could not be drawn while a control is being moved."""

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

_WAITING = {
    "pausing": "Pausing after this batch.",
    "paused": "Paused. Resume goes on.",
    "stopping": "Stopping after this batch.",
}
_BY = {"FreezeBreach": "Stopped by the freeze audit", "LRBreach": "Stopped by the LR contract"}


@dataclass
class Desk:
    """The controls' state. `stage` is the row being edited, from 1; `this_stage_only` ends the run
    after it; with `retrain` stages that an earlier run has finished alike are trained all the same.

    `recipe` is the base with all edits; `problems` says by control what is wrong, and is empty if
    Start may be pressed.
    """

    base: Recipe
    job_of: Callable[[Recipe], Job]
    stage: int = 1
    this_stage_only: bool = False
    retrain: bool = False
    start: StageEnd | None = None
    edits: dict[str, Any] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.recipe, self.depth = self.base, self.job_of(self.base).model.encoder.depth
        self._whole: dict[str, Any] = {}

    def take(self, recipe: Recipe) -> None:
        """Another recipe in place of what the controls said. After one that has only stage 1 the
        later stages stay at hand.
        """
        later = self.base.stages[1:] if len(recipe.stages) == 1 else ()
        self.this_stage_only = bool(later)
        recipe = recipe.replace({"stages": recipe.stages + later})
        self.base = self.recipe = recipe
        self.stage, self.start, self.edits, self._whole = 1, None, {}, {}
        self.check()

    def edit(self, setting: str, value: Any) -> None:
        """Change a setting of the stage being edited (`lr`), or of the whole recipe
        (`batch_size`).
        """
        place = f"stages.{self.stage - 1}." if setting in OF_STAGE.values() else ""
        self.edits[place + setting] = value
        self.check()

    def turn_to(self, stage: int) -> None:
        """Edit another stage. An edit that was refused is dropped: its control would not show it
        any more.
        """
        self.stage = stage
        if self.problems:
            self.edits = dict(self._whole)
        self.check()

    def check(self) -> None:
        """Work out `recipe` and `problems` anew. With a problem, `recipe` stays the last one that
        was whole.
        """
        self.problems = {}
        try:
            recipe, _ = self.base.settle(self.edits)  # at depth 0 the encoder's own settings go
            self.job_of(recipe)  # is there such a device, are there so many blocks?
            if (epochs := sum(stage.epochs for stage in recipe.stages)) > MOST_EPOCHS:
                allowed = f"at most {MOST_EPOCHS:,} in all"
                raise ConfigError("epochs", epochs, allowed, "vitseg.train takes any number.")
            self.recipe, self._whole = recipe, dict(self.edits)
        except VitsegError as error:
            self._blame(error)
        try:
            self._check_start()
        except VitsegError as error:
            self.problems["Start from"] = f"{error} Choose another place to start from."

    def chosen(self) -> Recipe:
        """The recipe that Start trains: up to the edited stage if only that one is to run."""
        stages = self.recipe.stages
        if self.this_stage_only:
            stages = stages[: self.stage]
        return self.recipe.replace({"stages": [s.model_dump(mode="json") for s in stages]})

    def first_stage(self) -> int:
        return self.start.stage + 1 if self.start else 1

    def scheduler(self) -> str:
        kind = type(self.recipe.stages[self.stage - 1].schedule)
        return next(name for name, schedule in SCHEDULERS.items() if schedule is kind)

    def schedule_of(self, name: str) -> Schedule:
        """The scheduler of that name: as the base has it in this stage, else in the first other
        one, else its defaults.
        """
        for stage in (self.base.stages[self.stage - 1], *self.base.stages):
            if isinstance(stage.schedule, SCHEDULERS[name]):
                return stage.schedule
        return SCHEDULERS[name]()

    def _blame(self, error: VitsegError) -> None:
        """Put each refusal beside the control it is about, or beside Start."""
        if not error.refusals:
            self.problems["Start"] = str(error)
        for refusal in error.refusals:
            names = reversed(refusal.field.split("."))
            label = next((_LABELS[name] for name in names if name in _LABELS), "Start")
            place = re.sub(r"stages\.(\d+)", lambda m: f"stage {int(m[1]) + 1}", refusal.place)
            says = " ".join(filter(None, (refusal.says, error.mend)))
            self.problems[label] = f"{place}: {says}" if place else says

    def _check_start(self) -> None:
        if self.start:
            self._check_end(self.start)
        early = self.this_stage_only and self.first_stage() < self.stage
        if early and "Start from" not in self.problems:
            self.problems["Run"] = (
                f"Stage {self.stage} alone starts from the end of stage {self.stage - 1}: "
                "choose one in Start from, or run all stages."
            )

    def _check_end(self, start: StageEnd) -> None:
        """Whether what is edited can go on from there."""
        problem = ""
        if start.stage >= self.stage and self.this_stage_only:
            problem = f"Stage {self.stage} cannot start from {start}: that is not before it."
        elif start.stage >= len(self.recipe.stages):
            problem = f"There is no stage after {start} to train."
        elif found := differences(RunFolder(start.run).recipe, self.recipe, start.stage):
            found = " ".join(found)
            problem = f"{start} was trained otherwise. {found} Change that back, or start anew."
        if problem:
            self.problems["Start from"] = problem


def recent_runs(most: int = 20) -> list[RunFolder]:
    """The newest runs in the runs root."""
    found = [p for p in runs_root().glob("*/recipe.json") if (p.parent / "events.jsonl").exists()]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [RunFolder(path.parent) for path in found[:most]]


class Session(Task):
    """Start, pause, resume, stop, fork. Raises VitsegError for what cannot be done; a second press
    does no harm.

    The state is "ready" before the first run, "shown" for a run read from disk, else the live
    run's. `preview` is whether the screen shows what Start would do, and not a run.
    """

    def __init__(self, recipe: Recipe):
        self.job, self.asked = Job(recipe), recipe
        self.desk = Desk(recipe, self.job_of)
        self.samples = self.job.data.splits["validation"][:SAMPLES]
        self.run: RunFolder | None = None
        self.trained: Recipe | None = None
        self.parent: Curves | None = None
        self.preview, self.unsaved = True, ""
        self.predictions: dict[int, list[np.ndarray]] = {}
        self._training: TrainingRun | None = None
        self._facts: dict[str, Any] = {}
        self._timing = threading.Lock()
        self._fresh, self._chosen = False, self._choice()
        super().__init__()

    def job_of(self, recipe: Recipe) -> Job:
        """A recipe on this session's data and model, for plans and checks."""
        return self.job.replace(recipe)

    def plan_of(self, recipe: Recipe) -> Job:
        """The same on the device that is used here, wherever the recipe would train."""
        here = {name: getattr(self.job.recipe, name) for name in ("device", "precision", "threads")}
        return self.job_of(recipe.replace(here))

    def _clear(self) -> None:
        super()._clear()
        self.curves, self._batches = self.planned(), self.batches
        self._ended: list[int] = []
        self._weights: list[float] = []
        self.no_pictures = ""
        self.features: FeaturesUsed | None = None
        self.pace = Pace()

    # ---- what there is

    @property
    def idle(self) -> str:
        return "shown" if self.run else "ready"

    @property
    def path(self) -> Path | None:
        return self.run.path if self.run else None

    @property
    def batches(self) -> int:
        """Batches an epoch as the desk stands."""
        return batches_per_epoch(self.desk.recipe, len(self.job.data.splits["train"]))

    def planned(self) -> Curves:
        """The promised curve of what Start would train."""
        recipe = self.desk.recipe
        if not self.desk.problems:
            recipe = self.desk.chosen()
        return Curves(recipe, self.batches)

    def why_not_start(self) -> str:
        if current():
            return super().why_not_start()
        return " ".join(self.desk.problems.values())

    @property
    def stoppable(self) -> LiveRun | None:
        """Also a run of another workbench, whose own button may be gone."""
        return current()

    @property
    def resumable(self) -> bool:
        """Whether the run that is shown can be continued: it has not ended, and nobody trains
        it.
        """
        run = self.run
        if run is None or self.alive:
            return False
        cut_off = run.events_file.exists() and not run.summary_file.exists()
        return cut_off and not run.is_held()

    @property
    def edited(self) -> bool:
        """Whether the controls say something else than the run that is shown."""
        return self.run is None or self._chosen != self._choice()

    def _choice(self) -> tuple[Recipe, StageEnd | None, dict[str, str]]:
        return self.desk.chosen(), self.desk.start, dict(self.desk.problems)

    def failure(self) -> Failure | None:
        """What ended the run that is shown: as it happened here, or as its folder remembers."""
        if self.live and self.live.error is not None:
            return Failure.of(self.live.error)
        return self.run.failure() if self.state == "shown" else None

    def broken(self) -> dict[int, tuple[str, ...]]:
        """The parts that broke the promise of what trains, by the stage in which they did."""
        if failure := self.failure():
            return {max(self._ended, default=0) + 1: failure.parts}
        return {}

    def starts(self) -> list[StageEnd]:
        """The ends of stages of recent runs from which the desk's recipe may go on, newest
        first.
        """
        found = []
        for run in recent_runs():
            with contextlib.suppress(VitsegError):
                old, ends = run.recipe, reversed(run.ended_stages())
                alike = [n for n in ends if not differences(old, self.desk.recipe, n)]
                found += [StageEnd(run.path, n) for n in alike]
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

    # ---- what can be done

    def changed(self) -> None:
        """A control was moved. A run that is under way goes on as it began."""
        self.preview = not self.alive and self.edited

    def _begin(self) -> None:
        """Train what is on the desk, in a new run folder."""
        if reason := self.why_not_start():
            raise TrainingError(reason)
        recipe, source, reuse = self.desk.chosen(), self.desk.start, not self.desk.retrain
        self._chosen, self.predictions = self._choice(), {}
        run = new_run(recipe.name)

        def stream() -> Generator[Event]:
            self.job = job = Job(recipe)
            if source:
                self._training = fork(source.run, source.stage, job, run.path)
            else:
                self._training = train(job, run.path, reuse=reuse)
            yield from self._told(self._training)

        parent = Curves.of(RunFolder(source.run).events()) if source else None
        self._put(run, recipe, parent)
        self._launch(stream(), run.path.name)

    def _continue(self, run: RunFolder) -> None:
        recipe = run.resolved_recipe()

        def stream() -> Generator[Event]:
            self.job = Job(recipe)
            yield from kept_events(run.path)
            self._training = resume(run.path, self.job)
            yield from self._told(self._training, (run.forked() or {"stage": 0})["stage"])

        refuse_a_second()
        self._put(run, recipe, self.parent)
        self._launch(stream(), run.path.name)

    def _put(self, run: RunFolder, recipe: Recipe, parent: Curves | None = None) -> None:
        """A run, and the recipe that it trains, in place of what was shown."""
        self.run, self.trained, self.parent = run, recipe, parent
        self._fresh = self.preview = False

    def _told(self, events: TrainingRun, inherited: int = 0) -> Generator[Event]:
        """Events as they come, with a note of whether they are of a stage that is trained here."""
        with contextlib.closing(events):  # which saves, and may fail to
            for event in events:
                if isinstance(event, RunStarted) and event.parent:
                    inherited = event.parent["stage"]
                self._fresh = isinstance(event, StageEvent) and event.stage > inherited
                yield event

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
        self.version += 1

    def resume(self) -> None:
        """Go on after a pause; or continue the run that is shown, if it was cut off, from its last
        checkpoint.
        """
        with launching:
            if self.alive:
                self.live.resume()
            elif self.resumable:
                self._continue(self.run)
            elif self.run:
                name = self.run.path.name
                raise RunError(f"{name}: there is nothing to resume.", "Press Start, or Fork.")
            else:
                raise RunError("There is nothing to resume.", "Press Start.")

    def fork(self) -> None:
        """Take the end of the stage before the edited one as the place to start from. Start then
        trains the rest.
        """
        ends = {end.stage: end for end in self.stage_ends() if end.stage < max(2, self.desk.stage)}
        if not ends:
            raise RunError(
                "There is no finished stage to fork from yet.",
                "Wait for the end of stage 1, or choose a run in Runs.",
            )
        wanted = max(ends)
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
        run, base = RunFolder(folder), self.desk.base
        events, recipe = list(run.events()), run.recipe
        if (recipe.data, recipe.model) != (base.data, base.model):
            raise RunError(
                f"{run.path} has other data, or another model.",
                f"Open it in a cell: vitseg.Workbench({str(run.path)!r}).",
            )
        if any(getattr(recipe, name) != getattr(base, name) for name in COSTLY):
            self.cost = None
        self.desk.take(recipe)
        self._put(run, recipe)
        self.live, self._chosen, self.predictions = None, self._choice(), {}
        self._clear()
        for event in events:
            self.take(event)
        if forked := run.forked():
            source = RunFolder(forked["parent"])
            if source.events_file.exists():
                self.parent = Curves.of(source.events())

    # ---- what has happened

    def take(self, event: Event) -> None:
        if self._fresh and isinstance(event, StageStarted | EpochEnded):
            self._predict(event.epoch)
        elif isinstance(event, RunEnded) and self.live and not self.predictions:
            self._predict(self.events[-1].epoch)  # nothing was trained here
        super().take(event)

    def _note(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._batches = event.batches_per_epoch
            case FeaturesUsed():
                self.features = event
            case StageEnded():
                self._ended.append(event.stage)
        working = self._fresh and self.state == "running"
        took_step = working and isinstance(event, BatchEnded)
        self.pace.count(working, self._weight(event.stage) if took_step else 0.0)
        if not event.transient:
            self.curves.add(event)

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

    # ---- how long it takes

    def measure(self) -> None:
        """Time a few batches, once. The weights that a run begins with are looked up only while the
        model still has them.
        """
        with self._timing:
            if self.cost is None:
                job = self.plan_of(self.desk.base)
                facts = environment(job) if self.live is None else {}
                self.cost, self._facts = measure(job), facts

    def forecast(self, recipe: Recipe | None = None) -> list[StageForecast]:
        """What the stages of a recipe will take, by default those of the desk if Start were
        pressed; nothing for a device that no batch was timed on. The first call times a few
        batches.
        """
        self.measure()
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
            inherited = self._trained_already(job)
        return forecast(job, self.cost, inherited)

    def _trained_already(self, job: Job) -> int:
        """How many stages of a job other runs have finished; 0 where only Start can tell."""
        facts = {"device": str(job.machine.device)}
        for name in ("precision", "threads", "processes"):
            facts[name] = getattr(job.machine, name)
        if not facts.items() <= self._facts.items():
            return 0
        found = trained_already(stage_keys(job, self._facts))
        return found.stage if found else 0

    def _weight(self, stage: int) -> float:
        """How long a step of a stage takes, beside those of others: by forecast, or all alike."""
        if self.cost is None or self.trained is None:
            return 1.0
        if not self._weights:
            ahead = forecast(self.job_of(self.trained), self.cost)
            self._weights = [f.seconds / f.steps for f in ahead]
        return self._weights[stage - 1]

    def progress(self) -> tuple[float, float | None]:
        """By the steps of the run; nothing is done of what Start would train."""
        last = _last(self.events, BatchEnded, StageEnded, StageStarted)
        if self.preview or self.trained is None or last is None:
            return 0.0, None
        if isinstance(self.events[-1], RunEnded):
            return 1.0, 0.0
        steps, work = 0, 0.0
        for number, stage in enumerate(self.trained.stages, start=1):
            left = stage.epochs * self._batches
            if number == last.stage:
                left -= last.step - self.curves.bands[number - 1].start * self._batches
            if number > last.stage or (number == last.stage and not isinstance(last, StageEnded)):
                steps += left
                work += left * self._weight(number)
        return last.step / (last.step + steps), self.pace.left(work)

    # ---- what is said

    def heading(self) -> tuple[str, str]:
        """What the screen shows, a run or what Start would train, and the folder of the run."""
        if self.run is None:
            return "What Start would train.", ""
        name, folder = self.run.path.name, str(self.run.path)
        if self.alive:
            return f"Run {name}, in training.", folder
        if not self.preview:
            words = "The controls hold its settings; Start would train them as a new run."
            return f"Run {name}. {words}", folder
        words = "What Start would train."
        if self.events:
            words += f" For comparison, grey and dotted: run {name}."
        if self.resumable:
            words += f" Resume would go on with {name}, unchanged."
        return words, folder

    def sentence(self, note: str = "", unpainted: str = "") -> Said:
        wrong = unpainted or self.incomplete
        if self.alive:
            return self._while_alive(note, wrong)
        if wrong or note:
            return wrong or note, "bad"
        if not self.preview and (failure := self.failure()):
            return self._stopped_by(failure), "bad"
        if reason := self.why_not_start():
            return f"Start is off: {reason}", "bad"
        if self.preview:
            return self._ready(), ""
        warning = self._warning()
        return f"{warning} {self._after()}".lstrip(), "bad" if warning else ""

    def _while_alive(self, note: str, wrong: str) -> Said:
        doing = self._doing()
        if self.state == "paused":
            doing += self.unsaved
        if not note and self.edited:
            note = "A control was moved: that takes effect at the next start."
        wrong = f"{wrong} Training goes on." if wrong else self._warning()
        return " ".join(filter(None, (doing, note, wrong))), "bad" if wrong else ""

    def _warning(self) -> str:
        """What is wrong with the best weights of the stage that ended last, if something is."""
        last = _last(self.events, StageEnded)
        return last.warning if last else ""

    def _doing(self) -> str:
        if self.state != "running":
            return _WAITING.get(self.state, "")
        match self.position:
            case None:
                return "Reading data and weights."
            case BatchEnded(stage=stage, epoch=epoch) as p:
                return f"Training stage {stage}: epoch {epoch}, batch {p.batch} of {p.batches}."
            case ValidationBatch() as p:
                when = f" after epoch {p.epoch}" if p.epoch else ", start weights"
                return f"Scoring validation images{when}: batch {p.batch} of {p.batches}."
        return "Training."

    def _ready(self) -> str:
        first, last = self.desk.first_stage(), len(self.desk.chosen().stages)
        words = f"Ready. Start trains stages {first} to {last}"
        if last <= first:
            words = f"Ready. Start trains stage {first}"
        return f"{words} from {self.desk.start}." if self.desk.start else f"{words}."

    def _stopped_by(self, failure: Failure) -> str:
        says = failure.says
        if not is_for_readers(failure.kind):
            says = f"{failure.kind}: {says}."
        words = f"{_BY.get(failure.kind, 'Stopped by an error')}: {says}"
        return f"{words} {self._goes_on_from()}." if self.resumable else words

    def _goes_on_from(self) -> str:
        step = steps_saved(self.run.checkpoints)
        if step:
            return f"Resume goes on after step {step}"
        return "Resume begins again: nothing had been saved"

    def _after(self) -> str:
        run = self.run
        if not run.events_file.exists():
            return "Stopped before anything was recorded."
        if self.resumable:
            last, where = _last(self.events, BatchEnded), "no step at all"
            if last:
                where = f"step {last.step}, in epoch {last.epoch}"
            return f"Stopped after {where}. {self._goes_on_from()}. Run folder: {run.path}"
        if not run.summary_file.exists():
            return f"{run.path.name} is being trained elsewhere."
        words, parent = "Ended.", _last(self.events, RunStarted).parent
        if parent and not self.desk.start:
            words += f" {inherited_words(parent)} Tick Retrain to do so."
        iou, f1 = (number_or_na(run.summary["best"][score]) for score in ("iou", "f1"))
        return f"{words} Best valid IoU {iou}, F1 {f1}. Run folder: {run.path}"


def _last(events: list[Event], *kinds: type[Event]) -> Any:
    """The last event of these kinds; None if there is none."""
    for event in reversed(events):
        if isinstance(event, kinds):
            return event
    return None
