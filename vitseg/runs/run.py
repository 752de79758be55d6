"""A whole run: the stages one after the other, recorded, saved, summed up."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from vitseg.errors import RunError
from vitseg.events import EpochEnded, Event, RunEnded, RunResumed, StageEnded
from vitseg.files import held, held_back, write_json
from vitseg.model.segmenter import load_parts
from vitseg.recipe import Recipe
from vitseg.runs.assemble import assembled, refuse_a_second_team
from vitseg.runs.checkpoint import Saver, drop_after, newest_checkpoint, save_checkpoint
from vitseg.runs.environment import environment
from vitseg.runs.folder import RunFolder, runs_root
from vitseg.runs.inherit import (
    check_fork,
    copy_stages,
    first_events,
    first_events_again,
    origin_of,
    retold,
)
from vitseg.runs.stages import Start, stages
from vitseg.runs.store import DECISIVE, StageEnd, decisive, find_stage, key_of
from vitseg.runs.summary import summarise
from vitseg.runs.work import Work, about_run, nothing, prepare, run_started
from vitseg.training.team import Team


def train(
    recipe: Recipe,
    folder: str | Path | None = None,
    work: Work | None = None,
    *,
    reuse: bool | str | Path = True,
) -> Generator[Event]:
    """Train all stages of a recipe and record them in `folder` (a new one under `runs_root()` by
    default).

    An iterable of events: nothing is trained until it is asked for them, and no more once it is
    not. Data, model and settings are checked before the folder is made; anything wrong is a
    VitsegError. `work` is what `prepare(recipe)` gave, for a caller who wants to look at the model
    meanwhile; it serves one run.

    First stages that a run under `runs_root()` has finished, on the same data, from the same
    weights, with the same settings, are taken from there: the same bits. `reuse` may name another
    folder to look in; False trains them all.
    """
    refuse_a_second_team(recipe)
    work = work or prepare(recipe)
    about = about_run(recipe, work)
    if found := trained_already(about["keys"], reuse):
        yield from _inherit(RunFolder(found.run), found.stage, recipe, folder, work, about)
        return
    run = RunFolder.create(folder, recipe, work.data.splits, about)
    with held(run.path):
        yield from _recorded(run, recipe, work)


def trained_already(keys: list[str], reuse: bool | str | Path = True) -> StageEnd | None:
    """Where `train` takes the first of the stages with these keys from, if any run has finished
    them.
    """
    places = (
        {runs_root(), runs_root() if reuse is True else Path(reuse).expanduser().absolute()}
        if reuse
        else set()
    )
    return find_stage(keys, sorted(places))


def fork(
    parent: str | Path,
    stage: int | None,
    recipe: Recipe,
    folder: str | Path | None = None,
    work: Work | None = None,
) -> Generator[Event]:
    """A new run that inherits stages 1 .. `stage` of another and trains the later ones of `recipe`;
    with `stage` None it goes on from the other's newest checkpoint, in the midst of a stage.

    Yields the inherited events first, so that the new run is complete. Raises RunError, naming
    every difference, if `recipe`, the machine or the encoder's weights differ in anything that
    those stages were trained with.
    """
    refuse_a_second_team(recipe)
    source = RunFolder(parent)
    if stage is None:
        yield from _forked_within(source, recipe, folder, work or prepare(recipe))
        return
    source.up_to(stage)
    if stage >= len(recipe.stages):
        raise RunError(
            f"There is no stage after stage {stage} in this recipe.",
            "Add one, or fork from an earlier stage.",
        )
    work = work or prepare(recipe)
    about = about_run(recipe, work)
    check_fork(source, stage, recipe, work, about)
    yield from _inherit(source, stage, recipe, folder, work, about)


def _inherit(
    source: RunFolder,
    stage: int,
    recipe: Recipe,
    folder: str | Path | None,
    work: Work,
    about: dict[str, Any],
) -> Generator[Event]:
    origin = origin_of(source, stage)
    if (
        key_of(source.stage(stage)) != about["keys"][stage - 1]
    ):  # trained with other versions, or by a run without keys
        about = _without_keys(about)
    first = first_events(source, stage, recipe, work)
    run = RunFolder.create(folder, recipe, work.data.splits, about, forked=origin)
    with held(run.path):
        yield from _forked(run, recipe, work, first)


def _without_keys(about: dict[str, Any]) -> dict[str, Any]:
    """Of a run whose stages nobody is to find."""
    return {name: value for name, value in about.items() if name != "keys"}


def _forked_within(
    source: RunFolder, recipe: Recipe, folder: str | Path | None, work: Work
) -> Generator[Event]:
    """Whoever is cut off before the first checkpoint begins with the stage again: to the same bits,
    later.
    """
    state, _ = newest_checkpoint(source.checkpoints, source.events_file)
    if state is None or state["stage"] > len(recipe.stages):
        words = (
            f"has come to stage {state['stage']}, of {len(recipe.stages)} here"
            if state
            else "has no checkpoint"
        )
        raise RunError(f"{source.path}: {words}.", "Fork from the end of a stage.")
    before, about = state["stage"] - 1, about_run(recipe, work)
    check_fork(source, before + 1, recipe, work, about)
    if source.changed(about, DECISIVE):
        about = _without_keys(about)
    origin = origin_of(source, before) if before else None
    told = islice(source.events(), 1, state["sequence"])
    first = run_started(
        recipe, work, {"run": source.path.name, "stage": before} if before else None
    )
    events = [first, *retold(told, recipe, work)]
    run = RunFolder.create(folder, recipe, work.data.splits, about, forked=origin)
    with held(run.path):
        if origin:
            copy_stages(run, origin)
        for event in events:
            run.record(event)
            if isinstance(event, StageEnded) and event.stage == before:
                write_json(run.fork_file, origin | {"sequence": run.sequence, "offset": run.sync()})
        save_checkpoint(run.checkpoints, run.sequence, run.sync(), state)
        for event in events:
            yield from run.handed(event)
        yield from _recorded(run, recipe, work, state)


def resume(
    folder: str | Path, work: Work | None = None, *, allow_inexact: bool = False
) -> Generator[Event]:
    """Go on with a run from its newest whole checkpoint. Yields what happens from there on.

    Raises RunError, naming every difference, if data, weights, versions or machine are not those
    that the run began with, for then its numbers would not be those of an uninterrupted run;
    `allow_inexact` goes on and records it. A fork that was cut off while it inherited does so
    again, from its parent: RunError if that is gone.
    """
    run = RunFolder(folder)
    recipe = run.resolved_recipe()
    if run.summary_file.exists():
        run.drop_checkpoints()  # a kill may have come between the two
        raise RunError(f"{run.path}: this run has ended.", "Read it with vitseg.replay(folder).")
    refuse_a_second_team(recipe)
    with held(run.path):
        run.sweep()
        state, skipped = newest_checkpoint(
            run.checkpoints, run.events_file
        )  # None: cut off before its first; begins again
        work = work or prepare(recipe)
        run.check_split(work.data.splits)
        _refuse_or_record(run, environment(work.data, work.model, work.machine), allow_inexact)
        if state and state["stage"] > len(recipe.stages):
            problem = (
                f"{run.path}: has come to stage {state['stage']}, and its recipe has "
                f"{len(recipe.stages)}."
            )
            raise RunError(problem, "Restore its recipe.json.")
        forked = run.forked()
        if forked and not forked["sequence"]:
            yield from _forked(run, recipe, work, first_events_again(run, forked, work))
            return
        place = state or forked or {"sequence": 0, "offset": 0}
        run.cut_back(place["sequence"], place["offset"])
        drop_after(run.checkpoints, place["sequence"])
        after = run.up_to(forked["stage"])[-1] if forked and not state else None
        step = state["steps_before"] + state["step"] if state else after.step if after else 0
        run.failure_file.unlink(missing_ok=True)
        yield from run.handed(RunResumed(step, skipped))
        yield from _recorded(run, recipe, work, state, after)


def _refuse_or_record(run: RunFolder, now: dict[str, Any], allow_inexact: bool) -> None:
    """Raises RunError if what the run began with has changed; if that is allowed, writes it
    down.
    """
    if other := run.changed(now, ("weights",)):
        problem = f"{run.path}: the encoder is not the one that the run began with. {other[0]}."
        raise RunError(problem, "Restore its files, or start a new run.")
    changed = run.changed(now, DECISIVE)
    if changed and not allow_inexact:
        mend = (
            "Restore it, start a new run, or go on all the same with allow_inexact=True "
            "(vitseg resume --inexact)."
        )
        raise RunError(
            f"{run.path}: what the run began with has changed. {'; '.join(changed)}.", mend
        )
    if changed:
        before = run.environment().get("inexact", [])
        write_json(run.path / "environment.json", now | {"inexact": [*before, *changed]})


def kept_events(folder: str | Path) -> list[Event]:
    """The events of a run that `resume` will not let happen again: those up to the checkpoint it
    goes on from.
    """
    run = RunFolder(folder)
    place = (
        newest_checkpoint(run.checkpoints, run.events_file)[0] or run.forked() or {"sequence": 0}
    )
    return list(islice(run.events(), place["sequence"]))


def _recorded(
    run: RunFolder,
    recipe: Recipe,
    work: Work,
    state: dict[str, Any] | None = None,
    after: StageEnded | None = None,
) -> Generator[Event]:
    """Events, each recorded before it is handed on. Whoever stops asking for them loses no step; a
    kill loses a minute's.
    """
    saver = Saver(run)
    try:
        start = _start(run, recipe, state, after)
        with (
            assembled(recipe) as team,
            closing(stages(recipe, work, _briefed(team, run, start), team, run)) as told,
        ):
            while True:
                with held_back() as asked:
                    event, training = next(told, (None, None))
                    if event is None:
                        return
                    if not event.transient:
                        run.record(event)
                    if isinstance(event, EpochEnded) or asked or saver.is_due:
                        saver.save(event, training)
                    work.save = partial(saver.save, event, training)
                    if isinstance(event, RunEnded):
                        write_json(
                            run.summary_file, summarise(run.events(), [s for _, s in run.timings()])
                        )
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
        work.save = nothing  # what a failed step has left is no state to go on from


def _forked(run: RunFolder, recipe: Recipe, work: Work, first: list[Event]) -> Generator[Event]:
    """Inherit the parent's stages, of which the `first` events tell, and train the later ones.

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
    yield from _recorded(run, recipe, work, after=first[-1])


def _start(
    run: RunFolder, recipe: Recipe, state: dict[str, Any] | None, after: StageEnded | None
) -> Start:
    if after is not None:
        which = (
            recipe.stages[after.stage].start_from if after.stage < len(recipe.stages) else "best"
        )
        weights = load_parts(run.stage(after.stage) / which)
        return Start(after.stage + 1, after.epoch, after.step, weights)
    return (
        Start(state["stage"], state["epochs_before"], state["steps_before"], state=state)
        if state
        else Start()
    )


def _briefed(team: Team, run: RunFolder, start: Start) -> Start:
    """Tell the other processes what `follow` asks for."""
    if team.size > 1:
        team.tell(run.resolved_recipe().model_dump_json())
        with team.together():  # while they prepare
            pass
        team.same("The environment", decisive(run.environment()))
        team.tell(start)
    return start
