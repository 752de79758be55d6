"""The stage store: a finished stage is found again by a key of all that its numbers follow from."""

from __future__ import annotations

import hashlib
import json
import platform
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vitseg.data.augment import libraries
from vitseg.draws import NUMERICS
from vitseg.errors import RunError
from vitseg.files import flaw
from vitseg.plan import describe, effective
from vitseg.runs.folder import RunFolder, runs_root
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

_COMPUTE = ("torch", "transformers", "numpy", "pillow")
_OTHERS = ("vitseg", "safetensors", "pydantic")

_BEST = "IoU, then loss, then the later epoch; never the start of stage 1"
"""Which weights of a stage are its best, part of its key: stages that were finished by another rule
are not taken over.
"""

KEY_FILE = "key"
"""Beside the weights of a stage, the key under which it is found."""


def environment(job: Job) -> dict[str, Any]:
    """What the numbers of a run depend on besides its recipe; data and start weights by digests of
    their content.

    Nothing of the user's own environment. Takes as long as reading all files and weights once.
    """
    machine, model = job.machine, job.model
    gpu = machine.device.type == "cuda"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version(name) for name in _COMPUTE} | libraries(job.data.cfg.effects),
        "other_versions": {name: version(name) for name in _OTHERS},
        **machine.facts(),
        "device_name": torch.cuda.get_device_name() if gpu else platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "encoder": model.shape.source,
        "data": job.data.digest(),
        "weights": _digest([part_hashes(model), model.make()], default=str),
    }


def decisive(facts: dict[str, Any]) -> dict[str, Any]:
    """What of an environment the numbers of a run follow from."""
    return {name: facts.get(name) for name in DECISIVE}


def stage_keys(job: Job, facts: dict[str, Any]) -> list[str]:
    """A key for each stage of a job in an environment. The same key, the same bits: names, folders,
    workers and cache are not in it.
    """
    keys, clocks = [], []
    for plan in job.stages:
        settings = effective(job.recipe, plan.number, plan.batches, plan.depth)
        # what was found there is in the environment, by its content
        for files in ("source", "split_file", "group_file"):
            settings["data"].pop(files)
        clocks.append(describe(plan.stage))  # the log says how often each has moved
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
    stages: dict[str, list[tuple[float, Path]]] = {}
    for place in places:
        for pattern in ("*/stages/*", "*/trials/*/stages/*"):
            for file in place.glob(f"{pattern}/{KEY_FILE}"):
                with suppress(OSError):  # somebody deletes the run this instant
                    found = file.stat().st_mtime, file.parent
                    stages.setdefault(key_of(file.parent), []).append(found)
    for number in range(len(keys), 0, -1):
        for _, folder in sorted(stages.get(keys[number - 1], ()), reverse=True):
            end = StageEnd(folder.parents[1], number)
            if _is_whole(end):
                return end
    return None


def _is_whole(end: StageEnd) -> bool:
    """Whether the weights of the run's stages are what was written, and its log goes that far."""
    run = RunFolder(end.run)
    try:
        damaged = any(flaw(run.stage(number)) for number in range(1, end.stage + 1))
        return not damaged and bool(run.up_to(end.stage))
    except (RunError, OSError, ValueError):  # also where somebody else has spoilt the log
        return False
