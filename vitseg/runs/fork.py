"""What a run takes over from another: which stages it may, what is copied, and how its events read
then.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from vitseg import plan
from vitseg.errors import RunError
from vitseg.events import Event, RunStarted, StageStarted
from vitseg.files import MANIFEST, flaw, whole_folder
from vitseg.recipe import Recipe
from vitseg.runs.folder import RunFolder, changes
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


def check_fork(source: RunFolder, stage: int, job: Job, facts: dict[str, Any]) -> None:
    """Raises RunError, naming every difference, unless stages 1 .. `stage` of `source` were trained
    as a fork would.
    """
    found = differences(source.recipe, job.recipe, stage)
    if not found:
        source.check_split(job.data.splits)
        found = source.changes({name: facts[name] for name in _FIXED})
    if found:
        raise RunError(
            f"{source.path}: stage {stage} was trained otherwise. {' '.join(found)}",
            "Only later stages, name and workers of a fork may differ; train a new run for other "
            "changes.",
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
