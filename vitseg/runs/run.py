"""A whole run: the stages one after the other, recorded, saved, summed up."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from vitseg.errors import RunError
from vitseg.events import EpochEnded, Event, RunEnded, RunResumed, StageEnded
from vitseg.files import held, held_back, whole_folder, write_json
from vitseg.model.freeze import set_freeze_depth
from vitseg.model.segmenter import load_parts, save_parts
from vitseg.recipe import Recipe
from vitseg.runs.checkpoint import Saver, drop_after, newest_checkpoint, save_checkpoint
from vitseg.runs.folder import RunFolder, runs_root
from vitseg.runs.fork import check_fork, copy_stages, first_events, origin_of, parent_of, retold
from vitseg.runs.narrate import Narrator
from vitseg.runs.store import (
    DECISIVE,
    StageEnd,
    about,
    decisive,
    environment,
    find_stage,
    keep_key,
    key_of,
)
from vitseg.training.evaluate import evaluate
from vitseg.training.features import Features
from vitseg.training.job import Job
from vitseg.training.loop import StageTraining
from vitseg.training.parallel import ProcessGroup, process_group, refuse_a_second_group
from vitseg.training.weights import Weights, load_weights


def train(
    recipe: Recipe | Job, folder: str | Path | None = None, *, reuse: bool | str | Path = True
) -> TrainingRun:
    """Train all stages of a recipe and record them in `folder` (a new one under `runs_root()` by
    default).

    An iterable of events: nothing is trained until it is asked for them, and no more once it is
    not. Data, model and settings are checked before the folder is made; anything wrong is a
    VitsegError. Give a `Job` to look at its model meanwhile; it serves one run.

    First stages that a run under `runs_root()` has finished, on the same data, from the same
    weights, with the same settings, are taken from there: the same bits. `reuse` may name another
    folder to look in; False trains them all.
    """
    runner = _Runner()
    return TrainingRun(runner.train(recipe, folder, reuse), runner)


def fork(
    parent: str | Path, stage: int | None, recipe: Recipe | Job, folder: str | Path | None = None
) -> TrainingRun:
    """A new run that inherits stages 1 .. `stage` of another and trains the later ones of `recipe`;
    with `stage` None it goes on from the other's newest checkpoint, in the midst of a stage.

    Yields the inherited events first, so that the new run is complete. Raises RunError, naming
    every difference, if `recipe`, the machine or the encoder's weights differ in anything that
    those stages were trained with.
    """
    runner = _Runner()
    source = RunFolder(parent)
    if stage is None:
        return TrainingRun(runner.fork_within(source, recipe, folder), runner)
    return TrainingRun(runner.fork(source, stage, recipe, folder), runner)


def resume(
    folder: str | Path, job: Job | None = None, *, allow_inexact: bool = False
) -> TrainingRun:
    """Go on with a run from its newest whole checkpoint. Yields what happens from there on.

    Raises RunError, naming every difference, if data, weights, versions or machine are not those
    that the run began with, for then its numbers would not be those of an uninterrupted run;
    `allow_inexact` goes on and records it. A fork that was cut off while it inherited does so
    again, from its parent: RunError if that is gone.
    """
    runner = _Runner()
    return TrainingRun(runner.resume(RunFolder(folder), job, allow_inexact), runner)


def kept_events(folder: str | Path) -> list[Event]:
    """The events of a run that `resume` will not let happen again: those up to the checkpoint it
    goes on from.
    """
    run = RunFolder(folder)
    state, _ = newest_checkpoint(run.checkpoints, run.events_file)
    place = state or run.forked() or {"sequence": 0}
    return list(islice(run.events(), place["sequence"]))


def trained_already(keys: list[str], reuse: bool | str | Path = True) -> StageEnd | None:
    """Where `train` takes the first of the stages with these keys from, if any run has finished
    them.
    """
    if not reuse:
        return None
    places = {runs_root()}
    if reuse is not True:
        places.add(Path(reuse).expanduser().absolute())
    return find_stage(keys, sorted(places))


class TrainingRun(Iterator[Event]):
    """A run under way, as its events: nothing is trained until the next one is asked for.

    `save()`, between two events, writes a checkpoint; `close()` ends the run, saved.
    """

    def __init__(self, events: Generator[Event], runner: _Runner):
        self._events, self._runner = events, runner

    def __next__(self) -> Event:
        return next(self._events)

    def save(self) -> None:
        """Write a checkpoint, if there is anything new to save."""
        self._runner.save()

    def close(self) -> None:
        self._events.close()


class Start(NamedTuple):
    """Where training begins: at a stage, before which were so many epochs and steps; from the
    weights of the stage before it, which may be the last, or from a state within it.
    """

    stage: int = 1
    epochs: int = 0
    steps: int = 0
    weights: Weights | None = None
    state: dict[str, Any] | None = None


class _Runner:
    """The ways to begin a run, which all end in `_record`, and how it is saved on the way."""

    def __init__(self) -> None:
        self._saver: Saver | None = None
        self._event: Event | None = None
        self._training: StageTraining | None = None

    def save(self) -> None:
        if self._saver is not None:
            self._saver.save(self._event, self._training)

    def train(
        self, recipe: Recipe | Job, folder: str | Path | None, reuse: bool | str | Path
    ) -> Generator[Event]:
        job = _job_of(recipe)
        facts = about(job)
        if found := trained_already(facts["keys"], reuse):
            yield from self._inherit(RunFolder(found.run), found.stage, job, folder, facts)
            return
        run = RunFolder.create(folder, job.recipe, job.data.splits, facts)
        with held(run.path):
            yield from self._record(run, job)

    def fork(
        self, source: RunFolder, stage: int, recipe: Recipe | Job, folder: str | Path | None
    ) -> Generator[Event]:
        asked = recipe.recipe if isinstance(recipe, Job) else recipe
        refuse_a_second_group(asked.processes)
        source.up_to(stage)
        if stage >= len(asked.stages):
            mend = "Add one, or fork from an earlier stage."
            raise RunError(f"There is no stage after stage {stage} in this recipe.", mend)
        job = _job_of(recipe)
        facts = about(job)
        check_fork(source, stage, job, facts)
        yield from self._inherit(source, stage, job, folder, facts)

    def _inherit(
        self,
        source: RunFolder,
        stage: int,
        job: Job,
        folder: str | Path | None,
        facts: dict[str, Any],
    ) -> Generator[Event]:
        if key_of(source.stage(stage)) != facts["keys"][stage - 1]:
            facts = _without_keys(facts)  # trained with other versions, or by a run without keys
        first = first_events(source, stage, job, job.recipe)
        origin = origin_of(source, stage)
        run = RunFolder.create(folder, job.recipe, job.data.splits, facts, forked=origin)
        with held(run.path):
            yield from self._take_over(run, job, first)

    def _take_over(self, run: RunFolder, job: Job, first: list[Event]) -> Generator[Event]:
        """Copy the parent's stages, of which the `first` events tell, and train the later ones.

        Until fork.json says that all of it is here, what was begun of it is done again.
        """
        origin = run.forked()
        copy_stages(run, origin)
        run.cut_back(0, 0)
        for event in first:
            run.record(event)
        write_json(run.fork_file, origin | {"sequence": run.sequence, "offset": run.sync()})
        for event in first:
            yield from run.handed(event)
        yield from self._record(run, job, after=first[-1])

    def fork_within(
        self, source: RunFolder, recipe: Recipe | Job, folder: str | Path | None
    ) -> Generator[Event]:
        """A run cut off before the first checkpoint begins with the stage again: to the same bits,
        later.
        """
        job = _job_of(recipe)
        state, _ = newest_checkpoint(source.checkpoints, source.events_file)
        if state is None or state["stage"] > len(job.stages):
            has = f"has come to stage {state['stage']}, of {len(job.stages)} here" if state else ""
            problem = f"{source.path}: {has or 'has no checkpoint'}."
            raise RunError(problem, "Fork from the end of a stage.")
        before, facts = state["stage"] - 1, about(job)
        check_fork(source, before + 1, job, facts)
        if source.changed(facts, DECISIVE):
            facts = _without_keys(facts)
        origin = origin_of(source, before) if before else None
        told = islice(source.events(), 1, state["sequence"])
        first = job.started(job.recipe, parent_of(source, before) if before else None)
        events = [first, *retold(told, job, job.recipe)]
        run = RunFolder.create(folder, job.recipe, job.data.splits, facts, forked=origin)
        with held(run.path):
            if origin:
                copy_stages(run, origin)
            for event in events:
                run.record(event)
                if isinstance(event, StageEnded) and event.stage == before:
                    place = {"sequence": run.sequence, "offset": run.sync()}
                    write_json(run.fork_file, origin | place)
            save_checkpoint(run.checkpoints, run.sequence, run.sync(), state)
            for event in events:
                yield from run.handed(event)
            yield from self._record(run, job, state)

    def resume(self, run: RunFolder, job: Job | None, allow_inexact: bool) -> Generator[Event]:
        recipe = run.resolved_recipe()
        if run.summary_file.exists():
            run.drop_checkpoints()  # a kill may have come between the two
            mend = "Read it with vitseg.replay(folder)."
            raise RunError(f"{run.path}: this run has ended.", mend)
        refuse_a_second_group(recipe.processes)
        with held(run.path):
            run.sweep()
            # None: cut off before its first; begins again
            state, skipped = newest_checkpoint(run.checkpoints, run.events_file)
            job = job or Job(recipe)
            run.check_split(job.data.splits)
            _refuse_or_record(run, environment(job), allow_inexact)
            if state and state["stage"] > len(recipe.stages):
                raise RunError(
                    f"{run.path}: has come to stage {state['stage']}, and its recipe has "
                    f"{len(recipe.stages)}.",
                    "Restore its recipe.json.",
                )
            forked = run.forked()
            if forked and not forked["sequence"]:
                yield from self._take_over(run, job, _first_events_again(run, forked, job))
                return
            place = state or forked or {"sequence": 0, "offset": 0}
            run.cut_back(place["sequence"], place["offset"])
            drop_after(run.checkpoints, place["sequence"])
            after = run.up_to(forked["stage"])[-1] if forked and not state else None
            step = 0
            if state:
                step = state["steps_before"] + state["step"]
            elif after:
                step = after.step
            run.failure_file.unlink(missing_ok=True)
            yield from run.handed(RunResumed(step, skipped))
            yield from self._record(run, job, state, after)

    def _record(
        self,
        run: RunFolder,
        job: Job,
        state: dict[str, Any] | None = None,
        after: StageEnded | None = None,
    ) -> Generator[Event]:
        """Events, each recorded before it is handed on. Whoever stops asking for them loses no
        step; a kill loses a minute's.
        """
        saver = Saver(run)
        try:
            start = _start(run, state, after)
            with process_group(job.recipe.processes, worker="vitseg.runs.follow") as group:
                share(run, start, group)
                with closing(stages(job, start, group, run)) as events:
                    while True:
                        with held_back() as asked:
                            event, training = next(events, (None, None))
                            if event is None:
                                return
                            if not event.transient:
                                run.record(event)
                            if isinstance(event, EpochEnded) or asked or saver.is_due:
                                saver.save(event, training)
                            self._saver, self._event, self._training = saver, event, training
                            if isinstance(event, RunEnded):
                                seconds = [s for _, s in run.timings()]
                                summary = Narrator(run.events(), seconds).summary()
                                write_json(run.summary_file, summary)
                                run.drop_checkpoints()
                        try:
                            yield from run.handed(event)
                        except GeneratorExit:
                            saver.save(event, training)
                            raise
        except Exception as error:
            run.fail(error)
            raise
        finally:
            self._saver = None  # what a failed step has left is no state to go on from


def share(run: RunFolder, start: Start, group: ProcessGroup) -> None:
    """Broadcast what the other processes are to train: `train_along` of `vitseg.runs.follow`."""
    if group.size == 1:
        return
    group.broadcast(run.resolved_recipe().model_dump_json())
    group.same("The environment", decisive(run.environment()))
    group.broadcast(start)


def stages(
    job: Job, start: Start, group: ProcessGroup, run: RunFolder | None = None
) -> Generator[tuple[Event, StageTraining | None], None, None]:
    """Every event of a run with the stage it is of, as each process of it trains them. The process
    that has the `run` keeps what comes of it.
    """
    recipe, model = job.recipe, job.model
    if run and start == Start():
        yield job.started(run.recipe), None  # as asked for; what "auto" became stands beside it
    if start.weights is not None:
        model.to(job.machine.device)
        set_freeze_depth(model, job.stages[start.stage - 2].unfrozen)
        load_weights(model, start.weights)
    epochs, steps, state, features = start.epochs, start.steps, start.state, None
    for plan in job.stages[start.stage - 1 :]:
        place = {"epochs_before": epochs, "steps_before": steps}
        training = StageTraining(job, plan.number, **place, group=group)
        if state is not None:
            training.load_state_dict(state)
            state = None
        for event in training:
            yield event, training
        features = training.features
        epochs, steps = epochs + training.epoch, steps + training.step
        if run:
            _keep_stage_end(run, training)
        is_last = plan.number == len(job.stages)
        if is_last or recipe.stages[plan.number].start_from == "best":
            load_weights(model, training.best_weights)
    for event in _end(job, features, group, run):
        yield event, None


def _end(
    job: Job, features: Features | None, group: ProcessGroup, run: RunFolder | None
) -> Iterator[Event]:
    """Save the best weights, score them, and the test images, once."""
    if run:
        with whole_folder(run.best, store=run.store) as aside:
            job.model.save_pretrained(aside)
    best = yield from evaluate(job, "validation", features=features, group=group)
    test = None
    if job.data.splits["test"]:
        test = yield from evaluate(job, "test", group=group)
    yield RunEnded(best, test)


def _keep_stage_end(run: RunFolder, training: StageTraining) -> None:
    """The weights, and the key under which they are found, unless somebody has changed an image in
    this stage or before.
    """
    number = training.number
    with whole_folder(run.stage(number), store=run.store) as aside:
        save_parts(training.model, training.best_weights, aside / "best")
        save_parts(training.model, training.trained_weights(), aside / "last")
        keys = run.keys()
        has_before = number == 1 or key_of(run.stage(number - 1))
        if keys and has_before and not run.changed({"data": training.data.digest()}, ("data",)):
            keep_key(aside, keys[number - 1])


def _job_of(recipe: Recipe | Job) -> Job:
    if isinstance(recipe, Job):
        refuse_a_second_group(recipe.recipe.processes)
        return recipe
    if isinstance(recipe, Recipe):
        refuse_a_second_group(recipe.processes)
    return Job(recipe)


def _without_keys(facts: dict[str, Any]) -> dict[str, Any]:
    """Of a run whose stages nobody is to find."""
    return {name: value for name, value in facts.items() if name != "keys"}


def _refuse_or_record(run: RunFolder, now: dict[str, Any], allow_inexact: bool) -> None:
    """Raises RunError if what the run began with has changed; if that is allowed, writes it
    down.
    """
    if other := run.changed(now, ("weights",)):
        problem = f"{run.path}: the encoder is not the one that the run began with. {other[0]}."
        raise RunError(problem, "Restore its files, or start a new run.")
    changed = run.changed(now, DECISIVE)
    if not changed:
        return
    if not allow_inexact:
        raise RunError(
            f"{run.path}: what the run began with has changed. {'; '.join(changed)}.",
            "Restore it, start a new run, or go on all the same with allow_inexact=True (vitseg "
            "resume --inexact).",
        )
    before = run.environment().get("inexact", [])
    write_json(run.path / "environment.json", now | {"inexact": [*before, *changed]})


def _first_events_again(run: RunFolder, origin: dict[str, Any], job: Job) -> list[Event]:
    """Those of a fork that was cut off before it had them all. Raises RunError if its parent is
    gone.
    """
    source = RunFolder(origin["parent"])
    if not source.events_file.exists():
        problem = f"{run.path}: was cut off while it inherited from {source.path}, which is gone."
        raise RunError(problem, "Bring that run back, or begin another.")
    return first_events(source, origin["stage"], job, run.recipe)


def _start(run: RunFolder, state: dict[str, Any] | None, after: StageEnded | None) -> Start:
    if after is not None:
        stages = run.recipe.stages
        which = stages[after.stage].start_from if after.stage < len(stages) else "best"
        weights = load_parts(run.stage(after.stage) / which)
        return Start(after.stage + 1, after.epoch, after.step, weights)
    if state is not None:
        return Start(state["stage"], state["epochs_before"], state["steps_before"], state=state)
    return Start()
