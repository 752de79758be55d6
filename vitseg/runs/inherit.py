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
from vitseg.events import Event, RunStarted, StageStarted
from vitseg.files import MANIFEST, flaw, whole_folder
from vitseg.recipe import Recipe
from vitseg.runs.folder import RunFolder
from vitseg.runs.work import Work, run_started
from vitseg.training.loop import stage_notes

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


def check_fork(
    source: RunFolder, stage: int, recipe: Recipe, work: Work, environment: dict[str, Any]
) -> None:
    """Raises RunError, naming every difference, unless stages 1 .. `stage` of `source` were trained
    as a fork would.
    """
    _refuse(source, stage, differences(source.recipe, recipe, stage))
    source.check_split(work.data.splits)
    now, before = (
        run_started(recipe, work),
        next(e for e in source.events() if isinstance(e, RunStarted)),
    )
    names = ("device", "precision", "threads", "processes", "encoder", "classes", "mode", "masks")
    there = [(name, getattr(now, name), getattr(before, name)) for name in names]
    _refuse(
        source, stage, [f"{name}: {a!r}, the parent had {b!r}." for name, a, b in there if a != b]
    )
    _refuse(
        source, stage, [f"{words}." for words in source.changed(environment, ("data", "weights"))]
    )


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


def first_events(source: RunFolder, stage: int, recipe: Recipe, work: Work) -> list[Event]:
    """What a fork begins with: its start, and its parent's stages in the words of its own
    recipe.
    """
    return [
        run_started(recipe, work, {"run": source.path.name, "stage": stage}),
        *retold(source.up_to(stage), recipe, work),
    ]


def retold(events: Iterable[Event], recipe: Recipe, work: Work) -> Iterator[Event]:
    """Events of stages in the words of a recipe, which may call them otherwise."""
    for event in events:
        if isinstance(event, StageStarted):
            own = recipe.stages[event.stage - 1]
            notes = stage_notes(recipe, event.stage, work.data)
            event = replace(event, name=own.name, schedule=plan.describe(own), notes=notes)
        yield event


def first_events_again(run: RunFolder, origin: dict[str, Any], work: Work) -> list[Event]:
    """Those of a fork that was cut off before it had them all. Raises RunError if its parent is
    gone.
    """
    source = RunFolder(origin["parent"])
    if not source.events_file.exists():
        problem = f"{run.path}: was cut off while it inherited from {source.path}, which is gone."
        raise RunError(problem, "Bring that run back, or begin another.")
    return first_events(source, origin["stage"], run.recipe, work)


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
