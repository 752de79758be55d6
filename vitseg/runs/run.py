"""A whole run: the stages one after the other, recorded, saved, summed up."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path

from vitseg.errors import RunError
from vitseg.events import EpochEnded, Event, RunEnded, RunResumed, StageEnded
from vitseg.files import flaw, held, held_back, sweep, whole_folder, write_json, written
from vitseg.model.freeze import set_freeze_depth
from vitseg.model.segmenter import load_parts, save_parts
from vitseg.recipe import Recipe
from vitseg.runs.checkpoint import Saver, State, drop_after, newest_checkpoint, save_checkpoint
from vitseg.runs.folder import JsonDict, RunFolder, new_run
from vitseg.runs.narrate import summarize
from vitseg.runs.store import (
    KEY_FILE,
    ForkPoint,
    decisive,
    environment,
    fork_point,
    key_of,
    refuse_stage,
    retold,
    stage_keys,
    trained_already,
)
from vitseg.training.evaluate import evaluate
from vitseg.training.job import Job
from vitseg.training.loop import StageTraining
from vitseg.training.parallel import ProcessGroup, process_group, refuse_a_second_group


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
    point = lambda job, facts: (trained_already(facts["keys"], reuse), None, [])  # noqa: E731
    return TrainingRun(partial(_new, recipe, folder, point))


def fork(
    parent: str | Path, stage: int | None, recipe: Recipe | Job, folder: str | Path | None = None
) -> TrainingRun:
    """A new run that inherits stages 1 .. `stage` of another and trains the later ones of `recipe`;
    with `stage` None it goes on from the other's newest checkpoint, in the midst of a stage.

    Yields the inherited events first, so that the new run is complete. Raises RunError, naming
    every difference, if `recipe`, the machine or the encoder's weights differ in anything that
    those stages were trained with.
    """
    point = partial(fork_point, RunFolder(parent), stage)
    return TrainingRun(partial(_new, recipe, folder, point))


def resume(
    folder: str | Path, job: Job | None = None, *, allow_inexact: bool = False
) -> TrainingRun:
    """Go on with a run from its newest whole checkpoint. Yields what happens from there on.

    Raises RunError, naming every difference, if data, weights, versions or machine are not those
    that the run began with, for then its numbers would not be those of an uninterrupted run;
    `allow_inexact` goes on and records it, except with other weights. A fork that was cut off while
    it inherited does so again, from its parent: RunError if that is gone.
    """
    return TrainingRun(partial(_resumed, RunFolder(folder), job, allow_inexact))


def kept_events(run: RunFolder) -> list[Event]:
    """The events of a run that `resume` will not let happen again: those up to the checkpoint it
    goes on from.
    """
    state, _ = newest_checkpoint(run)
    place = state or run.forked() or {"sequence": 0}
    return list(islice(run.events(), place["sequence"]))


class TrainingRun(Iterator[Event]):
    """A run under way, as its events: nothing is trained until the next one is asked for.

    `save()`, between two events, writes a checkpoint; `close()` ends the run, saved.
    """

    def __init__(self, begin: Callable[[Saver], Generator[Event]]):
        self._saver = Saver()
        self._events = begin(self._saver)

    def __next__(self) -> Event:
        return next(self._events)

    def save(self) -> None:
        """Write a checkpoint, if there is anything new to save."""
        self._saver.save()

    def close(self) -> None:
        self._events.close()


# ---- a new run, or one that is resumed


def _new(
    recipe: Recipe | Job,
    folder: str | Path | None,
    point_of: Callable[[Job, JsonDict], ForkPoint],
    saver: Saver,
) -> Generator[Event]:
    """One from within a stage is one from the end of the stage before it, with a checkpoint. If it
    is cut off before that is written, it trains that stage again: to the same bits, later.
    """
    job = recipe if isinstance(recipe, Job) else Job(recipe)
    refuse_a_second_group(job.recipe.processes)
    facts = environment(job)
    facts["keys"] = stage_keys(job, facts)
    end, state, others = point_of(job, facts)
    run = RunFolder(folder) if folder else new_run(job.recipe.name)
    if run.events_file.exists():
        raise RunError(
            f"{run.path}: holds a run already.",
            f"Resume it (vitseg resume {run.path}), or choose another folder.",
        )
    with written(run.path):
        run.path.mkdir(parents=True, exist_ok=True)
        # first of all: a fork that is cut off must not pass for a run of its own, nor a run for a
        # fork that was cut off here before its first event
        run.fork_file.unlink(missing_ok=True)
        if end:
            point = {"parent": str(end.run), "stage": end.stage, "sequence": 0, "offset": 0}
            write_json(run.fork_file, point)
        job.recipe.save(run.path / "recipe.json")
        write_json(run.environment_file, facts)
        write_json(run.path / "split.json", job.data.splits)
    with held(run.path):
        events = _begin(run, job, others)
        if state:
            save_checkpoint(run, state)
        yield from _trained(run, job, state or _start(run), events, saver)


def _resumed(
    run: RunFolder, job: Job | None, allow_inexact: bool, saver: Saver
) -> Generator[Event]:
    recipe = run.resolved_recipe()
    refuse_a_second_group(recipe.processes)
    with held(run.path):
        if run.summary_file.exists():
            run.drop_checkpoints()  # a kill may have come between the two
            raise RunError(
                f"{run.path}: this run has ended.", "Read it with vitseg.replay(folder)."
            )
        sweep(run.path)
        state, skipped = newest_checkpoint(run)
        if state:
            refuse_stage(run, state["stage"], recipe)
        job = job or Job(recipe)
        run.check_split(job.data.splits)
        before, now = run.environment(), environment(job)
        if changed := run.changes(decisive(now)):
            if not allow_inexact or before.get("weights") != now["weights"]:
                raise RunError(
                    f"{run.path}: what the run began with has changed. {' '.join(changed)}",
                    "Restore it, or start a new run. Other things than weights may change with "
                    "allow_inexact=True (vitseg resume --inexact).",
                )
            inexact = [*before.get("inexact", []), *changed]
            write_json(run.environment_file, now | {"inexact": inexact})
        run.failure_file.unlink(missing_ok=True)
        events, place = [], state or run.forked() or {"sequence": 0}
        drop_after(run, place["sequence"])
        if place["sequence"]:
            run.cut_back(place["sequence"], place["offset"])
        else:
            events = _begin(run, job)
        start = state or _start(run)
        resumed = RunResumed(start["steps_before"] + start.get("step", 0), skipped)
        yield from _trained(run, job, start, [resumed, *events], saver)


def _begin(run: RunFolder, job: Job, others: Sequence[Event] = ()) -> list[Event]:
    """The first events of a run, recorded: its start, and what it inherits: `others`, or the stages
    of its parent.

    Until fork.json says that these stages are here, what there is of them is copied again.
    """
    forked, parent = run.forked(), None
    if forked:
        source, stage = RunFolder(forked["parent"]), forked["stage"]
        parent = {"run": source.path.name, "stage": stage}
        for number in range(1, stage + 1):
            theirs = source.stage(number)
            if reason := flaw(theirs):
                raise RunError(
                    f"{theirs}: {reason}.",
                    "Restore it, start from another run, or train the stage again.",
                )
            with whole_folder(run.stage(number), store=run.store) as aside:
                shutil.copytree(theirs, aside, dirs_exist_ok=True)
        others = others or source.up_to(stage)
    run.cut_back(0, 0)
    events = [job.started(run.recipe, parent), *retold(others[1:], job)]
    for event in events:
        run.record(event)
        if forked and isinstance(event, StageEnded) and event.stage == stage:
            write_json(run.fork_file, forked | {"sequence": run.sequence, "offset": run.sync()})
    return events


def _start(run: RunFolder) -> State:
    """The state of a run before its first own step, as far as there is any: its place, and the
    weights of the last stage that was inherited.
    """
    forked = run.forked()
    if not forked:
        return {"stage": 1, "epochs_before": 0, "steps_before": 0}
    *_, ended = run.up_to(forked["stage"])
    following = run.recipe.stages[ended.stage :]
    which = following[0].start_from if following else "best"
    return {
        "stage": ended.stage + 1,
        "epochs_before": ended.epoch,
        "steps_before": ended.step,
        "weights": load_parts(run.stage(ended.stage) / which),
    }


# ---- and then all alike


def _trained(
    run: RunFolder, job: Job, start: State, first: list[Event], saver: Saver
) -> Generator[Event]:
    """The `first` events, and then each recorded before it is handed on. Whoever stops asking for
    them loses no step; a kill loses a minute's.
    """
    saver.run = run
    try:
        with (
            process_group(job.recipe.processes, worker="vitseg.runs.follow") as group,
            closing(stages(job, start, group, saver)) as events,
        ):
            group.broadcast((run.resolved_recipe(), start))
            group.same("The environment", decisive(run.environment()))
            for event in first:
                yield event
            while not isinstance(event, RunEnded):
                with held_back() as asked:
                    began = time.monotonic()
                    event = next(events)
                    run.seconds += time.monotonic() - began
                    if not event.transient:
                        run.record(event)
                    saver.save(now=isinstance(event, EpochEnded) or bool(asked))
                    if isinstance(event, RunEnded):
                        write_json(run.summary_file, summarize(run))
                        run.drop_checkpoints()
                try:
                    yield event
                except GeneratorExit:
                    saver.save()
                    raise
    except Exception as error:
        run.fail(error)
        raise
    finally:
        saver.training = None  # what a failed step has left is no state to go on from


def stages(job: Job, start: State, group: ProcessGroup, saver: Saver) -> Generator[Event]:
    """Every event of a run, as each process of it trains them. `saver` is told what there is to
    save; where it has a run, that has the weights too.
    """
    recipe, model, run, number = job.recipe, job.model, saver.run, start["stage"]
    is_within = "step" in start
    if number > 1 and not is_within:
        model.to(job.machine.device)
        set_freeze_depth(model, job.stages[number - 2].unfrozen)
        model.load_state_dict(start["weights"], strict=False)
    epochs, steps, features = start["epochs_before"], start["steps_before"], None
    for plan in job.stages[number - 1 :]:
        place = {"epochs_before": epochs, "steps_before": steps}
        training = StageTraining(job, plan.number, **place, group=group)
        if is_within and plan.number == number:
            training.load_state_dict(start)
        for event in training:
            saver.training = None if isinstance(event, StageEnded) else training
            yield event
        features = training.features
        epochs, steps = epochs + training.epoch, steps + training.step
        if run:
            _keep_stage_end(run, training)
        is_last = plan.number == len(job.stages)
        if is_last or recipe.stages[plan.number].start_from == "best":
            model.load_state_dict(training.best_weights, strict=False)
    if run:
        with whole_folder(run.best, store=run.store) as aside:
            model.save_pretrained(aside)
    best = yield from evaluate(job, "validation", features=features, group=group)
    test = None
    if job.data.splits["test"]:
        test = yield from evaluate(job, "test", group=group)
    yield RunEnded(best, test)


def _keep_stage_end(run: RunFolder, training: StageTraining) -> None:
    """The weights, and the key under which they are found, unless somebody has changed an image in
    this stage or before.
    """
    number, keys = training.number, run.environment().get("keys")
    with whole_folder(run.stage(number), store=run.store) as aside:
        save_parts(training.model, training.best_weights, aside / "best")
        save_parts(training.model, training.trained_weights(), aside / "last")
        has_before = number == 1 or key_of(run.stage(number - 1))
        if keys and has_before and not run.changes({"data": training.data.digest()}):
            (aside / KEY_FILE).write_text(keys[number - 1], encoding="utf-8")
