"""What a run takes over from another: which stages it may, what is copied, and what is told of
them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from vitseg import plan
from vitseg.errors import RunError
from vitseg.events import Event, Parent, RunStarted, StageStarted
from vitseg.files import MANIFEST, flaw, whole_folder
from vitseg.recipe import Recipe
from vitseg.runs.folder import RunFolder
from vitseg.training.job import Job

_FREE = {"name", "workers", "cache", "recompute", "device", "precision", "threads", "processes"}
"""What a fork may change; device, precision, threads and processes are compared as what they
became.
"""


def differences(old: Recipe, new: Recipe, stage: int) -> list[str]:
    """What stages 1 .. `stage` of two recipes were, or would be, trained with, where that
    differs.
    """
    before, after = (
        dict(_flat(r.model_copy(update={"stages": r.stages[:stage]}).model_dump(mode="json")))
        for r in (old, new)
    )
    names = [name for name in before | after if name.partition(".")[0] not in _FREE]
    none = "nothing"
    return [
        f"{name}: {after.get(name, none)!r}, the parent has {before.get(name, none)!r}."
        for name in names
        if before.get(name, none) != after.get(name, none)
    ]


def check_fork(source: RunFolder, stage: int, job: Job, facts: dict[str, Any]) -> None:
    """Raises RunError, naming every difference, unless stages 1 .. `stage` of `source` were trained
    as a fork would.
    """
    _refuse(source, stage, differences(source.recipe, job.recipe, stage))
    source.check_split(job.data.splits)
    before = next(event for event in source.events() if isinstance(event, RunStarted))
    now, other = job.started(job.recipe), []
    names = ("device", "precision", "threads", "processes", "encoder", "classes", "mode", "masks")
    for name in names:
        here, there = getattr(now, name), getattr(before, name)
        if here != there:
            other.append(f"{name}: {here!r}, the parent had {there!r}.")
    _refuse(source, stage, other)
    _refuse(source, stage, [f"{words}." for words in source.changed(facts, ("data", "weights"))])


def _refuse(source: RunFolder, stage: int, found: list[str]) -> None:
    if found:
        mend = (
            "Only later stages, name and workers of a fork may differ; train a new run for "
            "other changes."
        )
        raise RunError(
            f"{source.path}: stage {stage} was trained otherwise. {' '.join(found)}", mend
        )


def origin_of(source: RunFolder, stage: int) -> dict[str, Any]:
    """The content of a fork's `fork.json`, before anything has been inherited."""
    return {"parent": str(source.path), "stage": stage, "sequence": 0, "offset": 0}


def copy_stages(run: RunFolder, origin: dict[str, Any]) -> None:
    """The weights and keys of the parent's stages; what a kill has left of them is done again."""
    for number in range(1, origin["stage"] + 1):
        theirs = RunFolder(origin["parent"]).stage(number)
        if reason := flaw(theirs):
            raise RunError(
                f"{theirs}: {reason}.", "Start from another run, or train the stage again."
            )
        with whole_folder(run.stage(number), store=run.store) as aside:
            shutil.copytree(
                theirs, aside, ignore=shutil.ignore_patterns(MANIFEST), dirs_exist_ok=True
            )


def parent_of(source: RunFolder, stage: int) -> Parent:
    return {"run": source.path.name, "stage": stage}


def first_events(source: RunFolder, stage: int, job: Job, asked: Recipe) -> list[Event]:
    """What a fork begins with: its start, and its parent's stages in the words of its own
    recipe.
    """
    started = job.started(asked, parent_of(source, stage))
    return [started, *retold(source.up_to(stage), job, asked)]


def retold(events: Iterable[Event], job: Job, asked: Recipe) -> Iterator[Event]:
    """Events of stages in the words of a recipe, which may call them otherwise."""
    for event in events:
        if isinstance(event, StageStarted):
            own = asked.stages[event.stage - 1]
            notes = job.notes(event.stage)
            event = replace(event, name=own.name, schedule=plan.describe(own), notes=notes)
        yield event


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested settings with their dotted paths, as `Recipe.replace` takes them."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else None
    )
    if inner is None:
        yield path, value
        return
    for name, child in inner:
        yield from _flat(child, f"{path}.{name}" if path else str(name))
