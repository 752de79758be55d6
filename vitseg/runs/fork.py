"""What a run takes over from another: which stages it may, what is copied, and how its events read
then.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

from vitseg import plan
from vitseg.errors import RunError
from vitseg.events import Event, RunStarted, StageStarted
from vitseg.files import MANIFEST, flaw, whole_folder
from vitseg.recipe import Recipe
from vitseg.runs.checkpoint import newest_checkpoint
from vitseg.runs.folder import RunFolder, changes
from vitseg.runs.store import StageEnd, key_of
from vitseg.training.job import Job

_FREE = {"name", "workers", "cache", "recompute", "device", "precision", "threads", "processes"}
"""What a fork may change of a recipe."""

_FIXED = ("device", "precision", "threads", "processes", "encoder", "data", "weights")
"""What it may not change of the environment."""


def differences(old: Recipe, new: Recipe, stage: int) -> list[str]:
    """What stages 1 .. `stage` of two recipes were, or would be, trained with, where that
    differs.
    """
    then, now = (
        r.model_copy(update={"stages": r.stages[:stage]}).model_dump(mode="json", exclude=_FREE)
        for r in (old, new)
    )
    return changes(then, now)


class ForkPoint(NamedTuple):
    """The end of the stages that a run inherits, if any; where it goes on from within the next one,
    the state there, and the events of the other run until then.
    """

    end: StageEnd | None
    state: dict[str, Any] | None = None
    events: Sequence[Event] = ()


def fork_point(source: RunFolder, stage: int | None, job: Job, facts: dict[str, Any]) -> ForkPoint:
    """The end of a stage, or the newest checkpoint. Raises RunError, naming every difference,
    unless `source` was trained until then as a fork would.
    """
    state, events, number = None, [], stage
    if stage is None:
        state, _ = newest_checkpoint(source)
        if state is None:
            raise RunError(f"{source.path}: has no checkpoint.", "Fork from the end of a stage.")
        number, stage = state["stage"], state["stage"] - 1
        events = list(islice(source.events(), state["sequence"]))
    else:
        source.up_to(stage)
    refuse_stage(source, stage + 1, job.recipe)
    found = differences(source.recipe, job.recipe, number)
    if not found:
        source.check_split(job.data.splits)
        found = source.changes({name: facts[name] for name in _FIXED})
    if found:
        raise RunError(
            f"{source.path}: stage {number} was trained otherwise. {' '.join(found)}",
            "Only later stages, name and workers of a fork may differ; train a new run for other "
            "changes.",
        )
    if facts["keys"][number - 1] not in {key_of(source.stage(number)), *source.keys()}:
        del facts["keys"]  # trained with other versions, or by a run without keys
    return ForkPoint(StageEnd(source.path, stage) if stage else None, state, events)


def refuse_stage(run: RunFolder, stage: int, recipe: Recipe) -> None:
    """Raises RunError where the stage to go on with is not in the recipe."""
    if stage > len(recipe.stages):
        raise RunError(
            f"{run.path}: goes on with stage {stage}, and the recipe has {len(recipe.stages)}.",
            "Add stages to it, or fork from the end of an earlier one.",
        )


def copy_stage(source: RunFolder, run: RunFolder, number: int) -> None:
    """The weights of a stage and its key."""
    theirs = source.stage(number)
    if reason := flaw(theirs):
        hint = "Restore it, start from another run, or train the stage again."
        raise RunError(f"{theirs}: {reason}.", hint)
    with whole_folder(run.stage(number), store=run.store) as aside:
        other = shutil.ignore_patterns(MANIFEST)
        shutil.copytree(theirs, aside, ignore=other, dirs_exist_ok=True)


def retold(events: Iterable[Event], job: Job, asked: Recipe) -> Iterator[Event]:
    """Events of stages in the words of a recipe, which may call them otherwise."""
    for event in events:
        if isinstance(event, StageStarted):
            own = asked.stages[event.stage - 1]
            notes = job.notes(event.stage)
            event = replace(event, name=own.name, schedule=plan.describe(own), notes=notes)
        if not isinstance(event, RunStarted):
            yield event
