"""What a run takes over from another: finished stages, found by a key of all that their numbers
follow from, or named by a fork, as far as both runs have the same settings.
"""

import hashlib
import json
import platform
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vitseg import plan
from vitseg.data.augment import libraries
from vitseg.draws import NUMERICS
from vitseg.errors import RunError
from vitseg.events import Event, StageStarted
from vitseg.files import flaw
from vitseg.recipe import Recipe
from vitseg.runs.checkpoint import State, newest_checkpoint
from vitseg.runs.folder import JsonDict, RunFolder, changes, runs_root
from vitseg.training.audit import part_hashes
from vitseg.training.job import Job

DECISIVE = (
    "versions",
    "device",
    "device_name",
    "precision",
    "threads",
    "processes",
    "cpu_capability",
    "data",
    "weights",
)
"""What of a run's environment its numbers follow from."""

_FIXED = ("device", "precision", "threads", "processes", "encoder", "data", "weights")
"""What a fork may not change of the environment."""

_COMPUTE = ("torch", "transformers", "numpy", "pillow")
_OTHERS = ("vitseg", "safetensors", "pydantic")

_BEST = "IoU, then loss, then the later epoch; never the start of stage 1"
"""Which weights of a stage are its best, part of its key: stages that were finished by another rule
are not taken over.
"""

KEY_FILE = "key"
"""Beside the weights of a stage, the key under which it is found."""


def environment(job: Job) -> JsonDict:
    """What the numbers of a run depend on besides its recipe; data and start weights by digests of
    their content.

    Nothing of the user's own environment. Takes as long as reading all files and weights once.
    """
    machine, model = job.machine, job.model
    gpu = machine.device == "cuda"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version(name) for name in _COMPUTE} | libraries(job.data.cfg.effects),
        "other_versions": {name: version(name) for name in _OTHERS},
        **machine._asdict(),
        "device_name": torch.cuda.get_device_name() if gpu else platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "encoder": model.shape.source,
        "data": job.data.digest(),
        "weights": _digest([part_hashes(model), model.make()], default=str),
    }


def decisive(facts: JsonDict) -> JsonDict:
    """What of an environment the numbers of a run follow from."""
    return {name: facts.get(name) for name in DECISIVE}


def stage_keys(job: Job, facts: JsonDict) -> list[str]:
    """A key for each stage of a job in an environment. The same key, the same bits: names, folders,
    workers and cache are not in it.
    """
    keys, clocks = [], []
    for stage in job.stages:
        settings = plan.effective(job.recipe, stage.number, stage.batches, stage.depth)
        # what was found there is in the environment, by its content
        for files in ("source", "split_file", "group_file"):
            settings["data"].pop(files)
        clocks.append(plan.describe(stage.stage))  # the log says how often each has moved
        what = [NUMERICS, _BEST, *decisive(facts).values()]
        keys.append(_digest([what, settings, clocks], sort_keys=True))
    return keys


def _digest(content: Any, **how: Any) -> str:
    return hashlib.sha256(json.dumps(content, **how).encode()).hexdigest()


class StageEnd(NamedTuple):
    """The end of stage `stage` of a run: where another run may start."""

    run: Path
    stage: int

    def __str__(self) -> str:
        return f"stage {self.stage} of {self.run.name}"


def key_of(folder: Path) -> str:
    """The key of the stage whose weights are in `folder`; "" if it has none."""
    try:
        return (folder / KEY_FILE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def trained_already(keys: list[str], reuse: bool | str | Path = True) -> StageEnd | None:
    """The run that has finished the most of the stages with these keys, in the runs root or in the
    folder that `reuse` names, the newest of several; None if there is none, or `reuse` is False.
    """
    if not reuse:
        return None
    places = {runs_root()}
    if reuse is not True:
        places.add(Path(reuse).expanduser().absolute())
    stages = []
    for place in places:
        for pattern in ("*/stages/*", "*/trials/*/stages/*"):
            for file in place.glob(f"{pattern}/{KEY_FILE}"):
                with suppress(OSError):  # somebody deletes the run this instant
                    stages.append((file.stat().st_mtime, file.parent, key_of(file.parent)))
    stages.sort(reverse=True)
    for number in range(len(keys), 0, -1):
        for _, folder, key in stages:
            end = StageEnd(folder.parents[1], number)
            if key == keys[number - 1] and _is_whole(end):
                return end
    return None


def _is_whole(end: StageEnd) -> bool:
    """Whether the weights of the run's stages are what was written, and its log goes that far."""
    run = RunFolder(end.run)
    try:
        run.up_to(end.stage)
        return not any(flaw(run.stage(number)) for number in range(1, end.stage + 1))
    except (RunError, OSError, ValueError):  # also where somebody else has spoilt the log
        return False


# ---- forks


def differences(old: Recipe, new: Recipe, stage: int) -> list[str]:
    """What stages 1 .. `stage` of two recipes were, or would be, trained with, where that
    differs.
    """
    return changes(plan.decisive(old, stage), plan.decisive(new, stage))


ForkPoint = tuple[StageEnd | None, State | None, list[Event]]
"""The end of the stages that a run inherits, if any; where it goes on from within the next one, the
state there, and the events of the other run until then.
"""


def fork_point(source: RunFolder, stage: int | None, job: Job, facts: JsonDict) -> ForkPoint:
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
    keys = source.environment().get("keys", [])
    if facts["keys"][number - 1] not in {key_of(source.stage(number)), *keys}:
        del facts["keys"]  # trained with other versions, or by a run without keys
    return StageEnd(source.path, stage) if stage else None, state, events


def refuse_stage(run: RunFolder, stage: int, recipe: Recipe) -> None:
    """Raises RunError where the stage to go on with is not in the recipe."""
    if stage > len(recipe.stages):
        raise RunError(
            f"{run.path}: goes on with stage {stage}, and the recipe has {len(recipe.stages)}.",
            "Add stages to it, or fork from the end of an earlier one.",
        )


def retold(events: Iterable[Event], job: Job) -> Iterator[Event]:
    """Events of stages in the words of a job's recipe, which may call them otherwise."""
    for event in events:
        if isinstance(event, StageStarted):
            own, notes = job.recipe.stages[event.stage - 1], job.notes(event.stage)
            event = replace(event, name=own.name, schedule=plan.describe(own), notes=notes)
        yield event
